"""What `lexiseg serve` refuses before it listens, and the key."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lexiseg import Segmenter
from lexiseg.apps.cli import app
from lexiseg.apps.server.starting import Offer, read_key
from tests.colour_model import colour_model

KEY = "0123456789-abcdef"


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def one_line(done: Result) -> str:
    assert done.exit_code == 2, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("lexiseg: "))
    return line


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: Segmenter(colour_model(), "cpu"))


@pytest.mark.usefixtures("colours")
def test_an_address_that_somebody_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot listen there" in one_line(serve("--model", "colours", "--port", port))


@pytest.mark.usefixtures("colours")
def test_two_models_of_one_name(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "toy").mkdir(parents=True)
    done = serve("--model", tmp_path / "a" / "toy", "--model", tmp_path / "b" / "toy")
    assert "another one is called toy" in one_line(done)


def test_no_such_model() -> None:
    assert "no model or folder is called 'nothing'" in one_line(serve("--model", "nothing"))


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEXISEG_API_KEY", raising=False)
    assert read_key(None) is None
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    assert read_key(file) == KEY
    monkeypatch.setenv("LEXISEG_API_KEY", KEY[::-1])
    assert read_key(None) == KEY[::-1]
    assert read_key(file) == KEY
    assert KEY not in repr(Offer(api_key=KEY))


@pytest.mark.parametrize("key", ["", "short", "with a blank in between", "schlüssel-mit-umlaut"])
def test_keys_that_are_none(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    assert "at least 16 ASCII characters" in one_line(serve("--api-key-file", file))


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in one_line(serve("--api-key-file", tmp_path / "none"))
