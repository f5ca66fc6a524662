"""Evidence tables: schema, nulls, equal bytes, damage."""

import numpy as np
import pytest

from sera_core.errors import StoreError
from sera_core.evaluate.winrate import points_of
from sera_core.evidence import ANCESTRAL, SAMPLES, read_evidence, write_evidence


def sample_columns(**changes):
    columns = {
        "prompt": ["a", "a"],
        "points": points_of(["tie", "abstain"]),
        "gold": None,
        "reward": np.array([0.25, -1.0]),
        "length": [3, 7],
        "ended": [True, False],
    }
    return columns | changes


def test_rows_come_back_with_nulls_where_nothing_was_judged(tmp_path):
    write_evidence(tmp_path / "samples.arrow", SAMPLES, sample_columns())
    table = read_evidence(tmp_path / "samples.arrow")
    assert table.schema == SAMPLES
    first, second = table.to_pylist()
    assert first == {"prompt": "a", "points": 0.5, "gold": None, "reward": 0.25, "length": 3, "ended": True}
    assert second == {"prompt": "a", "points": None, "gold": None, "reward": -1.0, "length": 7, "ended": False}


def test_points_of_each_verdict():
    assert str(points_of(["win", "loss", "tie", "abstain"]).tolist()) == "[1.0, 0.0, 0.5, nan]"
    assert points_of([]).shape == (0,)


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_evidence(tmp_path / name, SAMPLES, sample_columns(points=None))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_rows_keep_their_columns(tmp_path):
    write_evidence(tmp_path / "empty", ANCESTRAL, {"prompt": [], "log_ratio": np.zeros(0)})
    assert read_evidence(tmp_path / "empty").column_names == ["prompt", "log_ratio"]


@pytest.mark.parametrize("content", [None, b"", b"no table"])
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "samples.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"samples\.arrow cannot be read.*made anew"):
        read_evidence(path)
