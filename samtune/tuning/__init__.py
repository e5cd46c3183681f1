"""How the selected parameters train: compact tuning, additions, attach and merge."""

from samtune.tuning.attach import Counts, attach, count, count_by_block, merge
from samtune.tuning.hooks import added_modules, added_state

__all__ = ["Counts", "added_modules", "added_state", "attach", "count", "count_by_block", "merge"]
