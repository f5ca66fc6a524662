"""Evidence tables: what single samples and single pairs measured, as Arrow IPC files; equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from sera_core.errors import StoreError
from sera_core.records import Floats

# The policy's samples on the evaluation prompts, in the order of the prompts; nulls where nothing was judged.
SAMPLES = pa.schema(
    [
        ("prompt", pa.string()),
        ("points", pa.float64()),
        ("gold", pa.float64()),
        ("reward", pa.float64()),
        ("length", pa.int64()),
        ("ended", pa.bool_()),
    ]
)
HELD_OUT = pa.schema(
    [
        ("prompt", pa.string()),
        ("margin", pa.float64()),
        ("chosen_length", pa.int64()),
        ("rejected_length", pa.int64()),
    ]
)
ANCESTRAL = pa.schema([("prompt", pa.string()), ("log_ratio", pa.float64())])
# Training pairs in their order, as they were when training saw them last; nulls where it never did.
TRAINED = pa.schema(
    [
        ("pair", pa.string()),
        ("margin", pa.float64()),
        ("confidence", pa.float64()),
        ("weight", pa.float64()),
        ("flip", pa.float64()),
        ("flipped", pa.bool_()),
        ("origin", pa.string()),
    ]
)


def write_evidence(path: Path, schema: pa.Schema, columns: Mapping[str, Sequence[object] | Floats | None]) -> None:
    """Write one table; a nan becomes a null, and so does a whole column that is None.

    `columns` has exactly the names of `schema`, equally many rows each. The file is written in place: the stage it
    belongs to is renamed when it is complete.
    """
    rows = max((len(values) for values in columns.values() if values is not None), default=0)
    arrays = []
    for field in schema:
        values = columns[field.name]
        arrays.append(pa.nulls(rows, field.type) if values is None else pa.array(values, field.type, from_pandas=True))
    table = pa.Table.from_arrays(arrays, schema=schema)
    with path.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(table)


def read_evidence(path: Path) -> pa.Table:
    """The table in `path`.

    Raises:
        StoreError: the file is missing or holds no table.
    """
    try:
        return pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"The table {path} cannot be read: {error}. Run the same command again: it will be made anew."
        ) from error
