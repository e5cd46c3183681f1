"""What does a budget say? A number of parameters, or a share of the model such as "0.5%"."""

import re
from decimal import Decimal

BUDGETS = (
    'a number of parameters >= 1, such as 400000, or a share of the model above 0 % and up to 100 %, such as "0.5%"'
)


def read_budget(budget: object) -> int | Decimal | None:
    """Returns a number of parameters as an int, a share as a Decimal in percent, and None for anything else."""
    if isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1:
        return budget
    percent = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", budget) if isinstance(budget, str) else None
    return Decimal(percent[1]) if percent and 0 < Decimal(percent[1]) <= 100 else None
