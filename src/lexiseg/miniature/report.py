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
SHORT_COLUMNS = (
    ("Z1 mIoU", "Z1", "all"),
    ("Z2 mIoU", "Z2", "all"),
    ("Z2 unseen", "Z2", "unseen"),
    ("Z3 mIoU", "Z3", "all"),
    ("Z3 true masks named", "Z3-masks", "all"),
)
"""Of the README."""
MASK_COLUMNS = (
    ("Z1", "Z1-masks", "all"),
    ("Z2", "Z2-masks", "all"),
    ("Z2 seen", "Z2-masks", "seen"),
    ("Z2 unseen", "Z2-masks", "unseen"),
    ("Z3", "Z3-masks", "all"),
)


def short(findings: Mapping[str, Any]) -> str:
    """The systems alone, for the README."""
    return "\n".join(table(systems_of(findings), SHORT_COLUMNS)) + "\n"


def systems_of(findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entrant for entrant in findings["entrants"] if entrant["variant_of"] is None]


def report(findings: Mapping[str, Any]) -> str:
    """docs/mini-benchmark.md but for what only a reader can say."""
    systems = systems_of(findings)
    variants = [entrant for entrant in findings["entrants"] if entrant["variant_of"] is not None]
    parts = ["## What is asked", "", *asked(findings["questions"]), ""]
    parts += ["## Masks and names together", "", *table(systems, COLUMNS), "", *cost(findings), ""]
    parts += ["## True masks named (mask accuracy)", "", *table(findings["entrants"], MASK_COLUMNS), ""]
    if variants:
        parts += ["Variants are there for the claims alone.", ""]
    parts += ["## Claims", "", *claims(findings), ""]
    if "choice" in findings:
        parts += ["## One further: the best of all parts", "", *choice(findings["choice"]), "", *further(findings), ""]
    parts.append(f"Machine: {findings['machine']}. Versions: ")
    parts[-1] += ", ".join(f"{name} {number}" for name, number in findings["versions"].items()) + "."
    return "\n".join(parts) + "\n"


def asked(questions: list[dict[str, Any]]) -> list[str]:
    lines = ["| question | what | photos of | masks |", "|---|---|---|---|"]
    masks = {None: "the generator's", "classes": "true, one per class", "regions": "true, one per region"}
    for question in questions:
        photos = f"{question['photos']} of {question['package']} {question['split']}"
        lines.append(f"| {question['key']} | {question['title']} | {photos} | {masks[question['given_masks']]} |")
    return lines


def table(entrants: list[dict[str, Any]], columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    lines = [f"| system | {' | '.join(heading for heading, _, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for entrant in entrants:
        cells = [cell(entrant["answers"][question]["groups"].get(group)) for _, question, group in columns]
        lines.append(f"| {entrant['title']} | {' | '.join(cells)} |")
    return lines


def cell(finding: Mapping[str, Any] | None) -> str:
    """The mean over seeds, and its interval over photos; an arrow where it counts as better or worse than the first."""
    if finding is None:
        return ""
    low, high = finding["interval"]
    return f"{finding['value']:.1f} ({low:.1f} to {high:.1f}){arrow(finding['less_first'])}"


def arrow(difference: Mapping[str, Any]) -> str:
    if not difference["counts"] or difference["value"] == 0:
        return ""
    return " ↑" if difference["value"] > 0 else " ↓"


def cost(findings: Mapping[str, Any]) -> list[str]:
    systems = systems_of(findings)
    first = systems[0]["title"]
    lines = [
        f"| system | seconds per photo | times {first}'s | peak memory, MB | Z3 PQ / SQ / RQ | seeds of Z1 |",
        "|---|---|---|---|---|---|",
    ]
    for system in systems:
        street, large, cost = system["answers"]["Z1"], system["answers"]["Z3"], findings["costs"][system["name"]]
        seeds = ", ".join(f"{value:.1f}" for value in street["groups"]["all"]["of_seeds"])
        quality = " / ".join(f"{large[name]:.1f}" for name in ("pq", "sq", "rq"))
        numbers = f"{cost['seconds']:.2f} | {cost['times_first']:.2f} | {cost['peak_memory_mb']}"
        lines.append(f"| {system['title']} | {numbers} | {quality} | {seeds} |")
    return lines


def claims(findings: Mapping[str, Any]) -> list[str]:
    titles = {entrant["name"]: entrant["title"] for entrant in findings["entrants"]}
    lines = ["| claim | of | measured as | difference | shows |", "|---|---|---|---|---|"]
    for claim in findings["claims"]:
        difference = claim["difference"]
        verdict = shows(difference)
        group = "" if claim["group"] == "all" else f", {claim['group']}"
        pair = f"{titles[claim['better']]} less {titles[claim['worse']]}, {claim['question']}{group}"
        lines.append(f"| {claim['text']} | {claim['source']} | {pair} | {signed(difference)} | {verdict} |")
    return lines


def shows(difference: Mapping[str, Any]) -> str:
    """Whether what is claimed to be better is."""
    if not any(difference["interval"]):
        return "no: both alike"
    if not difference["counts"]:
        return "no: nothing but chance"
    return "yes" if difference["value"] > 0 else "no: the opposite"


def signed(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{difference['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def choice(chosen: Mapping[str, Any]) -> list[str]:
    """What was tried for lexiseg-mini on validation photos."""
    lines = ["| candidate | validation mIoU | of the seeds |", "|---|---|---|"]
    for one in chosen["tried"]:
        name = f"**{one['title']}**" if one["title"] == chosen["title"] else one["title"]
        seeds = ", ".join(f"{number:.1f}" for number in one["of_seeds"])
        lines.append(f"| {name} | {one['mean']:.1f} | {seeds} |")
    return lines


def further(findings: Mapping[str, Any]) -> list[str]:
    """How much better it is than each system."""
    titles = {entrant["name"]: entrant["title"] for entrant in findings["entrants"]}
    columns = (*(column for column in COLUMNS if column[2] in ("all", "unseen")), *MASK_COLUMNS)
    headings = [
        f"{heading} masks" if (heading, key, group) in MASK_COLUMNS else heading for heading, key, group in columns
    ]
    lines = [f"| lexiseg-mini less | {' | '.join(headings)} |", "|---" * (len(columns) + 1) + "|"]
    for name, differences in findings["last_less_others"].items():
        cells = [f"{signed(differences[key][group])}{arrow(differences[key][group])}" for _, key, group in columns]
        lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
    return lines
