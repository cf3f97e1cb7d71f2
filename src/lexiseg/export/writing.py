"""The export itself: traced, made smaller, written, checked, and only then put where it was asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from lexiseg.export.checking import LEAST_AGREEMENT, WORDS, as_percent, checked, photos_to_check
from lexiseg.export.graphs import ExportError, SystemGraph, TextGraph, check_exportable, view_of, with_view
from lexiseg.export.precision import store_in_bytes, store_in_half
from lexiseg.export.tracing import traced
from lexiseg.exported.description import (
    KEY,
    MAX_SIDE,
    TEXT_KEY,
    Check,
    Description,
    Precision,
    TextDescription,
    TextFile,
    View,
    entries_of,
)
from lexiseg.exported.running import OUTPUTS, ExportedSegmenter, Feed, picture_feed, sized_file
from lexiseg.images import Photo
from lexiseg.settings import Section
from lexiseg.types import Images, Size, TextBank
from lexiseg.vocabulary import MAX_PHRASES, Vocabulary
from lexiseg.weights.files import sha256_of
from lexiseg.zoo.model_folder import Model, canvas_settings

MAX_BYTES_INSIDE = 1_900_000_000
"""Larger weights lie in a file beside: no file of this format may be larger than 2 GiB."""

EXAMPLE_HW = (480, 640)
"""The photo that a graph for any size is traced with."""

MASK_STRIDE = 4
"""Of the masks of all generators that can be exported: that of the finest of `Features.maps`."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    """Those that segment, one per size."""
    checks: tuple[Check, ...]
    """Of each."""
    text_files: tuple[Path, ...]
    """Those that encode words, beside them."""


def export_model(
    model: Model,
    out: Path,
    *,
    vocabulary: Vocabulary | None = None,
    sizes: Sequence[Size] = (),
    precision: Precision = "float32",
    photos: Sequence[Photo] | None = None,
    least_agreement: float | None = None,
) -> Exported:
    """Writes a model as `out`, NAME.onnx, and what belongs to it beside it.

    vocabulary: words that become part of the file; without it they are an input, and the text tower comes along as
    NAME.text.onnx. sizes: of the canvas, multiples of the model's own; one is `out` itself, several are
    NAME-512x768.onnx each, and without any the file takes photos of every size. photos: to check on, and for int8 to
    measure ranges on; None for two that scikit-learn carries. least_agreement: share of the pixels that must have the
    class that PyTorch gives them, else nothing is left behind; None for 99.9 % in float32 and anything in the others.
    Raises ExportError.
    """
    check_exportable(model.name, model.system)
    if out.suffix != ".onnx":
        raise ExportError(f"{out}: give a name that ends in .onnx")
    for each in sizes:
        _check_size(each, model)
    if len(set(sizes)) < len(sizes):
        twice = next(each for each in sizes if list(sizes).count(each) > 1)
        raise ExportError(f"--size {twice[0]}x{twice[1]}: given twice; leave one out")
    photos = photos_to_check(None) if photos is None else list(photos)
    least = least_agreement if least_agreement is not None else LEAST_AGREEMENT if precision == "float32" else 0.0
    words = vocabulary or Vocabulary.parse(WORDS)
    targets: dict[Path, Size | None] = {out: sizes[0] if sizes else None}
    if len(sizes) > 1:
        targets = {sized_file(out, each): each for each in sizes}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workshop = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.")
    except OSError as error:
        raise ExportError(f"{out.parent}: cannot be written ({error.strerror}); choose another folder") from error
    with workshop as name:
        folder = Path(name)
        texts: dict[str, TextFile] = {} if vocabulary else _write_texts(model, folder, out.stem, precision)
        bank = model.text_bank(words)
        checks = []
        for target, size_hw in targets.items():
            path = folder / target.name
            description = _write(model, path, vocabulary, bank, size_hw, texts)
            if precision != "float32":
                description = make_smaller(path, path, precision, photos)
            check = checked(model, ExportedSegmenter.load(path, "cpu"), photos, words)
            if check.same_labels < least:
                raise ExportError(
                    f"{target.name}: only {as_percent(check.same_labels)} of the pixels of {check.photos} photos have "
                    f"the class that PyTorch gives them, {as_percent(least)} were asked for; nothing is left behind"
                )
            _describe(path, KEY, description.model_copy(update={"check": check}))
            checks.append(check)
        written = sorted(folder.iterdir())
        for file in written:
            file.replace(out.parent / file.name)
    text_files = tuple(out.parent / name for name in dict.fromkeys(text.file for text in texts.values()))
    return Exported(tuple(targets), tuple(checks), text_files)


def _check_size(size_hw: Size, model: Model) -> None:
    multiple = model.canvas.multiple
    if any(side < multiple or side % multiple or side > MAX_SIDE for side in size_hw):
        raise ExportError(
            f"--size {size_hw[0]}x{size_hw[1]}: height and width are multiples of {multiple} for {model.name}"
        )


def _write(
    model: Model,
    path: Path,
    vocabulary: Vocabulary | None,
    bank: TextBank,
    size_hw: Size | None,
    texts: dict[str, TextFile],
) -> Description:
    """The file of one size, in float32. bank: the words that are in it, or some to trace it with."""
    canvas = replace(model.canvas, within=size_hw)
    example = canvas([Photo(np.zeros((*(size_hw or EXAMPLE_HW), 3), np.uint8), "an example")])
    description = _described(model, vocabulary, size_hw, texts, example)
    view = None if view_of(model.system) is None else view_of(with_view(model.system, description.view_hw))
    words = {} if vocabulary is not None else _word_inputs(bank, separate=model.query is not None)
    feed = picture_feed(example, view, description) | words
    graph = traced(
        SystemGraph(model.system, None if words else bank),
        {name: torch.from_numpy(array) for name, array in feed.items()},
        _axes(feed, description),
        OUTPUTS,
    )
    graph.doc_string = f"{model.card.get('title', model.name)}. {model.card.get('weights_licence', '')}".strip()
    _save(graph, path, KEY, description)
    return description


def _described(
    model: Model,
    vocabulary: Vocabulary | None,
    size_hw: Size | None,
    texts: dict[str, TextFile],
    example: Images,
) -> Description:
    own, view = view_of(model.system), None
    if own is not None:
        own_hw = None if size_hw is None else own(example).canvas_hw
        stride = _stride(model.system.embedder)
        view = View(short_edge=int(own.size), multiple=own.multiple, stride=stride, size_hw=own_hw)
    return Description(
        format=1,
        lexiseg=version("lexiseg"),
        model=model.name,
        precision="float32",
        size_hw=size_hw,
        canvas=canvas_settings(model.canvas),
        mask_stride=MASK_STRIDE,
        view=view,
        outputs=model.outputs,
        told_from_void=True,  # all generators that can be exported know void
        classes=None if vocabulary is None else entries_of(vocabulary),
        background=vocabulary is not None and vocabulary.background,
        templates=list(model.templates),
        mix_templates=model.mix_templates,
        query_templates=None if model.query is None else list(model.query.templates),
        training_phrases=list(model.training_phrases),
        text=texts.get("text"),
        query_text=texts.get("query"),
        card=dict(model.card),
    )


def _stride(embedder: nn.Module) -> int:
    """Of the map of a tower of its own."""
    side = 64
    with torch.inference_mode():
        dense = embedder.get_submodule("trunk")(
            Images(torch.zeros(1, 3, side, side), ((side, side),), ((side, side),))
        ).dense
    return side // dense.shape[-1]


def _word_inputs(bank: TextBank, separate: bool) -> Feed:
    words = {"region": bank.region, "class_of": bank.class_of, "seen": bank.seen}
    if separate:
        words["query"] = bank.query
    return {name: tensor.numpy() for name, tensor in words.items()}


def _axes(feed: Feed, description: Description) -> dict[str, dict[int, Any]]:
    """The axes of the inputs that may change: sizes by whole cells of the coarsest map, and the number of words."""
    phrases, classes = Dim("phrases", min=2, max=MAX_PHRASES), Dim("classes", min=2, max=MAX_PHRASES)
    axes: dict[str, dict[int, Any]] = {
        "region": {0: phrases},
        "query": {0: phrases},
        "class_of": {0: phrases},
        "seen": {0: classes},
    }
    if description.size_hw is None:
        cell, height, width = description.canvas.multiple, *_cells("canvas", description.canvas.multiple)
        axes["pixels"] = {2: cell * height, 3: cell * width}
        if description.view is not None:
            view = description.view
            tall, wide = _cells("view", view.multiple)
            masks, grid = cell // description.mask_stride, view.multiple // view.stride
            axes["view"] = {2: view.multiple * tall, 3: view.multiple * wide}
            axes["rows"] = {0: masks * height, 1: grid * tall}
            axes["columns"] = {0: masks * width, 1: grid * wide}
    return {name: axes[name] for name in feed if name in axes}


def _cells(name: str, cell: int) -> tuple[Any, Any]:
    return Dim(f"{name}_rows", min=2, max=MAX_SIDE // cell), Dim(f"{name}_columns", min=2, max=MAX_SIDE // cell)


def _write_texts(model: Model, folder: Path, stem: str, precision: Precision) -> dict[str, TextFile]:
    """The towers that encode words."""
    encoders = {"text": model.text_encoder()}
    if model.query is not None and model.query.fingerprint != model.fingerprint:
        encoders["query"] = model.query.text_encoder()
    files = {}
    for part, encoder in encoders.items():
        path = folder / f"{stem}.{part}.onnx"
        description = TextDescription(
            format=1,
            lexiseg=version("lexiseg"),
            precision=precision,
            context_length=encoder.context_length,
            embed_dim=encoder.text_projection.shape[1],
        )
        prompts, tokens = Dim("prompts", min=2, max=2**20), Dim("tokens", min=3, max=encoder.context_length)
        graph = traced(
            TextGraph(encoder),
            {"tokens": encoder.tokenize(["a photo of a street.", "sky"])[:, :8]},
            {"tokens": {0: prompts, 1: tokens}},
            ["rows"],
        )
        if precision != "float32":
            store_in_half(graph)  # eight bits would cost more words than they save
        _save(graph, path, TEXT_KEY, description)
        files[part] = TextFile(file=path.name, sha256=sha256_of(path))
    return files


def _save(graph: ir.Model, path: Path, key: str, description: Section) -> None:
    graph.producer_name, graph.producer_version = "lexiseg", version("lexiseg")
    graph.metadata_props[key] = description.model_dump_json()
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    ir.save(graph, path, external_data=_beside(path).name if size > MAX_BYTES_INSIDE else None)


def _beside(path: Path) -> Path:
    """Where weights lie that are too many for the file itself."""
    return path.with_name(f"{path.name}.data")


def _describe(path: Path, key: str, description: Section) -> None:
    """Puts another description into a file; weights that lie beside it stay as they are."""
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {key: description.model_dump_json()})
    onnx.save(model, path)


def make_smaller(path: Path, out: Path, precision: Precision, photos: Sequence[Photo]) -> Description:
    """Writes a float32 file in another precision; `out` may be the file itself.

    photos: for int8, to measure the ranges on.
    """
    exported = ExportedSegmenter.load(path, "cpu")
    description = exported.description.model_copy(update={"precision": precision, "check": None})
    if precision == "float16":
        graph = ir.load(path)
        if _beside(path).exists():
            ir.external_data.load_to_model(graph)
        store_in_half(graph)
        _beside(out).unlink(missing_ok=True)
        _save(graph, out, KEY, description)
    elif precision == "int8":
        if _beside(path).exists():
            raise ExportError(f"{path.name}: too large for int8; use float16")
        file, words = exported.graphs[0], exported.prepare(exported.vocabulary or WORDS).feed
        feeds = (picture_feed(file.canvas([photo]), file.view, file.description) | words for photo in photos)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
            made = Path(folder) / out.name
            store_in_bytes(path, feeds, made)
            made.replace(out)
        _describe(out, KEY, description)
    return description
