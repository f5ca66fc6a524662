"""What a run left behind, as hashes: two runs that did the same work have the same ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_PASSING = frozenset({"seconds", "work"})
_BOOKKEEPING = frozenset({"stage.json", ".lock"})


def artefact_hashes(run_dir: Path) -> dict[str, str]:
    """SHA-256 in hex of every file below a run's folder, by relative path.

    JSON files are hashed without their ``seconds`` and ``work`` and with the run's own folder written as ``.``, so that
    neither the clock nor the place nor what was known before counts. The stages' bookkeeping (``stage.json``) and the
    lock are left out; temporary files of an interrupted process are not.

    Raises:
        ValueError: a ``.json`` file does not hold JSON.
    """
    root = run_dir.resolve()
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(_content(path, root)).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in _BOOKKEEPING
    }


def _content(path: Path, root: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    return json.dumps(_timeless(json.loads(content), str(root)), sort_keys=True).encode()


def _timeless(value: Any, root: str) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, dict):
        return {key: _timeless(item, root) for key, item in value.items() if key not in _PASSING}
    if isinstance(value, list):
        return [_timeless(item, root) for item in value]
    return value.replace(root, ".") if isinstance(value, str) else value
