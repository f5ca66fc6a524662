"""Pairs and candidates as Arrow IPC files: exact round trip, equal bytes for equal records, checked on reading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sera_core.errors import StoreError
from sera_core.records import Candidates, Message, Pair, Pairs, Prompt, Response, TextPrompt

VERSION = "1"
_MARK = b"sera-sha256="
_BLANK = b"0" * 64

_PROMPT = pa.struct(
    [
        ("id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("messages", pa.string()),
        ("target", pa.string()),
        ("meta", pa.string()),
    ]
)
_RESPONSE = pa.struct(
    [
        ("ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("origin", pa.string()),
        ("sample", pa.int64()),
        ("score", pa.float64()),
    ]
)
_PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _PROMPT),
        ("chosen", _RESPONSE),
        ("rejected", _RESPONSE),
        ("source", pa.string()),
        ("template", pa.string()),
        ("confidence", pa.float64()),
        ("flipped", pa.bool_()),
    ]
)
_CANDIDATES = pa.schema([("prompt", _PROMPT), ("responses", pa.list_(_RESPONSE))])


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs and their drop counts to `path`, replacing it in one step.

    Raises:
        StoreError: the disk refuses the file.
    """
    rows = [
        {
            "id": pair.id,
            "prompt": _prompt_row(pair.prompt),
            "chosen": _response_row(pair.chosen),
            "rejected": _response_row(pair.rejected),
            "source": pair.source,
            "template": pair.template,
            "confidence": pair.confidence,
            "flipped": pair.flipped,
        }
        for pair in pairs.pairs
    ]
    _write(path, "pairs", rows, _PAIRS, dict(pairs.dropped))


def read_pairs(path: Path) -> Pairs:
    """The pairs written by `write_pairs`; pairs of one prompt share one `Prompt`.

    Raises:
        StoreError: the file is missing, damaged, of another version or holds something else.
    """
    rows, dropped = _read(path, "pairs")
    prompts: dict[str, Prompt] = {}
    pairs = []
    for row in rows:
        prompt = _prompt(row["prompt"], prompts)
        chosen, rejected = _response(row["chosen"], prompt), _response(row["rejected"], prompt)
        rest = {name: row[name] for name in ("id", "source", "template", "confidence", "flipped")}
        pairs.append(Pair(chosen=chosen, rejected=rejected, **rest))
    return Pairs(tuple(pairs), dropped)


def write_candidates(path: Path, candidates: Candidates) -> None:
    """Write candidates to `path`, one row per prompt, replacing it in one step.

    Raises:
        StoreError: the disk refuses the file.
    """
    rows = [
        {"prompt": _prompt_row(prompt), "responses": [_response_row(response) for response in group]}
        for prompt, group in zip(candidates.prompts, candidates.responses, strict=True)
    ]
    _write(path, "candidates", rows, _CANDIDATES, {})


def read_candidates(path: Path) -> Candidates:
    """The candidates written by `write_candidates`.

    Raises:
        StoreError: the file is missing, damaged, of another version or holds something else.
    """
    rows, _ = _read(path, "candidates")
    known: dict[str, Prompt] = {}
    prompts = tuple(_prompt(row["prompt"], known) for row in rows)
    groups = tuple(
        tuple(_response(r, prompt) for r in row["responses"]) for prompt, row in zip(prompts, rows, strict=True)
    )
    return Candidates(prompts, groups)


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    source = prompt.source
    messages = source.messages if isinstance(source.messages, str) else [asdict(m) for m in source.messages]
    meta = json.dumps(dict(source.meta), sort_keys=True, ensure_ascii=False)
    return {
        "id": prompt.id,
        "ids": prompt.ids,
        "messages": json.dumps([source.id, messages], ensure_ascii=False),
        "target": source.target,
        "meta": meta,
    }


def _response_row(response: Response) -> dict[str, Any]:
    names = ("ids", "text", "finish_reason", "origin", "sample", "score")
    return {name: getattr(response, name) for name in names}


def _prompt(row: Mapping[str, Any], known: dict[str, Prompt]) -> Prompt:
    """The prompt of a row, the same object for the same content."""
    key = json.dumps(row, sort_keys=True)
    if key not in known:
        name, stored = json.loads(row["messages"])
        messages = stored if isinstance(stored, str) else tuple(Message(**message) for message in stored)
        source = TextPrompt(name, messages, row["target"], json.loads(row["meta"]))
        known[key] = Prompt(row["id"], np.asarray(row["ids"], dtype=np.int32), source)
    return known[key]


def _response(row: Mapping[str, Any], prompt: Prompt) -> Response:
    return Response(prompt=prompt, **{**row, "ids": np.asarray(row["ids"], dtype=np.int32)})


def _write(path: Path, kind: str, rows: list[dict[str, Any]], schema: pa.Schema, dropped: Mapping[str, int]) -> None:
    labels = {"seal": _MARK + _BLANK, "kind": kind, "version": VERSION, "dropped": json.dumps(dropped, sort_keys=True)}
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(labels))
    _replace(path, _seal(_serialise(table)))


def _read(path: Path, kind: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows and drop counts of a table whose checksum, kind and version are right.

    The checksum comes first: Arrow may abort the process on damaged bytes.
    """
    advice = "Remove it and run again: it will be made anew."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"The table {path} cannot be read: {error}. {advice}") from error
    if _MARK not in content or content != _seal(content):
        raise StoreError(f"The table {path} is damaged or was not written by Sera: no checksum fits it. {advice}")
    table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    labels = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    found = (labels["kind"], labels["version"])
    if found != (kind, VERSION):
        raise StoreError(f"The table {path} should hold {kind} in version {VERSION}, but says {found}. {advice}")
    return table.to_pylist(), json.loads(labels["dropped"])


def _seal(content: bytes) -> bytes:
    """`content` with the SHA-256 of itself, hash blanked, behind the first mark, which lies in the header."""
    start = content.index(_MARK) + len(_MARK)
    end = start + len(_BLANK)
    digest = hashlib.sha256(content[:start] + _BLANK + content[end:]).hexdigest()
    return content[:start] + digest.encode() + content[end:]


def _serialise(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` through a temporary name, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (the atomic call, named as such)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"The table {path} cannot be written: {error.strerror or error}. Free space or choose another --out."
        ) from error
