"""The findings of the miniature benchmark as Markdown. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    ("Z1 mIoU", "Z1", "all"),
    ("rarely trained", "Z1", "rarely trained"),
    ("Z1-syn mIoU", "Z1-syn", "all"),
    ("Z2 mIoU", "Z2", "all"),
    ("seen", "Z2", "seen"),
    ("unseen", "Z2", "unseen"),
    ("hIoU", "Z2", "harmonic"),
    ("Z3 mIoU", "Z3", "all"),
    ("S mIoU", "S", "all"),
    ("S-syn mIoU", "S-syn", "all"),
)
MASK_COLUMNS = (
    ("Z1", "Z1-masks", "all"),
    ("Z2", "Z2-masks", "all"),
    ("Z2 seen", "Z2-masks", "seen"),
    ("Z2 unseen", "Z2-masks", "unseen"),
    ("Z3", "Z3-masks", "all"),
)


def report(findings: Mapping[str, Any]) -> str:
    """docs/mini-benchmark.md but for what only a reader can say."""
    systems = [entrant for entrant in findings["entrants"] if entrant["variant_of"] is None]
    variants = [entrant for entrant in findings["entrants"] if entrant["variant_of"] is not None]
    parts = ["## Masks and names together", "", *table(systems, COLUMNS), "", *cost(systems), ""]
    parts += ["## True masks named (mask accuracy)", "", *table(findings["entrants"], MASK_COLUMNS), ""]
    if variants:
        parts += ["Variants are there for the claims alone.", ""]
    parts += ["## Claims", "", *claims(findings), "", f"Machine: {findings['machine']}. Versions: "]
    parts[-1] += ", ".join(f"{name} {number}" for name, number in findings["versions"].items()) + "."
    return "\n".join(parts) + "\n"


def table(entrants: list[dict[str, Any]], columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    lines = [f"| system | {' | '.join(heading for heading, _, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for entrant in entrants:
        cells = [cell(entrant["answers"][question]["groups"].get(group)) for _, question, group in columns]
        lines.append(f"| {entrant['title']} | {' | '.join(cells)} |")
    return lines


def cell(finding: Mapping[str, Any] | None) -> str:
    """The mean over seeds, and its interval over photos."""
    if finding is None:
        return ""
    low, high = finding["interval"]
    return f"{finding['value']:.1f} ({low:.1f} to {high:.1f})"


def cost(entrants: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| system | seconds per photo | peak memory, MB | Z3 PQ / SQ / RQ | seeds of Z1 |",
        "|---|---|---|---|---|",
    ]
    for entrant in entrants:
        street, large = entrant["answers"]["Z1"], entrant["answers"]["Z3"]
        seeds = ", ".join(f"{value:.1f}" for value in street["groups"]["all"]["of_seeds"])
        quality = " / ".join(f"{large[name]:.1f}" for name in ("pq", "sq", "rq"))
        memory = street["peak_memory_mb"]
        lines.append(f"| {entrant['title']} | {street['seconds_per_photo']:.2f} | {memory} | {quality} | {seeds} |")
    return lines


def claims(findings: Mapping[str, Any]) -> list[str]:
    titles = {entrant["name"]: entrant["title"] for entrant in findings["entrants"]}
    lines = ["| claim | of | measured as | difference | shows |", "|---|---|---|---|---|"]
    for claim in findings["claims"]:
        difference = claim["difference"]
        low, high = difference["interval"]
        verdict = "no: nothing but chance" if not difference["counts"] else "yes" if low > 0 else "no: the opposite"
        group = "" if claim["group"] == "all" else f", {claim['group']}"
        pair = f"{titles[claim['better']]} less {titles[claim['worse']]}, {claim['question']}{group}"
        number = f"{difference['value']:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {claim['text']} | {claim['source']} | {pair} | {number} | {verdict} |")
    return lines
