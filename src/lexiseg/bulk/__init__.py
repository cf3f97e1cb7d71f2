"""Thousands of photos into one folder: `lexiseg batch`.

`inputs` and `remote` find the photos, `folder` keeps what is finished, `segmenting` does the work in one process and
`sharing` in many, `merging` makes one file of all, `running` is the whole.
A batch killed at any moment goes on by the same call and ends with the same bytes.
"""

from lexiseg.bulk.inputs import BatchError
from lexiseg.bulk.running import Outcome, run_batch
from lexiseg.bulk.sharing import Workers

__all__ = ["BatchError", "Outcome", "Workers", "run_batch"]
