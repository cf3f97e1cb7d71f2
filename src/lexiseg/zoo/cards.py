"""A card for every model of the zoo: what it is, needs, knows and may be used for. docs/model-cards.md is made here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lexiseg.zoo.catalogue import BENCHMARKS, ZOO, Composed, Embedded, Entry, OfficialFile
from lexiseg.zoo.loading import EMBEDDED
from lexiseg.zoo.model_folder import SETTINGS_FILE, Settings, read_settings
from lexiseg.zoo.table import METRICS, RULES, part_link

_NOT_MEASURED = "nothing: its weights were never at hand here"


def card(entry: Entry) -> dict[str, str]:
    """Title of a line -> what it says, in Markdown."""
    settings = _settings(entry)
    lines = {
        "What it is": entry.title,
        "Paper": _paper(entry.paper),
        "Where it comes from": _origin(entry),
        "Needs": entry.needs,
        "Trained on": entry.trained_on,
        "Words of its training": _words(entry, settings),
        "Published": _published(entry),
        "Measured": _measured(settings),
        "Known limits": _limits(entry, settings),
        "Licence of the code": entry.code_licence,
        "Licence of the weights": entry.weights_licence,
        "How to load it": _loading(entry),
    }
    return {title: said for title, said in lines.items() if said}


def markdown() -> str:
    """docs/model-cards.md. It depends on the catalogue and the embedded models, not on what else is installed."""
    lines = [
        "# Model cards",
        "",
        "Written by `python -m lexiseg.zoo.cards > docs/model-cards.md` from the catalogue and the embedded models; a",
        "test compares the two. [All numbers side by side](models.md#published-numbers).",
        "",
        "What holds for all: the words are the user's, and most are compared by a CLIP that was trained on captions of",
        "the web. It has their gaps and their prejudices: words for people, places and occasions call up more than can",
        "be seen. No model here was tested for use on people, in medicine or in traffic.",
    ]
    for entry in ZOO.values():
        lines += ["", f"## {entry.name}", "", "| | |", "|---|---|"]
        lines += [f"| {title} | {said} |" for title, said in card(entry).items()]
    return "\n".join(lines) + "\n"


def _settings(entry: Entry) -> Settings | None:
    """Of an embedded model: the others have theirs only when somebody has converted them."""
    if not isinstance(entry.source, Embedded):
        return None
    return read_settings(EMBEDDED / entry.source.folder / SETTINGS_FILE, siblings=True)


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv ")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else ""


def _origin(entry: Entry) -> str:
    source = entry.source
    if isinstance(source, OfficialFile):
        beside = f", put together with `{source.beside}`" if source.beside else ""
        return f"{source.file}{beside}, {source.gigabytes:.1f} GB, from {source.page}"
    if isinstance(source, Composed):
        return f"masks by {part_link(source.proposals)}; named by {part_link(source.regions)}"
    if isinstance(source, Embedded):
        return "this package; [how it was made](embedded-model.md)"
    return f"[{source.repository}](https://huggingface.co/{source.repository}), revision {source.revision}"


def _words(entry: Entry, settings: Settings | None) -> str:
    """What counts as seen. It decides how far the generator's own verdict is believed."""
    if settings is not None:
        return f"{len(settings.training_phrases)} wordings, listed in its `{SETTINGS_FILE}`"
    if isinstance(entry.source, Composed):
        return ""
    return (
        "those of COCO by our own list (`lexiseg.zoo.coco_words`), unless the official one was given to the converter"
    )


def _published(entry: Entry) -> str:
    if not entry.published:
        return ""
    told = []
    for benchmark, numbers in entry.published.items():
        values = ", ".join(f"{METRICS[metric]} {value:.1f}" for metric, value in numbers.items())
        told.append(f"{BENCHMARKS[benchmark]}: {values}")
    rule = f". mIoU: {RULES[entry.miou_rule]}" if entry.miou_rule is not None else ""
    return "; ".join(told) + rule


def _measured(settings: Settings | None) -> str:
    measured: Any = None if settings is None else settings.card.get("measured")
    if not isinstance(measured, Mapping):
        return _NOT_MEASURED
    return "; ".join(
        f"{data}: {', '.join(f'{METRICS.get(metric, metric)} {value}' for metric, value in numbers.items())}"
        for data, numbers in measured.items()
    )


def _limits(entry: Entry, settings: Settings | None) -> str:
    if settings is not None:
        return str(settings.card.get("limits", ""))
    if isinstance(entry.source, Composed):
        return "its parts were not trained with each other"
    return ""


def _loading(entry: Entry) -> str:
    load = f'`Segmenter.from_pretrained("{entry.name}")`'
    if isinstance(entry.source, OfficialFile):
        return f"fetch the file, `{entry.source.command}`, then {load}"
    if isinstance(entry.source, Composed):
        needed = "" if not isinstance(entry.source.regions, str) else f"after `{entry.source.regions}` is here: "
        return f"`pip install '.[transformers]'`; {needed}{load}"
    return load


if __name__ == "__main__":
    import sys

    sys.stdout.write(markdown())
