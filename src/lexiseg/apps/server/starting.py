"""From the options of `lexiseg serve` to a process that answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lexiseg.apps.server.label_studio import Backend, add_label_studio
from lexiseg.apps.server.limits import Limits
from lexiseg.apps.server.logs import log_as_json
from lexiseg.apps.server.memory import keep_memory
from lexiseg.apps.server.routes import make_app
from lexiseg.apps.server.service import Service
from lexiseg.apps.server.serving import address, listen, serve
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.segmenter import Segmenter

KEY_VARIABLE = "LEXISEG_API_KEY"
"""Environment variable with the key that clients must send."""

_SHORTEST_KEY = 16
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Offer:
    """Where to listen, and who may ask for what."""

    host: str = "127.0.0.1"
    port: int = 8000
    page: bool = True
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    label_studio: Backend | None = None
    """What it is for Label Studio, if anything."""


def read_key(file: Path | None) -> str | None:
    """The key from a file, else from the environment, else none. Never from the command line, which others can see."""
    where = KEY_VARIABLE if file is None else f"--api-key-file {file}"
    try:
        key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{where}: cannot be read ({reason})") from None
    if key is None:
        return None
    key = key.strip()
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where}: a key has at least {_SHORTEST_KEY} ASCII characters and no blanks")
    return key


def start(
    segmenters: Mapping[str, Segmenter],
    offer: Offer,
    *,
    workers: int | None = None,
    max_batch: int | None = None,
    say: Callable[[str], None],
) -> None:
    """Serves until it is stopped. Raises ValueError or OSError where it cannot begin."""
    for name, segmenter in segmenters.items():
        if isinstance(segmenter.model.system.generator, GivenMasks):
            raise ValueError(f"--model {name}: names given masks only, and draws none that could be served")
    try:
        listening = listen(offer.host, offer.port)
    except OSError as error:
        raise OSError(
            f"--host {offer.host} --port {offer.port}: cannot listen there ({error.strerror or error})"
        ) from None
    log_as_json()
    keep_memory()
    service = Service(segmenters, offer.limits, workers, max_batch)
    app = make_app(service, offer.api_key)
    if offer.label_studio is not None:
        add_label_studio(app, service, offer.label_studio, offer.api_key)
    where = address(listening)
    if offer.host not in _LOCAL and offer.api_key is None:
        say(f"Anybody who can reach {offer.host} can use it; a key keeps others out: set {KEY_VARIABLE}.")
    with tempfile.TemporaryDirectory(prefix="lexiseg-page-") as files:
        if offer.page:
            os.environ["GRADIO_TEMP_DIR"] = files  # else a folder that all users of this machine share
            from lexiseg.apps.page.building import add_page

            add_page(app, service, offer.api_key)
        say(f"Lexiseg is at {where} (stop it with Ctrl-C)" if offer.page else f"Lexiseg's API is at {where}/v1")
        if offer.label_studio is not None:
            say(f"Label Studio may connect to {where} as a machine learning backend")
        serve(app, service, listening)
