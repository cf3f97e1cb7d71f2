"""What /openapi.json says about the requests that routes read by themselves."""

from __future__ import annotations

from typing import Any

from lexiseg.apps.server.questions import Fields
from lexiseg.apps.server.refusals import REASONS, Refusal

SUMMARY = (
    "Segment anything you can name: a photo and words in, masks out. Photos are sent as bytes; no address is ever "
    "fetched. Every refusal has a code and one line that says what is wrong and what to do."
)

_FIELDS = Fields.model_json_schema()

_MULTIPART = {
    "type": "object",
    "required": ["image"],
    "properties": {
        **{name: entry for name, entry in _FIELDS["properties"].items() if name != "name"},
        "image": {"type": "string", "format": "binary", "description": "An image file: JPEG, PNG, WebP, TIFF, ..."},
        "words": {"type": "string", "description": '"sky, road | street, car"; or give a vocabulary file.'},
        "vocabulary": {
            "type": "string",
            "format": "binary",
            "description": "In the place of words: a .txt, .yaml or .json file.",
        },
    },
}

# The smallest PNG: one grey pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="

EXAMPLE = {"image": _PIXEL, "words": "sky, road | street, car", "task": "semantic", "answer": "json"}

OPENAPI_SEGMENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _MULTIPART},
            "application/json": {
                "schema": _FIELDS,
                "examples": {"semantic": {"summary": "A class for every pixel", "value": EXAMPLE}},
            },
        },
    }
}

_ANSWER = {
    "photo": "street.jpg",
    "height": 427,
    "width": 640,
    "task": "semantic",
    "model": "street-tiny",
    "words": [
        {"index": 0, "label": "sky", "synonyms": [], "is_thing": True},
        {"index": 1, "label": "road", "synonyms": ["street"], "is_thing": True},
    ],
    "segments": [
        {
            "id": 0,
            "label": "sky",
            "label_index": 0,
            "score": 0.93,
            "area": 119564,
            "share": 0.4375,
            "box_xyxy": [0, 0, 640, 210],
            "is_thing": True,
            "top": [{"label": "sky", "score": 0.93}, {"label": "road", "score": 0.07}],
            "rle": {"size": [427, 640], "counts": "0\\]6..."},
        }
    ],
}


def refusal_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The refusals of an address, by status, each with its example."""
    statuses: dict[int, list[str]] = {}
    for code in codes:
        statuses.setdefault(REASONS[code].status, []).append(code)
    return {
        status: {
            "description": "; ".join(f"{code}: {REASONS[code].meaning}" for code in group),
            "content": {
                "application/json": {
                    "examples": {code: {"value": Refusal(code, REASONS[code].meaning).body()} for code in group}
                }
            },
        }
        for status, group in statuses.items()
    }


SEGMENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What the photo shows, in the form that `answer` asks for.",
        "content": {
            "application/json": {"examples": {"json": {"value": _ANSWER}}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **refusal_responses(*(code for code in REASONS if code not in ("not_found", "wrong_method"))),
}
