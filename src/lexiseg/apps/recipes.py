"""The recipes that `lexiseg train` runs, and their arguments as options of the command line."""

from __future__ import annotations

import argparse
import inspect
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A function that trains, and the arguments that make it this recipe."""

    summary: str
    module: str
    """Under lexiseg.train.recipes."""
    function: str = "train"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Argument -> the constant of the module that is its value."""


RECIPES: dict[str, Recipe] = {
    "street-tiny": Recipe(
        "the whole embedded model: both towers, generator, model folder", "embedded", settings={"name": "STREET_TINY"}
    ),
    "outdoor-tiny": Recipe("the same from permissively licensed photos", "embedded", settings={"name": "OUTDOOR_TINY"}),
    "tiny-text": Recipe("the text tower of the embedded models, distilled from sentence vectors", "tiny_text"),
    "street-tiny-tower": Recipe(
        "the image tower of street-tiny, per pixel against the vectors of names",
        "tiny_tower",
        settings={"mixture": "STREET"},
    ),
    "street-tiny-tower-second": Recipe(
        "its second, milder training: --start the run before, --steps 1800, then again, --steps 5500",
        "tiny_tower",
        settings={"mixture": "STREET_SECOND"},
    ),
    "outdoor-tiny-tower": Recipe(
        "the same for outdoor-tiny, from permissively licensed photos",
        "tiny_tower",
        settings={"mixture": "OUTDOOR"},
    ),
    "street-tiny-generator": Recipe(
        "the mask generator of street-tiny, on the maps of its tower",
        "tiny_generator",
        settings={"mixture": "STREET"},
    ),
    "outdoor-tiny-generator": Recipe(
        "the same for outdoor-tiny, from permissively licensed photos",
        "tiny_generator",
        settings={"mixture": "OUTDOOR"},
    ),
    "vit-tiny": Recipe(
        "a small CLIP transformer that knows whole pictures alone: what maft can start from", "tiny_vit"
    ),
    "maft": Recipe(
        "MAFT: FreeSeg's generator (--step generator), then CLIP's transformer behind any generator (--step tower)",
        "maft",
        "train_package",
    ),
    "maftplus": Recipe(
        "MAFT+ of an FC-CLIP or MAFT+ model: CLIP's trunk tuned on labelled photos", "maftplus", "train_package"
    ),
    "ovseg": Recipe(
        "OVSeg's classifier: CLIP on masked crops, tuned on mined pairs, with prompts, in any order",
        "ovseg",
        "train_pairs",
    ),
    "maskclip-pp": Recipe(
        "MaskCLIP++ of any CLIP here: tuned on true masks, your own or COCO's; accuracy before and after",
        "maskclip_pp",
        "train_masks",
    ),
    "mask-adapter": Recipe(
        "an adapter for an FC-CLIP or MAFT+ model, in both stages, on labelled photos", "mask_adapter", "train_package"
    ),
}


def start(name: str, arguments: Sequence[str]) -> Any:
    """Runs a recipe with the options of a command line; what it returns, False standing for "not yet complete"."""
    recipe = RECIPES[name]
    module = import_module(f"lexiseg.train.recipes.{recipe.module}")
    function: Callable[..., Any] = getattr(module, recipe.function)
    settings = {argument: getattr(module, constant) for argument, constant in recipe.settings.items()}
    chosen = vars(option_parser(name, function, skip=settings, description=module.__doc__ or "").parse_args(arguments))
    minutes = chosen.pop("minutes", None)
    if minutes is not None:
        chosen["deadline"] = time.time() + 60 * minutes
    return function(**chosen, **settings)


def option_parser(
    name: str, function: Callable[..., Any], skip: Mapping[str, Any], description: str
) -> argparse.ArgumentParser:
    """One option per argument of `function` that a text can stand for: paths, numbers and words.

    An argument without a default is a required option. `deadline`, a point in time, is asked for as --minutes.
    """
    parser = argparse.ArgumentParser(
        prog=f"lexiseg train {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(function)
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument == "deadline":
            parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on later")
            continue
        kinds = [kind for kind in typing.get_args(hints[argument]) if kind is not NoneType] or [hints[argument]]
        if argument in skip or kinds[0] not in (Path, int, float, str):
            continue
        required = parameter.default is inspect.Parameter.empty
        parser.add_argument(
            f"--{argument.replace('_', '-')}",
            type=kinds[0],
            required=required,
            default=None if required else parameter.default,
            help="required" if required else f"default: {parameter.default}",
        )
    return parser
