"""The command `lexiseg`.

Exit status: 0 when all went well, 1 when some inputs failed and the rest is done, 2 when the call itself was wrong.
What a command needs is imported inside it, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.console import Console

    from lexiseg.bulk import Workers
    from lexiseg.evaluation import Evaluation
    from lexiseg.exported import ExportedSegmenter
    from lexiseg.formats.records import PhotoRecord
    from lexiseg.formats.table import Format
    from lexiseg.results import Result
    from lexiseg.segmenter import Segmenter
    from lexiseg.tiling import Tiling
    from lexiseg.vocabulary import Vocabulary
    from lexiseg.word_check import Remark

DEFAULT_MODEL = "street-tiny"
MINIATURE = "mini"
_TABLE_ROWS = 30

app = typer.Typer(
    name="lexiseg",
    help="Segment anything you can name: a photo and a list of words in, masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


data_app = typer.Typer(
    help="Data sets: benchmarks from their publishers' files, pairs of regions and words from captions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")

vocab_app = typer.Typer(
    help="Words: what a model will make of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(vocab_app, name="vocab")


class TaskName(StrEnum):
    """What kind of masks."""

    semantic = "semantic"
    panoptic = "panoptic"
    instance = "instance"


class ExportFormatName(StrEnum):
    """What a model is exported as."""

    onnx = "onnx"


class PrecisionName(StrEnum):
    """How the weights of an exported model are stored."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


class GivenMasksName(StrEnum):
    """Which true masks are given."""

    classes = "classes"
    regions = "regions"


def main() -> None:
    """The entry point."""
    app()


_FORMATS = "coco, coco-panoptic, png, palette, parquet, labelstudio, cvat or yolo: see docs/formats.md."

Model = Annotated[str, typer.Option(help="A name from `lexiseg models`, a model folder, or organisation/name.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Background = Annotated[bool, typer.Option("--background", help="Add a class for anything else.")]
MinScore = Annotated[
    float | None, typer.Option(min=0, max=1, help="Leave out segments below it. Default: 0; for instances 0.25.")
]
Augment = Annotated[
    bool, typer.Option("--augment", help="The mean of 18 looks at each photo, for --task semantic; slow.")
]
SkipDecided = Annotated[
    bool,
    typer.Option(
        "--skip-decided",
        help="With a Mask-Adapter or masked crops: leave masks unread that cannot matter.",
    ),
]
Tile = Annotated[
    int | None, typer.Option(help="Cut larger photos into tiles of at most so many pixels a side, say 1024.")
]
Overlap = Annotated[int | None, typer.Option(help="Pixels that tiles share. Default: an eighth of --tile.")]
Context = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="What is larger than a --tile, coarser looks decide; 0: none do. Default: 0.8."),
]
MaxPixels = Annotated[float, typer.Option(min=0.001, help="Refuse larger photos; in megapixels.", show_default=True)]


@app.command()
def segment(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Image files, or folders of them.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Words: 'sky, road | street, car' (| between synonyms), or a .txt, .yaml or .json file. Not needed "
            "if --model is a FILE.onnx that has words of its own."
        ),
    ] = None,
    task: Annotated[TaskName, typer.Option(help="Which kind of masks.")] = TaskName.semantic,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `lexiseg models`, a model folder, organisation/name, or a FILE.onnx of `lexiseg export`."
        ),
    ] = DEFAULT_MODEL,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Masks to name, in place of the model's own: a label map (.png, .npy), bool masks (.npy, .npz), "
            "COCO's or Label Studio's .json, CVAT's .xml or .zip; for several photos one file of the latter kinds, or "
            "a folder of files named like the photos."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; made if it is missing.")] = Path("out"),
    format: Annotated[list[str] | None, typer.Option(help=f"Write also, and several times: {_FORMATS}")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
    background: Background = False,
    min_score: MinScore = None,
    augment: Augment = False,
    skip_decided: SkipDecided = False,
    tile: Tile = None,
    overlap: Overlap = None,
    context: Context = None,
    max_pixels: MaxPixels = 120.0,
    bands: Annotated[
        str | None, typer.Option(help="Of a GeoTIFF: its bands that are red, green and blue, say 4,3,2; one for grey.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment photos by words.

    For each photo it writes <stem>.overlay.png, <stem>.labels.png and <stem>.json into the --out folder; photos of the
    same name get -2, -3 and so on. Of a GeoTIFF also <stem>.labels.tif and <stem>.geojson, which lie where it does.
    Exit status 1 says that some photos failed, 2 that the call was wrong.
    """
    vocabulary = None if classes is None else _vocabulary(classes, background)
    if vocabulary is None and not _is_exported(model):
        _wrong("--classes is missing: say what to look for, such as 'sky, road | street, car'")
    tiles = _tiling(tile, overlap, context)
    from lexiseg.images import ImageError, ImageLimits

    paths = list(_expand(photos))
    mask_files = None if masks is None else _mask_files(masks, paths)
    stems = _distinct_stems(paths, out)
    others = _OtherFormats(dict.fromkeys(format or []), paths, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _wrong(f"--out {out}: cannot be made ({error.strerror})")
    limits = ImageLimits(max_pixels=round(max_pixels * 1e6))
    inputs = _GeoInputs(paths, limits, _band_numbers(bands))
    stream: Iterable[tuple[Any, Any]]
    try:
        if _is_exported(model):
            wanted = {"--masks": masks, "--augment": augment, "--skip-decided": skip_decided, "--tile": tile}
            exported = _exported(model, device, limits, refused=[option for option, value in wanted.items() if value])
            anything = background and vocabulary is None  # else it is among the words already
            stream = exported.stream(inputs, vocabulary, task.value, background=anything, min_score=min_score)
        else:
            segmenter = _segmenter(model, device, limits, augmented=augment, skip_decided=skip_decided, tiles=tiles)
            assert vocabulary is not None  # for the reader of types
            stream = segmenter.stream(inputs, vocabulary, task.value, min_score=min_score, masks=mask_files)
    except ValueError as error:
        _wrong(str(error))

    console = _console(stderr=True)
    failures: list[dict[str, str]] = []
    tally = _Tally()
    printed: list[dict[str, Any]] = []
    for path, (source, outcome), stem in zip(paths, _with_progress(stream, len(paths), console), stems, strict=True):
        outcome = inputs.failed.get(path, outcome)
        if not isinstance(outcome, ImageError):
            try:
                files = {**outcome.save(out, stem), **inputs.save(source, outcome, out, stem)}
                others.add(path, outcome, stem)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                outcome = ImageError(str(path), f"its results cannot be written ({reason})")
        if isinstance(outcome, ImageError):
            failures.append({"photo": str(path), "error": outcome.problem})
            console.print(f"lexiseg: {outcome}", markup=False, highlight=False, soft_wrap=True)
            continue
        tally.add(outcome)
        if as_json:
            entry = outcome.to_dict()
            printed.append({**entry, "files": {kind: str(file) for kind, file in files.items()}})
    others.write()
    if as_json:
        print(json.dumps({"results": printed, "failures": failures}, indent=1, ensure_ascii=False))
    else:
        tally.show(_console())
    if failures:
        done = len(paths) - len(failures)
        console.print(
            f"lexiseg: {done} of {len(paths)} photos done, {len(failures)} failed", markup=False, highlight=False
        )
        raise typer.Exit(1)


class _GeoInputs:
    """The photos of a call: GeoTIFFs opened where they lie, all others by their paths."""

    def __init__(self, paths: Sequence[Path], limits: Any, bands: tuple[int, ...] | None) -> None:
        from lexiseg import geo

        self._paths, self._limits, self._bands = paths, limits, bands
        tiffs = [path for path in paths if path.suffix.lower() in geo.SUFFIXES]
        placed = [path for path in tiffs if geo.is_georeferenced(path)]
        self._geo = set(placed if bands is None else tiffs)
        if self._geo and not geo.is_available():
            if bands is not None:
                _wrong("--bands needs rasterio: pip install 'lexiseg[geo]'")
            _say(f"lexiseg: {placed[0]}: its georeference is not kept; for that: pip install 'lexiseg[geo]'")
            self._geo = set()
        if bands is not None and not tiffs:
            _wrong("--bands is of GeoTIFFs, and no photo is a .tif")
        self.failed: dict[Path, Exception] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Any]:
        from lexiseg import geo
        from lexiseg.images import ImageError

        for path in self._paths:
            if path not in self._geo:
                yield path
                continue
            try:
                yield geo.open_geotiff(path, self._limits, self._bands)
            except ImageError as error:
                self.failed[path] = error
                yield path

    def save(self, photo: Any, result: Result, out: Path, stem: str) -> dict[str, Path]:
        """What is written of a GeoTIFF besides; of other photos nothing."""
        from lexiseg import geo

        if not isinstance(photo, geo.GeoPhoto):
            return {}
        if photo.ranges:
            ranges = ", ".join(f"{low:g} to {high:g}" for low, high in photo.ranges)
            shown = ",".join(str(band) for band in photo.bands)
            _say(f"lexiseg: {photo.name}: bands {shown}; black to white is {ranges}")
        if not geo.is_on_earth(photo.reference, result.size_hw):
            known = bool(photo.reference.crs)
            why = "its reference system leads to no longitude" if known else "does not tell its reference system"
            _say(f"lexiseg: {photo.name}: {why}; no GeoJSON is written")
        return geo.save(result, photo.reference, out, stem)


def _band_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        _wrong(f"--bands {text}: give numbers from one on, such as 4,3,2")


class _RayCommand(TyperCommand):
    """`--ray` alone or with an address behind it, which Typer's options cannot be. INPUT is not taken for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        told: list[str] = []
        for argument in args:
            if told[-1:] == ["--ray"]:
                follows = re.fullmatch(r"auto|local|[\w.\[\]-]+:\d+", argument) is not None
                told += [argument] if follows else ["local", argument]
            else:
                told.append(argument)
        return super().parse_args(ctx, [*told, *(["local"] if told[-1:] == ["--ray"] else [])])


@app.command(cls=_RayCommand)
def batch(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder, a pattern in quotes ('photos/**/*.jpg'), a .txt file with one path a line, a .zip, or an "
            "address that fsspec reads (s3://bucket/photos).",
        ),
    ],
    classes: Annotated[str, typer.Option(help="Words, as for `segment`.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; the same command goes on where it stopped.")],
    task: Annotated[TaskName, typer.Option(help="Which kind of masks.")] = TaskName.semantic,
    model: Model = DEFAULT_MODEL,
    format: Annotated[str, typer.Option(help=_FORMATS)] = "coco",
    background: Background = False,
    min_score: MinScore = None,
    augment: Augment = False,
    skip_decided: SkipDecided = False,
    tile: Tile = None,
    overlap: Overlap = None,
    context: Context = None,
    max_pixels: MaxPixels = 120.0,
    device: Device = "auto",
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Compute by Ray Data (lexiseg[ray]): on a cluster (auto, HOST:PORT), or without an address in "
            "processes of this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of --ray: models at work at once. Default: as many as find room.")
    ] = None,
    worker_cpus: Annotated[float | None, typer.Option(min=0.1, help="Of --ray: CPUs of each. Default: 1.")] = None,
    worker_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="Of --ray: GPUs of each, 0.5 for two on one. Default: 1 with CUDA, else 0."),
    ] = None,
) -> None:
    """Segment very many photos into one folder.

    A run that was stopped, by whatever, goes on by the same command and ends with the same files. Photos that fail are
    listed in failures.jsonl and tried again by the same command. Exit status 1 says that there are some, 2 that the
    call was wrong.
    """
    vocabulary = _vocabulary(classes, background)
    from lexiseg.bulk import run_batch
    from lexiseg.images import ImageLimits

    if ray is None and not (workers is worker_cpus is worker_gpus is None):
        _wrong("--workers, --worker-cpus and --worker-gpus are of --ray: give that too")
    tiles = _tiling(tile, overlap, context)
    limits = ImageLimits(max_pixels=round(max_pixels * 1e6))
    options = {"skip_decided": skip_decided, "augmented": augment, "tiles": tiles}
    segmenter = _segmenter(model, device if ray is None else "cpu", limits, **options)
    shared = None
    if ray is not None:
        shared = _workers(ray, workers, worker_cpus, worker_gpus, model, device, limits, options)
    try:
        done = run_batch(
            segmenter,
            photos,
            vocabulary,
            out,
            task=task.value,
            format=format,
            min_score=min_score,
            workers=shared,
        )
    except (ValueError, OSError) as error:
        _wrong(str(error))
    print(f"{done.merged or done.folder}: {done.photos - len(done.failures)} of {done.photos} photos, {done.new} new")
    if done.failures:
        _say(f"lexiseg: {len(done.failures)} photos failed: {done.folder / 'failures.jsonl'}")
        raise typer.Exit(1)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what can be loaded: what it needs, its published numbers, its licence."""
    from lexiseg.zoo.table import rows

    entries = rows()
    if as_json:
        print(json.dumps([vars(entry) for entry in entries], indent=1, ensure_ascii=False))
        return
    console = _console()
    for entry in entries:
        console.print(f"[bold]{entry.name}[/bold]: {entry.state}", highlight=False)
        for line in (entry.title, entry.published, *_measured(entry.name), f"weights: {entry.weights_licence}"):
            if line:
                console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def compose(
    proposals: Annotated[
        str,
        typer.Option(help="Who draws masks: a model, a transformers generator (SAM, Mask2Former, ...), or 'given'."),
    ],
    regions: Annotated[str, typer.Option(help="Who names them: a model, or a CLIP in open_clip's layout.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of --regions against --proposals for classes the latter knows."),
    ] = None,
    beta: Annotated[float | None, typer.Option(min=0, max=1, help="The same for all other classes.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Of a transformers generator: points_per_side=16. May be repeated.")
    ] = None,
    granularity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of OVSeg's CLIP: 1 for each word's best mask, less for more of its masks."),
    ] = None,
) -> None:
    """Join the mask generator of one model and the region classifier of another into a model folder.

    Either is a name from `lexiseg models`, a folder, or organisation/name on the hub.
    """
    settings = dict(_setting(text) for text in setting or [])
    from lexiseg.zoo.loading import compose_folder

    try:
        folder = compose_folder(
            out, proposals, regions, alpha=alpha, beta=beta, settings=settings, granularity=granularity
        )
    except (ValueError, OSError, RuntimeError) as error:
        _wrong(str(error))
    given = proposals == "given"
    drawn, masks = ("masks that come with the photos", " --masks FILE") if given else (f"masks by {proposals}", "")
    print(f"{folder}: {drawn}, named by {regions}. Use it: lexiseg segment PHOTO{masks} --model {folder}")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file, NAME.onnx.")],
    model: Model = DEFAULT_MODEL,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Words that become part of the file, as for `segment`. Without them each question brings its own, "
            "and NAME.text.onnx comes along."
        ),
    ] = None,
    background: Background = False,
    format: Annotated[ExportFormatName, typer.Option(help="The kind of file.")] = ExportFormatName.onnx,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW",
            help="For photos on a canvas of this size alone: height x width, such as 512x768. May be repeated, for a "
            "file each. Default: any size.",
        ),
    ] = None,
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the weights; docs/export.md says what each costs.")
    ] = PrecisionName.float32,
    check: Annotated[
        Path | None, typer.Option(help="Folder of photos to check the file on. Default: two of scikit-learn's.")
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the pixels that must have the class that PyTorch gives them. Default: 0.999; in float16 "
            "and int8 it is told only.",
        ),
    ] = None,
) -> None:
    """Write a model as an ONNX file, for onnxruntime; `lexiseg segment --model NAME.onnx` runs it.

    The file is compared with PyTorch on photos before it is left behind.
    """
    vocabulary = None if classes is None else _vocabulary(classes, background)
    if background and vocabulary is None:
        _wrong("--background belongs to words: give them as --classes, or ask for it in every question")
    sizes = [_size(text) for text in size or []]
    try:
        from lexiseg.export import export_model
        from lexiseg.export.checking import as_percent, photos_to_check
    except ModuleNotFoundError as error:
        _wrong(f"export needs {error.name}: pip install 'lexiseg[export]'")
    loaded = _segmenter(model, "cpu", None).model
    try:
        done = export_model(
            loaded,
            out,
            vocabulary=vocabulary,
            sizes=sizes,
            precision=precision.value,
            photos=photos_to_check(check),
            least_agreement=agreement,
        )
    except (ValueError, OSError) as error:
        _wrong(str(error))
    for file, found in zip(done.files, done.checks, strict=True):
        print(
            f"{file}: {file.stat().st_size / 2**20:.1f} MiB, {precision.value}; of {found.photos} photos "
            f"{as_percent(found.same_labels)} of the pixels have the class that PyTorch gives them, "
            f"{as_percent(found.same_segments)} in the panoptic result"
        )
    for file in done.text_files:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, encodes words; keep it beside the other")
    print(f"Use it: lexiseg segment PHOTO --model {out}" + ("" if vocabulary else " --classes WORDS"))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="An official checkpoint.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model. Default: where its name is looked for.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="Whose checkpoint it is: auto, fcclip, maftplus-semantic, maftplus-panoptic, mask-adapter-fcclip, "
            "mask-adapter-maftplus-base, mask-adapter-maftplus-large, maskclip-pp-coco-panoptic, "
            "maskclip-pp-coco-stuff, ovseg-small, ovseg-large, ovseg-large-words, ovseg-clip, maft or freeseg."
        ),
    ] = "auto",
    base: Annotated[
        Path | None,
        typer.Option(help="For an adapter after its first training stage: the checkpoint it was made for."),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(help="For a MaskCLIP++ classifier: the FC-CLIP, MAFT+ or Mask2Former it is to stand behind."),
    ] = None,
    clip: Annotated[
        list[Path] | None,
        typer.Option(
            help="For a MaskCLIP++ classifier: the CLIP it began with, for its words; may be repeated. For OVSeg: what "
            "`lexiseg train ovseg` made, a CLIP or prompts, in the place of those in the file; may be repeated."
        ),
    ] = None,
    training_words: Annotated[
        Path | None, typer.Option(help="The official class list the model was trained with, to score as published.")
    ] = None,
) -> None:
    """Turn an official checkpoint into a model folder; every tensor is accounted for."""
    from lexiseg.zoo.convert import convert as convert_file
    from lexiseg.zoo.convert import read_training_phrases

    try:
        phrases = None if training_words is None else read_training_phrases(training_words)
        report = convert_file(
            file, out, layout, base=base, generator=generator, clips=clip or (), training_phrases=phrases
        )
    except (ValueError, OSError) as error:
        _wrong(str(error))
    print(report.summary())


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--about"]},
    options_metavar="[RECIPE --help]",
)
def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="Its name. Without one the recipes are listed.")] = None,
) -> None:
    """Train a model by a recipe; RECIPE --help shows its options. The same command goes on where it stopped."""
    from lexiseg.apps.recipes import RECIPES, start
    from lexiseg.data.user_masks import DataProblems

    if recipe in (None, "-h", "--help"):
        print("Recipes (`lexiseg train RECIPE --help` shows the options of one):\n")
        for name, entry in RECIPES.items():
            print(f"  {name:24} {entry.summary}")
        return
    if recipe not in RECIPES:
        _wrong(f"no recipe is called {recipe!r}: choose one of {', '.join(RECIPES)}")
    try:
        outcome = start(recipe, context.args)
    except DataProblems as problems:
        for line in problems.lines:
            _say(f"lexiseg: {line}")
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        _wrong(f"{recipe} needs {error.name}: pip install 'lexiseg[train,dev]'")
    except (ValueError, FileNotFoundError) as error:
        _wrong(f"{recipe}: {error}")
    if isinstance(outcome, str):
        print(outcome)
    if outcome is False:
        _say(f"lexiseg: {recipe} is not complete; the same command goes on from here")


@app.command("eval")
def evaluate(
    benchmark: Annotated[
        str,
        typer.Option(
            help="A name from `lexiseg data prepare`, or labelled photos: a folder or a zip with dataset.json inside. "
            "'mini': the six systems trained and measured alike, in hours."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"As for `segment`; may be given several times. Default: {DEFAULT_MODEL}."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: test, else val.")] = None,
    words: Annotated[
        str | None, typer.Option(help="Other names for the classes, as many and in the same order; as for --classes.")
    ] = None,
    class_list: Annotated[
        Path | None,
        typer.Option(help="The same as a published class list: a text file with lines like '12:door,doors'."),
    ] = None,
    measures: Annotated[
        str | None, typer.Option(help="Of miou, boundary, pq, ap; with commas. Default: what the data offers.")
    ] = None,
    given_masks: Annotated[
        GivenMasksName | None,
        typer.Option(
            help="Mask accuracy: how often true masks are called by their name, one per class or every region."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many photos, evenly spread.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine, each with its own model.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for numbers and records; the same command goes on where it stopped.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also a page with the worst and the best photos, into --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    device: Device = "auto",
    data: Annotated[Path | None, typer.Option(help="With 'mini': the folder of its packages.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="With 'mini': stop after so long; the same command goes on later.")
    ] = None,
) -> None:
    """Measure models on labelled photos, beside the published numbers; with several, their differences.

    mIoU by both rules, per class; panoptic quality and AP where the data knows regions; seconds per photo; peak memory.
    `accelerate launch` and `torchrun` share the photos among processes; then --out is needed.
    """
    if benchmark == MINIATURE:
        _miniature(data, out, minutes)
        return
    if html and out is None:
        _wrong("--html: the page needs a folder, given as --out")
    if words is not None and class_list is not None:
        _wrong("--words and --class-list say the same: give one of them")
    vocabulary = None if words is None else _vocabulary(words, background=False, option="--words")
    if class_list is not None:
        vocabulary = _class_list(class_list)
    from lexiseg.data.benchmarks import find_benchmark
    from lexiseg.data.packages import LabelledPhotos
    from lexiseg.evaluation import Plan, Share, candidate_of, evaluate, evaluate_with_workers, own_device
    from lexiseg.evaluation.comparison import comparison, comparison_table, save_comparison
    from lexiseg.evaluation.report import write_report

    names, share, found = model or [DEFAULT_MODEL], Share.from_environment(), []
    try:
        path = find_benchmark(benchmark)
        photos = LabelledPhotos(path)
        plan = Plan.of(
            photos,
            split=split,
            words=vocabulary,
            limit=limit,
            measures=None if measures is None else [word.strip() for word in measures.split(",")],
            given_masks=None if given_masks is None else given_masks.value,
        )
        for name in names:
            candidate = None  # the last one goes before the next one is loaded
            outcome: Evaluation | None
            if workers > 1:
                outcome = evaluate_with_workers(name, path, plan, workers=workers, out=out, device=device)
            else:
                candidate = candidate_of(_segmenter(name, own_device(device, share), None))
                outcome = evaluate(candidate, photos, plan, out=out, share=share)
            if outcome is None:
                continue
            found.append(outcome)
            if out is not None:
                outcome.save(out)
            if html and out is not None:
                write_report(outcome, candidate or candidate_of(_segmenter(name, device, None)), photos, plan, out)
    except (ValueError, OSError) as error:
        _wrong(str(error))
    if not found:  # another process has the numbers
        return
    if len(found) > 1 and out is not None:
        save_comparison(found, out)
    if as_json:
        told = found[0].to_dict() if len(found) == 1 else comparison(found)
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    for evaluation in found:
        print(evaluation.to_markdown())
    if len(found) > 1:
        print(comparison_table(found))


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"As for `segment`; may be given several times, the first is the usual one. [{DEFAULT_MODEL}]"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Who can reach it: 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page at /, beside the API.")] = True,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="A file with a key that clients must send. Or set LEXISEG_API_KEY. Default: no key."),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Refuse larger photos; of the file.")] = 32.0,
    max_pixels: Annotated[float, typer.Option(min=0.001, help="Refuse larger photos; in megapixels.")] = 40.0,
    max_words: Annotated[int, typer.Option(min=1, help="Refuse more words in one request, synonyms counted.")] = 1000,
    places: Annotated[int, typer.Option(min=1, help="Requests at a time; more are told to come again.")] = 32,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds from a request to its answer.")] = 60.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Passes at a time. Default: one per core on a CPU, else one.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=64, help="Most photos in one pass. Default: 2 on a CPU, else 8.")
    ] = None,
    label_studio: Annotated[
        bool, typer.Option("--label-studio", help="Be a backend for Label Studio too: see docs/label-studio.md.")
    ] = False,
    label_studio_files: Annotated[
        Path | None, typer.Option(help="For Label Studio: the folder of its local files, if this machine has it too.")
    ] = None,
    label_studio_url: Annotated[
        str | None,
        typer.Option(help="For Label Studio: where it is, to fetch pictures; its key in LABEL_STUDIO_API_KEY."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="For Label Studio: more wordings of labels, and classes that are no labels.")
    ] = None,
    task: Annotated[TaskName, typer.Option(help="For Label Studio: which kind of masks.")] = TaskName.panoptic,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="For Label Studio: leave out segments below it.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Serve a page for people at / and an API for programs under /v1, until Ctrl-C.

    Logs go to stderr, a JSON object per line, without photos and words. Stopping finishes what was accepted.
    """
    if not label_studio and (label_studio_files or label_studio_url or classes or min_score is not None):
        _wrong(
            "--label-studio-files, --label-studio-url, --classes and --min-score are for --label-studio: give it too"
        )
    try:
        from lexiseg.apps.server.label_studio import KEY_VARIABLE as LABEL_STUDIO_KEY
        from lexiseg.apps.server.label_studio import Backend
        from lexiseg.apps.server.limits import Limits
        from lexiseg.apps.server.starting import Offer, read_key, start
    except ModuleNotFoundError as error:
        _wrong(f"serve needs {error.name}: pip install 'lexiseg[serve]'")
    limits = Limits(
        max_bytes=round(max_megabytes * 2**20),
        max_pixels=round(max_pixels * 1e6),
        max_phrases=max_words,
        places=places,
        seconds=time_limit,
    )
    try:
        backend = None
        if label_studio:
            words = None if classes is None else _vocabulary(classes, background=False)
            key = os.environ.get(LABEL_STUDIO_KEY)
            backend = Backend(label_studio_files, label_studio_url, key, words, task.value, min_score)
        offer = Offer(host, port, page, read_key(api_key_file), limits, backend)
    except (ValueError, OSError) as error:
        _wrong(str(error))
    segmenters: dict[str, Segmenter] = {}
    for chosen in dict.fromkeys(model or [DEFAULT_MODEL]):
        name = Path(chosen).resolve().name if Path(chosen).is_dir() else chosen
        if name in segmenters:
            _wrong(f"--model {chosen}: another one is called {name}, too; rename one of the folders")
        segmenters[name] = _segmenter(chosen, device, None)
    try:
        start(segmenters, offer, workers=workers, max_batch=batch, say=lambda line: print(line, flush=True))
    except (ValueError, OSError) as error:
        _wrong(str(error))


def _miniature(data: Path | None, out: Path | None, minutes: float | None) -> None:
    if data is None or out is None:
        _wrong(
            f"--benchmark {MINIATURE} needs its packages, given as --data DIR, and a folder for its work, as --out DIR"
        )
    from lexiseg.miniature.running import run

    try:
        complete = run(data, out, deadline=None if minutes is None else time.time() + 60 * minutes)
    except (ValueError, OSError) as error:
        _wrong(str(error))
    told = f"{out / 'mini-benchmark.md'}" if complete else "not complete; the same command goes on"
    print(told)


@data_app.command("prepare")
def prepare_data(
    name: Annotated[str | None, typer.Argument(help="The benchmark. Without one they are listed.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with the publisher's files, unpacked or not, or one archive: .zip, .tar, .tar.gz."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the package. Default: where `lexiseg eval` looks for its name.")
    ] = None,
) -> None:
    """Turn the files of a benchmark, as its publisher ships them, into what `lexiseg eval` reads.

    The same command goes on where it stopped. Nothing is downloaded: what is missing is listed with the place that
    offers it. Exit status 1 says that the package is not the whole benchmark.
    """
    from lexiseg.data.benchmarks import BENCHMARKS, prepared_folder
    from lexiseg.data.preparation import prepare

    if name is None:
        print("Benchmarks (`lexiseg data prepare NAME --source DIR`):\n")
        for key, benchmark in BENCHMARKS.items():
            print(f"  {key:16} {benchmark.title}; {', '.join(benchmark.measures)}")
            for part in benchmark.parts:
                print(f"{'':18} {part.what}{' (may be missing)' if part.without else ''}: {part.offered}")
        return
    if name not in BENCHMARKS:
        _wrong(f"no benchmark is called {name!r}: choose one of {', '.join(BENCHMARKS)}")
    if source is None:
        _wrong(f"{name}: give the folder with its files as --source; `lexiseg data prepare` lists what it consists of")
    console = _console(stderr=True)
    try:
        done = prepare(
            name,
            source,
            out or prepared_folder(name),
            progress=lambda ids, total: _with_progress(ids, total, console, f"preparing {name}"),
        )
    except (ValueError, OSError) as error:
        _say(f"lexiseg: {error}")  # a line for each part that is missing
        raise typer.Exit(2) from None
    print(f"{done.folder}: {done.photos} photos of {BENCHMARKS[name].title}")
    for remark in done.remarks:
        _say(f"lexiseg: {remark}")
    if not done.complete:
        raise typer.Exit(1)


@data_app.command("mine")
def mine_data(
    captions: Annotated[
        Path,
        typer.Argument(
            help="A package with captions (folder or zip), COCO's captions .json, or a .tsv: file, caption."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pairs; the same command goes on where it stopped.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the photos, for .json and .tsv.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a package. Default: its first.")] = None,
    model: Annotated[str, typer.Option(help="Who draws masks, and compares them with words.")] = DEFAULT_MODEL,
    regions: Annotated[
        str | None, typer.Option(help="Another model or CLIP for the words; --model may then be any mask generator.")
    ] = None,
    pooled: Annotated[
        bool, typer.Option("--pooled", help="Read regions as their model does, not from masked crops.")
    ] = False,
    crop_side: Annotated[int | None, typer.Option(min=16, max=1024, help="Pixels of a ConvNet's crops.")] = None,
    captions_per_photo: Annotated[int, typer.Option(min=1, help="So many captions of a photo are read.")] = 1,
    words: Annotated[
        str | None, typer.Option(help="Look for these alone, in the place of all nouns; as for `segment --classes`.")
    ] = None,
    keep_all_nouns: Annotated[
        bool, typer.Option("--keep-all-nouns", help="Also 'front', 'group' and others that name no region.")
    ] = False,
    min_photos: Annotated[int, typer.Option(min=1, help="Photos whose captions have a word, at least.")] = 1,
    min_area: Annotated[float, typer.Option(min=0, max=1, help="Share of the photo a region covers at least.")] = 0.0,
    max_area: Annotated[float, typer.Option(min=0, max=1, help="The same at most.")] = 1.0,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Only regions that are themselves most like their word, of the photo's.")
    ] = False,
    shard_photos: Annotated[int, typer.Option(min=1, help="Photos per shard: what a kill may cost.")] = 200,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of Ray Data, on this machine or its cluster (lexiseg[ray]).")
    ] = None,
    device: Device = "auto",
) -> None:
    """Mine regions with words from captions: OVSeg's data engine. `lexiseg train ovseg` learns from them.

    Written are shards of pairs, counts, a table of the words, and sheet.png, to be looked at. --out may be shared by
    several machines. Exit status 1 says that some photos could not be read.
    """
    from lexiseg.mining.matching import Filters
    from lexiseg.mining.running import Run, Settings, Source, mine
    from lexiseg.mining.sheet import save_sheet
    from lexiseg.mining.summary import save_summary, summarise
    from lexiseg.segmenter import pick_device

    settings = Settings(
        model=model,
        regions=regions,
        pooled=pooled,
        crop_side=crop_side,
        captions=captions_per_photo,
        words=words,
        keep_all_nouns=keep_all_nouns,
        min_photos=min_photos,
        filters=Filters(min_area, max_area, mutual),
        shard_photos=shard_photos,
    )
    source = Source(str(captions.resolve()), None if images is None else str(images.resolve()), split)
    console = _console(stderr=True)
    try:
        chosen = pick_device(device)
        if workers is None:
            mine(
                out,
                source,
                settings,
                device=chosen,
                progress=lambda numbers, total: _with_progress(numbers, total, console, "mining"),
            )
        else:
            from lexiseg.mining.scaling import mine_with_ray

            mine_with_ray(Run.start(out, source, settings), workers, chosen.type)
        found = summarise(out)
        save_summary(found, out)
        sheet = save_sheet(out) if found.pairs else None
    except (ValueError, OSError, RuntimeError) as error:
        _wrong(str(error))
    print(found.lines())
    print(
        f"{out}" + (f"; look at {sheet} before you train: lexiseg train ovseg --pairs {out} --out RUN" if sheet else "")
    )
    for photo, problem in found.failures.items():
        _say(f"lexiseg: {photo}: {problem}")
    if found.failures:
        raise typer.Exit(1)


@vocab_app.command("check")
def check_vocabulary(
    classes: Annotated[str | None, typer.Option(help="Words, as for `segment`.")] = None,
    class_list: Annotated[
        Path | None,
        typer.Option(help="A published class list instead: a text file with lines like '12:door,doors'."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    background: Annotated[
        bool, typer.Option("--background", help="Add a class for anything else, as `segment` does.")
    ] = False,
    similarity: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Warn of pairs this alike. Default: measured on the model's own words tower."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 when there is a warning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say which words a model cannot tell apart, and what else is wrong with them, before photos are looked at.

    Words of different classes are compared by the model's text tower. What it finds it says, and what to do; nothing is
    changed. Exit status 0 also with warnings, unless --strict.
    """
    if classes is not None and class_list is None:
        vocabulary = _vocabulary(classes, background)
    elif class_list is not None and classes is None:
        vocabulary = _class_list(class_list)
    else:
        _wrong("give the words: --classes, or --class-list for a published list")
    from lexiseg.text_bank import cache_folder
    from lexiseg.word_check import Alikeness, check_words, measure_alikeness

    loaded = _segmenter(model, "cpu", None).model
    limits = Alikeness(similarity, similarity) if similarity is not None else measure_alikeness(loaded, cache_folder())
    remarks = check_words(loaded, vocabulary, cache_folder(), limits)
    warnings = sum(remark.is_warning for remark in remarks)
    if as_json:
        told = [{**asdict(remark), "is_warning": remark.is_warning} for remark in remarks]
        print(json.dumps({"limits": asdict(limits), "remarks": told}, indent=1, ensure_ascii=False))
    else:
        _show_remarks(remarks, _console())
        counted = f"{len(vocabulary)} classes, {warnings} {'warning' if warnings == 1 else 'warnings'}"
        print(f"{counted} (alike from {limits.close:.2f}, the same from {limits.same:.2f})")
    if strict and warnings:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- the parts


def _setting(text: str) -> tuple[str, bool | int | float]:
    """ "points_per_side=16" -> ("points_per_side", 16)."""
    name, _, value = text.partition("=")
    words: dict[str, bool] = {"true": True, "false": False}
    try:
        return name.strip(), words[value] if value in words else float(value) if set(value) & set(".eE") else int(value)
    except ValueError:
        _wrong(f"--setting {text}: write NAME=NUMBER, NAME=true or NAME=false")


def _size(text: str) -> tuple[int, int]:
    """ "512x768" -> (512, 768)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        _wrong(f"--size {text}: write height x width, such as 512x768")
    return int(height), int(width)


def _vocabulary(classes: str, background: bool, option: str = "--classes") -> Vocabulary:
    from lexiseg.vocabulary import Vocabulary, VocabularyError

    try:
        return Vocabulary.parse(classes, background=background)
    except VocabularyError as error:
        _wrong(f"{option}: {error}")


def _class_list(path: Path) -> Vocabulary:
    from lexiseg.vocabulary import Vocabulary, VocabularyError

    try:
        return Vocabulary.from_class_list(path)
    except VocabularyError as error:
        _wrong(f"--class-list: {error}")


def _expand(photos: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders as the images in them, without the results of earlier runs; each file once."""
    from lexiseg.images import find_images

    seen: set[Path] = set()
    for photo in photos:
        if photo.is_dir():
            inside = [path for path in find_images(photo) if not _is_result(path)]
            if not inside:
                _wrong(f"{photo}: a folder without images")
        else:
            inside = [photo]
        for path in inside:
            real = path.resolve()
            if real not in seen:
                seen.add(real)
                yield path


def _mask_files(masks: Path, photos: Sequence[Path]) -> list[Path]:
    """The file with the masks of each photo, there or not: one that is missing is a failure of its photo alone."""
    from lexiseg.mask_input import OF_MANY_PHOTOS, SUFFIXES, find_masks

    if not masks.exists():
        _wrong(f"--masks {masks}: there is no such file or folder")
    if masks.is_dir():
        found = [find_masks(masks, photo.stem) for photo in photos]
        if any(file.resolve() == photo.resolve() for file, photo in zip(found, photos, strict=True)):
            _wrong(f"--masks {masks}: the photos are in this folder too; put the masks into one of their own")
        return found
    if masks.suffix.lower() in OF_MANY_PHOTOS:
        return [masks] * len(photos)
    if len(photos) > 1:
        kinds = ", ".join(SUFFIXES)
        _wrong(f"--masks {masks}: one file for {len(photos)} photos; give a folder of files named like them ({kinds})")
    return [masks]


def _is_result(path: Path) -> bool:
    """A picture that `save` has written: the JSON file of the same stem lies beside it."""
    for ending in (".overlay.png", ".labels.png", ".palette.png"):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + ".json").is_file()
    return False


def _distinct_stems(paths: Sequence[Path], out: Path) -> list[str]:
    """A stem for each photo, so that no two share an output file and no output replaces a photo.

    Capitals do not count: some file systems do not tell them apart.
    """
    from lexiseg.results import file_stem

    folder = out.resolve()
    photos = {path.resolve() for path in paths}
    wanted = [file_stem(path.name) for path in paths]
    reserved = {stem.lower() for stem in wanted}
    taken: set[str] = set()
    chosen = []
    for stem in wanted:
        candidate, number = stem, 1
        while (
            candidate.lower() in taken
            or (number > 1 and candidate.lower() in reserved)
            or any(folder / f"{candidate}.{kind}.png" in photos for kind in ("overlay", "labels"))
        ):
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(candidate.lower())
        chosen.append(candidate)
    return chosen


def _measured(name: str) -> list[str]:
    """What the card of a model on this machine says was measured: "measured on camvid: miou 50.2"."""
    from lexiseg.zoo.catalogue import ZOO, Composed, Embedded
    from lexiseg.zoo.loading import EMBEDDED, converted_folder, is_available
    from lexiseg.zoo.model_folder import SETTINGS_FILE, ModelFolderError, read_settings

    source = ZOO[name].source
    if not is_available(name) or isinstance(source, Composed):
        return []
    folder = EMBEDDED / source.folder if isinstance(source, Embedded) else converted_folder(name)
    try:
        measured = read_settings(folder / SETTINGS_FILE, siblings=True).card.get("measured")
    except ModelFolderError as error:
        return [str(error)]
    if not isinstance(measured, dict):
        return [f"measured: {measured}"] if measured else []
    lines = []
    for data, numbers in measured.items():
        told = ", ".join(f"{key} {value}" for key, value in numbers.items()) if isinstance(numbers, dict) else numbers
        lines.append(f"measured on {data}: {told}")
    return lines


def _tiling(tile: int | None, overlap: int | None, context: float | None = None) -> Tiling | None:
    from lexiseg.tiling import Tiling

    if tile is None:
        if overlap is not None or context is not None:
            _wrong("--overlap and --context are of tiles: give their size as --tile")
        return None
    try:
        tiles = Tiling(tile, tile // 8 if overlap is None else overlap)
        return tiles if context is None else replace(tiles, context=context)
    except ValueError as error:
        _wrong(f"--tile, --overlap: {error}")


def _is_exported(model: str) -> bool:
    return model.lower().endswith(".onnx")


def _exported(model: str, device: str, limits: Any, refused: Sequence[str]) -> ExportedSegmenter:
    if refused:
        _wrong(f"{', '.join(refused)}: not with an exported model, which looks once at a whole photo; name the model")
    try:
        from lexiseg.exported import ExportedSegmenter
    except ModuleNotFoundError as error:
        _wrong(f"--model {model} needs {error.name}: pip install 'lexiseg[export]'")
    return ExportedSegmenter.load(model, device, limits)


def _segmenter(model: str, device: str, limits: Any, **options: Any) -> Segmenter:
    from lexiseg.segmenter import Segmenter
    from lexiseg.zoo.catalogue import ZOO, Embedded

    if _is_exported(model):
        _wrong(f"--model {model}: an exported model answers `lexiseg segment` alone; give the model it was made of")
    try:
        segmenter = Segmenter.from_pretrained(model, device, limits, **options)
    except (ValueError, OSError, RuntimeError) as error:
        _wrong(f"--model {model}: {error}" if model not in str(error) else str(error))
    entry = ZOO.get(model)
    if entry is not None and isinstance(entry.source, Embedded):
        _say(
            f"Using {entry.name}, the small model that comes with the package ({entry.weights_licence}). "
            "For a real one see: lexiseg models"
        )
    return segmenter


def _workers(
    address: str,
    count: int | None,
    cpus: float | None,
    gpus: float | None,
    model: str,
    device: str,
    limits: Any,
    options: dict[str, Any],
) -> Workers:
    """Who computes a batch on Ray; "auto" is what this machine has."""
    from functools import partial

    from lexiseg.bulk import Workers
    from lexiseg.cluster import Cluster
    from lexiseg.segmenter import Segmenter, pick_device

    chosen = pick_device(device).type if device == "auto" else device
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    if gpus is None:
        gpus = 1 if chosen.startswith("cuda") else 0
    load = partial(Segmenter.from_pretrained, name, chosen, limits, **options)
    return Workers(load, Cluster(None if address == "local" else address, count, 1 if cpus is None else cpus, gpus))


def _with_progress(stream: Iterable[Any], total: int, console: Console, what: str = "segmenting") -> Iterator[Any]:
    """A bar on stderr for more than one photo, where somebody is looking."""
    if total < 2 or not console.is_terminal:
        yield from stream
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(stream, total=total)


def _show_remarks(remarks: Sequence[Remark], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not remarks:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("words", overflow="fold")
    table.add_column("alike", justify="right")
    table.add_column("what is so, and what to do", overflow="fold")
    for remark in remarks:
        shown = ", ".join(remark.phrases[:_TABLE_ROWS]) + (", ..." if len(remark.phrases) > _TABLE_ROWS else "")
        cosine = "" if remark.similarity is None else f"{remark.similarity:.2f}"
        table.add_row("warning" if remark.is_warning else "note", escape(shown), cosine, escape(remark.says))
    console.print(table)


class _OtherFormats:
    """What `segment --format` writes beside the usual files: pictures at once, files of all photos in the end."""

    def __init__(self, names: Iterable[str], photos: Sequence[Path], out: Path) -> None:
        self.out = out
        self.results: list[tuple[PhotoRecord, Vocabulary]] = []
        if not names:
            self.formats: dict[str, Format] = {}
            return
        from lexiseg.formats.table import find_format

        whole = [photo.absolute() for photo in photos]
        root = Path(os.path.commonpath([photo.parent for photo in whole]))
        self.names = {photo: path.relative_to(root).as_posix() for photo, path in zip(photos, whole, strict=True)}
        try:
            self.formats = {name: find_format(name, self.names.values()) for name in names}
        except ValueError as error:
            _wrong(f"--format: {error}")

    def add(self, photo: Path, result: Result, stem: str) -> None:
        """Raises OSError or ValueError."""
        for name, format in self.formats.items():
            if format.picture is not None and name != "png":  # the label map is written anyway
                format.picture(result).save(self.out / f"{stem}.{name}.png")
        if self.formats:
            self.results.append((replace(result.record(), photo=self.names[photo]), result.vocabulary))

    def write(self) -> None:
        from lexiseg.formats.table import write_merged

        for format in self.formats.values():
            if format.merged is not None and self.results:
                vocabulary = self.results[0][1]
                write_merged(format.merged, self.out, [record for record, _ in self.results], vocabulary)


class _Tally:
    """Words over all photos: in how many, how much of them, with which score."""

    def __init__(self) -> None:
        self.photos = 0
        self.found: dict[str, list[tuple[int, float, float]]] = {}

    def add(self, result: Result) -> None:
        self.photos += 1
        shares = result.shares
        for word in shares:
            of_word = [segment for segment in result.segments if segment.label == word]
            area = sum(segment.area for segment in of_word)
            score = sum(segment.score * segment.area for segment in of_word) / max(area, 1)
            self.found.setdefault(word, []).append((len(of_word), shares[word], score))

    def show(self, console: Console) -> None:
        from rich.table import Table

        if not self.photos:
            return
        many = self.photos > 1
        table = Table(box=None, pad_edge=False)
        table.add_column("word", overflow="fold")
        for title in (*(("photos",) if many else ()), "segments", "share", "score"):
            table.add_column(title, justify="right")
        rows = sorted(self.found.items(), key=lambda item: -sum(share for _, share, _ in item[1]))
        for word, entries in rows[:_TABLE_ROWS]:
            share = sum(share for _, share, _ in entries) / self.photos
            score = sum(score for _, _, score in entries) / len(entries)
            count = sum(count for count, _, _ in entries)
            table.add_row(
                word, *((str(len(entries)),) if many else ()), str(count), f"{100 * share:.1f} %", f"{score:.2f}"
            )
        if rows:
            console.print(table, markup=False)
        else:
            console.print("nothing found", markup=False)
        if len(rows) > _TABLE_ROWS:
            console.print(f"and {len(rows) - _TABLE_ROWS} more words", markup=False)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _wrong(message: str) -> NoReturn:
    """The call cannot be answered: one line, status 2."""
    _say(f"lexiseg: {' '.join(message.split())}")
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
