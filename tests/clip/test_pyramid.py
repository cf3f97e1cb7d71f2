"""Our own image tower, as timm and open_clip see it."""

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel

import lexiseg.clip.pyramid  # noqa: F401 - registers the tower
from lexiseg.clip.open_clip import build_image_tower
from lexiseg.train.recipes.tiny_clip import CONFIG
from lexiseg.types import Images


@pytest.fixture(scope="module")
def tower() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("lexiseg_pyramid_tiny").eval()


def test_dense_map_is_the_finest_of_four_levels(tower: torch.nn.Module) -> None:
    photo = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        dense, levels = tower.forward_intermediates(photo)
        assert [tuple(level.shape) for level in levels] == [(1, 128, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
        assert torch.equal(dense, levels[0])
        assert torch.equal(dense, tower.forward_features(photo))
        two = tower.forward_intermediates(photo, indices=2, intermediates_only=True)
    assert torch.equal(two[0], levels[2])
    assert torch.equal(two[1], levels[3])


def test_projecting_pixels_is_projecting_the_pooled_photo(tower: torch.nn.Module) -> None:
    torch.manual_seed(0)
    model = TimmModel("lexiseg_pyramid_tiny", 256, pool="avg", proj="linear").eval()
    photo = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        pixels = model.head.proj(model.trunk.forward_features(photo).flatten(2).transpose(1, 2))
        torch.testing.assert_close(pixels.mean(1), model(photo), rtol=1e-4, atol=1e-5)


def test_serves_as_the_trunk_of_a_system() -> None:
    tower = build_image_tower(CONFIG, device="cpu")
    features = tower.trunk(Images(torch.full((1, 3, 64, 64), 90.0), ((64, 48),), ((64, 48),)))
    assert [m.shape[-1] for m in features.maps] == [16, 8, 4, 2]
    assert features.dense.shape == (1, 128, 16, 16)


def test_has_no_downloads() -> None:
    with pytest.raises(ValueError, match="no weights of its own"):
        timm.create_model("lexiseg_pyramid_tiny", pretrained=True)
