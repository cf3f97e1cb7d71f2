"""Mask2Former's generator: shapes, both forms, no words."""

import torch

from lexiseg.proposals.mask2former import Mask2FormerGenerator, mask2former_generator
from lexiseg.types import Features, Images
from tests.proposals.test_fcclip import CHANNELS, SMALL, inputs

CLASSES = 5


def build() -> Mask2FormerGenerator:
    """A generator that is away from its start: offsets and attention weights are zero there."""
    torch.manual_seed(0)
    generator = mask2former_generator(CHANNELS, CLASSES, **SMALL).eval()
    for layer in generator.pixel_decoder.transformer.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.3)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.3)
    return generator


@torch.no_grad()
def test_shapes_and_no_words_are_read() -> None:
    images, features, text = inputs()
    generator = build()
    proposals = generator(images, features, text)
    assert proposals.mask_logits.shape == (2, SMALL["num_queries"], 16, 24)
    assert proposals.class_logits is not None
    assert proposals.class_logits.shape == (2, SMALL["num_queries"], CLASSES + 1)
    other = generator(images, features, inputs(templates=3)[2])
    assert torch.equal(proposals.class_logits, other.class_logits)


@torch.no_grad()
def test_training_form_ends_with_the_inference_form() -> None:
    generator, given = build(), inputs()
    found, last = generator(*given), generator.all_steps(*given)[-1].proposals
    torch.testing.assert_close(found.mask_logits, last.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.class_logits, last.class_logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix() -> None:
    images, features, text = inputs()
    generator = build()
    together = generator(images, features, text)
    one = Features(tuple(x[1:] for x in features.maps), features.dense[1:])
    alone = generator(Images(images.pixels[1:], images.sizes_hw[1:], images.original_hw[1:]), one, text)
    torch.testing.assert_close(together.mask_logits[1:], alone.mask_logits, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns() -> None:
    generator, given = build(), inputs()
    for step in generator.all_steps(*given):
        proposals = step.proposals
        assert proposals.class_logits is not None
        (proposals.mask_logits.square().mean() + proposals.class_logits.square().mean()).backward(retain_graph=True)
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()] == []
