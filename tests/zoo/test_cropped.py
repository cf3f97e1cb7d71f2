"""The CLIP of a model on masked crops."""

from pathlib import Path

import pytest
import torch

from lexiseg.clip.convnet import MaskPromptedConvNet
from lexiseg.images import Canvas, Photo
from lexiseg.regions.crops import MaskedCrops
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.cropped import crop_reader, with_crops
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import load_folder, save_model_folder
from tests.colour_model import colour_model
from tests.mining.colour_photos import striped
from tests.train.recipes.test_maftplus import toy_model
from tests.train.recipes.test_ovseg import toy_clip
from tests.zoo.conftest import TOWERS


def test_a_convnet_reads_crops_as_its_clip_reads_photos(tmp_path: Path) -> None:
    model = load_folder(toy_model(tmp_path / "toy"))
    reader = crop_reader(model, 64)
    assert isinstance(reader.tower, MaskPromptedConvNet) and reader.tower.image_size == 64
    images = Canvas(64, 64)([Photo(striped("red", side=64), "red")])
    everything = torch.full((1, 1, 8, 8), 9.0)
    with torch.inference_mode():
        found = reader(images, None, everything)
        pooled = model.system.embedder(images, model.system.encoder(images), everything)
    # The photo as a whole: the mean of the map, projected, is what pooling under a mask of everything gives.
    torch.testing.assert_close(found.embeds, pooled.embeds, rtol=1e-4, atol=1e-4)
    assert {id(p) for p in reader.tower.trunk.parameters()} == {id(p) for p in model.system.encoder.parameters()}


def test_a_reader_of_crops_stays_what_it_is(tmp_path: Path) -> None:
    model = load_folder(toy_clip(tmp_path / "clip"))
    assert crop_reader(model) is model.system.embedder
    with pytest.raises(ValueError, match="reads crops of 32 pixels, not of 48"):
        crop_reader(model, 48)


def test_masks_of_the_model_are_read_from_crops(tmp_path: Path) -> None:
    model = load_folder(toy_model(tmp_path / "toy"))
    cropped = with_crops(model, 48)
    assert isinstance(cropped.system.embedder, MaskedCrops) and cropped.system.generator is model.system.generator
    words = model.text_bank(Vocabulary.parse("red, blue"))
    with torch.inference_mode():
        _, scores = cropped.system(model.canvas([Photo(striped("red", "blue"), "x")]), words)
    assert scores.class_probs.isfinite().all()


def test_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colours: crops are read by a CLIP that is there as a whole"):
        crop_reader(colour_model())
    tower = TOWERS["resnet"]
    system, text = clustered(tower, device="cpu"), text_encoder(tower, device="cpu")
    arguments = {"tower": tower}
    save_model_folder(tmp_path / "m", system, text, builder="clustered", arguments=arguments, templates=["{}"])
    with pytest.raises(ValueError, match="ConvNet with mask pooling"):
        crop_reader(load_folder(tmp_path / "m"))
