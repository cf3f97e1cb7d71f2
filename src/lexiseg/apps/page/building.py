"""The page, put together from gradio's parts and a viewer of our own. Nothing on it comes from elsewhere."""

from __future__ import annotations

import asyncio
import html
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

# Read when gradio is imported: it would tell its makers of every start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
from fastapi import FastAPI
from sklearn.datasets import load_sample_image

from lexiseg.apps.page.viewing import view
from lexiseg.apps.server.questions import Ask, read_vocabulary_file, read_words
from lexiseg.apps.server.refusals import Refusal
from lexiseg.apps.server.routes import same_key
from lexiseg.apps.server.service import Service
from lexiseg.results import TASKS, Task
from lexiseg.zoo.catalogue import ZOO

log = logging.getLogger(__name__)

EXAMPLE_WORDS = "sky, tree, building | temple, lake | water"
_EXAMPLE_CREDIT = "The example is china.jpg by danielbuechele (CC BY 2.0), as scikit-learn carries it."

_KINDS: list[tuple[str, Task]] = [
    ("Colour the whole photo", "semantic"),
    ("Areas and single objects", "panoptic"),
    ("Single objects only", "instance"),
]

_HERE = Path(__file__).parent
_GLANCE_SECONDS = 0.5
_FILES_KEPT_SECONDS = 900


def add_page(app: FastAPI, service: Service, api_key: str | None) -> None:
    """Puts the page at / of the application. With a key, the page asks for it as a password."""
    page = make_page(service)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    gr.mount_gradio_app(
        app,
        page,
        "/",
        auth=None if api_key is None else lambda _, password: same_key(password, api_key),
        auth_message="Any name will do; the password is the key of this server.",
        theme=gr.themes.Soft(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        max_file_size=service.limits.max_bytes,
        footer_links=[],
        run_history=False,
        show_error=False,  # what is wrong is said on the page
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def make_page(service: Service) -> gr.Blocks:
    """The fields, and what happens when they are used."""
    with gr.Blocks(
        title="Lexiseg", analytics_enabled=False, delete_cache=(60, _FILES_KEPT_SECONDS), fill_width=False
    ) as page:
        gr.Markdown(
            "# Lexiseg\nName what you look for. Every place in your photo that shows it gets a colour.", elem_id="title"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=280):
                gr.Markdown("**1. Your photo**", elem_classes="step")
                photo = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], height=260, show_label=False, elem_id="photo"
                )
                example = gr.Button("No photo at hand? Try the example", size="sm", elem_id="example")
                gr.Markdown("**2. What to look for**", elem_classes="step")
                words = gr.Textbox(
                    placeholder="sky, road | street, car, tree",
                    info="A comma between things; a | between two names for the same thing.",
                    show_label=False,
                    lines=2,
                    max_lines=6,
                    elem_id="words",
                )
                with gr.Accordion("More choices", open=False, elem_id="more"):
                    kind = gr.Radio(_KINDS, value="semantic", label="What you want", elem_id="kind")
                    rest = gr.Checkbox(False, label='Add "anything else"', elem_id="rest")
                    listed = gr.File(
                        label="A saved word list, in place of the words",
                        file_types=[".txt", ".yaml", ".yml", ".json"],
                        height=170,
                        elem_id="listed",
                    )
                    model = gr.Dropdown(
                        list(service.models), value=service.models[0], label="Model", elem_id="model", filterable=False
                    )
                go = gr.Button("Find them", variant="primary", size="lg", elem_id="go")
                said = gr.HTML("", elem_id="said")
            with gr.Column(scale=7, min_width=280):
                viewer = gr.HTML(
                    None,
                    html_template='<div class="viewer"></div>',
                    css_template=(_HERE / "viewer.css").read_text(encoding="utf-8"),
                    js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
        gr.Markdown(_about(service), elem_id="about")

        fields, outputs = [photo, words, kind, rest, listed, model], [said, viewer]
        # The queue of the service decides who waits and who is refused; gradio's only passes on.
        options: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        find = partial(_find, service)
        gr.on([go.click, words.submit], find, fields, outputs, trigger_mode="once", **options)
        example.click(_example, None, [photo, words], **options).then(find, fields, outputs, **options)
    page.queue(max_size=4 * service.limits.places)
    # A file that is sent is read as it is: our own reader has the limits, and the words for what is wrong.
    photo.preprocess = _sent_file  # type: ignore[method-assign]
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = partial(  # type: ignore[method-assign]
            _from_here, block.async_move_resource_to_block_cache
        )
    return page


async def _find(
    service: Service, photo: str | None, words: str, kind: Task, rest: bool, listed: str | None, model: str
) -> AsyncIterator[tuple[Any, Any]]:
    """What is said while the work goes on, then the result: (words about it, what the viewer shows)."""
    # The work has its place, its time and its end, even if nobody asks this iterator again.
    work = asyncio.create_task(_answer(service, photo, words, kind, rest, listed, model))
    try:
        while not work.done():
            yield _working(service), gr.skip()
            await asyncio.wait({work}, timeout=_GLANCE_SECONDS)
        yield "", await work
    except Refusal as refusal:
        yield _wrong(refusal.message), gr.skip()
    except Exception:  # whatever it is, nobody is left waiting
        log.exception("a mistake")
        yield _wrong("The server made a mistake. Its log has more; another photo or other words may work."), gr.skip()
    finally:
        work.cancel()


async def _answer(
    service: Service, photo: str | None, words: str, kind: Task, rest: bool, listed: str | None, model: str
) -> str:
    if not photo:
        raise Refusal("wrong_field", "Choose a photo first, or try the example.")
    if not words.strip() and not listed:
        raise Refusal("wrong_field", "Type what to look for, such as: sky, tree, car")
    if model not in service.models or kind not in TASKS:
        raise Refusal("wrong_field", "Load this page again: the server has changed.")
    with service.place():
        try:
            async with asyncio.timeout(service.limits.seconds):
                file = Path(photo)
                if listed:
                    content = Path(listed).read_bytes()
                    vocabulary = read_vocabulary_file(content, Path(listed).name, rest, service.limits)
                else:
                    vocabulary = read_words(words, rest, service.limits)
                result = await service.segment(Ask(file.read_bytes(), file.name, vocabulary, kind, model, None))
                return await service.in_pool("answer", lambda: view(result))
        except TimeoutError:
            raise Refusal("too_late", "That took too long. Try again later, or with a smaller photo.") from None


def _working(service: Service) -> str:
    before = len(service.batcher)
    waiting = f"{before} photos are waiting; yours is one of them." if before > 1 else "Looking at your photo …"
    return f'<div class="working" role="status">{waiting}</div>'


def _wrong(message: str) -> str:
    return f'<div class="wrong" role="alert">{html.escape(message)}</div>'


def _example() -> tuple[np.ndarray, str]:
    return load_sample_image("china.jpg"), EXAMPLE_WORDS


def _sent_file(payload: Any) -> str | None:
    return None if payload is None else payload.path


async def _from_here(move: Callable[[Any], Awaitable[str | None]], path: Any) -> str | None:
    """Gradio would fetch an address that a client names as its file; this server fetches nothing."""
    if str(path).lower().startswith(("http:", "https:")):
        raise gr.Error("Addresses are not fetched here; send the file.")
    return await move(path)


def _about(service: Service) -> str:
    lines = []
    for name in service.models:
        entry = ZOO.get(name)
        lines.append(name if entry is None else f"{name}: {entry.title}. Weights: {entry.weights_licence}.")
    kept = _FILES_KEPT_SECONDS // 60
    return " ".join([*lines, f"Photos stay on this server and are deleted after {kept} minutes.", _EXAMPLE_CREDIT])
