"""How the selected parameters train: compact tuning, additions, attach and merge."""

from samtune.tuning.attach import attach, merge
from samtune.tuning.counts import Counts, count, count_by_block

__all__ = ["Counts", "attach", "count", "count_by_block", "merge"]
