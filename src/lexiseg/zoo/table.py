"""The zoo as tables: for `lexiseg models`, and for docs/models.md."""

from __future__ import annotations

from dataclasses import dataclass

from lexiseg.zoo.catalogue import BENCHMARKS, ZOO, Composed, Entry, HubPart, OfficialFile
from lexiseg.zoo.loading import is_available

METRICS = {"pq": "PQ", "ap": "AP", "miou": "mIoU", "sq": "SQ", "rq": "RQ", "mask_acc": "mMaskAcc"}
RULES = {
    "gt": "mean over the classes that occur in the ground truth",
    "gt_or_pred": "mean over the classes that occur in ground truth or prediction",
}


@dataclass(frozen=True)
class Row:
    """One line of `lexiseg models`."""

    name: str
    title: str
    state: str
    """"ready": can be loaded now; otherwise what it needs."""
    published: str
    weights_licence: str


def rows() -> list[Row]:
    """The whole zoo, in its order, with what is true on this machine now."""
    return [
        Row(
            name=entry.name,
            title=entry.title,
            state=_state(entry),
            published=headline(entry),
            weights_licence=entry.weights_licence,
        )
        for entry in ZOO.values()
    ]


def _state(entry: Entry) -> str:
    if is_available(entry.name):
        return "ready"
    return "missing from this installation" if entry.state == "ready" else f"needs {entry.needs}"


def headline(entry: Entry) -> str:
    """The published numbers on the benchmark everybody reports."""
    numbers = entry.published.get("ade20k-150", {})
    shown = ", ".join(f"{METRICS[metric]} {value:.1f}" for metric, value in numbers.items())
    return f"ADE20K-150: {shown}" if shown else ""


def markdown() -> str:
    """docs/models.md. It depends on the catalogue alone, not on what is installed."""
    lines = [
        "# Models",
        "",
        "Written from the catalogue (`lexiseg.zoo.catalogue`) by `python -m lexiseg.zoo.table > docs/models.md`;",
        "a test compares the two. `lexiseg models` shows the same list with what can be loaded on this machine.",
        "",
        "| name | what it is | needs | trained on | licence of code | licence of weights |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{entry.name}` | {entry.title} ({entry.paper}) | {entry.needs} | {entry.trained_on} "
        f"| {entry.code_licence} | {entry.weights_licence} |"
        for entry in ZOO.values()
    ]
    lines += ["", "## Official checkpoints", ""]
    lines += [
        "Fetch the file from its page and run `lexiseg convert FILE` once; the model is then loaded by its name. Where",
        "options stand beside a file, the model is put together with other official files: give them so.",
        "FCCLIP_B is FC-CLIP with a base tower, from the page of MaskCLIP++. CONVNEXT_BASE, CONVNEXT_XXLARGE and",
        "RN50X16 are the CLIPs that open_clip publishes for these towers; the file of an FC-CLIP with that tower will",
        "do as well. EVA-CLIP's files are those of their authors.",
        "The converter tells the model by the shapes in the file, accounts for every tensor, and refuses a file in",
        "which one is renamed, missing or of another shape.",
        "",
        "| name | file | page | size |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{entry.name}` | {_files(entry.source)} | {entry.source.page} | {entry.source.gigabytes:.1f} GB |"
        for entry in ZOO.values()
        if isinstance(entry.source, OfficialFile)
    ]
    lines += [
        "",
        "## Composed models",
        "",
        "The mask generator of one source and the classifier of another: see [combinations](combinations.md).",
        "What comes from the hub is fetched when it is first used: settings, and weights as safetensors only, each of",
        "them checked against the hash that the hub gives for it. No revision is pinned: you get what is there then.",
        "The generators need the extra `lexiseg[transformers]`.",
        "",
        "| name | masks by | named by |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{entry.name}` | {part_link(entry.source.proposals)} | {part_link(entry.source.regions)} |"
        for entry in ZOO.values()
        if isinstance(entry.source, Composed)
    ]
    lines += [
        "",
        "A class of your vocabulary counts as *seen* when it shares a word with those the model was trained on. The",
        "converter stores our own list of COCO words (`lexiseg.zoo.coco_words`); to be scored exactly as published,",
        "give it the official class list with `--training-words FILE`.",
        "",
        "## Published numbers",
        "",
        "As published by the authors, in percent; we have not measured them.",
        *(
            f"mIoU of {prefix}: {RULES[rule]}."
            for prefix, rule in {
                entry.paper: entry.miou_rule for entry in ZOO.values() if entry.miou_rule is not None
            }.items()
        ),
        "",
        "| name | " + " | ".join(_column(benchmark) for benchmark in BENCHMARKS) + " |",
        "|---|" + "---|" * len(BENCHMARKS),
    ]
    lines += [
        f"| `{entry.name}` | " + " | ".join(_cell(entry, benchmark) for benchmark in BENCHMARKS) + " |"
        for entry in ZOO.values()
        if entry.published
    ]
    return "\n".join(lines) + "\n"


def part_link(part: HubPart | str) -> str:
    """Part of a composed model, as Markdown."""
    if isinstance(part, str):
        return f"`{part}`"
    return f"[{part.repository}](https://huggingface.co/{part.repository}), revision {part.revision}"


def _files(source: OfficialFile) -> str:
    return f"{source.file}, `{source.beside}`" if source.beside else source.file


def _metrics(benchmark: str) -> tuple[str, ...]:
    """Of the column of a benchmark: those of the first model that has it."""
    return tuple(next(entry.published[benchmark] for entry in ZOO.values() if benchmark in entry.published))


def _column(benchmark: str) -> str:
    return f"{BENCHMARKS[benchmark]} {' / '.join(METRICS[metric] for metric in _metrics(benchmark))}"


def _cell(entry: Entry, benchmark: str) -> str:
    numbers = entry.published.get(benchmark)
    if numbers is None:
        return "–"
    columns = _metrics(benchmark)
    shown = " / ".join(f"{numbers[metric]:.1f}" if metric in numbers else "–" for metric in columns)
    more = [f"{METRICS[metric]} {value:.1f}" for metric, value in numbers.items() if metric not in columns]
    return f"{shown} ({', '.join(more)})" if more else shown


if __name__ == "__main__":
    import sys

    sys.stdout.write(markdown())
