"""The documentation: it builds without a warning, and what it tells people to type works.

Every fenced block of README.md and docs/ is found here by itself:

- `python` blocks run, one after the other with the same names, in a folder with the sample files below;
- `bash` blocks run, each line that begins with `lexiseg`; `console` blocks are the same with "$ " before a command, and
  what is printed below it is compared ("..." stands for anything);
- `make` is asked whether it could (`make test` cannot run itself, and `make demo` is part of it);
- `text`, `json` and `yaml` blocks are shown; the options of commands among them must exist;
- `<!-- not run: REASON -->` before a block says why it cannot run here; its commands must parse all the same;
- `<!-- slow: REASON -->` leaves a block to the slow tests.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import sklearn
import typer
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from PIL import Image
from typer.testing import CliRunner

from lexiseg.apps.cli import app
from lexiseg.apps.recipes import RECIPES, option_parser
from tests.quiet_ray import quiet_ray

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
RUNNING = ("python", "bash", "console")
SHOWN = ("text", "json", "yaml")
MOST_NOT_RUN = 30
# The tags of a GeoTIFF: size of a pixel, where the first one is, and UTM zone 50 N.
SOMEWHERE = {
    33550: (0.5, 0.5, 0.0),
    33922: (0.0, 0.0, 0.0, 448000.0, 4418000.0, 0.0),
    34735: (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32650),
}
MARK = re.compile(r"^<!-- (not run|slow): (\S.*\S) -->$")
COMMAND = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    content: str
    not_run: str | None
    slow: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def commands(self) -> list[tuple[list[str], str]]:
        """Of `bash` and `console`: the words of each command, and what is said to be printed by it."""
        if self.language not in ("bash", "console"):
            return []
        found: list[tuple[str, list[str]]] = []
        for line in re.sub(r"\\\n\s*", " ", self.content).splitlines():
            if self.language == "bash" or line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                assert found, f"{self.where}: a console block begins with '$ '"
                found[-1][1].append(line)
        split = [(shlex.split(line, comments=True), "\n".join(printed)) for line, printed in found]
        return [(words, printed) for words, printed in split if words]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order, as CommonMark reads it."""
    found, marks = [], {}
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            marked = MARK.match(token.content.strip())
            marks = {marked[1]: marked[2]} if marked else {}
        elif token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            language = token.info.strip()
            found.append(Block(page, line, language, token.content, marks.get("not run"), marks.get("slow")))
            marks = {}
        elif token.type not in ("paragraph_close", "list_item_open"):
            marks = {}
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}
ALL = [block for blocks in BLOCKS.values() for block in blocks]


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


# ------------------------------------------------------------------------------------------------------ what is run


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, china_photo: Path) -> Path:
    """The folder of somebody who follows the pages: the files that they speak of."""
    folder = tmp_path / "work"
    (folder / "photos").mkdir(parents=True)
    flower = Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg"
    for name, photo in {"street": china_photo, "photo": china_photo, "flower": flower}.items():
        shutil.copy(photo, folder / f"{name}.jpg")
    shutil.copy(china_photo, folder / "photos" / "china.jpg")
    shutil.copy(flower, folder / "photos" / "flower.jpg")
    masks = np.zeros((427, 640), np.uint8)  # two given masks: the sky, and what stands below it
    masks[:120], masks[200:380, 200:400] = 1, 2
    Image.fromarray(masks).save(folder / "masks.png")
    (folder / "masks").mkdir()
    for name in ("china", "flower"):
        shutil.copy(folder / "masks.png", folder / "masks" / f"{name}.png")
    (folder / "words.txt").write_text("sky\nroad | street\ncar\ntree\n", encoding="utf-8")
    with Image.open(china_photo) as photo:
        photo.resize((1280, 854)).save(folder / "aerial.tif", tiffinfo=SOMEWHERE)
        own = folder / "my-photos"
        for part in ("images", "labels"):
            (own / part).mkdir(parents=True)
        for number in range(4):
            small = photo.crop((160 * number, 0, 160 * number + 160, 160))
            small.save(own / "images" / f"{number}.jpg")
            labels = np.zeros((160, 160), np.uint8)
            labels[90:] = 1
            Image.fromarray(labels).save(own / "labels" / f"{number}.png")
    (own / "classes.txt").write_text("sky\nlake | water\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    return folder


def run_page(blocks: list[Block], slow: bool) -> None:
    names: dict[str, Any] = {"__name__": "documentation"}
    for block in blocks:
        if block.not_run or block.language not in RUNNING or (block.slow and not slow):
            continue
        if block.language == "python":
            # As many lines before it as on its page, so that a traceback names the line there.
            exec(compile("\n" * block.line + block.content, str(block.page), "exec"), names)
            continue
        for words, printed in block.commands:
            if words[0] == "lexiseg":
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{block.where}: {shlex.join(words)}\n{done.output}\n{done.exception!r}"
                if printed:
                    assert fits(printed, done.stdout), f"{block.where}: it prints\n{done.stdout}"
            elif words[0] == "make":
                asked = subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True)
                assert asked.returncode == 0, f"{block.where}: {asked.stderr}"
            else:
                pytest.fail(f"{block.where}: {words[0]} is not run here: <!-- not run: REASON --> before the block")


def fits(printed: str, found: str) -> bool:
    """How many blanks there are does not count, "..." stands for anything, and numbers may be a twentieth apart: other
    processors round differently."""
    number = r"(\d+(?:\.\d+)?)"
    wanted, given = (" ".join(text.split()) for text in (printed, found))
    pieces = re.split(number, wanted)  # text and number by turns
    pattern = "".join(number if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))
    match = re.fullmatch(pattern.replace(re.escape("..."), ".*"), given)
    return match is not None and all(
        abs(float(told) - float(value)) <= max(0.05, 0.05 * float(told))
        for told, value in zip(pieces[1::2], match.groups(), strict=True)
    )


def test_what_is_printed_is_compared() -> None:
    table = "word  share\nsky   40.1 %\n"
    assert fits("word share\nsky 40.5 %", table)
    assert fits("word ...", table)
    assert not fits("word share\nsky 50 %", table)
    assert not fits("word share\ntree 40.1 %", table)
    assert not fits("word share", table)


@pytest.mark.usefixtures("samples", "street_tiny")
@pytest.mark.parametrize(
    "page",
    [
        page
        for page, blocks in BLOCKS.items()
        if any(b.language in RUNNING and not (b.not_run or b.slow) for b in blocks)
    ],
    ids=page_id,
)
def test_what_a_page_says_works(page: Path) -> None:
    run_page(BLOCKS[page], slow=False)


@pytest.mark.slow
@quiet_ray
@pytest.mark.usefixtures("samples", "street_tiny")
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if any(b.slow for b in blocks)], ids=page_id)
def test_what_a_page_says_works_slowly(page: Path) -> None:
    run_page(BLOCKS[page], slow=True)


def test_every_block_says_what_it_is() -> None:
    wrong = [f"{block.where}: {block.language!r}" for block in ALL if block.language not in RUNNING + SHOWN]
    assert not wrong, f"{', '.join(RUNNING + SHOWN)} are known here:\n" + "\n".join(wrong)


def test_what_does_not_run_is_counted() -> None:
    """Each has a reason, and one more of them is a decision."""
    left_out = [block for block in ALL if block.language in RUNNING and block.not_run]
    told = "\n".join(f"{block.where}: {block.not_run}" for block in left_out)
    assert len(left_out) <= MOST_NOT_RUN, told
    assert all(len((block.not_run or "").split()) > 1 for block in left_out), told


def test_shown_data_can_be_read() -> None:
    for block in ALL:
        if block.language == "json" and not block.not_run:
            json.loads(block.content)


# ---------------------------------------------------------------------------------------------- what is only parsed


@pytest.mark.parametrize("block", [b for b in ALL if b.language in ("bash", "console")], ids=lambda block: block.where)
def test_commands_parse(block: Block) -> None:
    """Those that do not run, too: every command exists, takes these options, and has what it needs."""
    for words, _ in block.commands:
        words = without_environment(words)
        if words[0] == "lexiseg":
            parse(words[1:], block.where)
        elif "lexiseg.apps.cli" in words:
            parse(words[words.index("lexiseg.apps.cli") + 1 :], block.where)
        elif words[:2] == ["pip", "install"]:
            known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            named = [extra for word in words for extra in re.findall(r"[\w.-]*\[([\w,]+)\]", word)]
            for extra in ",".join(named).split(",") if named else []:
                assert extra in known["optional-dependencies"], f"{block.where}: no extra is called {extra}"
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (REPOSITORY / words[1]).is_file(), f"{block.where}: there is no {words[1]}"


@pytest.mark.parametrize(
    "wrong",
    [
        "segment",  # no photo
        "segment street.jpg --classes sky --words tree",
        "segment street.jpg --classes sky --task everything",
        "vocab chek --classes sky",
        "data mine captions.json",  # no --out
        "train maskclip-pp --data photos --out run --speed 3",
    ],
)
def test_wrong_commands_are_seen(wrong: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        parse(shlex.split(wrong), "here")


def without_environment(words: list[str]) -> list[str]:
    """ "NAME=value lexiseg serve" without what is set before the command."""
    start = next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)), len(words) - 1)
    return words[start:]


def parse(arguments: list[str], where: str) -> None:
    try:
        context = COMMAND.make_context("lexiseg", list(arguments))
        command, rest = COMMAND, list(arguments)
        while hasattr(command, "resolve_command"):
            if not rest:
                return
            name, command, rest = command.resolve_command(context, rest)
            if name == "train" and rest and not rest[0].startswith("-"):
                recipe_parser(rest[0]).parse_args(rest[1:])
                return
            context = command.make_context(name, list(rest), parent=context)
            rest = [*context._protected_args, *context.args]
    except SystemExit:
        pytest.fail(f"{where}: {shlex.join(arguments)}")
    except Exception as error:
        if getattr(error, "exit_code", None) != 0:  # --help ends with it
            raise AssertionError(f"{where}: {shlex.join(arguments)}: {error!r} {error}") from error


def recipe_parser(name: str) -> Any:
    recipe = RECIPES[name]
    module = import_module(f"lexiseg.train.recipes.{recipe.module}")
    return option_parser(name, getattr(module, recipe.function), skip=recipe.settings, description="")


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    waiting: list[tuple[tuple[str, ...], Any]] = [((), COMMAND)]
    while waiting:
        path, command = waiting.pop()
        yield path, command
        waiting += [((*path, name), sub) for name, sub in getattr(command, "commands", {}).items()]


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def recipe_options(name: str) -> set[str]:
    return {option for action in recipe_parser(name)._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_options_exist(page: Path) -> None:
    """Of command lines in shown blocks and inside sentences, and of options that are named alone."""
    commands = dict(every_command())
    known = {option for command in commands.values() for option in options_of(command)}
    known |= {option for name in RECIPES for option in recipe_options(name)}
    text = page.read_text(encoding="utf-8")
    told = [line for block in BLOCKS[page] for line in block.content.splitlines() if block.language in SHOWN]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)]
    for line in [*told, *spans]:
        words = without_environment(line.removeprefix("$ ").split() or [""])
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", line)) - {"--help"}
        if words[:2] == ["lexiseg", "train"] and len(words) > 2 and words[2] in RECIPES:
            missing = named - recipe_options(words[2])
        elif words[:1] == ["lexiseg"]:
            path: tuple[str, ...] = ()
            for word in words[1:]:
                if (*path, word) not in commands:
                    break
                path = (*path, word)
            missing = named - options_of(commands[path]) if path and path != ("train",) else named - known
        elif line.startswith("--"):
            missing = named - known
        else:
            continue
        assert not missing, f"{page_id(page)}: {line}: there is no {', '.join(sorted(missing))}"


# ------------------------------------------------------------------------------------------------------ the site


def test_the_site_builds_strictly_and_needs_no_other_machine(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = sorted(site.rglob("*.html"))
    written = {page.relative_to(site).with_suffix(".md") for page in pages}
    assert written >= {page.relative_to(DOCS) for page in DOCS.rglob("*.md")}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", html)
        assert not loaded, f"{page.relative_to(site)} loads {loaded}"
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in import_module("lexiseg").__all__:
        assert re.search(rf'id="lexiseg\.(\w+\.)*{name}"', api), f"{name} is not in the reference"


def test_every_page_is_in_the_navigation() -> None:
    listed = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [
        page_id(page) for page in PAGES if DOCS in page.parents and f": {page.relative_to(DOCS)}\n" not in listed
    ]
    assert not missing, f"mkdocs.yml: nav has no {missing}"


# ------------------------------------------------------------------------------------------------- the notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_notebooks_are_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"{path.name}: clear the outputs"


@pytest.mark.usefixtures("street_tiny")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_id)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
