#!/usr/bin/env python
"""Run every golden case of a directory and compare each array with the stored one.

    python tools/parity.py DIR [--only NAME]

DIR holds manifests, vocabularies and cases (`case-*.json` with their `.npz`) of one method; a `pieces*.json` holds many
small cases, an `optimizer-groups.json` those of a training. A case describes itself: its `inputs` are fed, its `checks`
name what is compared and how closely (the rule is in parity_compare.py). Which computation a case asks for is
recognised by what it contains, never by its name. One row is printed per array, `N of M arrays within tolerance` at the
end; the exit status is 0 when all are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from parity_compare import agreeing, compare

Runner = Callable[[dict[str, Any], Mapping[str, np.ndarray], Path], "dict[str, Any] | None"]

# One module per group of computations, each with run(case, arrays, folder) -> new values, or None if the case
# asks for something else. The values are arrays by name, or json values by their (dotted) path.
RUNNERS = (
    *("parity_fcclip_text", "parity_fcclip_pieces", "parity_fcclip_system", "parity_maftplus"),
    *("parity_mask_adapter", "parity_mask_adapter_system", "parity_ovseg", "parity_maft", "parity_benchmarks"),
    *("parity_mask2former", "parity_maskclippp", "parity_maskclippp_system", "parity_maskclippp_training"),
)

STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda x: float(x.mean()),
    "std": lambda x: float(x.std()),
    "absmax": lambda x: float(np.abs(x).max()),
}


SAMPLE_PARTS = (".sample", ".stats", ".shape")
"""Names under which a case stores parts of a large array."""


class Missing(Exception):
    """The code under test gave no value for a check."""


def lookup(tree: Any, path: str) -> Any:
    """The value at a dotted path: list items by number, keys that contain dots by the longest key that matches."""
    if path == "":
        return tree
    if isinstance(tree, (list, tuple)):
        head, _, rest = path.partition(".")
        if not head.isdigit() or int(head) >= len(tree):
            raise Missing(f"no item {head}")
        return lookup(tree[int(head)], rest)
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=len, reverse=True):
            if path == key or path.startswith(key + "."):
                return lookup(tree[key], path[len(key) + 1 :])
    raise Missing(f"no value at {path}")


def strided(full: np.ndarray, stored: np.ndarray, described: Mapping[str, Any] | str) -> np.ndarray:
    """The entries of `full` that a case stores, by the description of the array; a sentence describes a whole one."""
    if isinstance(described, str):
        return full
    if described.get("kind") == "sample":
        return full.reshape(-1)[:: int(described["stride"])][: stored.size].reshape(stored.shape)
    if full.shape == stored.shape or full.ndim != stored.ndim:
        return full
    said = [int(n) for n in re.findall(r"every (\d+)\w* ", described.get("meaning", ""))]
    said += [int(n) for n in re.findall(r"and (\d+)\w* column", described.get("meaning", ""))]
    changed = [axis for axis in range(full.ndim) if full.shape[axis] != stored.shape[axis]]
    cut: list[slice] = [slice(None)] * full.ndim
    for position, axis in enumerate(changed):
        steps = said[min(position, len(said) - 1) :][:1] or [-(-full.shape[axis] // stored.shape[axis])]
        cut[axis] = slice(None, None, steps[0])
    return full[tuple(cut)]


def by_score(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with instance_* in order of decreasing score: instances come in any order."""
    out = dict(arrays)
    if "instance_scores" in out:
        order = np.argsort(-np.asarray(out["instance_scores"]), kind="stable")
        for name in out:
            if name.startswith("instance_") and len(np.asarray(out[name])) == len(order):
                out[name] = np.asarray(out[name])[order]
    return out


def new_value(name: str, stored: Any, new: Mapping[str, Any], case: Mapping[str, Any]) -> Any:
    """What the code under test computed for a check, in the form in which the case stores it."""
    described = case.get("arrays", {})
    if name in new:
        value = new[name]
        return strided(np.asarray(value), stored, described.get(name, {})) if isinstance(stored, np.ndarray) else value
    if name.startswith("arrays."):
        array, _, statistic = name[len("arrays.") :].rpartition(".")
        if array in new and statistic in STATISTICS:
            return STATISTICS[statistic](np.asarray(new[array], np.float64))
    if isinstance(stored, np.ndarray) and name.rpartition(".")[0] in new and name.endswith(SAMPLE_PARTS):
        return of_sample(name, stored, new)
    parent = name
    while "." in parent:
        parent = parent.rpartition(".")[0]
        if parent in new:
            if isinstance(new[parent], list) and len(new[parent]) != len(lookup(case, parent)):
                raise Missing(f"{parent} has {len(new[parent])} items, stored {len(lookup(case, parent))}")
            return lookup(new[parent], name[len(parent) + 1 :])
    raise Missing("not computed")


def of_sample(name: str, stored: Any, new: Mapping[str, Any]) -> Any:
    """What a case stores of a large array X: its shape, its statistics, or entries at even distances."""
    array, _, part = name.rpartition(".")
    full = np.asarray(new[array])
    if part == "shape":
        return np.array(full.shape)
    if part == "stats":
        return np.array([statistic(full.astype(np.float64)) for statistic in STATISTICS.values()])
    return full.reshape(-1)[:: max(1, full.size // stored.size)][: stored.size]


def limit_of(check: Mapping[str, Any]) -> str:
    words = [f"{key} {check[key]:g}" for key in ("atol", "rtol", "absmax", "share") if key in check]
    return " ".join(words) or "equal"


def run_check(
    name: str, check: dict[str, Any], case: dict[str, Any], stored_arrays: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[bool, float, str]:
    """(passes, largest difference, words) of one check."""
    stored = stored_arrays[name] if name in stored_arrays else lookup(case, name)
    # What a run makes of stored values in the place of its own stands under their names.
    new = {**new, **new.get(f"from {', '.join(check.get('from_stored', ()))}", {})}
    try:
        value = new_value(name, stored, new, case)
    except Missing as error:
        return False, float("inf"), str(error)
    if isinstance(stored, (list, dict)) and not (isinstance(stored, list) and all(np.isscalar(v) for v in stored)):
        return stored == value, 0.0, "equal" if stored == value else f"{value!r}, stored {stored!r}"[:120]
    stored_part, new_part = np.asarray(stored), np.asarray(value)
    if stored is None:
        stored_part = np.asarray(np.nan)
    if "first" in check:
        stored_part, new_part = stored_part[: check["first"]], new_part[: check["first"]]
    rows = None
    if "agree" in check:
        rows = agreeing(stored_arrays, new, check["agree"])[: len(stored_part)]
    if "agree_all" in check and not agreeing(stored_arrays, new, check["agree_all"]).all():
        return True, 0.0, f"not compared: {', '.join(check['agree_all'])} differ"
    return compare(stored_part, new_part, check, stored_arrays, rows)


def cases_of(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, case, arrays) of a file: one, or one for each of its pieces, whose names then lose their prefix."""
    case = json.loads(path.read_text())
    if "configs" in case and "checks" not in case:
        case = of_groups(case)
    arrays_file = path.with_suffix(".npz")
    arrays = dict(np.load(arrays_file)) if arrays_file.exists() else {}
    if "pieces" not in case:
        yield path.stem, case, arrays
        return
    for name, piece in case["pieces"].items():
        own, told = f"{name}/", f"pieces.{name}."
        checks = {
            key.removeprefix(own).removeprefix(told): check
            for key, check in case["checks"].items()
            if key.startswith((own, told))
        }
        inputs = [key.removeprefix(own) for key in case["inputs"] if key.startswith(own)]
        values = {key.removeprefix(own): value for key, value in arrays.items() if key.startswith(own)}
        # The words of a piece about an array stand alone, or after "meaning" as elsewhere.
        said = {key: words if isinstance(words, dict) else {"meaning": words} for key, words in piece["arrays"].items()}
        of_piece = {"run": case["run"][name], "inputs": inputs, "checks": checks, "arrays": said}
        yield f"{path.stem}/{name}", {**piece, **of_piece}, values


def of_groups(listed: dict[str, Any]) -> dict[str, Any]:
    """A case of a file that lists optimiser groups by configuration, and [step, rate] of the schedule, without checks.

    The order within a group means nothing.
    """
    samples = next(value for key, value in listed.items() if key.startswith("learning_rate"))["values"]
    configs = {
        name: {key: sorted(names) for key, names in groups.items()} for name, groups in listed["configs"].items()
    }
    checks: dict[str, Any] = {f"configs.{name}": {"role": "output"} for name in configs}
    checks["rates.values"] = {"role": "output", "rtol": 1e-9}
    steps, rates = (list(column) for column in zip(*samples, strict=True))
    return {
        "run": listed["what"],
        "inputs": [],
        "configs": configs,
        "rates": {"steps": steps, "values": rates},
        "checks": checks,
    }


def run_case(
    case: dict[str, Any], arrays: dict[str, Any], folder: Path, runners: list[Runner]
) -> list[tuple[str, bool, float, str, str]]:
    """Rows (array, passes, largest difference, limit, words) of one case."""
    checks = {name: check for name, check in case["checks"].items() if check["role"] == "output"}
    # Besides what it starts from, a case may hold what is put in the place of a run's own values, or helps to read it.
    given = {*case["inputs"], *(name for name, check in case["checks"].items() if check["role"] == "input")}
    for check in case["checks"].values():
        given.update(*(part.get("from_stored", ()) for part in (check, *check.get("also", ()))))
    inputs = {name: value for name, value in arrays.items() if name in given}
    try:
        new: dict[str, Any] | None = None
        for runner in runners:
            new = runner(case, inputs, folder)
            if new is not None:
                break
        if new is None:
            return [(name, False, float("inf"), limit_of(checks[name]), "no runner for this case") for name in checks]
    except Exception:
        words = traceback.format_exc().strip().splitlines()[-1]
        traceback.print_exc()
        return [(name, False, float("inf"), limit_of(checks[name]), words) for name in checks]
    new = by_score(new)
    stored = by_score(arrays)
    rows = []
    for name, check in checks.items():
        for part in [check, *check.get("also", [])]:
            passes, gap, words = run_check(name, part, case, stored, new)
            rows.append((name, passes, gap, limit_of(part), words))
    return rows


def show(rows: Iterable[tuple[str, bool, float, str, str]]) -> None:
    for name, passes, gap, limit, words in rows:
        print(f"  {'pass' if passes else 'FAIL'}  {name:<60} {gap:<11.3g} {limit:<32} {'' if passes else words}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="only cases whose file name contains this")
    options = parser.parse_args()
    patterns = ("case-*.json", "pieces*.json", "optimizer-groups.json")
    paths = sorted(path for pattern in patterns for path in options.folder.glob(pattern))
    runners = [importlib.import_module(name).run for name in RUNNERS]
    passed = total = 0
    for path in paths:
        for name, case, arrays in cases_of(path):
            if options.only in name:
                began = time.perf_counter()
                rows = run_case(case, arrays, options.folder, runners)
                print(f"\n{name}  ({time.perf_counter() - began:.1f} s)")
                show(rows)
                passed += sum(row[1] for row in rows)
                total += len(rows)
    if total == 0:
        parser.error(f"no case-*.json or pieces*.json in {options.folder} matches {options.only!r}")
    print(f"\n{passed} of {total} arrays within tolerance")
    return 0 if passed == total else 1


if __name__ == "__main__":
    sys.exit(main())
