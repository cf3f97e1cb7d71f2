"""JSON files that a test changes after they were written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """What makes the change in the file at a path."""

    def edit(path: Path) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit
