"""The log-prob store: round trips, interrupted and damaged shards, several processes, a full disk."""

import errno
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from sera_core.errors import StoreError
from sera_core.models.store import LogProbStore, response_key


def key(n):
    return response_key("t", np.array([1], np.int32), np.array([n], np.int32))


KEYS = [key(n) for n in range(4)]
SUMS = np.array([-1.5, -0.1, -3e-7, -250.123456], dtype=np.float32)
LENGTHS = np.array([1, 2, 3, 400], dtype=np.int32)


def shards(tmp_path):
    return sorted((tmp_path / "s").glob("*.logps"))


def test_round_trip_is_bit_exact_across_instances(tmp_path):
    writer = LogProbStore(tmp_path)
    assert writer.put("s", KEYS, SUMS, LENGTHS).tobytes() == SUMS.tobytes()
    for store in (writer, LogProbStore(tmp_path)):
        sums, lengths, found = store.get("s", [KEYS[3], key(99), KEYS[0]])
        assert sums[[0, 2]].tobytes() == SUMS[[3, 0]].tobytes()
        assert np.isnan(sums[1])
        assert lengths.tolist() == [400, 0, 1]
        assert found.tolist() == [True, False, True]
        assert (sums.dtype, lengths.dtype, found.dtype) == (np.float32, np.int32, np.bool_)
        assert (store.hits, store.misses) == (2, 1)


def test_scorers_are_apart(tmp_path):
    store = LogProbStore(tmp_path)
    store.put("s", KEYS, SUMS, LENGTHS)
    assert not store.get("other", KEYS)[2].any()


def test_reader_sees_what_another_instance_writes_later(tmp_path):
    reader, writer = LogProbStore(tmp_path), LogProbStore(tmp_path)
    assert not reader.get("s", KEYS)[2].any()
    writer.put("s", KEYS, SUMS, LENGTHS)
    assert reader.get("s", KEYS)[2].all()


def test_two_writers_of_the_same_at_once_do_not_meet(tmp_path, monkeypatch):
    # Containers that share a cache may share process ids too.
    stores = [LogProbStore(tmp_path) for _ in range(2)]
    monkeypatch.setattr(os, "getpid", lambda: 7)
    for store in stores:
        monkeypatch.setattr(store, "_refresh", lambda scorer, store=store: store._entries.setdefault(scorer, {}))
        store._seen["s"] = set()
        store.put("s", KEYS, SUMS, LENGTHS)
    assert len(shards(tmp_path)) == 2
    assert LogProbStore(tmp_path).get("s", KEYS)[2].all()


def test_first_value_stays(tmp_path):
    LogProbStore(tmp_path).put("s", KEYS[:1], SUMS[:1], LENGTHS[:1])
    second = LogProbStore(tmp_path)
    stored = second.put("s", KEYS[:2], np.array([-9, -8], np.float32), LENGTHS[:2])
    assert stored.tolist() == [-1.5, -8.0]
    assert LogProbStore(tmp_path).get("s", KEYS[:2])[0].tolist() == [-1.5, -8.0]
    second.put("s", KEYS[:2], SUMS[:2], LENGTHS[:2])
    assert len(shards(tmp_path)) == 2


def test_keys_tell_contexts_apart():
    def of(template, prompt, response):
        return response_key(template, np.array(prompt, np.int32), np.array(response, np.int32))

    base = of("t", [1, 2], [3])
    others = [of("t", [1], [2, 3]), of("u", [1, 2], [3]), of("t", [1, 2], [3, 0]), of("t", [2, 1], [3])]
    assert len({base, *others}) == 5
    assert len(base) == 16
    assert base == response_key("t", np.array([1, 2], np.int64), np.array([3], np.int64))
    assert (
        base.hex() == "db4885ae1c057b26cbd555a9bc96bb23"
    )  # changing the key silently would recompute every stored value


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "version"])
def test_damaged_shard_is_moved_aside_and_counts_as_missing(tmp_path, caplog, damage):
    store = LogProbStore(tmp_path)
    store.put("s", KEYS[:2], SUMS[:2], LENGTHS[:2])
    store.put("s", KEYS[2:], SUMS[2:], LENGTHS[2:])
    path = next(p for p in shards(tmp_path) if KEYS[0] in p.read_bytes())
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[30] ^= 1
    if damage == "version":
        data[8] = 9
    path.write_bytes({"truncate": data[:-5], "empty": b""}.get(damage, bytes(data)))
    fresh = LogProbStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert fresh.get("s", KEYS)[2].tolist() == [False, False, True, True]
    assert "damaged" in caplog.text
    assert path.name in caplog.text
    assert [p.name for p in (tmp_path / "s").glob("*.corrupt")] == [path.name + ".corrupt"]
    fresh.put("s", KEYS[:2], SUMS[:2], LENGTHS[:2])
    assert LogProbStore(tmp_path).get("s", KEYS)[0].tobytes() == SUMS.tobytes()


def test_killed_before_the_rename_leaves_no_shard(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self, target):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            LogProbStore(tmp_path).put("s", KEYS, SUMS, LENGTHS)
    assert len(list((tmp_path / "s").iterdir())) == 1  # the temporary file, as after a kill
    store = LogProbStore(tmp_path)
    assert not store.get("s", KEYS)[2].any()
    store.put("s", KEYS, SUMS, LENGTHS)
    assert LogProbStore(tmp_path).get("s", KEYS)[2].all()


def test_full_disk(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = LogProbStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("sera_core.models.store.os.fsync", full)
        with pytest.raises(StoreError, match=r"Cannot store \d+ bytes .*No space left on device\. Free space") as error:
            store.put("s", KEYS, SUMS, LENGTHS)
    assert str(tmp_path) in str(error.value)
    assert list((tmp_path / "s").iterdir()) == []
    assert not store.get("s", KEYS)[2].any()
    store.put("s", KEYS, SUMS, LENGTHS)
    assert store.get("s", KEYS)[2].all()


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Cannot store"):
        LogProbStore(tmp_path / "file").put("s", KEYS, SUMS, LENGTHS)


@pytest.mark.parametrize(
    ("keys", "sums", "lengths", "message"),
    [
        (KEYS, SUMS[:3], LENGTHS, "4 keys, 3 sums and 4 lengths"),
        ([b"short"], SUMS[:1], LENGTHS[:1], "16 bytes"),
        (KEYS[:1], np.array([np.nan], np.float32), LENGTHS[:1], "not finite"),
        (KEYS[:1], SUMS[:1], np.array([0], np.int32), "not positive"),
    ],
)
def test_refuses_bad_entries(tmp_path, keys, sums, lengths, message):
    with pytest.raises(StoreError, match=message):
        LogProbStore(tmp_path).put("s", keys, sums, lengths)


@pytest.mark.parametrize("scorer", ["../x", "a/b", "", ".hidden"])
def test_refuses_scorers_that_are_no_folder_names(tmp_path, scorer):
    with pytest.raises(StoreError, match="cannot name a folder"):
        LogProbStore(tmp_path).get(scorer, KEYS)


def _write_many(root, offset, barrier):
    store = LogProbStore(root)
    barrier.wait()
    for start in range(0, 60, 10):
        numbers = range(offset + start, offset + start + 10)
        sums = np.array([-1 - n for n in numbers], np.float32)
        store.put("s", [key(n) for n in numbers], sums, np.ones(10, np.int32))


def test_several_processes_write_overlapping_keys_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_write_many, args=(tmp_path, offset, barrier)) for offset in (0, 30, 60)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    sums, _, found = LogProbStore(tmp_path).get("s", [key(n) for n in range(120)])
    assert found.all()
    assert sums.tolist() == [-1.0 - n for n in range(120)]
    assert {path.suffix for path in (tmp_path / "s").iterdir()} == {".logps"}
