"""The official MAFT+ checkpoint layout, as detectron2's checkpointer wrote it.

Source of the names: the published checkpoints of jiaosiyu1999/MAFT-Plus at commit fd12806 (names and shapes only).
FC-CLIP's layout, in which the CLIP trunk is the tuned one, with the transfer and, for training, a second whole CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lexiseg.weights import fcclip
from lexiseg.weights.rules import Ignored, Rule

TRANSFER = "cdt.cross_atten."

SYSTEM_RULES = (
    *fcclip.SYSTEM_RULES,
    Rule(TRANSFER + "MLP.{*}", "scorer.transfer.linear.{*}"),
    Rule(TRANSFER + "{*}", "scorer.transfer.{*}"),
)

IGNORED = (
    *fcclip.IGNORED,
    Ignored("backbone_t.{*}", "the frozen CLIP that training compares with"),
)

NORM_ORDERS = {171: "after_sum", 133: "before_sum"}
"""Training classes -> form of the transfer: COCO-Stuff for the semantic models, COCO panoptic for the panoptic one."""


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an official MAFT+ checkpoint: FC-CLIP's, and a transfer."""
    return fcclip.is_official(source) and any(name.startswith(TRANSFER) for name in source)


def norm_order(source: Mapping[str, Tensor]) -> str | None:
    """The form of the transfer; None where the file does not tell.

    Names and shapes of the semantic and the panoptic model are the same but for the class weights of the training
    loss, whose length is the only sign.
    """
    weights = source.get("criterion.empty_weight")
    return None if weights is None else NORM_ORDERS.get(len(weights) - 1)
