"""From a path or a hub name to rows: dictionaries by column, in file order."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sera_core.errors import DataError, suggest

Row = dict[str, Any]

_HELD_OUT = ("validation", "test", "eval", "valid", "dev", "test_prefs")
_ARROW_FOLDER = ("dataset_info.json", "dataset_dict.json", "state.json")


def read_rows(path: str, split: str, revision: str | None = None) -> list[Row]:
    """All rows of one split.

    `path` is a file (which is its own only split), a folder of ``<split>.jsonl.gz`` and the like, a folder written
    by ``datasets``' save_to_disk, or the name of a hub data set, read at `revision`.

    Raises:
        DataError: nothing is there, the split is unknown, or the content cannot be read.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return _read_file(local)
    if local.is_dir():
        return _read_arrow(local, split) if _is_arrow(local) else _read_file(_split_file(local, split))
    if _looks_local(path):
        raise DataError(
            f"The data path '{path}' does not exist. Give an existing file or folder, or a hub data set name."
        )
    return _read_hub(path, split, revision)


def held_out_split(path: str, train: str) -> str | None:
    """The split that ``validation_split: auto`` means: the first of the usual names that is there, or None."""
    local = Path(path).expanduser()
    if local.is_dir():
        present = _arrow_splits(local) if _is_arrow(local) else set(_split_files(local))
    else:
        present = set() if local.is_file() else _hub_splits(path)
    return next((name for name in _HELD_OUT if name in present and name != train), None)


def has_splits(path: str) -> bool:
    """Whether a split name chooses among the data at `path`; a single file or unsplit Arrow folder is its own split."""
    local = Path(path).expanduser()
    return not local.is_file() and not (local.is_dir() and _is_arrow(local) and not _arrow_splits(local))


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or any(path.endswith(suffix) for suffix in _READERS)


def _split_files(folder: Path) -> dict[str, Path]:
    """Data files of a folder by split name, where two files of one split are refused."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        suffix = _suffix(file)
        if suffix is None or not file.is_file():
            continue
        name = file.name[: -len(suffix)]
        if name in files:
            raise DataError(
                f"The folder {folder} holds split '{name}' twice: {files[name].name}, {file.name}. Keep one."
            )
        files[name] = file
    return files


def _split_file(folder: Path, split: str) -> Path:
    files = _split_files(folder)
    if split not in files:
        raise DataError(
            f"The folder {folder} has no split '{split}': expected a file such as {split}.jsonl.gz."
            f" {suggest(split, files)} Readable endings: {', '.join(_READERS)}."
        )
    return files[split]


def _suffix(file: Path) -> str | None:
    return next((suffix for suffix in _READERS if file.name.endswith(suffix)), None)


def _read_file(file: Path) -> list[Row]:
    suffix = _suffix(file)
    if suffix is None:
        raise DataError(f"The file {file} has no known ending. Expected one of {', '.join(_READERS)}.")
    try:
        rows = _READERS[suffix](file)
    except UnicodeDecodeError as error:
        raise DataError(f"The file {file} cannot be read as {suffix}: {error}. Save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise DataError(f"The file {file} cannot be read as {suffix}: {error}. Check that it is complete.") from error
    if not rows:
        raise DataError(f"The file {file} holds no rows. Give a file with at least one preference pair.")
    return rows


def _text(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if file.name.endswith(".gz") else content).decode("utf-8-sig")


def _read_lines(file: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number} is not JSON: {error}. Each line must be one object.") from error
        rows.append(_object(row, f"{file}, line {number}"))
    return rows


def _read_json(file: Path) -> list[Row]:
    try:
        rows = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is not JSON: {error}. For one object a line, call the file .jsonl.") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} holds {type(rows).__name__}, expected a list of objects, one per pair.")
    return [_object(row, f"{file}, item {number}") for number, row in enumerate(rows, start=1)]


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place} is {type(row).__name__}, expected an object with named columns.")
    return row


def _read_csv(file: Path) -> list[Row]:
    rows = list(csv.DictReader(io.StringIO(_text(file), newline="")))
    return [{name: (value or None) for name, value in row.items() if name is not None} for row in rows]


def _read_parquet(file: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(file).to_pylist()
    return rows


def _read_feather(file: Path) -> list[Row]:
    content = pa.BufferReader(file.read_bytes())
    try:
        rows: list[Row] = pa.ipc.open_file(content).read_all().to_pylist()
    except pa.ArrowInvalid:
        rows = pa.ipc.open_stream(content).read_all().to_pylist()
    return rows


_READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    ".jsonl.gz": _read_lines,
    ".jsonl": _read_lines,
    ".json.gz": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".arrow": _read_feather,
    ".feather": _read_feather,
}


def _is_arrow(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _ARROW_FOLDER)


def _arrow_splits(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir() if child.is_dir() and _is_arrow(child)}


def _read_arrow(folder: Path, split: str) -> list[Row]:
    """Rows of a folder that ``datasets`` wrote; a folder without splits is its own only split."""
    import datasets

    try:
        stored = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"The data folder {folder} cannot be read: {error}. Save it again with save_to_disk."
        ) from error
    if isinstance(stored, datasets.DatasetDict):
        if split not in stored:
            raise DataError(f"The data folder {folder} has no split '{split}'. {suggest(split, stored)}")
        stored = stored[split]
    return [dict(row) for row in stored]


def _hub_splits(name: str) -> set[str]:
    import datasets

    try:
        return set(datasets.get_dataset_split_names(name))
    except (OSError, ValueError, RuntimeError) as error:
        raise _hub_error(name, "its splits", error) from error


def _read_hub(name: str, split: str, revision: str | None) -> list[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise _hub_error(name, f"split '{split}'", error) from error
    return [dict(row) for row in rows]


def _hub_error(name: str, part: str, error: Exception) -> DataError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"The hub data set '{name}' ({part}) cannot be loaded: {first}. No local file or folder has that name. Check"
        " the name, the split and the connection, or download the files and give their path."
    )
