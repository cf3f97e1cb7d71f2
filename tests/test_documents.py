"""What the documents say about the code is true."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("benchmarks/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|tests|tools|docs|benchmarks)/[\w./-]+\.\w+)`", text))
    missing = sorted(name for name in named if not (REPOSITORY / name).is_file())
    assert not missing, f"{document.name} names files that do not exist: {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.name} links to what does not exist: {missing}"


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    explained = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")
    lines = project["dependencies"] + [line for lines in project["optional-dependencies"].values() for line in lines]
    names = {re.split(r"[<>=!~\[; ]", line)[0] for line in lines}
    assert not [name for name in sorted(names) if name.lower() not in explained.lower()]


@pytest.mark.usefixtures("street_tiny")
def test_the_readme_program_runs(china_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the README, as it stands there, in a folder with a photo of that name."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copy(china_photo, tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "out" / "street.overlay.png").is_file()
