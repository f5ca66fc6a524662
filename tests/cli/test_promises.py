"""Promises a run makes beside its happy path: pools, shared caches, the manifest, reruns, judges that do half the job."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from tiny_runs import write_pairs

import sera_core
from sera_core.cli import compare
from sera_core.errors import ConfigError, SeraError
from sera_core.hookspecs import hookimpl
from sera_core.host import build_manager
from sera_core.protocols import Needs


def run(folder, config, name="run", **more):
    return sera_core.run(config, out=folder / name, cache=folder / "cache", **more)


def report(result, iteration):
    return json.loads((result.out / f"iter_{iteration}" / "report.json").read_text(encoding="utf-8"))


def test_a_fraction_counts_usable_pairs_not_refused_rows(tiny, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_pairs(folder / "train.jsonl", 20)
    write_pairs(folder / "validation.jsonl", 40, start=100)
    config = tiny.config("irm-only", f"source={folder}", "source.validation=3", "source.evaluation=3")
    result = run(tmp_path, config)
    assert result.summary["iterations"][0]["dropped"]["offline.held_out_surplus"] > 0
    assert [each["pairs_offline"] for each in result.summary["iterations"]] == [20, 14]


def test_arms_that_differ_in_the_labeler_do_not_share_scores(tiny, tmp_path):
    settings = ("generated.prompts=sft", "generated.scorer=length", "generated.selector={name: top, fraction: 0.5}")
    base = ("generated.from_iteration=1", "offline={scorer: null, selector: all, select_from: 1}", "loop.iterations=1")
    for labeler in ("target_first", "best_worst"):
        config = tiny.config("sera-dpo", *base, *settings, f"generated.labeler={labeler}")
        result = run(tmp_path, config, labeler)
        assert result.summary["iterations"][0]["pairs_generated"] > 0


def test_the_manifest_holds_every_value_that_acted(tiny, tmp_path):
    result = run(tmp_path, tiny.config("sera-dpo"))
    manifest = json.loads((result.out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["final_iteration"] == 2
    first, second = manifest["config"]
    assert first["objective"]["loss"] == {"name": "dpo", "beta": 0.1}
    assert second["offline"]["scorer"] == {"name": "irm", "gamma": 0.3, "reward": "log_ratio"}
    assert second["evaluation"]["sampling"] == {"samples": 2, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 8}
    assert first["source"]["pairing"] == "best_vs_random"
    assert "beta: 0.1" in (result.model / "README.md").read_text(encoding="utf-8")


def test_a_shorter_run_in_the_same_folder_leaves_nothing_of_the_longer_one(tiny, tmp_path):
    run(tmp_path, tiny.config("sera-dpo"))
    result = run(tmp_path, tiny.config("dpo"))
    assert sorted(path.name for path in result.out.glob("iter_*")) == ["iter_0", "iter_1"]
    assert not (result.out / "iter_1" / "generate").exists()


def test_compare_refuses_a_run_that_was_started_again(tiny, tmp_path):
    result = run(tmp_path, tiny.config("dpo"))
    manifest = result.out / "manifest.json"
    kept = json.loads(manifest.read_text(encoding="utf-8"))
    del kept["final_iteration"]
    manifest.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SeraError, match="started again and is not finished"):
        compare([result.out])


@pytest.mark.parametrize(
    ("preset", "more", "words"),
    [
        (
            "irm-only",
            ["offline.scorer=annotated", "offline.select_from=2"],
            "reads annotated scores, which 2. of 2. pairs lack",
        ),
        ("sera-dpo", ["generated.prompts=fresh"], "brought no such prompts"),
        (
            "sera-dpo",
            ["generated.disjoint=true", "generated.from_iteration=2", "loop.iterations=60"],
            "cannot be split",
        ),
        ("sera-dpo", ["loop.stop={patience: 1}", "source.validation=0"], "accuracy needs held-out pairs"),
    ],
)
def test_what_only_the_data_can_tell_is_told_before_training(tiny, tmp_path, preset, more, words):
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, tiny.config(preset, *more))
    assert not list((tmp_path / "run").glob("iter_*"))


@dataclass(frozen=True)
class OnlyCompares:
    """Prefers the longer response."""

    @property
    def needs(self):
        return Needs()

    def grade(self, responses):
        raise NotImplementedError

    def compare(self, first, second):
        sizes = [(len(a.ids), len(b.ids)) for a, b in zip(first, second, strict=True)]
        return tuple("win" if a > b else "loss" if a < b else "tie" for a, b in sizes)


class Judges:
    @hookimpl
    def sera_register_judges(self):
        return {"only_compares": OnlyCompares}


def test_a_judge_that_only_compares_is_enough(tiny, tmp_path):
    manager = build_manager(extra=[("judges", Judges())])
    result = run(tmp_path, tiny.config("sera-dpo", "evaluation.judge=only_compares"), manager=manager)
    last = result.summary["iterations"][-1]
    assert 0 <= last["win_rate_vs_initial"]["low"] <= last["win_rate_vs_initial"]["high"] <= 1
    assert last["gold_reward"] is None
    assert "accuracy" not in report(result, 2)["selection"]["generated"]
