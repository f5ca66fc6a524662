"""The preferences source: every format and container, hold-out, noise, and what is said about bad data."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from transformers import TrainingArguments

from sera_core.data.preferences import Preferences
from sera_core.data.splits import opening
from sera_core.errors import ConfigError, DataError
from sera_core.records import Message, SourceData

DATA = Path(os.environ.get("SERA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data sets named by SERA_TEST_DATA")
FLAT = {"validation": 0, "evaluation": 0}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def explicit(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r{i}", "prompt": [user(f"q{i}")], "chosen": [bot(f"good{i}")], "rejected": [bot(f"bad{i}")], **more}


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(tmp_path: Path, rows: list[Any], seed: int = 0, **options: Any) -> SourceData:
    return Preferences(jsonl(tmp_path / "rows.jsonl", rows), **{**FLAT, **options}).load(seed)


def shown(data: SourceData) -> dict[str, tuple[str, str]]:
    return {pair.id: (pair.chosen, pair.rejected) for pair in data.pairs}


# formats


def test_explicit_prompts_in_all_their_spellings(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "s"}, user("q")]
    rows = [
        {"id": 1, "prompt": prompt, "chosen": [bot("a")], "rejected": [bot("b")]},
        {"id": 2, "prompt": prompt, "chosen": [*prompt, bot("a")], "rejected": "b"},
        {"id": 3, "prompt": "q", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
    ]
    data = load(tmp_path, rows, format="pairs")
    assert shown(data) == {"1": ("a", "b"), "2": ("a", "b"), "3": ("a", "b")}
    by_id = {pair.id: pair.prompt for pair in data.pairs}
    assert by_id["1"].messages == (Message("system", "s"), Message("user", "q"))
    assert by_id["1"].id == by_id["2"].id != by_id["3"].id
    assert by_id["3"].messages == (Message("user", "q"),)


def test_dialogues_share_their_longest_common_prefix(tmp_path: Path) -> None:
    start = [user("q"), bot("a"), user("r")]
    raw = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: "
    rows = [
        {"id": "list", "chosen": [*start, bot("x")], "rejected": [*start, bot("y")]},
        {"id": "raw", "chosen": raw + "x", "rejected": raw + "y"},
        {"id": "early", "chosen": [*start, bot("x")], "rejected": [user("q"), bot("z"), user("r"), bot("y")]},
        {"id": "same", "chosen": raw + "x", "rejected": raw + "x"},
        {"id": "bare", "chosen": "no turns", "rejected": "here"},
    ]
    data = load(tmp_path, rows)
    assert shown(data) == {"list": ("x", "y"), "raw": ("x", "y")}
    assert {pair.prompt.messages for pair in data.pairs} == {
        (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
    }
    assert data.dropped == {"different_prefix": 1, "identical_answers": 1, "no_turns": 1}


def test_plain_text_stays_plain_unless_told_otherwise(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert load(tmp_path, rows).pairs[0].prompt.messages == "q"
    assert load(tmp_path, rows, format="pairs").pairs[0].prompt.messages == (Message("user", "q"),)


SCORED = {
    "id": "s",
    "prompt": [user("q")],
    "responses": [
        {"content": "low", "score": 1, "other": 9},
        {"content": "best", "score": 4, "other": 2},
        {"content": "mid", "score": 2, "other": 3},
        {"content": "mid too", "score": 2, "other": 4},
    ],
}


def test_scored_answers_are_paired_in_three_ways(tmp_path: Path) -> None:
    rest = load(tmp_path, [SCORED], pairing="best_vs_rest")
    assert {(p.chosen, p.rejected) for p in rest.pairs} == {("best", "low"), ("best", "mid"), ("best", "mid too")}
    every = load(tmp_path, [SCORED], pairing="all")
    assert len(every.pairs) == 5
    assert every.dropped == {"tied_scores": 1}
    assert all(p.chosen_score > p.rejected_score for p in every.pairs)
    (one,) = load(tmp_path, [SCORED]).pairs
    assert (one.id, one.chosen, one.chosen_score) == ("s", "best", 4.0)
    drawn = {load(tmp_path, [SCORED], seed=seed).pairs[0].rejected for seed in range(20)}
    assert drawn == {"low", "mid", "mid too"}


def test_the_score_field_can_be_chosen(tmp_path: Path) -> None:
    assert load(tmp_path, [SCORED], score="other").pairs[0].chosen == "low"
    row = explicit(1, score_chosen=2, score_rejected=1, chosen_fun=7, rejected_fun=8)
    assert load(tmp_path, [row]).pairs[0].chosen_score == 2.0
    assert load(tmp_path, [row], score="fun").pairs[0].rejected_score == 8.0


def test_scores_may_lie_beside_string_answers(tmp_path: Path) -> None:
    row = {"question": "q", "answers": ["a", "b"], "grades": [1, 2]}
    names = {"prompt": "question", "responses": "answers", "scores": "grades"}
    (pair,) = load(tmp_path, [row], columns=names).pairs
    assert (pair.chosen, pair.rejected, pair.chosen_score) == ("b", "a", 2.0)


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "missing_value"),
    ({"chosen": None}, "missing_value"),
    ({"chosen": [bot(" ")]}, "empty_text"),
    ({"chosen": 3}, "not_messages"),
    ({"chosen": [bot("a"), bot("b")]}, "answer_not_one_message"),
    ({"chosen": [user("a")]}, "answer_not_one_message"),
    ({"chosen": [{"role": "assistant", "content": ["a"]}]}, "not_text"),
    ({"chosen": [{"from": "gpt", "value": "a"}]}, "not_messages"),
    ({"prompt": [user("a"), user("b")]}, "roles_not_alternating"),
    ({"prompt": [user("a"), bot("b")]}, "roles_not_alternating"),
    ({"prompt": [bot("b"), user("a")]}, "roles_not_alternating"),
    ({"prompt": []}, "roles_not_alternating"),
    ({"rejected": [bot("good1 ")]}, "identical_answers"),
    ({"score_chosen": 2, "score_rejected": 2}, "tied_scores"),
    ({"score_chosen": "high"}, "bad_score"),
    ({"score_chosen": float("nan")}, "bad_score"),
    ({"chosen": [bot("\ud800")]}, "bad_text"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS)
def test_bad_rows_are_counted_by_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    data = load(tmp_path, [explicit(1, **change), explicit(2)])
    assert data.dropped == {reason: 1}
    assert list(shown(data)) == ["r2"]


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        (None, "missing_value"),
        ([{"content": "a", "score": 1}], "too_few_answers"),
        ([{"content": "a", "score": 1}, {"content": "b"}], "bad_score"),
        ([{"content": "a", "score": 1}, {"content": "b", "score": 1}], "tied_scores"),
        ([{"content": "a", "score": 1}, {"content": "a", "score": 2}], "identical_answers"),
        ([1, 2], "not_text"),
    ],
)
def test_bad_scored_rows_are_counted_by_reason(tmp_path: Path, responses: Any, reason: str) -> None:
    data = load(tmp_path, [{**SCORED, "id": "x", "responses": responses}, SCORED])
    assert (data.dropped, len(data.pairs)) == ({reason: 1}, 1)


def test_if_nothing_is_left_the_counts_are_in_the_error(tmp_path: Path) -> None:
    rows = [explicit(1, chosen=None), explicit(2, prompt=[]), explicit(3, prompt=[])]
    with pytest.raises(DataError, match=r"read as 'pairs'\): missing_value 1, roles_not_alternating 2. Check format"):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has the columns answer, question; expected prompt, chosen, rejected for any format .*source.columns"),
        ({"format": "scored"}, r"expected prompt, responses for format 'scored'"),
        ({"columns": {"prompt": "question"}}, r"expected prompt, chosen, rejected"),
    ],
)
def test_wrong_columns_say_what_is_there_and_how_to_map(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [{"question": "q", "answer": "a"}], **options)


# ids


def test_missing_ids_are_hashes_of_content_and_exact_duplicates_go(tmp_path: Path) -> None:
    rows = [{k: v for k, v in explicit(i).items() if k != "id"} for i in (1, 2, 1)]
    data = load(tmp_path, rows)
    assert data.dropped == {"duplicate_row": 1}
    assert set(shown(data)) == set(shown(load(tmp_path, rows[1::-1])))


def test_one_id_for_two_pairs_is_an_error_that_null_resolves(tmp_path: Path) -> None:
    rows = [explicit(1), explicit(2, id="r1")]
    with pytest.raises(DataError, match=r"id 'r1' names two different pairs .*set it to null"):
        load(tmp_path, rows)
    assert len(load(tmp_path, rows, columns={"id": None}).pairs) == 2


# containers


def _write_all(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Path]:
    table = pa.Table.from_pylist(rows)
    jsonl(folder / "a.jsonl", rows)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    (folder / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    pq.write_table(table, folder / "d.parquet")
    pyarrow.feather.write_feather(table, str(folder / "e.arrow"))
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "f"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(folder / "g"))
    (folder / "h").mkdir()
    jsonl(folder / "h" / "train.jsonl", rows)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_every_container_gives_the_same_data(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    files = _write_all(tmp_path, [explicit(i) for i in range(12)])
    assert len(files) == 8
    found = {name: Preferences(str(path), validation=1, evaluation=1).load(3) for name, path in files.items()}
    assert len({repr((d.pairs, d.validation, d.evaluation, d.fingerprint)) for d in found.values()}) == 1


def test_csv_holds_plain_text(tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(
            [["prompt", "chosen", "rejected", "score_chosen", "score_rejected"], ["q", "a\nb", "c,d", "2", "1.5"]]
        )
    (pair,) = Preferences(str(tmp_path / "x.csv"), **FLAT).load(0).pairs
    assert (pair.chosen, pair.rejected, pair.chosen_score, pair.rejected_score) == ("a\nb", "c,d", 2.0, 1.5)


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x.jsonl, line 2 is not JSON"),
    ("x.jsonl", b"[1]\n", r"line 1 is list, expected an object"),
    ("x.jsonl", b"\n", r"holds no rows"),
    ("x.jsonl", b"\xff\xfe{", r"cannot be read as .jsonl: .*decode"),
    ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-6], r"cannot be read as .jsonl.gz"),
    ("x.jsonl.gz", b"plain", r"cannot be read as .jsonl.gz: Not a gzipped file"),
    ("x.json", b"{", r"x.json is not JSON"),
    ("x.json", b'{"a": 1}', r"holds dict, expected a list of objects"),
    ("x.parquet", b"PAR1", r"cannot be read as .parquet"),
    ("x.arrow", b"ARROW1", r"cannot be read as .arrow"),
    ("x.txt", b"hello", r"has no known ending. Expected one of .jsonl.gz, .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_unreadable_files_are_data_errors(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Preferences(str(tmp_path / name)).load(0)


def test_missing_paths_and_splits_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data path '.*gone.jsonl' does not exist"):
        Preferences(str(tmp_path / "gone.jsonl")).load(0)
    jsonl(tmp_path / "train.jsonl", [explicit(1)])
    with pytest.raises(DataError, match=r"has no split 'trian'.*Did you mean 'train'\?"):
        Preferences(str(tmp_path), split="trian").load(0)
    jsonl(tmp_path / "train.json", [])
    with pytest.raises(DataError, match=r"holds split 'train' twice: train.json, train.jsonl"):
        Preferences(str(tmp_path)).load(0)


def test_a_broken_arrow_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be read: .*save_to_disk"):
        Preferences(str(tmp_path)).load(0)


def test_an_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, split: str, revision: str | None) -> None:
        assert (name, split, revision) == ("who/what", "train", "main")
        raise ConnectionError("Couldn't reach 'who/what' on the Hub\ndetails")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'who/what' \(split 'train'\) cannot be loaded: Couldn't reach .* give their"):
        Preferences("who/what", revision="main").load(0)


def test_a_hub_name_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": range(5), "test": range(5, 9)}
    stored = {split: datasets.Dataset.from_list([explicit(i) for i in found]) for split, found in rows.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split, **__: stored[split])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _: list(stored))
    data = Preferences("who/what", validation_split="auto", validation=2, evaluation=2).load(0)
    assert (len(data.pairs), len(data.validation), len(data.evaluation)) == (5, 2, 2)


# hold-out


def test_no_prompt_nor_its_continuation_is_on_both_sides(tmp_path: Path) -> None:
    rows = [explicit(i, id=f"{i}-{k}", chosen=[bot(f"good{i}{k}")]) for i in range(30) for k in range(2)]
    rows += [explicit(i, id=f"{i}-c", prompt=[user(f"Q{i} "), bot("ok"), user("more")]) for i in range(30)]
    data = load(tmp_path, rows, validation=7, evaluation=2)
    prompts = [[p.prompt for p in data.pairs], [p.prompt for p in data.validation], data.evaluation]
    sides = [{prompt.messages[0].content.lower().strip() for prompt in side} for side in prompts]
    assert (len(data.validation), len(data.evaluation)) == (7, 2)
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert len(data.pairs) + 7 + 2 + data.dropped["held_out_surplus"] == len(rows)


def test_hold_out_ignores_row_order_and_follows_the_seed(tmp_path: Path) -> None:
    rows = [explicit(i) for i in range(50)]
    first = load(tmp_path, rows, validation=4, evaluation=4)
    again = load(tmp_path, rows[::-1], validation=4, evaluation=4)
    other = load(tmp_path, rows, seed=1, validation=4, evaluation=4)
    assert (first.pairs, first.validation, first.evaluation) == (again.pairs, again.validation, again.evaluation)
    assert first.validation != other.validation
    assert first.evaluation[0].target.startswith("good")


def test_small_data_keep_four_fifths_for_training(tmp_path: Path) -> None:
    data = load(tmp_path, [explicit(i) for i in range(50)], validation=100, evaluation=100)
    assert (len(data.pairs), len(data.validation), len(data.evaluation)) == (40, 5, 5)


def test_a_split_of_its_own_wins_over_training_rows(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [explicit(i) for i in range(10)])
    jsonl(tmp_path / "test.jsonl", [explicit(i, id=f"r{i - 8}") for i in range(8, 12)])
    data = Preferences(str(tmp_path), validation_split="auto", validation=2, evaluation=2).load(0)
    assert data.dropped == {"in_validation_split": 2}
    assert len(data.pairs) == 8
    assert all(pair.id.startswith("test:r") for pair in data.validation)


def test_a_split_of_its_own_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation_split is 'test', but .*rows.jsonl is not divided into splits"):
        load(tmp_path, [explicit(1)], validation_split="test")
    jsonl(tmp_path / "test.jsonl", [explicit(1)])
    jsonl(tmp_path / "train.jsonl", [explicit(1)])
    with pytest.raises(DataError, match=r"Every prompt of .* is also in split 'test'"):
        Preferences(str(tmp_path), validation_split="test").load(0)


def test_a_split_named_where_there_are_none_is_refused(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    message = r"source.split is 'train_prefs', but .* is not divided into splits. Remove it"
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, [explicit(1)], split="train_prefs")
    datasets.Dataset.from_list([explicit(1)]).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(ConfigError, match=message):
        Preferences(str(tmp_path / "plain"), split="train_prefs").load(0)
    with pytest.raises(ConfigError, match=r"validation_split is 'dev', but .*plain is not divided into splits"):
        Preferences(str(tmp_path / "plain"), validation_split="dev").load(0)


def test_a_split_is_chosen_where_there_are_some(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    fresh = jsonl(tmp_path / "fresh.jsonl", [{"prompt": "new"}])
    stored = datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list([explicit(1), explicit(2)])})
    stored.save_to_disk(str(tmp_path / "arrow"))
    (tmp_path / "files").mkdir()
    jsonl(tmp_path / "files" / "train_prefs.jsonl", [explicit(1), explicit(2)])
    for name in ("arrow", "files"):
        data = Preferences(str(tmp_path / name), split="train_prefs", fresh=fresh, **FLAT).load(0)
        assert set(shown(data)) == {"r1", "r2"}


PLAIN = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            explicit(1),
            {"pairing": "all"},
            r"source.pairing is 'all', but .*rows.jsonl.* holds pairs \(read as 'pairs'\)",
        ),
        (PLAIN, {"pairing": "best_vs_rest"}, r"source.pairing is 'best_vs_rest', .*read as 'text'.* Remove it"),
        (
            explicit(1, fun_chosen=2, fun_rejected=1),
            {"score": "fu"},
            r"source.score is 'fu', .*none of the columns fu_chosen, chosen_fu.* Did you mean 'fun_chosen'",
        ),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, {"score": "s"}, r"read as 'dialogues'"),
    ],
)
def test_options_of_scored_data_are_refused_elsewhere(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [row], **options)


def test_held_out_pairs_need_not_be_scored(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [SCORED])
    jsonl(tmp_path / "test.jsonl", [explicit(1)])
    data = Preferences(str(tmp_path), pairing="best_vs_rest", validation=1, evaluation=0).load(0)
    assert (len(data.pairs), [pair.id for pair in data.validation]) == (3, ["r1"])


def test_limit_counts_training_pairs(tmp_path: Path) -> None:
    rows = [explicit(i) for i in range(50)]
    whole, part = load(tmp_path, rows, validation=4), load(tmp_path, rows, validation=4, limit=3)
    assert part.pairs == whole.pairs[:3]
    assert part.validation == whole.validation


@pytest.mark.parametrize(("limit", "prompts", "pairs"), [(3, 1, 3), (8, 2, 6), (2, 2, 2), (99, 10, 30)])
def test_limit_keeps_the_pairs_of_a_prompt_together(tmp_path: Path, limit: int, prompts: int, pairs: int) -> None:
    scored = [SCORED | {"id": f"s{i}", "prompt": [user(f"question {i}")]} for i in range(10)]
    jsonl(tmp_path / "train.jsonl", scored)
    jsonl(tmp_path / "test.jsonl", [explicit(1)])
    data = Preferences(str(tmp_path), pairing="best_vs_rest", validation=1, evaluation=0, limit=limit).load(0)
    assert (len({pair.prompt.id for pair in data.pairs}), len(data.pairs)) == (prompts, pairs)


def test_sft_prompts_carry_targets_and_fresh_ones_are_new(tmp_path: Path) -> None:
    fresh = jsonl(tmp_path / "fresh.jsonl", [{"prompt": "q1"}, {"prompt": "new"}, {"prompt": " "}, {"prompt": "new"}])
    data = load(tmp_path, [explicit(1), explicit(2)], fresh=fresh)
    assert {prompt.target for prompt in data.prompts["sft"]} == {"good1", "good2"}
    assert [prompt.messages for prompt in data.prompts["fresh"]] == [(Message("user", "new"),)]
    assert data.dropped == {"empty_text": 1, "fresh_known": 1}
    with pytest.raises(DataError, match=r"No prompt of '.*fresh.jsonl' is usable and new"):
        load(tmp_path, [explicit(1), explicit(2, prompt="new")], fresh=fresh)


# noise


def flipped(data: SourceData) -> set[str]:
    return {pair.id for pair in data.pairs if pair.flipped}


def test_flips_swap_answers_and_scores_and_are_nested(tmp_path: Path) -> None:
    rows = [explicit(i, score_chosen=2, score_rejected=1) for i in range(400)]
    clean, some, more = (load(tmp_path, rows, noise=noise, validation=20) for noise in (0, 0.2, 0.4))
    assert {pair.flipped for pair in clean.pairs} == {None}
    assert flipped(some) < flipped(more)
    assert len(flipped(some)) == pytest.approx(0.2 * len(some.pairs), abs=25)  # three standard deviations
    for before, after in zip(clean.pairs, some.pairs, strict=True):
        expected = (before.rejected, before.chosen, 1.0) if after.flipped else (before.chosen, before.rejected, 2.0)
        assert (after.chosen, after.rejected, after.chosen_score) == expected
    assert some.validation == clean.validation
    assert flipped(load(tmp_path, rows[::-1], noise=0.2)) >= flipped(some)


def test_a_flip_list_names_its_pairs(tmp_path: Path) -> None:
    flips = tmp_path / "flips.json"
    flips.write_text(json.dumps({"flip_ids": ["r1", "gone"]}), encoding="utf-8")
    data = load(tmp_path, [explicit(1), explicit(2)], noise=str(flips))
    assert shown(data) == {"r1": ("bad1", "good1"), "r2": ("good2", "bad2")}
    assert [pair.flipped for pair in sorted(data.pairs, key=lambda p: p.id)] == [True, False]
    assert data.dropped == {"flip_ids_unknown": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"flip_ids": ["zz"]}', r"None of the 1 flip_ids in .* occurs in .*: listed zz, the data have r1"),
        ('{"ids": []}', r"has no list `flip_ids`"),
        ("{", r"flip list .* cannot be read"),
    ],
)
def test_useless_flip_lists_are_data_errors(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "flips.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(tmp_path, [explicit(1)], noise=str(tmp_path / "flips.json"))


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pair"}, r"source.format has no value 'pair'. Did you mean 'pairs'\?"),
        ({"pairing": "best"}, r"source.pairing has no value 'best'"),
        ({"validation": -1}, r"source.validation must be at least 0, not -1"),
        ({"limit": 0}, r"source.limit must be at least 1, not 0"),
        ({"noise": 0.5}, r"source.noise must be a rate in \[0, 0.5\) or a file with flip_ids, not 0.5"),
        ({"noise": float("nan")}, r"source.noise must be a rate"),
        ({"noise": "gone.json"}, r"source.noise names the file 'gone.json', which does not exist"),
        ({"columns": {"promt": "q"}}, r"source.columns has no 'promt'. Did you mean 'prompt'\?"),
        ({"validation_split": "train"}, r"source.validation_split is 'train', the training split"),
    ],
)
def test_bad_options_are_refused_at_once(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preferences("x", **options)


def test_it_has_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no policy of its own. Set `policy.model`"):
        Preferences("x").policy(0, tmp_path)


def test_defaults_are_training_arguments(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), **Preferences.defaults["training"])
    assert arguments.get_warmup_steps(200) == 20
    json.dumps([Preferences.defaults, Preferences.component_defaults])


def test_the_fingerprint_follows_content_options_and_seed_but_not_the_place(tmp_path: Path) -> None:
    rows = [explicit(i) for i in range(10)]
    (tmp_path / "other").mkdir()
    base = load(tmp_path, rows).fingerprint
    assert load(tmp_path / "other", rows).fingerprint == base
    changed = [load(tmp_path, rows, seed=1), load(tmp_path, rows[1:]), load(tmp_path, rows, noise=0.1)]
    assert len({base, *(data.fingerprint for data in changed)}) == 4


def test_the_fingerprint_knows_which_file_a_row_came_from(tmp_path: Path) -> None:
    found = set()
    for held in (1, 2, 3):
        folder = tmp_path / str(held)
        folder.mkdir()
        rows = [explicit(i) for i in range(6)]
        jsonl(folder / "train.jsonl", rows[:-held])
        jsonl(folder / "test.jsonl", rows[-held:])
        found.add(Preferences(str(folder), **FLAT).load(0).fingerprint)
    assert len(found) == 3


# real data


@needs_data
@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("hh_harmless", {"validation_split": "auto"}, (2000, 100, 64)),
        ("hh_harmless", {"limit": 80}, (80, 20, 20)),
        ("alpaca_scored/scored", {"validation_split": "auto", "score": "score_logit"}, (440, 61, 39)),
        ("ultrafeedback_small", {"validation_split": "auto"}, (882, 100, 64)),
    ],
)
def test_real_sets_load(path: str, options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    data = Preferences(str(DATA / path), **options).load(0)
    assert (len(data.pairs), len(data.validation), len(data.evaluation)) == expected
    assert not {opening(p.prompt) for p in data.pairs} & {opening(p.prompt) for p in data.validation}


@needs_data
@pytest.mark.parametrize(("rate", "count"), [(20, 400), (40, 800)])
def test_real_flip_lists_apply(rate: int, count: int) -> None:
    flips = DATA / "noise" / f"hh_harmless_train_flip{rate}.json"
    data = Preferences(str(DATA / "hh_harmless"), validation_split="test", noise=str(flips)).load(0)
    assert len(flipped(data)) == count
