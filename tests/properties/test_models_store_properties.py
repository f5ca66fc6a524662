"""Round trips through the store for arbitrary finite sums, keys and batches."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.models.store import LogProbStore

ENTRIES = st.dictionaries(
    st.binary(min_size=16, max_size=16),
    st.tuples(
        st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(min_value=1, max_value=2**31 - 1)
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(ENTRIES, max_size=4))
def test_what_is_put_first_is_what_comes_back(batches):
    expected = {}
    with tempfile.TemporaryDirectory() as folder:
        store = LogProbStore(Path(folder))
        for batch in batches:
            sums = np.array([v[0] for v in batch.values()], np.float32)
            store.put("s", list(batch), sums, np.array([v[1] for v in batch.values()], np.int32))
            expected = batch | expected
        for reader in (store, LogProbStore(Path(folder))):
            sums, lengths, found = reader.get("s", list(expected))
            assert found.all()
            assert sums.tobytes() == np.array([v[0] for v in expected.values()], np.float32).tobytes()
            assert lengths.tolist() == [v[1] for v in expected.values()]
