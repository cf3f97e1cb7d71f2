"""The rule engine on toy names, on the meta device where values do not matter."""

import pytest
import torch

from lexiseg.weights.rules import ConversionError, Fresh, Ignored, Rule, convert, source_name

RULES = (
    Rule("backbone.layers.{}.norm.{*}", "encoder.blocks.{}.norm.{*}"),
    Rule("backbone.{*}", "encoder.{*}"),
    Rule("head.weight", "head.weight", change=torch.t),
)
IGNORED = (Ignored("criterion.{*}", "training only"),)
FRESH = (Fresh("{*}.counter", "a counter"),)
TARGETS = {
    "encoder.blocks.0.norm.weight": (4,),
    "encoder.blocks.10.norm.weight": (4,),
    "encoder.stem": (2, 3),
    "encoder.bn.counter": (),
    "head.weight": (5, 4),
}


def source() -> dict[str, torch.Tensor]:
    shapes = {
        "backbone.layers.0.norm.weight": (4,),
        "backbone.layers.10.norm.weight": (4,),
        "backbone.stem": (2, 3),
        "head.weight": (4, 5),
        "criterion.empty_weight": (7,),
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_every_tensor_is_accounted_for() -> None:
    account = convert(source(), TARGETS, RULES, IGNORED, FRESH)
    assert {name: tuple(tensor.shape) for name, tensor in account.tensors.items()} == {
        name: shape for name, shape in TARGETS.items() if name != "encoder.bn.counter"
    }
    assert account.used["backbone.layers.10.norm.weight"] == "encoder.blocks.10.norm.weight"
    assert account.ignored == {"criterion.empty_weight": "training only"}
    assert account.fresh == {"encoder.bn.counter": "a counter"}
    assert set(account.used) | set(account.ignored) == set(source())


def test_a_fresh_target_is_filled_when_the_file_has_it() -> None:
    account = convert({**source(), "backbone.bn.counter": torch.zeros(())}, TARGETS, RULES, IGNORED, FRESH)
    assert account.fresh == {} and "encoder.bn.counter" in account.tensors


def test_a_renamed_tensor_is_refused_with_both_names() -> None:
    broken = source()
    broken["backbone.stemm"] = broken.pop("backbone.stem")
    with pytest.raises(ConversionError) as caught:
        convert(broken, TARGETS, RULES, IGNORED, FRESH)
    assert "in the file, but not in the model:\n    backbone.stemm" in str(caught.value)
    assert "in the model, but not in the file:\n    backbone.stem (for encoder.stem)" in str(caught.value)


def test_a_name_no_rule_knows_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"1 in the file, but not in the model:\n    optimizer.state"):
        convert({**source(), "optimizer.state": torch.zeros(1)}, TARGETS, RULES, IGNORED, FRESH)


def test_a_missing_tensor_is_refused() -> None:
    broken = source()
    del broken["head.weight"]
    with pytest.raises(ConversionError, match=r"1 in the model, but not in the file:\n    head.weight"):
        convert(broken, TARGETS, RULES, IGNORED, FRESH)


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(ConversionError, match=r"backbone.stem: \[3, 2\] in the file, \[2, 3\] in the model"):
        convert({**source(), "backbone.stem": torch.zeros(3, 2)}, TARGETS, RULES, IGNORED, FRESH)


def test_all_kinds_of_difference_come_at_once() -> None:
    broken = {**source(), "extra": torch.zeros(1), "backbone.stem": torch.zeros(1)}
    del broken["head.weight"]
    with pytest.raises(ConversionError) as caught:
        convert(broken, TARGETS, RULES, IGNORED, FRESH)
    assert all(name in str(caught.value) for name in ("extra", "backbone.stem", "head.weight"))


def test_two_sources_for_one_target_are_refused() -> None:
    rules = (*RULES, Rule("trunk.stem", "encoder.stem"))
    with pytest.raises(ConversionError, match=r"encoder.stem from backbone.stem and from trunk.stem"):
        convert({**source(), "trunk.stem": torch.zeros(2, 3)}, TARGETS, rules, IGNORED, FRESH)


def test_the_first_rule_that_matches_decides() -> None:
    account = convert({"a.1": torch.zeros(2)}, {"first.1": (2,)}, [Rule("a.{}", "first.{}"), Rule("a.{*}", "b.{*}")])
    assert account.used == {"a.1": "first.1"}


def test_layer_numbers_match_digits_only() -> None:
    with pytest.raises(ConversionError, match=r"layer.x.weight"):
        convert({"layer.x.weight": torch.zeros(1)}, {"l.0.weight": (1,)}, [Rule("layer.{}.weight", "l.{}.weight")])


def test_long_lists_of_differences_are_cut() -> None:
    with pytest.raises(ConversionError, match="and 12 more"):
        convert({f"t{i}": torch.zeros(1) for i in range(20)}, {}, [])


def test_rules_read_backwards() -> None:
    assert source_name("encoder.blocks.3.norm.bias", RULES) == "backbone.layers.3.norm.bias"
    assert source_name("nothing", RULES) is None
