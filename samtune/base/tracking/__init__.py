"""Where do the numbers of a run go, and how does MLflow get them?"""

from samtune.base.tracking.about import flatten as flatten
from samtune.base.tracking.log import RunLog as RunLog
from samtune.base.tracking.log import SweepLog as SweepLog
