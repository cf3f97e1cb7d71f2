from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lexiseg.proposals.fcclip import FCCLIPGenerator, fcclip_generator
from lexiseg.types import Features, Images, TextBank

CHANNELS = (6, 8, 10, 12)
CANVAS = (64, 96)
SMALL = {
    "width": 16,
    "mask_width": 24,
    "num_queries": 7,
    "encoder_layers": 2,
    "encoder_ffn_width": 20,
    "decoder_layers": 4,
    "decoder_ffn_width": 28,
    "heads": 4,
    "points": 2,
    "norm_groups": 4,
}


def build(seed: int = 0) -> FCCLIPGenerator:
    """A generator that is away from its start: offsets and attention weights are zero there."""
    torch.manual_seed(seed)
    generator = fcclip_generator(CHANNELS, joint_width=9, **SMALL)
    for layer in generator.pixel_decoder.transformer.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.3)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.3)
    return generator


def inputs(batch: int = 2, templates: int = 1) -> tuple[Images, Features, TextBank]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    height, width = CANVAS
    images = Images(torch.zeros(batch, 3, height, width), (CANVAS,) * batch, (CANVAS,) * batch)
    strides = zip(CHANNELS, (4, 8, 16, 32), strict=True)
    maps = tuple(normal(batch, channels, height // s, width // s) for channels, s in strides)
    rows = functional.normalize(normal(5, templates, 9), dim=-1)
    text = TextBank(rows, rows, torch.tensor([0, 0, 1, 2, 2]), torch.zeros(3, dtype=torch.bool))
    return images, Features(maps=maps, dense=maps[-1]), text


def test_shapes() -> None:
    proposals = build()(*inputs())
    assert proposals.mask_logits.shape == (2, 7, 16, 24)
    assert proposals.class_logits.shape == (2, 7, 4)


def test_training_form_ends_with_the_inference_form() -> None:
    """To rounding: relative to the largest entry, and no blocked position flips on these numbers."""
    generator = build()
    with torch.no_grad():
        steps = generator.all_steps(*inputs())
        proposals = generator(*inputs())
    assert len(steps) == 5
    last = steps[-1].proposals
    for ours, expected in ((proposals.mask_logits, last.mask_logits), (proposals.class_logits, last.class_logits)):
        limit = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(ours, expected, rtol=0, atol=limit)


def test_blocking_masks_are_at_the_size_of_the_next_memory() -> None:
    steps = build().all_steps(*inputs())
    coarse, middle, fine = 2 * 3, 4 * 6, 8 * 12
    assert [step.blocked.shape[-1] for step in steps] == [coarse, middle, fine, coarse, middle]
    assert any(step.blocked.any() for step in steps)


def test_query_whose_mask_is_empty_looks_everywhere() -> None:
    decoder = build().decoder
    x = torch.randn(1, 7, 16)
    source = (torch.randn(1, 6, 16), torch.randn(1, 6, 16))
    everything, nothing = torch.zeros(1, 7, 6, dtype=torch.bool), torch.ones(1, 7, 6, dtype=torch.bool)
    torch.testing.assert_close(decoder._layer(0, x, source, nothing), decoder._layer(0, x, source, everything))


def test_images_of_a_batch_do_not_mix() -> None:
    generator = build()
    images, features, text = inputs()
    second = Features(maps=tuple(x[1:] for x in features.maps), dense=features.dense[1:])
    alone = generator(images, second, text)
    together = generator(images, features, text)
    torch.testing.assert_close(together.mask_logits[1:], alone.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.class_logits[1:], alone.class_logits, rtol=1e-4, atol=1e-4)


def test_vocabulary_changes_scores_but_never_masks() -> None:
    generator = build()
    images, features, text = inputs()
    fewer = TextBank(text.query[:3], text.region[:3], text.class_of[:3], text.seen[:2])
    all_classes, two_classes = generator(images, features, text), generator(images, features, fewer)
    assert torch.equal(all_classes.mask_logits, two_classes.mask_logits)
    torch.testing.assert_close(all_classes.class_logits[..., :2], two_classes.class_logits[..., :2])
    torch.testing.assert_close(all_classes.class_logits[..., -1], two_classes.class_logits[..., -1])  # void


def test_templates_are_averaged_to_unit_rows() -> None:
    generator = build()
    images, features, text = inputs(templates=3)
    mean = functional.normalize(text.query.mean(1, keepdim=True), dim=-1)
    torch.testing.assert_close(
        generator(images, features, text).class_logits,
        generator(images, features, replace(text, query=mean)).class_logits,
    )


def test_length_of_the_void_embedding_does_not_matter() -> None:
    generator = build()
    before = generator(*inputs()).class_logits
    with torch.no_grad():
        generator.void_embedding.weight.mul_(7)
    torch.testing.assert_close(generator(*inputs()).class_logits, before)


def test_every_parameter_gets_a_gradient() -> None:
    generator = build()
    steps = generator.all_steps(*inputs())
    loss = sum(s.proposals.mask_logits.square().mean() + s.proposals.class_logits.square().mean() for s in steps)
    loss.backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []


def test_maps_whose_sizes_are_no_powers_of_each_other() -> None:
    """As a tower without a canvas of multiples of 32 makes them."""
    images, _, text = inputs(batch=1)
    sizes = ((17, 23), (9, 12), (5, 6), (3, 3))
    maps = tuple(torch.randn(1, c, *size) for c, size in zip(CHANNELS, sizes, strict=True))
    proposals = build()(images, Features(maps=maps, dense=maps[-1]), text)
    assert proposals.mask_logits.shape == (1, 7, 17, 23)


def test_initial_values() -> None:
    """The scales of the official initialisation: uniform ranges by fan, embeddings of unit variance."""
    torch.manual_seed(0)
    generator = fcclip_generator((64, 128, 256, 512), joint_width=96, num_queries=100)
    pixel, decoder = generator.pixel_decoder, generator.decoder

    def bound(weight: torch.Tensor, expected: float) -> None:
        assert 0.97 * expected < float(weight.detach().abs().max()) <= expected

    bound(pixel.input_proj[0][0].weight, (6 / (512 + 256)) ** 0.5)  # Xavier
    bound(pixel.layer_1.weight, (3 / (256 * 9)) ** 0.5)  # c2 Xavier: the fan-in alone
    bound(pixel.mask_features.weight, (3 / 256) ** 0.5)
    layer = pixel.transformer.encoder.layers[0]
    bound(layer.self_attn.value_proj.weight, (6 / 512) ** 0.5)
    bound(layer.linear1.weight, (6 / (256 + 1024)) ** 0.5)
    attention = decoder.transformer_cross_attention_layers[0].multihead_attn
    bound(attention.in_proj_weight, (6 / (768 + 256)) ** 0.5)  # of the packed matrix
    bound(decoder.transformer_ffn_layers[0].linear2.weight, (6 / (256 + 2048)) ** 0.5)
    bound(decoder.mask_embed.layers[0].weight, 256**-0.5)  # the framework's default
    for zero in (pixel.input_proj[0][0].bias, pixel.mask_features.bias, attention.in_proj_bias):
        assert not zero.any()
    for normal in (decoder.query_feat.weight, decoder.query_embed.weight, pixel.transformer.level_embed):
        assert float(normal.detach().std()) == pytest.approx(1, abs=0.1)
    assert float(decoder.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)


def test_official_sizes() -> None:
    """302 tensors and 20.7 million parameters with ConvNeXt-L, as in the released file."""
    with torch.device("meta"):
        generator = fcclip_generator((192, 384, 768, 1536), joint_width=768)
    sizes = [p.numel() for p in generator.parameters()]
    assert len(sizes) == len(generator.state_dict()) == 302
    assert sum(sizes) == pytest.approx(20.7e6, rel=0.005)
