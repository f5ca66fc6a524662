"""Tables come back exactly, in equal bytes, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sera_core.data import tables
from sera_core.data.tables import read_candidates, read_pairs, write_candidates, write_pairs
from sera_core.errors import StoreError
from sera_core.records import Candidates, Message, Pair, Pairs, Prompt, Response, TextPrompt


def ids(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


CHAT = Prompt(
    "p1",
    ids(1, 2, 3),
    TextPrompt("p1", (Message("system", "é"), Message("user", "日本\n")), "target", {"b": [1, 2.5], "a": {"x": None}}),
)
PLAIN = Prompt("p2", ids(4), TextPrompt("p2", "plain"))


def response(prompt: Prompt, *values: int, **rest: object) -> Response:
    return Response(prompt, ids(*values), rest.pop("text", "t"), "stop", "policy:1", **rest)  # type: ignore[arg-type]


PAIRS = Pairs(
    (
        Pair("1", response(CHAT, 5, 6, score=0.1 + 0.2), response(CHAT, 7, sample=3), "s", "t", 0.75, True),
        Pair("2", response(PLAIN, 8), response(PLAIN, 9, text=""), "s", "t", 1.0, None),
        Pair("3", response(CHAT, 9), response(CHAT, 8), "s", "t", 1.0, False),
    ),
    {"tie": 2, "empty": 1},
)
CANDIDATES = Candidates((CHAT, PLAIN), ((response(CHAT, 1), response(CHAT, 2, 3, sample=1)), ()))


def same(a: Response, b: Response) -> bool:
    names = ("text", "finish_reason", "origin", "sample", "score")
    return (
        np.array_equal(a.ids, b.ids)
        and a.ids.dtype == b.ids.dtype == np.int32
        and all(getattr(a, name) == getattr(b, name) for name in names)
        and a.prompt.source == b.prompt.source
        and a.prompt.id == b.prompt.id
        and np.array_equal(a.prompt.ids, b.prompt.ids)
    )


def test_pairs_round_trip_and_share_prompts(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x" / "pairs.arrow", PAIRS)
    back = read_pairs(tmp_path / "x" / "pairs.arrow")
    assert back.dropped == PAIRS.dropped
    for mine, theirs in zip(PAIRS.pairs, back.pairs, strict=True):
        assert same(mine.chosen, theirs.chosen)
        assert same(mine.rejected, theirs.rejected)
        for name in ("id", "source", "template", "confidence", "flipped"):
            assert getattr(mine, name) == getattr(theirs, name)
    assert back.pairs[0].prompt is back.pairs[2].prompt is back.pairs[0].rejected.prompt


def test_candidates_round_trip_with_empty_groups(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.arrow", CANDIDATES)
    back = read_candidates(tmp_path / "c.arrow")
    assert [len(group) for group in back.responses] == [2, 0]
    assert all(same(a, b) for a, b in zip(CANDIDATES.flat(), back.flat(), strict=True))
    assert back.responses[0][0].prompt is back.prompts[0]


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", PAIRS)
    write_pairs(tmp_path / "b", read_pairs(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_nothing_is_a_table_too(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", Pairs((), {"tie": 4}))
    assert read_pairs(tmp_path / "a").pool == 4


@pytest.mark.parametrize("content", [b"", b"not a table", b"sera-sha256=", None])
def test_foreign_and_missing_files_are_store_errors(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    message = r"cannot be read: " if content is None else r"damaged or was not written by Sera: .* Remove it and run"
    with pytest.raises(StoreError, match=message):
        read_pairs(tmp_path / "a")


def test_half_a_file_is_a_store_error(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", PAIRS)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-200])
    with pytest.raises(StoreError):
        read_pairs(tmp_path / "a")


def test_kind_and_version_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_candidates(tmp_path / "a", CANDIDATES)
    with pytest.raises(StoreError, match=r"should hold pairs in version 1, but says \('candidates', '1'\)"):
        read_pairs(tmp_path / "a")
    monkeypatch.setattr(tables, "VERSION", "0")
    write_pairs(tmp_path / "old", PAIRS)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"but says \('pairs', '0'\)"):
        read_pairs(tmp_path / "old")


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", PAIRS)
    table = pa.ipc.open_file(pa.OSFile(str(tmp_path / "a"))).read_all()
    assert table.column("id").to_pylist() == ["1", "2", "3"]
    assert table.column("chosen").to_pylist()[0]["ids"] == [5, 6]


def test_a_refusing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "a", PAIRS)
    before = (tmp_path / "a").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot be written: .*No space left"):
        write_pairs(tmp_path / "a", Pairs(()))
    assert (tmp_path / "a").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", PAIRS)
    content = (tmp_path / "a").read_bytes()
    for spot in range(0, len(content), 13):
        (tmp_path / "b").write_bytes(content[:spot] + bytes([content[spot] ^ 0xFF]) + content[spot + 1 :])
        with pytest.raises(StoreError, match="is damaged"):
            read_pairs(tmp_path / "b")
