"""Swin against timm's, where the two mean the same, and what the released models do differently."""

import timm
import torch

from lexiseg.backbones.swin import Swin, from_windows, relative_index, shift_mask, to_windows
from lexiseg.types import Images

WIDTH, DEPTHS, HEADS = 8, (2, 2, 2, 2), (1, 2, 2, 4)


def build(window: int, **options: float) -> Swin:
    torch.manual_seed(0)
    swin = Swin(WIDTH, DEPTHS, HEADS, window, **options)
    for name, parameter in swin.named_parameters():
        if "bias" in name:  # zero, or nearly so, at the start
            torch.nn.init.normal_(parameter)
    return swin.eval()


def timm_maps(swin: Swin, window: int, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The maps of timm's model with the same weights: it has the merging at the start of the next stage."""
    other = timm.models.swin_transformer.SwinTransformer(
        img_size=tuple(pixels.shape[-2:]),
        patch_size=4,
        embed_dim=WIDTH,
        depths=DEPTHS,
        num_heads=HEADS,
        window_size=window,
        num_classes=0,
        always_partition=True,
    ).eval()
    state = {}
    for name, tensor in swin.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            name = ".".join(["layers", str(int(parts[1]) + 1), *parts[2:]])
        state[name] = tensor
    missing = other.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith("norm.") for name in missing), missing
    _, maps = other.forward_intermediates(pixels)
    return [swin.get_submodule(f"norm{i}")(x.movedim(1, -1)).movedim(-1, 1) for i, x in enumerate(maps)]


@torch.no_grad()
def test_equals_timm_where_windows_are_full() -> None:
    """Where they are not, timm rolls a map before it fills the windows, and the released models after it."""
    swin = build(2)
    pixels = torch.randn(2, 3, 64, 128)
    expected = timm_maps(swin, 2, pixels)
    for found, oracle in zip(swin.maps(pixels).maps, expected, strict=True):
        torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-4)


def test_relative_index_by_hand() -> None:
    """Window 2, table of 9 rows: the query at (0, 0) looks at (1, 1) with row (-1 + 1) * 3 + (-1 + 1)."""
    index = relative_index(2, torch.device("cpu"))
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_windows_and_back() -> None:
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    windows = to_windows(x, 2)
    assert windows.shape == (12, 4, 3)
    assert torch.equal(windows[1], x[0, :2, 2:4].reshape(4, 3))
    assert torch.equal(from_windows(windows, 2, 4, 6), x)


def test_shift_mask_by_hand() -> None:
    """One row of windows of 2 over 4 columns, rolled by one: only the last column came from elsewhere."""
    mask = shift_mask(2, 4, 2, torch.device("cpu"))
    assert mask.shape == (2, 4, 4)
    # Rows are two regions in every window; columns only in the last one.
    assert (mask[0, 0] == torch.tensor([0, 0, -100, -100])).all()
    assert (mask[1, 0] == torch.tensor([0, -100, -100, -100])).all()


@torch.no_grad()
def test_a_map_of_one_window_is_shifted_too() -> None:
    """Libraries leave the shift out there; the released models were trained with it."""
    swin = build(5)
    tokens = torch.randn(1, 5, 5, WIDTH)
    plain, shifted = swin.layers[0].blocks
    shifted.load_state_dict(plain.state_dict())
    mask = shift_mask(5, 5, 5, tokens.device)
    assert not torch.allclose(plain(tokens, mask), shifted(tokens, mask))


@torch.no_grad()
def test_windows_are_filled_before_they_are_rolled() -> None:
    """A map of 2 x 3 positions in windows of 2: the last column shares a window with the one that fills."""
    swin = build(2)
    tokens = torch.randn(1, 2, 3, WIDTH)
    block = swin.layers[0].blocks[1]
    filled = torch.nn.functional.pad(tokens, (0, 0, 0, 1)).roll((-1, -1), dims=(1, 2))
    windows = block.attn(to_windows(filled, 2), shift_mask(2, 4, 2, tokens.device))
    expected = from_windows(windows, 2, 2, 4).roll((1, 1), dims=(1, 2))[:, :, :3]
    torch.testing.assert_close(block.attend(tokens, shift_mask(2, 4, 2, tokens.device)), expected)


@torch.no_grad()
def test_padding_of_the_canvas_is_zero_after_normalisation() -> None:
    swin = build(2)
    pixels = torch.rand(1, 3, 64, 64) * 255
    images = Images(pixels, ((40, 64),), ((40, 64),))
    normalised = (pixels - torch.tensor(swin.mean)[:, None, None]) / torch.tensor(swin.std)[:, None, None]
    normalised[:, :, 40:] = 0
    features, expected = swin(images), swin.maps(normalised)
    assert [x.shape[-2:] for x in features.maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert [x.shape[1] for x in features.maps] == list(swin.channels)
    for found, oracle in zip(features.maps, expected.maps, strict=True):
        assert torch.equal(found, oracle)


def test_every_parameter_learns_and_parts_are_skipped_only_in_training() -> None:
    swin = build(2, drop_path=0.9)
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(swin.maps(pixels).dense, swin.maps(pixels).dense)
    sum(x.square().sum() for x in swin.maps(pixels).maps).backward()
    assert [name for name, p in swin.named_parameters() if p.grad is None or not p.grad.any()] == []
    swin.train()
    torch.manual_seed(1)
    assert not torch.equal(swin.maps(pixels).dense, swin.maps(pixels).dense)
