"""How the selected parameters train: compact tuning, additions, attach and merge."""

from samtune.tuning.attach import attach, merge
from samtune.tuning.counts import Counts, count, count_by_block
from samtune.tuning.hooks import added_modules, added_state

__all__ = ["Counts", "added_modules", "added_state", "attach", "count", "count_by_block", "merge"]
