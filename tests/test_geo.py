"""GeoTIFF in and out, and outlines that fall where the pixels are."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from lexiseg.images import ImageError, ImageLimits, ImageTooLargeError, resized
from lexiseg.segmenter import Segmenter
from lexiseg.tiling import Tiling
from tests.colour_model import colour_model

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
from rasterio import Affine, features, warp  # noqa: E402

from lexiseg import geo  # noqa: E402

WORDS = "red, green, blue"
UTM = ("EPSG:32650", Affine(0.5, 0, 448000, 0, -0.5, 4418000))
COARSE_UTM = ("EPSG:32633", Affine(500, 0, 300000, 0, -500, 6700000))
DEGREES = ("EPSG:4326", Affine(0.0001, 0, 116.39, 0, -0.0001, 39.9))
TURNED = ("EPSG:32650", Affine.translation(448000, 4418000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5))
FEET = ("EPSG:2263", Affine(1, 0, 980000, 0, -1, 200000))


def photo(height: int = 120, width: int = 180) -> np.ndarray:
    """A real one, small; its reddest, greenest and bluest regions have many holes."""
    china = Image.fromarray(load_sample_image("china.jpg"))
    return np.asarray(china.crop((100, 120, 460, 360)).resize((width, height)))


def write(path: Path, bands: np.ndarray, place: tuple[str, Affine] | None = UTM, **more: Any) -> Path:
    """bands [C, H, W] or [H, W, 3]."""
    bands = np.moveaxis(bands, -1, 0) if bands.shape[-1] == 3 else bands
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2], **more}
    if place:
        profile |= {"crs": place[0], "transform": place[1]}
    with rasterio.open(path, "w", dtype=bands.dtype.name, **profile) as file:
        file.write(bands)
    return path


def segmented(path: Path, task: str = "semantic", **tiles: Any) -> tuple[Any, dict[str, Path], geo.GeoPhoto]:
    opened = geo.open_geotiff(path)
    segmenter = Segmenter(colour_model(), "cpu", tiles=Tiling(**tiles) if tiles else None)
    result = segmenter(opened, WORDS, task)  # type: ignore[call-overload]
    return result, geo.save(result, opened.reference, path.parent / "out"), opened


def signed_area(ring: list[list[float]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


@pytest.mark.parametrize(
    "place", [UTM, COARSE_UTM, DEGREES, TURNED, FEET], ids=["utm", "coarse", "degrees", "turned", "feet"]
)
def test_outlines_fall_where_the_pixels_are(tmp_path: Path, place: tuple[str, Affine]) -> None:
    """Read back as any program would read them, and painted on the grid of the photo, they are the labels."""
    result, paths, _ = segmented(write(tmp_path / "a.tif", photo(), place), side=96, overlap=24)
    told = json.loads(paths["geojson"].read_text(encoding="utf-8"))
    assert set(told) == {"type", "features"}
    assert any(len(feature["geometry"]["coordinates"]) > 1 for feature in told["features"])
    painted = []
    for feature in told["features"]:
        assert feature["geometry"]["type"] == "Polygon"
        assert feature["properties"]["class"] == WORDS.split(", ")[feature["properties"]["class_index"]]
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1]
            assert (signed_area(ring) > 0) == (number == 0)  # RFC 7946: the outer one counter-clockwise, holes not
        lies = feature["geometry"]
        if place is not DEGREES:
            lies = warp.transform_geom("EPSG:4326", place[0], lies)
        painted.append((lies, feature["properties"]["class_index"] + 1))
    back = features.rasterize(painted, out_shape=result.size_hw, transform=place[1], dtype="uint8")
    with rasterio.open(paths["geotiff"]) as file:
        labels = file.read(1)
    assert np.array_equal(labels, result.label_map)
    assert len(np.unique(labels)) == 3
    for k in range(3):
        one, other = labels == k, back == k + 1
        assert (one & other).sum() > 0.999 * (one | other).sum()
    if place is DEGREES:
        assert np.array_equal(back, labels + 1)


@pytest.mark.parametrize(("place", "square_metres"), [(UTM, 0.25), (TURNED, 0.25), (FEET, 0.3048006096**2)])
def test_areas_are_of_the_ground(tmp_path: Path, place: tuple[str, Affine], square_metres: float) -> None:
    result, paths, _ = segmented(write(tmp_path / "a.tif", photo(), place))
    areas: dict[str, float] = {}
    for feature in json.loads(paths["geojson"].read_text(encoding="utf-8"))["features"]:
        told = feature["properties"]
        areas[told["class"]] = areas.get(told["class"], 0) + told["area_m2"]
    for segment in result.segments:
        assert areas[segment.label] == pytest.approx(segment.area * square_metres, rel=1e-5)


def test_the_label_file_says_what_it_is(tmp_path: Path) -> None:
    result, paths, _ = segmented(write(tmp_path / "a.tif", photo(600, 700)))
    with rasterio.open(paths["geotiff"]) as file:
        assert file.crs == rasterio.crs.CRS.from_string(UTM[0])
        assert file.transform == UTM[1]
        assert (file.dtypes[0], file.nodata, file.compression.value, file.profile["tiled"]) == (
            "uint8",
            255,
            "DEFLATE",
            True,
        )
        assert json.loads(file.tags()["values"]) == {"0": "red", "1": "green", "2": "blue"}
        for segment, color in zip(result.segments, result.colors, strict=True):
            assert file.colormap(1)[segment.id] == (*color, 255)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
@pytest.mark.parametrize("tiles", [{}, {"side": 96, "overlap": 24}], ids=["whole", "tiles"])
def test_what_is_not_there_has_no_class(tmp_path: Path, task: str, tiles: dict[str, int]) -> None:
    if task == "instance" and tiles:
        pytest.skip("instances are not joined across tiles")
    rgb = photo().copy()
    rgb[:, 20:60] = 0
    rgb[:, 60:][rgb[:, 60:] == 0] = 1
    rgb[:, :20][rgb[:, :20] == 0] = 1
    result, paths, opened = segmented(write(tmp_path / "a.tif", rgb, nodata=0), task, **tiles)
    assert opened.blank is not None
    assert np.array_equal(np.asarray(opened.blank), (rgb == 0).any(2))
    blank = np.zeros(rgb.shape[:2], bool)
    blank[:, 20:60] = True
    assert (result.label_map[blank] == (-1 if task == "semantic" else 0)).all()
    assert all(segment.area == segment.mask.sum() for segment in result.segments)
    assert not any((segment.mask & blank).any() for segment in result.segments)
    with rasterio.open(paths["geotiff"]) as file:
        assert not file.dataset_mask()[blank].any()
    told = json.loads(paths["geojson"].read_text(encoding="utf-8"))["features"]
    covered = sum(feature["properties"]["area_m2"] for feature in told)
    assert covered == pytest.approx(sum(segment.area for segment in result.segments) * 0.25)


def test_things_are_features_of_their_own(tmp_path: Path) -> None:
    rgb = np.full((100, 300, 3), 200, np.uint8)
    rgb[..., :2] = 0  # blue
    rgb[20:60, 10:60] = rgb[20:60, 150:290] = (200, 0, 0)
    result, paths, _ = segmented(write(tmp_path / "a.tif", rgb), "panoptic", side=96, overlap=24)
    told = json.loads(paths["geojson"].read_text(encoding="utf-8"))["features"]
    ids = {segment.id: segment.label for segment in result.segments}
    assert {feature["properties"]["segment"]: feature["properties"]["class"] for feature in told} == ids
    with rasterio.open(paths["geotiff"]) as file:
        assert file.nodata == 0
        assert json.loads(file.tags()["values"]) == {str(id): label for id, label in ids.items()}


def test_bands_and_depth(tmp_path: Path) -> None:
    """Sixteen bits, five bands, of which the fourth, third and second are red, green and blue."""
    rgb = photo()
    bands = np.zeros((5, *rgb.shape[:2]), np.uint16)
    for band, channel in ((3, 0), (2, 1), (1, 2)):
        bands[band] = 1000 + 10 * rgb[..., channel].astype(np.uint16)
    bands[3, 0, 0] = 65535  # one hot pixel does not make the rest dark
    path = write(tmp_path / "deep.tif", bands)
    opened = geo.open_geotiff(path, bands=(4, 3, 2))
    assert opened.bands == (4, 3, 2)
    for (low, high), band in zip(opened.ranges, (3, 2, 1), strict=True):
        assert (low, high) == tuple(np.percentile(bands[band], geo.PERCENTILES))
    spread = (bands[[3, 2, 1]].astype(float) - [[[low]] for low, _ in opened.ranges]) * [
        [[255 / (high - low)]] for low, high in opened.ranges
    ]
    expected = np.moveaxis(spread.clip(0, 255).round(), 0, -1)
    assert np.abs(np.asarray(opened.rgb).astype(float) - expected).max() <= 1
    grey = geo.open_geotiff(path, bands=(3,))
    assert (np.asarray(grey.rgb)[..., 0] == np.asarray(grey.rgb)[..., 2]).all()
    for bands_asked in ((1, 2), (1, 2, 9), (0, 1, 2)):
        with pytest.raises(ImageError, match=r"has 5 bands, not .*; name three of them, or one for grey"):
            geo.open_geotiff(path, bands=bands_asked)


def test_colours_by_name_and_alpha(tmp_path: Path) -> None:
    rgb = photo()
    alpha = np.full(rgb.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    kinds = rasterio.enums.ColorInterp
    path = tmp_path / "bgra.tif"
    profile = {"height": rgb.shape[0], "width": rgb.shape[1], "count": 4, "crs": UTM[0], "transform": UTM[1]}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", photometric="minisblack", **profile) as file:
        file.write(np.stack([rgb[..., 0], rgb[..., 1], rgb[..., 2], alpha]))
        file.colorinterp = (kinds.blue, kinds.green, kinds.red, kinds.alpha)
    opened = geo.open_geotiff(path)
    assert opened.bands == (3, 2, 1)
    assert np.array_equal(np.asarray(opened.rgb), rgb[..., ::-1])
    assert np.array_equal(np.asarray(opened.blank), alpha == 0)


def test_a_part_is_read_and_the_whole_is_seen_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = photo(240, 360)
    opened = geo.open_geotiff(write(tmp_path / "a.tif", rgb, tiled=True, blockxsize=64, blockysize=64))
    assert opened.blank is None
    assert opened.size_hw == (240, 360)
    assert np.array_equal(opened.rgb[30:70, 100:221], rgb[30:70, 100:221])
    assert np.array_equal(opened.rgb[200:], rgb[200:])
    usual = resized(rgb, (50, 77))
    monkeypatch.setattr("lexiseg.images._BAND_PIXELS", 360 * 13)
    assert np.array_equal(resized(opened.rgb, (50, 77)), usual)


def test_a_reference_is_known_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = write(tmp_path / "placed.tif", photo())
    large = write(tmp_path / "large.tif", photo(), bigtiff="yes")
    Image.fromarray(photo()).save(tmp_path / "plain.tif")
    (tmp_path / "text.tif").write_text("II*")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert geo.is_georeferenced(placed)
    assert geo.is_georeferenced(large)
    assert not geo.is_georeferenced(tmp_path / "plain.tif")
    assert not geo.is_georeferenced(tmp_path / "text.tif")
    assert not geo.is_georeferenced(tmp_path / "nowhere.tif")
    assert not geo.is_available()
    with pytest.raises(geo.MissingExtraError, match=r"pip install 'lexiseg\[geo\]'"):
        geo.open_geotiff(placed)


def test_bad_files_are_refused_in_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", photo())
    with pytest.raises(ImageTooLargeError, match="more than the limit"):
        geo.open_geotiff(path, ImageLimits(max_pixels=1000))
    Image.fromarray(photo()).save(tmp_path / "b.tif", format="PNG")
    with pytest.raises(ImageError, match=r"b\.tif: cannot be read as a GeoTIFF"):
        geo.open_geotiff(tmp_path / "b.tif")
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.tif: cannot be read as a GeoTIFF"):
        np.asarray(geo.open_geotiff(tmp_path / "cut.tif").rgb)
    with pytest.raises(ImageError, match="there is no such file"):
        geo.open_geotiff(tmp_path / "nowhere.tif")
    virtual = tmp_path / "virtual.tif"
    virtual.write_text(f'<VRTDataset rasterXSize="1" rasterYSize="1"><SRS/>{path}</VRTDataset>')
    with pytest.raises(ImageError, match="cannot be read as a GeoTIFF"):
        geo.open_geotiff(virtual)


SITE = ('LOCAL_CS["site grid",UNIT["metre",1]]', UTM[1])
BEYOND = (UTM[0], Affine(0.5, 0, 9e9, 0, -0.5, 9e12))


def test_without_a_reference_system_there_is_no_geojson(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", photo(), None, transform=UTM[1])
    _, paths, opened = segmented(path)
    assert opened.reference.crs == ""
    assert set(paths) == {"geotiff"}
    with rasterio.open(paths["geotiff"]) as file:
        assert file.transform == UTM[1]


@pytest.mark.parametrize("place", [SITE, BEYOND], ids=["site", "beyond"])
def test_where_there_is_no_longitude_there_is_no_geojson(tmp_path: Path, place: tuple[str, Affine]) -> None:
    result, paths, opened = segmented(write(tmp_path / "a.tif", photo(), place))
    assert opened.reference.crs and set(paths) == {"geotiff"}
    with pytest.raises(ValueError, match=r"a\.tif: its reference system leads to no longitude and latitude there"):
        list(geo.features(result, opened.reference))
    with rasterio.open(paths["geotiff"]) as file:
        assert file.transform == place[1]
