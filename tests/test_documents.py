"""What the documents say about the code is true."""

import re
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


def test_quoted_messages_are_messages_of_the_program() -> None:
    """What the troubleshooting page quotes as a symptom is in the code, but for the values that are filled in."""
    modules = [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "src").rglob("*.py"))]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(modules))  # a message of several lines of code is one text
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quoted = [span for symptom in symptoms for span in re.findall(r"`([^`]+)`", symptom)]
    parts = [part.strip() for span in quoted for part in re.split(r"\.\.\.|\d+|'[^']*'|--\S+", span)]
    missing = [part for part in parts if len(part.split()) > 1 and part not in code]
    assert len(quoted) > 10 and not missing, f"no message says {missing}"
