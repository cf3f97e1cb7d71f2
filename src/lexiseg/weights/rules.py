"""Renames the tensors of a checkpoint by an ordered list of rules, and accounts for every one of them.

A layout is three lists: `Rule` (where a tensor goes), `Ignored` (why a tensor is not needed) and
`Fresh` (why a tensor of the model may be absent from the checkpoint). Every source tensor meets one
rule or one ignored line, the first that matches; every target is filled once, or listed as fresh.
Anything else is a `ConversionError` that names the tensors on both sides.

Only names and shapes are read, so a conversion can be checked on the meta device. The form follows
the weight maps of LitGPT and the state-dict adapters of torchtitan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

SHOWN = 8
"""Names shown per kind of difference; a checkpoint of another model would fill the screen."""


class ConversionError(ValueError):
    """The checkpoint does not fill the model exactly. The message names every kind of difference."""


@dataclass(frozen=True)
class Rule:
    """Source names that match `pattern` become `target`.

    `{}` stands for a layer number, `{*}` (last in the name) for the rest of the name, dots included;
    both are copied into the target in order. `change` is applied to the tensor on the way.
    """

    pattern: str
    target: str
    change: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Ignored:
    """Source names that match `pattern` are not needed, for this reason."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Fresh:
    """Targets that match `pattern` may be missing from the source, for this reason: the model's own values stand."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Conversion:
    """The outcome: every source name is a key of `used` or `ignored`, every target of `tensors` or `fresh`."""

    tensors: dict[str, Tensor]
    """Target name -> tensor, in the order of the targets."""
    used: dict[str, str]
    """Source name -> target name."""
    ignored: dict[str, str]
    """Source name -> reason."""
    fresh: dict[str, str]
    """Target name -> reason."""


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def convert(
    source: Mapping[str, Tensor],
    targets: Mapping[str, Sequence[int]],
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
    fresh: Sequence[Fresh] = (),
) -> Conversion:
    """Fills `targets` (name -> shape) from `source`, or raises `ConversionError` with all differences at once."""
    compiled_rules = [(_compile(rule.pattern), rule) for rule in rules]
    compiled_ignored = [(_compile(line.pattern), line.reason) for line in ignored]
    compiled_fresh = [(_compile(line.pattern), line.reason) for line in fresh]

    filled: dict[str, tuple[str, Tensor]] = {}
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    wrong_shape: list[str] = []
    twice: list[str] = []
    for name, tensor in source.items():
        reason = _first_match(name, compiled_ignored)
        if reason is not None:
            dropped[name] = reason
            continue
        goal = _target_of(name, compiled_rules)
        if goal is None or goal[0] not in targets:
            unknown.append(name if goal is None or goal[0] == name else f"{name} (would be {goal[0]})")
            continue
        target, change = goal
        if target in filled:
            twice.append(f"{target} from {filled[target][0]} and from {name}")
            continue
        value = tensor if change is None else change(tensor)
        expected = tuple(targets[target])
        if tuple(value.shape) != expected:
            wrong_shape.append(f"{name}: {list(value.shape)} in the file, {list(expected)} in the model")
        filled[target] = (name, value)

    left_out: dict[str, str] = {}
    missing: list[str] = []
    for target in targets:
        if target in filled:
            continue
        reason = _first_match(target, compiled_fresh)
        if reason is None:
            missing.append(_describe_missing(target, rules))
        else:
            left_out[target] = reason

    differences = [
        _paragraph("in the file, but not in the model", unknown),
        _paragraph("in the model, but not in the file", missing),
        _paragraph("of another shape", wrong_shape),
        _paragraph("filled twice", twice),
    ]
    if any(differences):
        raise ConversionError("the checkpoint does not fit this model:\n" + "\n".join(filter(None, differences)))
    return Conversion(
        tensors={target: filled[target][1] for target in targets if target in filled},
        used={name: target for target, (name, _) in filled.items()},
        ignored=dropped,
        fresh=left_out,
    )


def source_name(target: str, rules: Iterable[Rule]) -> str | None:
    """The official name that fills `target`, read backwards from the first rule that can produce it."""
    for rule in rules:
        found = _compile(rule.target).fullmatch(target)
        if found:
            return _substitute(rule.pattern, found.groups())
    return None


def count_names(source: Mapping[str, Tensor], pattern: str) -> int:
    """How many names match a pattern in which `{}` stands for a number: the layers of a stack, for one."""
    numbered = _compile(pattern)
    return sum(1 for name in source if numbered.fullmatch(name))


def shape_of(source: Mapping[str, Tensor], name: str, dimensions: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor that tells the size of a model; raises `ConversionError` where it is absent."""
    if name not in source:
        raise ConversionError(f"{name} is missing, so the size of the model cannot be told")
    shape = tuple(source[name].shape)
    if len(shape) != (dimensions or max(len(shape), 1)):
        raise ConversionError(f"{name}: {list(shape)} has the wrong number of dimensions")
    return shape


def _compile(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(re.escape("{}"), r"(\d+)").replace(re.escape("{*}"), r"(.+)")
    return re.compile(escaped)


def _substitute(pattern: str, values: Sequence[str]) -> str:
    parts = re.split(r"\{\*?\}", pattern)
    if len(parts) != len(values) + 1:
        raise ValueError(f"{pattern!r} has {len(parts) - 1} places for {len(values)} values")
    return "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))


def _target_of(
    name: str, rules: Iterable[tuple[re.Pattern[str], Rule]]
) -> tuple[str, Callable[[Tensor], Tensor] | None] | None:
    for pattern, rule in rules:
        found = pattern.fullmatch(name)
        if found:
            return _substitute(rule.target, found.groups()), rule.change
    return None


def _first_match(name: str, lines: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    return next((reason for pattern, reason in lines if pattern.fullmatch(name)), None)


def _describe_missing(target: str, rules: Sequence[Rule]) -> str:
    official = source_name(target, rules)
    return target if official in (None, target) else f"{official} (for {target})"


def _paragraph(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f"\n    and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"  {len(names)} {title}:\n" + "\n".join(f"    {name}" for name in names[:SHOWN]) + more
