"""Measuring models on labelled photos: how good, how fast, how much memory.

What one photo shows is written down as a record of integers and scores (`records`). Records are made photo by photo, by
as many processes as one likes, in any order, in one go or in several (`running`). All numbers are computed from the
records alone, in the order of the data (`outcome`), so that neither interruptions nor processes change a digit.
"""

from lexiseg.evaluation.candidates import Candidate, candidate_of
from lexiseg.evaluation.comparison import Difference, compare
from lexiseg.evaluation.outcome import ClassResult, Evaluation
from lexiseg.evaluation.running import (
    EvaluationError,
    Plan,
    Share,
    evaluate,
    evaluate_model,
    evaluate_with_workers,
    own_device,
    record,
)

__all__ = [
    "Candidate",
    "ClassResult",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "Plan",
    "Share",
    "candidate_of",
    "compare",
    "evaluate",
    "evaluate_model",
    "evaluate_with_workers",
    "own_device",
    "record",
]
