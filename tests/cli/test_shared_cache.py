"""Runs that share a cache: what two of them have in common is computed once, what differs is computed again."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

import sera_core
from sera_core import runner
from sera_core.context import Context
from sera_core.data.tables import read_candidates, read_pairs
from sera_core.models.store import LogProbStore, response_key
from sera_core.reporter import Silent
from sera_core.testing.artefacts import artefact_hashes
from sera_core.testing.tiny import CHAT_TEMPLATE
from sera_core.workspace import read_json
from sera_core.world.gold import Gold


class Watching(Silent):
    """Notes which stages were computed and which reused."""

    def __init__(self):
        self.computed, self.reused = set(), set()

    def stage_finished(self, where, seconds, reused):
        (self.reused if reused else self.computed).add(where)


@pytest.fixture
def stores(monkeypatch):
    """The log-prob stores that runs open, in order; `asked` holds (scorer, key, found) of every look-up."""
    opened = []

    class Recording(LogProbStore):
        def __init__(self, root):
            super().__init__(root)
            self.asked = []
            opened.append(self)

        def get(self, scorer, keys):
            sums, lengths, found = super().get(scorer, keys)
            self.asked += [(scorer, key, bool(there)) for key, there in zip(keys, found, strict=True)]
            return sums, lengths, found

    monkeypatch.setattr(runner, "LogProbStore", Recording)
    return opened


@pytest.fixture
def go(tiny, tmp_path):
    """Run a preset into a folder of its own name, all sharing one cache; what was computed and reused."""

    def call(name, preset, *overrides):
        watching = Watching()
        config = tiny.config(preset, *overrides)
        sera_core.run(config, out=tmp_path / name, cache=tmp_path / "cache", reporter=watching)
        watching.computed.discard("policy")
        return watching

    return call


def test_sera_shares_its_first_iteration_with_iterative_dpo(go, tmp_path):
    go("iterative", "iterative-dpo")
    second = go("sera", "sera-dpo")
    first = {f"iter_1/{stage}" for stage in ("train", "sample", "ancestral", "evaluate")}
    assert first | {"data", "iter_0/sample"} <= second.reused
    # The two choose the same pairs in different ways.
    assert {name for name in second.computed if name.startswith("iter_1")} == {"iter_1/select"}
    assert {"iter_2/generate", "iter_2/select", "iter_2/train"} <= second.computed
    hashes = [artefact_hashes(tmp_path / name) for name in ("iterative", "sera")]
    same = [name for name in hashes[0] if name.startswith(("iter_1/train", "iter_1/select/pairs", "data"))]
    assert len(same) >= 10
    assert all(hashes[0][name] == hashes[1][name] for name in same)
    assert hashes[0]["model/model.safetensors"] != hashes[1]["model/model.safetensors"]


def test_another_folder_alone_computes_nothing(go, stores, tmp_path):
    go("one", "sera-dpo")
    second = go("two", "sera-dpo")
    assert second.computed == set()
    assert stores[1].asked == []
    assert artefact_hashes(tmp_path / "one") == artefact_hashes(tmp_path / "two")


def test_another_beta_trains_anew_on_the_same_data_with_stored_reference_logps(go, stores, tmp_path):
    go("one", "dpo")
    second = go("two", "dpo", "objective.loss.beta=0.3")
    assert second.reused == {"data", "iter_1/select", "iter_0/sample"}
    assert second.computed == {f"iter_1/{stage}" for stage in ("train", "sample", "ancestral", "evaluate")}
    assert stores[0].misses > 0
    assert_reference_found(stores[1], tmp_path / "two")


def test_another_chat_template_misses_even_where_its_tokens_are_the_same(go, stores, tmp_path):
    go("one", "dpo")
    template = tmp_path / "template.jinja"
    template.write_text("{# another one #}" + CHAT_TEMPLATE, encoding="utf-8")
    second = go("two", "dpo", f"tokens.chat_template={template}")
    assert second.reused == set()
    assert [tuple(ids) for ids in prompts(tmp_path / "one")] == [tuple(ids) for ids in prompts(tmp_path / "two")]
    first, again = ({entry[1] for entry in store.asked} for store in stores)
    assert again
    assert not first & again


def test_another_seed_trains_anew_and_still_finds_reference_logps(go, stores, tmp_path):
    go("one", "dpo")
    second = go("two", "dpo", "seed=1")
    assert "iter_1/train" in second.computed
    known = {entry[:2] for entry in stores[0].asked}
    common = [entry for entry in stores[1].asked if entry[:2] in known]
    # The split into training and held-out pairs depends on the seed; most pairs train under both.
    assert len(common) > 24
    assert all(found for *_, found in common)


def test_the_initial_policy_scores_each_response_once(go, stores, tmp_path):
    go("one", "sera-dpo", "generated.scorer.gamma=0.3")
    missed = [entry[:2] for entry in stores[0].asked if not entry[2]]
    assert len(missed) == len(set(missed)) == stores[0].misses
    assert stores[0].hits > 0


def test_a_damaged_stage_in_the_cache_is_computed_again(go, tmp_path):
    go("one", "dpo")
    (damaged,) = (tmp_path / "cache/stages").glob("train-*")
    weights = damaged / "model/model.safetensors"
    # The run's own files are links to the cached ones: only a new file spares the first run.
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second = go("two", "dpo")
    assert second.computed == {"iter_1/train"}
    assert artefact_hashes(tmp_path / "one") == artefact_hashes(tmp_path / "two")


def test_annotations_of_the_run_do_not_enter_the_cached_model(go, tmp_path):
    go("one", "dpo")
    go("two", "cdpo", "objective.smoother={name: constant, epsilon: 0.2}")
    for name in ("one", "two"):
        card = (tmp_path / name / "model/README.md").read_text(encoding="utf-8")
        assert card.split("# ")[1].startswith({"one": "dpo", "two": "cdpo"}[name])
        assert "Intermediate" in (tmp_path / name / "iter_1/train/model/README.md").read_text(encoding="utf-8")


def test_candidates_do_not_depend_on_the_batches_they_were_drawn_in(go, tmp_path):
    go("one", "sera-dpo")
    small = go("two", "sera-dpo", "generated.generator={name: transformers, token_budget: 64}")
    assert "iter_2/generate" in small.computed
    drawn = [read_candidates(tmp_path / name / "iter_2/generate/candidates.arrow").flat() for name in ("one", "two")]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(*drawn, strict=True))


def test_another_version_of_the_judge_is_another_judge():
    def key(judge, version):
        provenance = {"source:world": "world@sera-core==1", "judge:gold": f"gold@sera-core=={version}"}
        plan = SimpleNamespace(judge=judge, judge_name="gold", provenance=provenance)
        return Context(plan, *[None] * (len(fields(Context)) - 1)).judge()

    assert key(Gold(), "1") == "gold@sera-core==1 Gold()" != key(Gold(), "2")
    assert key(None, "1") is None


def prompts(out):
    return [pair.prompt.ids for pair in read_pairs(out / "data/pairs.arrow").pairs]


def assert_reference_found(store, out):
    """Every training response was looked up under the initial policy, and found."""
    manifest = read_json(out / "manifest.json")
    scorer = f"{manifest['initial_policy']['weights']}-float32-default"
    pairs = read_pairs(out / "iter_1/select/pairs.arrow").pairs
    template = manifest["data"]["template"]
    keys = {response_key(template, r.prompt.ids, r.ids) for pair in pairs for r in (pair.chosen, pair.rejected)}
    looked_up = {key: found for asked, key, found in store.asked if asked == scorer and key in keys}
    assert set(looked_up) == keys
    assert all(looked_up.values())
