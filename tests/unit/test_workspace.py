"""Stages on disk: reuse, interruption, damage, sharing."""

import errno
import json
from pathlib import Path

import pytest

from sera_core.errors import StoreError
from sera_core.workspace import Workspace, checksums, digest, link_tree, write_json


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "run", tmp_path / "cache")


class Counting:
    """Writes one file and counts how often it was asked to."""

    def __init__(self, text="x"):
        self.calls, self.text = 0, text

    def __call__(self, folder: Path):
        self.calls += 1
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "value.txt").write_text(self.text, encoding="utf-8")


def test_a_finished_stage_is_reused_and_another_input_is_not(workspace):
    compute = Counting()
    first = workspace.stage("score", "iter_1/score", {"a": 1}, compute)
    again = workspace.stage("score", "iter_1/score", {"a": 1}, compute)
    other = workspace.stage("score", "iter_1/score", {"a": 2}, compute)
    assert (compute.calls, first.reused, again.reused, other.reused) == (2, False, True, False)
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert other.key != first.key


def test_two_runs_share_through_the_cache(tmp_path):
    compute = Counting()
    for name in ("one", "two"):
        Workspace(tmp_path / name, tmp_path / "cache").stage("label", "iter_1/label", {"a": 1}, compute)
    assert compute.calls == 1
    assert (tmp_path / "two/iter_1/label/deep/value.txt").read_text(encoding="utf-8") == "x"


def test_key_order_of_inputs_does_not_matter():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_a_damaged_result_is_computed_again(workspace):
    compute = Counting()
    stage = workspace.stage("score", "s", {}, compute)
    (stage.path / "deep" / "value.txt").write_text("spoiled", encoding="utf-8")
    repaired = workspace.stage("score", "s", {}, compute)
    assert compute.calls == 2
    assert (repaired.path / "deep" / "value.txt").read_text(encoding="utf-8") == "x"
    # The hard-linked copy in the cache was spoiled with it and must be good again as well.
    cached = workspace.cache / "stages" / f"score-{stage.key}"
    assert checksums(cached) == checksums(repaired.path)


def test_a_broken_record_counts_as_no_result(workspace):
    compute = Counting()
    stage = workspace.stage("score", "s", {}, compute)
    (stage.path / "stage.json").write_text("{", encoding="utf-8")
    workspace.stage("score", "s", {}, compute)
    assert compute.calls == 2


@pytest.mark.parametrize(
    ("resumable", "found"),
    [(True, [["key"], ["checkpoint", "key"], ["key"]]), (False, [["key"]] * 3)],
)
def test_only_a_resumable_stage_keeps_its_folder_and_for_the_same_inputs_only(workspace, resumable, found):
    seen = []

    def interrupted(folder):
        seen.append(sorted(p.name for p in folder.iterdir()))
        (folder / "checkpoint").write_text("1", encoding="utf-8")
        raise RuntimeError("killed")

    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}):
        with pytest.raises(RuntimeError, match="killed"):
            workspace.stage("train", "t", inputs, interrupted, resumable=resumable)
    assert seen == found


def test_a_result_from_the_cache_removes_what_an_interrupted_attempt_left(workspace):
    (workspace.out / "s.partial").mkdir()
    other = Workspace(workspace.out.parent / "other", workspace.cache)
    other.stage("score", "s", {}, Counting())
    assert workspace.stage("score", "s", {}, Counting()).reused
    assert not (workspace.out / "s.partial").exists()


def test_a_full_disk_is_a_clear_error_and_loses_nothing(workspace):
    def full(folder):
        (folder / "checkpoint").write_text("1", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="Stage train could not be written .* No space left on device"):
        workspace.stage("train", "t", {}, full)
    assert (workspace.out / "t.partial" / "checkpoint").exists()


def test_other_operating_system_errors_are_not_disguised(workspace):
    def broken(folder):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        workspace.stage("train", "t", {}, broken)


def test_one_process_per_run_folder(tmp_path):
    with Workspace(tmp_path / "run", tmp_path / "cache"):
        second = Workspace(tmp_path / "run", tmp_path / "cache")
        with pytest.raises(StoreError, match="Another process is running"):
            second.__enter__()


def test_write_json_leaves_no_partial_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 1}


def test_link_tree_copies_where_links_are_impossible(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("1", encoding="utf-8")

    def no_links(*_):
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr("os.link", no_links)
    link_tree(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "f").read_text(encoding="utf-8") == "1"
    assert (tmp_path / "b" / "f").stat().st_nlink == 1
