"""Photos that know where on Earth they are: GeoTIFF in, labels as GeoTIFF and outlines as GeoJSON out.

    photo = geo.open_geotiff("aerial.tif")                      # nothing but the header is read
    result = segmenter(photo, "water, forest | trees, road")
    geo.save(result, photo.reference, "out/")

A GeoTIFF is read window by window as it is looked at, so that a large one is never held whole. All contact with
rasterio, which is in the extra `geo`, is in this file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from lexiseg.images import ImageError, ImageLimits, Photo, check_file, check_pixels
from lexiseg.results import NamedSegment, Result, file_stem
from lexiseg.types import Size

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

SUFFIXES = {".tif", ".tiff"}

PERCENTILES = (2.0, 98.0)
"""Of the valid values of a band: what becomes black and white, where a file has more than 8 bits."""

# The percentiles are told from at most so many pixels a side.
_SAMPLE_SIDE = 1024
# A file may pack so much into one of its blocks, which is the least that can be read of it.
_LARGEST_BLOCK_BYTES = 512 * 2**20
# Blocks that are kept for the next window.
_CACHE_BYTES = 64 * 2**20
# ModelPixelScale, ModelTiepoint, ModelTransformation: tags by which a TIFF says where it is.
_REFERENCE_TAGS = (33550, 33922, 34264)

_BLOCK = 512
_WGS84 = 4326
# Edges of pixels are straight in the file's own projection: on a longitude-latitude grid they would not be, were there
# no more points along them than this many pixels apart.
_POINTS_APART = 64
# Decimals of a longitude or latitude: a tenth of a millimetre.
_DECIMALS = 9
# Points that are brought to another projection at once.
_POINTS_AT_ONCE = 100_000


class MissingExtraError(ModuleNotFoundError):
    """rasterio is not installed."""

    def __init__(self) -> None:
        super().__init__("georeferences need rasterio: pip install 'lexiseg[geo]'", name="rasterio")


@dataclass(frozen=True)
class Reference:
    """Where the pixels of a photo are."""

    transform: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: the corner (column, row) lies at x = a column + b row + c, y = d column + e row + f."""
    crs: str = ""
    """The reference system of x and y as WKT; empty where the file does not tell."""


@dataclass(frozen=True, eq=False)
class GeoPhoto(Photo):
    """A photo with its reference. `rgb` and `blank` are read when they are asked for a part of themselves."""

    reference: Reference = field(default_factory=lambda: Reference((1, 0, 0, 0, 1, 0)))
    bands: tuple[int, ...] = ()
    """The bands of the file that are red, green and blue, counted from one."""
    ranges: tuple[tuple[float, float], ...] = ()
    """For each of them what is black and what is white; empty for 8 bits, which are taken as they are."""


def is_georeferenced(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a TIFF that says where it is. Needs no rasterio; false for what cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if start[:2] not in (b"II", b"MM") or len(start) < 8:
                return False
            start += file.read(8) if start[2:4] in (b"\x2b\x00", b"\x00\x2b") else b""  # BigTIFF
            tags = ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
            return any(tag in tags for tag in _REFERENCE_TAGS)
    except Exception:  # whatever it is, it is no readable TIFF
        return False


def open_geotiff(
    path: str | os.PathLike[str], limits: ImageLimits | None = None, bands: Sequence[int] | None = None
) -> GeoPhoto:
    """A TIFF of any number of bands as a photo; its header, and of deeper ones a sample of the pixels, are read.

    bands: which of them are red, green and blue, or a single one for grey, counted from one; unless given, those that
    the file calls so, else the first three, else the first. Bands of 8 bits are taken as they are; of others, each is
    spread from black to white over the range between `PERCENTILES` of its valid values. Pixels that the file calls
    invalid (nodata, mask or alpha band) are `blank`: they come out without a class. Raises ImageError.
    """
    limits = limits or ImageLimits()
    name = check_file(path, limits)
    file = os.path.abspath(path)
    with _opened(file, name) as raster:
        size_hw = (raster.height, raster.width)
        check_pixels(name, size_hw, limits)
        _check_blocks(name, raster)
        chosen = _chosen_bands(name, raster, bands)
        reference = _reference(name, raster)
        ranges = _ranges(raster, chosen)
        holes = any(flags != [_flag("all_valid")] for flags in _mask_flags(raster, chosen))
    pixels = _Pixels(file, name, size_hw, chosen, ranges)
    blank = _Blank(file, name, size_hw, chosen) if holes else None
    # What reads pixels like an array stands for one.
    return GeoPhoto(
        cast(np.ndarray, pixels), name, Path(path), cast("np.ndarray | None", blank), reference, chosen, ranges
    )


def save(
    result: Result, reference: Reference, folder: str | os.PathLike[str], stem: str | None = None
) -> dict[str, Path]:
    """Writes <stem>.labels.tif, and <stem>.geojson where the photo `is_on_earth`.

    The GeoTIFF has `label_map`'s numbers on the pixels of the photo, a colour table, and in its tags what the numbers
    mean; the GeoJSON (RFC 7946) one feature per connected region: polygons with holes along the edges of the pixels.
    Returns the paths as "geotiff", "geojson".
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stem = stem or file_stem(result.photo)
    paths = {"geotiff": target / f"{stem}.labels.tif"}
    _write_geotiff(result, reference, paths["geotiff"])
    if is_on_earth(reference, result.size_hw):
        paths["geojson"] = target / f"{stem}.geojson"
        with open(paths["geojson"], "w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for number, feature in enumerate(features(result, reference)):
                file.write(",\n" if number else "\n")
                file.write(json.dumps(feature, ensure_ascii=False, separators=(",", ":")))
            file.write("\n]}\n")
    return paths


def is_on_earth(reference: Reference, size_hw: Size) -> bool:
    """Whether longitude and latitude can be told of a photo of that size. Grids of a building site lead to none."""
    if not reference.crs:
        return False
    height, width = size_hw
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    try:
        _in_degrees("", _placed(corners, reference.transform), _rasterio().crs.CRS.from_wkt(reference.crs))
    except ValueError:
        return False
    return True


def features(result: Result, reference: Reference) -> Iterator[dict[str, Any]]:
    """The regions of a result as GeoJSON features in longitude and latitude, exteriors counter-clockwise.

    Properties: `class`, `class_index`, `score` and `segment` (its id in `label_map`) of the segment, and `area_m2` of
    the polygon where the reference system is a projected one. Regions of one segment that do not touch are features of
    their own, and pixels that touch at a corner alone do not. Raises ValueError where longitude and latitude of a place
    cannot be told.
    """
    rasterio = _rasterio()
    crs = rasterio.crs.CRS.from_wkt(reference.crs)
    square_metres = _pixel_area(crs, reference)
    moved = crs != rasterio.crs.CRS.from_epsg(_WGS84)
    waiting: list[tuple[dict[str, Any], list[np.ndarray]]] = []
    points = 0
    for segment, rings in _polygons(result):
        properties: dict[str, Any] = {
            "class": segment.label,
            "class_index": segment.label_index,
            "score": round(segment.score, 6),
            "segment": segment.id,
        }
        if square_metres is not None:
            pixels = abs(_signed_area(rings[0])) - sum(abs(_signed_area(hole)) for hole in rings[1:])
            properties["area_m2"] = round(pixels * square_metres, 3)
        placed = [_placed(_with_points(ring) if moved else ring, reference.transform) for ring in rings]
        waiting.append((properties, placed))
        points += sum(len(ring) for ring in placed)
        if points > _POINTS_AT_ONCE:
            yield from _on_the_globe(result.photo, waiting, crs if moved else None)
            waiting, points = [], 0
    yield from _on_the_globe(result.photo, waiting, crs if moved else None)


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, eq=False)
class _Windows:
    """A file of which the part that is asked for is read: `source[rows]`, `source[rows, columns]`, `np.asarray`."""

    file: str
    name: str
    size_hw: Size
    bands: tuple[int, ...]

    def __getitem__(self, key: slice | tuple[slice, slice]) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        top, bottom, down = rows.indices(self.size_hw[0])
        left, right, across = columns.indices(self.size_hw[1])
        with _opened(self.file, self.name) as raster:
            window = ((top, max(top, bottom)), (left, max(left, right)))
            return self._read(raster, window)[::down, ::across]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def _read(self, raster: DatasetReader, window: Any) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class _Pixels(_Windows):
    """uint8 [H, W, 3]."""

    ranges: tuple[tuple[float, float], ...]
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size_hw, 3)

    def _read(self, raster: DatasetReader, window: Any) -> np.ndarray:
        values = raster.read(list(self.bands), window=window)  # [1 or 3, n, m]
        if self.ranges:
            spread = np.empty(values.shape, np.uint8)
            for out, band, (low, high) in zip(spread, values, self.ranges, strict=True):
                scaled = (band.astype(np.float32) - low) * np.float32(255 / (high - low))
                out[:] = np.nan_to_num(scaled).clip(0, 255).round()
            values = spread
        return np.ascontiguousarray(np.broadcast_to(np.moveaxis(values, 0, -1), (*values.shape[1:], 3)))


@dataclass(frozen=True, eq=False)
class _Blank(_Windows):
    """bool [H, W]: invalid in any of the bands."""

    dtype = np.dtype(bool)

    @property
    def shape(self) -> Size:
        return self.size_hw

    def _read(self, raster: DatasetReader, window: Any) -> np.ndarray:
        return (raster.read_masks(list(self.bands), window=window) == 0).any(0)


def _rasterio() -> Any:
    try:
        import rasterio
        import rasterio.crs
        import rasterio.features
        import rasterio.warp
    except ModuleNotFoundError:
        raise MissingExtraError from None
    return rasterio


def is_available() -> bool:
    """Whether the extra is installed."""
    try:
        _rasterio()
    except MissingExtraError:
        return False
    return True


@contextmanager
def _opened(file: str, name: str) -> Iterator[DatasetReader]:
    """A TIFF and nothing else: no files beside it, no other formats, which might name yet other files or addresses."""
    rasterio = _rasterio()
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            _quiet(rasterio),
            rasterio.open(file, driver="GTiff", sharing=False) as raster,
        ):
            yield raster
    except (rasterio.errors.RasterioError, ValueError, OSError) as error:
        if isinstance(error, ImageError):
            raise
        reason = " ".join(str(error).replace(file, name).split())[:160] or type(error).__name__
        raise ImageError(name, f"cannot be read as a GeoTIFF ({reason}); copy or convert it again") from None


@contextmanager
def _quiet(rasterio: Any) -> Iterator[None]:
    """A TIFF without a reference is nothing to warn of here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _check_blocks(name: str, raster: DatasetReader) -> None:
    for (height, width), kind in zip(raster.block_shapes, raster.dtypes, strict=True):
        together = raster.count if str(raster.interleaving).lower().endswith("pixel") else 1
        size = height * width * together * np.dtype(kind).itemsize
        if size > _LARGEST_BLOCK_BYTES:
            raise ImageError(
                name,
                f"has blocks of {height} x {width} pixels, {size // 2**20} MB each; write it with internal tiles "
                "(gdal_translate -co TILED=YES)",
            )


def _chosen_bands(name: str, raster: DatasetReader, bands: Sequence[int] | None) -> tuple[int, ...]:
    if bands is not None:
        if len(bands) not in (1, 3) or not all(1 <= band <= raster.count for band in bands):
            told = ",".join(str(band) for band in bands)
            raise ImageError(name, f"has {raster.count} bands, not {told}; name three of them, or one for grey")
        chosen = tuple(bands)
    else:
        kinds = [kind.name for kind in raster.colorinterp]
        if {"red", "green", "blue"} <= set(kinds):
            chosen = tuple(kinds.index(kind) + 1 for kind in ("red", "green", "blue"))
        else:
            colours = [number for number, kind in enumerate(kinds, start=1) if kind != "alpha"]
            chosen = tuple(colours[:3]) if len(colours) >= 3 else tuple(colours[:1])
    if not chosen:
        raise ImageError(name, "has no band of colour; name one with bands")
    for band in chosen:
        if np.dtype(raster.dtypes[band - 1]).kind not in "uif":
            raise ImageError(
                name, f"has {raster.dtypes[band - 1]} numbers in band {band}; a photo has whole ones or floats"
            )
    return chosen


def _reference(name: str, raster: DatasetReader) -> Reference:
    transform = raster.transform
    if transform.is_identity and raster.gcps[0]:
        raise ImageError(
            name, "is placed by ground control points; give it a transform first (gdalwarp), or remove them"
        )
    return Reference(tuple(transform)[:6], raster.crs.to_wkt() if raster.crs else "")


def _flag(name: str) -> Any:
    return getattr(_rasterio().enums.MaskFlags, name)


def _mask_flags(raster: DatasetReader, bands: Sequence[int]) -> list[list[Any]]:
    return [raster.mask_flag_enums[band - 1] for band in bands]


def _ranges(raster: DatasetReader, bands: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """What is black and white in each band; empty where they have 8 bits."""
    if all(raster.dtypes[band - 1] == "uint8" for band in bands):
        return ()
    shrink = min(1.0, _SAMPLE_SIDE / max(raster.height, raster.width))
    shape = (max(1, round(raster.height * shrink)), max(1, round(raster.width * shrink)))
    found = []
    for band in bands:
        values = raster.read(band, out_shape=shape)
        valid = (raster.read_masks(band, out_shape=shape) > 0) & np.isfinite(values)
        low, high = np.percentile(values[valid], PERCENTILES).tolist() if valid.any() else (0.0, 1.0)
        found.append((low, high if high > low else low + 1.0))
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------ writing


def _write_geotiff(result: Result, reference: Reference, path: Path) -> None:
    rasterio = _rasterio()
    height, width = result.size_hw
    none_is_zero = result.task != "semantic"
    highest = len(result.vocabulary) if not none_is_zero else max((s.id for s in result.segments), default=0)
    kind = np.uint8 if highest < 255 else np.uint16
    if highest >= np.iinfo(kind).max:
        raise ValueError(f"{result.photo}: {highest} labels do not fit into a 16-bit GeoTIFF; leave out small scores")
    nodata = 0 if none_is_zero else int(np.iinfo(kind).max)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": np.dtype(kind).name,
        "nodata": nodata,
        "crs": rasterio.crs.CRS.from_wkt(reference.crs) if reference.crs else None,
        "transform": rasterio.Affine(*reference.transform),
        "compress": "deflate",
        "bigtiff": "if_safer",
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
    }
    labels = {segment.id: segment.label for segment in result.segments}
    if not none_is_zero:
        labels = dict(enumerate(result.words))
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), _quiet(rasterio), rasterio.open(path, "w", **profile) as raster:
        for top in range(0, height, _BLOCK):
            # -1, which is no class, becomes the highest number.
            rows = result.label_map[top : top + _BLOCK].astype(kind)
            raster.write(rows, 1, window=((top, top + len(rows)), (0, width)))
        colors = {segment.id: (*color, 255) for segment, color in zip(result.segments, result.colors, strict=True)}
        raster.write_colormap(1, {**colors, nodata: (0, 0, 0, 0)})
        raster.update_tags(
            task=result.task,
            model=result.model,
            classes=json.dumps(list(result.words), ensure_ascii=False),
            values=json.dumps(labels, ensure_ascii=False),
        )
        raster.set_band_description(1, "class" if not none_is_zero else "segment")


def _polygons(result: Result) -> Iterator[tuple[NamedSegment, list[np.ndarray]]]:
    """Segments with the rings of their regions: corners of pixels, [n, 2] (column, row); the first ring is outside."""
    shapes = _rasterio().features.shapes
    of_id = {segment.id: segment for segment in result.segments}
    if result.task == "instance":  # they may overlap
        for segment in result.segments:
            left, top, right, bottom = segment.box_xyxy
            inside = np.ascontiguousarray(segment.mask[top:bottom, left:right].astype(np.uint8))
            for geometry, value in shapes(inside, connectivity=4):
                if value:
                    yield segment, [np.asarray(ring) + np.array([left, top]) for ring in geometry["coordinates"]]
        return
    for geometry, value in shapes(result.label_map, connectivity=4):
        found = of_id.get(int(value))
        if found is not None:
            yield found, [np.asarray(ring) for ring in geometry["coordinates"]]


def _pixel_area(crs: Any, reference: Reference) -> float | None:
    """Square metres; None where the reference system is not a projected one."""
    if not crs.is_projected:
        return None
    a, b, _, d, e, _ = reference.transform
    return abs(a * e - b * d) * float(crs.linear_units_factor[1]) ** 2


def _signed_area(ring: np.ndarray) -> float:
    """Of a closed ring [n, 2]: positive where it turns counter-clockwise, x to the right and y up."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _with_points(ring: np.ndarray) -> np.ndarray:
    """A closed ring along the edges of pixels, with further points on its long edges."""
    steps = np.abs(np.diff(ring, axis=0)).sum(1)
    parts = np.ceil(steps / _POINTS_APART).astype(np.intp)
    edge = np.repeat(np.arange(len(parts)), parts)
    share = (np.arange(len(edge)) - np.repeat(parts.cumsum() - parts, parts)) / parts[edge]
    inner = ring[edge] + (ring[edge + 1] - ring[edge]) * share[:, None]
    return np.concatenate([inner, ring[-1:]])


def _placed(ring: np.ndarray, transform: tuple[float, ...]) -> np.ndarray:
    a, b, c, d, e, f = transform
    column, row = ring.T
    return np.stack([a * column + b * row + c, d * column + e * row + f], 1)


def _in_degrees(name: str, places: np.ndarray, crs: Any) -> np.ndarray:
    """x and y in a reference system -> longitude and latitude; [n, 2] both."""
    rasterio = _rasterio()
    try:
        found = np.stack(rasterio.warp.transform(crs, rasterio.crs.CRS.from_epsg(_WGS84), *places.T), 1)
    except Exception:  # GDAL's own, of no public class: no way from one system to the other, or a place beyond it
        found = np.full(places.shape, np.nan)
    if not np.isfinite(found).all():
        raise ValueError(
            f"{name}: its reference system leads to no longitude and latitude there; give it one that does (gdalwarp)"
        )
    return found


def _on_the_globe(
    name: str, waiting: Iterable[tuple[dict[str, Any], list[np.ndarray]]], crs: Any | None
) -> Iterator[dict[str, Any]]:
    """Features of polygons in a reference system; None where that is longitude and latitude already."""
    waiting = list(waiting)
    if not waiting:
        return
    counts = [len(ring) for _, rings in waiting for ring in rings]
    places = np.concatenate([ring for _, rings in waiting for ring in rings])
    if crs is not None:
        places = _in_degrees(name, places, crs)
    on_globe = iter(np.split(places, np.cumsum(counts)[:-1]))
    for properties, rings in waiting:
        coordinates = []
        for number in range(len(rings)):
            ring = next(on_globe)
            outer = number == 0
            if (_signed_area(ring) > 0) != outer:
                ring = ring[::-1]
            coordinates.append([[round(x, _DECIMALS), round(y, _DECIMALS)] for x, y in ring.tolist()])
        yield {
            "type": "Feature",
            "properties": properties,
            "geometry": {"type": "Polygon", "coordinates": coordinates},
        }
