"""Every bad input is one screen of error text with exit code 2 and no traceback, or a counted drop.

A row is: what is wrong, how to run into it, and the words of the message: first what is named, then the remedy.
"""

import re
from unittest import mock

import bad_inputs_kit as kit
import pytest
from bad_inputs_models import MESSAGES, MODEL, TEMPLATE
from bad_inputs_place import Place, good_rows, user
from bad_inputs_settings import CONFIG

LINES, CHARACTERS = 20, 2000


@pytest.fixture
def place(tmp_path, tiny, capfd, monkeypatch):
    for name in ("SERA_CACHE", "SERA_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return Place(tmp_path, tiny.model, capfd)


DATA = {
    "missing file": (kit.run("source=./nowhere.jsonl"), r"'./nowhere.jsonl' does not exist. Give an existing file"),
    "empty file": (kit.data("d.jsonl", ""), r"d.jsonl holds no rows. Give a file"),
    "broken line": (kit.data("d.jsonl", '{"a": 1}\n{"prompt": \n'), r"d.jsonl, line 2 is not JSON.*must be one object"),
    "line of another type": (kit.data("d.jsonl", "[1]\n"), r"d.jsonl, line 1 is list, expected an object"),
    "not text": (kit.data("d.jsonl", b'{"prompt": "\xe9"}'), r"d.jsonl cannot be read.*Save it as UTF-8"),
    "unknown ending": (kit.data("d.txt", "x"), r"d.txt has no known ending. Expected one of .*jsonl"),
    "wrong columns": (
        kit.run(lambda place: place.rows([{"question": "a", "good": "b", "bad": "c"}])),
        r"has the columns bad, good, question; expected prompt, chosen, rejected.*source.columns",
    ),
    "all rows bad": (
        kit.run(lambda place: place.first(24, chosen=None)),
        r"No row of .* can be used .*missing_value 24. Check format and columns",
    ),
    "columns named wrong": (kit.run("source.columns={prompt: promt}"), r"'promt', which .* Did you mean 'prompt'"),
    "every pair unusable": (
        kit.run(lambda place: place.first(24, chosen="sky <eos> sea")),
        r"No pair is left.*special_token_in_text \d+.*look at the data",
    ),
    "revision of a file": (kit.run("source.revision=main"), r"source.revision is 'main'.*good.jsonl. Remove it"),
    "folder without the split": (kit.folder("test.jsonl"), r"has no split 'train': expected a file such as train"),
    "folder empty": (kit.folder(), r"has no split 'train': expected a file such as train"),
    "not parquet": (kit.data("d.parquet", "hello"), r"d.parquet cannot be read as .parquet.*Check that it is complete"),
    "not gzip": (kit.data("d.jsonl.gz", "hello"), r"d.jsonl.gz cannot be read.*gzip.*Check that it is complete"),
    "not arrow": (kit.data("d.arrow", "hello"), r"d.arrow cannot be read as .arrow.*Check that it is complete"),
    "one id for two pairs": (kit.rows(id="same"), r"id 'same' names two different pairs.*Make ids unique"),
    "unknown format": (kit.run("source.format=pair"), r"format = 'pair': must be 'auto', 'pairs'"),
    "noise out of range": (kit.run("source.noise=0.7"), r"source.noise must be a rate in \[0, 0.5\).*not 0.7"),
    "noise of the world": (kit.dpo("source.noise=1.5"), r"source.noise must lie between 0 and 1, got 1.5"),
    "noise file missing": (
        kit.run("source.noise=./nowhere.json"),
        r"'./nowhere.json', which does not exist. Give a file",
    ),
    "noise file broken": (kit.noise('{"flip'), r"flip list .*noise.json cannot be read.*Expected JSON with `flip_ids`"),
    "noise file without ids": (kit.noise('{"ids": []}'), r"noise.json has no list `flip_ids`. Expected"),
    "noise file of other data": (
        kit.noise('["zzz"]'),
        r"None of the 1 flip_ids.*listed zzz.*Give the list made for these",
    ),
    "too few prompts": (
        kit.run(lambda place: place.rows(good_rows(3))),
        r"'preferences' leaves no evaluation prompt.*Give more data",
    ),
    "word outside a closed vocabulary": (
        kit.run(lambda place: place.first(3, chosen="zebra"), lambda place: place.model(kit.closed_vocabulary)),
        r"tokenizer of .*model' cannot encode the text.*Choose a policy whose vocabulary",
    ),
}

FREE = r"No space left on device.*(Free|choose)"
DISK = {
    "out is a file": (kit.out(lambda place: place.file("f")), r"Cannot create the folder .*/f: .*Choose another --out"),
    "out below a file": (
        kit.out(lambda place: place.file("f") + "/run"),
        r"Cannot create the folder .*/f/run: Not a directory. Choose another --out",
    ),
    "out refused": (
        kit.out(lambda place: "/proc/nowhere"),
        r"Cannot create the folder /proc/nowhere: .*Choose another",
    ),
    "cache is a file": (
        lambda place: place.sera("run", "dpo", "--out", str(place.out), "--cache", place.file("f")),
        r"Cannot create the folder .*/f: .*Choose another --out or --cache",
    ),
    "full: log-probs": (kit.full_for(".*.logps.tmp"), r"Cannot store \d+ bytes of log-probabilities in .*" + FREE),
    "full: tables": (kit.full_for(".pairs.arrow.*"), r"The table .*pairs.arrow cannot be written: " + FREE),
    "full: stages": (kit.full("sera_core.workspace.shutil.copytree"), r"Stage data could not be written to .*" + FREE),
    "full: model": (
        kit.full("transformers.LlamaForCausalLM.save_pretrained"),
        r"Cannot save the model to .*model.partial: .*" + FREE,
    ),
    "full: checkpoint": (
        kit.full("transformers.Trainer._save_rng_state", "training.max_steps=11", "training.num_train_epochs=null"),
        r"Training could not write to .*train.partial: " + FREE,
    ),
    "full: metrics": (kit.full_for("metrics.jsonl*"), r"The run could not be written to .*out: " + FREE),
    "second process": (lambda place: place.held(), r"Another process is running in .*out. Wait for it"),
    "compare what is not there": (
        lambda place: place.sera("compare", str(place.folder)),
        r"holds no finished run: .*summary.json cannot be read.*Run the same `sera run` command again",
    ),
}

FILE_LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))"
APART = {
    "data from the hub, offline": (
        lambda place: place.apart(*place.small_run("source=nobody/nothing"), HF_HUB_OFFLINE="1"),
        r"hub data set 'nobody/nothing'.*cannot be loaded.*download the files and give their path",
    ),
    "broken template": (
        lambda place: place.apart(*place.small_run(place.template(MESSAGES))),
        TEMPLATE["not closed"][1],
    ),
    "disk full during a checkpoint": (
        lambda place: place.apart(
            *place.small_run("training.max_steps=11", "training.num_train_epochs=null"), before=FILE_LIMIT
        ),
        r"checkpoint could not be written to .*train.partial: .*Free space there and run again",
    ),
}

ROOMS = {"config": CONFIG, "data": DATA, "model": MODEL, "template": TEMPLATE, "disk": DISK, "apart": APART}
ERRORS = {f"{room}: {name}": row for room, table in ROOMS.items() for name, row in table.items()}


@pytest.mark.parametrize(("what", "words"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_one_clear_message(place, what, words):
    ended = what(place)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.startswith("Error: ")
    assert len(ended.err.splitlines()) <= LINES
    assert len(ended.err) <= CHARACTERS
    assert re.search(words, ended.err, re.DOTALL), ended.err


def test_errors_leave_standard_output_to_programs(place):
    ended = place.run("objective.loss=dop", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert "Unknown objective 'dop'" in ended.err


DROPS = {
    "identical answers": (kit.rows(chosen="sky", rejected="sky "), "identical_answers"),
    "empty answer": (kit.rows(chosen="  "), "empty_text"),
    "no answer": (kit.rows(rejected=None), "missing_value"),
    "answer not text": (kit.rows(chosen=5), "not_messages"),
    "empty prompt": (kit.rows(prompt=user(" ")), "empty_text"),
    "special token in the text": (kit.rows(chosen="sky <eos> sea"), "special_token_in_text"),
    "roles not alternating": (kit.rows(prompt=user("sky") + user("sea")), "roles_not_alternating"),
    "row given twice": (kit.run(lambda place: place.rows([*good_rows(), *good_rows(3)])), "duplicate_row"),
    "answer too long": (kit.rows("tokens.truncation=drop", chosen="sky " * 30), "too_long"),
    "tied scores": (kit.run(lambda place: place.scored(1.0)), "tied_scores"),
    "score not a number": (kit.run(lambda place: place.scored(float("nan"))), "bad_score"),
}


@pytest.mark.parametrize(("what", "reason"), DROPS.values(), ids=DROPS)
def test_bad_rows_are_dropped_and_counted(place, what, reason):
    ended = what(place)
    assert ended.code == 0, ended.err
    count = place.read("manifest.json")["data"]["dropped"][reason]
    assert count == (1 if reason.endswith(("scores", "score")) else 3)
    assert place.read("summary.json")["iterations"][0]["dropped"] == {f"offline.{reason}": count}
    assert f"offline.{reason} {count}" in ended.out


REPAIRS = {
    "damaged stage in the cache": lambda place: (
        kit.remove(place.out),
        kit.damaged(place.cache, "stages/train-*/model/model.safetensors"),
    ),
    "damaged stage in the run": lambda place: kit.damaged(place.out, "iter_1/train/model/model.safetensors"),
    "stage deleted": lambda place: kit.remove(place.out / "iter_1" / "train"),
    "stage and cache deleted": lambda place: kit.remove(place.out / "iter_1" / "train", place.cache / "stages"),
    "damaged log-probs": lambda place: (
        kit.remove(place.out, place.cache / "stages"),
        kit.damaged(place.cache, "logps/*/*.logps"),
    ),
}


@pytest.mark.parametrize("change", REPAIRS.values(), ids=REPAIRS)
def test_damaged_results_are_computed_again(place, change, caplog):
    ended = place.after(lambda: change(place))
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    shards = list(place.cache.glob("logps/*/*.corrupt"))
    assert bool(shards) == (change is REPAIRS["damaged log-probs"])
    assert len([r for r in caplog.records if "moved aside, its entries are recomputed" in r.message]) == len(shards)


def test_ctrl_c_ends_with_130_and_a_hint(place):
    with mock.patch("sera_core.training.train", side_effect=KeyboardInterrupt):
        ended = place.run()
    assert ended.code == 130
    assert ended.err == "Interrupted. Run the same command again to continue.\n"
    assert place.run().code == 0


def test_a_bug_keeps_its_traceback(place):
    with mock.patch("sera_core.training.train", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        place.run()


def test_a_good_run_says_nothing_on_standard_error(place):
    ended = place.apart(*place.small_run())
    assert (ended.code, ended.err) == (0, "")
