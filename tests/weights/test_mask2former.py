"""The official Mask2Former layout: every tensor accounted for, sizes read off the shapes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.weights import mask2former as layout
from lexiseg.weights.files import read_checkpoint
from lexiseg.weights.rules import ConversionError, convert, shapes_of, source_name
from lexiseg.zoo.mask2former import SWIN, mask2former

TOY = {"width": 8, "depths": (1, 2, 2, 1), "heads": (1, 2, 2, 4), "window": 3}
TOY_DECODERS = {
    "num_queries": 5,
    "width": 16,
    "mask_width": 24,
    "encoder_layers": 2,
    "encoder_ffn_width": 20,
    "decoder_layers": 3,
    "decoder_ffn_width": 28,
    "points": 2,
    "norm_groups": 4,
}


def official(generator: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a generator under the official names, with what else the files hold."""
    rules = layout.generator_rules("")
    source = {}
    for name, tensor in generator.state_dict().items():
        # Read backwards, the old name of the queries comes before the new one.
        source[(source_name(name, rules) or name).replace("static_query", "query_feat")] = tensor
    for name in list(source):
        if name.endswith("relative_position_bias_table"):
            index = name.replace("bias_table", "index")
            source[index] = torch.zeros(source[name].shape[0], dtype=torch.int64, device=tensor.device)
    return source | {"criterion.empty_weight": torch.ones(134)}


@pytest.mark.parametrize(("swin", "queries"), [("swin_tiny", 100), ("swin_large", 200)])
def test_published_sizes_are_read_and_converted(swin: str, queries: int) -> None:
    generator = mask2former(swin, num_queries=queries)
    source = official(generator)
    assert layout.is_official(source)
    found = layout.describe_swin(source)
    assert {name: getattr(found, name) for name in SWIN[swin]} == SWIN[swin]
    assert layout.describe_classes(source) == 133
    sizes = layout.describe_decoders(source)
    assert (sizes["num_queries"], sizes["encoder_ffn_width"], sizes["decoder_layers"]) == (queries, 1024, 9)
    account = convert(source, shapes_of(generator.state_dict()), layout.generator_rules(""), layout.IGNORED)
    assert len(account.tensors) == len(generator.state_dict()) and account.fresh == {}
    assert len(account.ignored) == 1 + sum(SWIN[swin]["depths"])


@pytest.mark.parametrize("query_name", ["query_feat", "static_query"])
def test_from_a_pickle_to_the_same_numbers(query_name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = mask2former(TOY, num_classes=4, device="cpu", **TOY_DECODERS)
    named = {name.replace("query_feat", query_name): array.numpy() for name, array in official(generator).items()}
    content = {"model": named, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))

    source = read_checkpoint(tmp_path / "model_final.pkl")
    sizes = layout.describe_decoders(source)
    assert sizes.pop("heads_times_points") == 8 * TOY_DECODERS["points"]
    assert sizes == {name: value for name, value in TOY_DECODERS.items() if name in sizes}
    found = layout.describe_swin(source)
    assert (found.width, found.depths, found.heads, found.window) == tuple(TOY.values())
    account = convert(source, shapes_of(generator.state_dict()), layout.generator_rules(""), layout.IGNORED)
    for name, tensor in generator.state_dict().items():
        assert np.array_equal(account.tensors[name].numpy(), tensor.numpy()), name


def test_a_renamed_or_missing_tensor_is_told() -> None:
    generator = mask2former(TOY, num_classes=4, **TOY_DECODERS)
    source = official(generator)
    source["backbone.layers.0.blocks.0.attn.qvk.weight"] = source.pop("backbone.layers.0.blocks.0.attn.qkv.weight")
    with pytest.raises(ConversionError) as told:
        convert(source, shapes_of(generator.state_dict()), layout.generator_rules(""), layout.IGNORED)
    assert "backbone.layers.0.blocks.0.attn.qvk.weight" in str(told.value)
    assert "backbone.layers.0.blocks.0.attn.qkv.weight" in str(told.value)
    with pytest.raises(ConversionError, match="table of no window"):
        layout.describe_swin({"backbone.patch_embed.proj.weight": torch.zeros(1)})
