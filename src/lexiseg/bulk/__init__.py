"""Thousands of photos into one folder: `lexiseg batch`.

`inputs` finds the photos, `folder` keeps what is finished, `running` does the work, `merging` makes one file of all.
A batch killed at any moment goes on by the same call and ends with the same bytes.
"""

from lexiseg.bulk.inputs import BatchError
from lexiseg.bulk.running import Outcome, run_batch

__all__ = ["BatchError", "Outcome", "run_batch"]
