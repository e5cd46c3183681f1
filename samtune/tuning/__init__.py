"""How the selected parameters train: compact tuning, attach and merge."""

from samtune.tuning.attach import Counts, attach, count, count_by_block, merge

__all__ = ["Counts", "attach", "count", "count_by_block", "merge"]
