"""Every bad input is one screen of error text with exit code 2 and no traceback, or a counted drop.

A row is: what is wrong, how to run into it, and the words of the message: first what is named, then the remedy.
"""

import os
import re
import sys
from contextlib import ExitStack
from unittest import mock

import bad_inputs_kit as kit
import pytest

from sera_core.testing.tiny import save_tiny_model

LINES, CHARACTERS = 20, 2000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(tmp_path, tiny, capfd, monkeypatch):
    for name in ("SERA_CACHE", "SERA_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return kit.Place(tmp_path, tiny, capfd)


def preset(name, *arguments):
    return lambda place: place.preset(name, *arguments)


def dpo(*arguments):
    return preset("dpo", *arguments)


def config(text):
    return lambda place: place.config(text)


def run(*arguments):
    """A small run; an argument may be a function of the place."""
    return lambda place: place.run(*(a if isinstance(a, str) else a(place) for a in arguments))


def model(change, *arguments):
    return run(lambda place: place.model(change), *arguments)


def template(text):
    return run(lambda place: place.template(text))


def data(name, content):
    return run(lambda place: "source=" + place.file(name, content))


def rows(*arguments, **changes):
    """A small run whose first three rows have `changes`."""
    return run(lambda place: place.first(3, **changes), *arguments)


def noise(content):
    return run(lambda place: "source.noise=" + place.file("noise.json", content))


def given(context, what):
    """`what` inside a context, made when the test runs."""

    def inside(place):
        with ExitStack() as stack:
            stack.enter_context(context())
            return what(place)

    return inside


def circle(place):
    place.file("other.yaml", "extends: mine.yaml\n")
    return place.config("extends: other.yaml\n")


def folder(*files):
    """A small run on a folder that holds `files`."""

    def inside(place):
        (place.folder / "folder").mkdir()
        for name in files:
            place.file(f"folder/{name}", "{}\n")
        return place.run(f"source={place.folder / 'folder'}")

    return inside


def plugins(names, *arguments):
    return given(lambda: mock.patch.dict(os.environ, {"SERA_PLUGINS": names}), preset("sera-dpo", *arguments))


def missing_package(name, what):
    return given(lambda: mock.patch.dict(sys.modules, {name: None}), what)


def full(target, *arguments):
    return given(lambda: kit.full_disk(target), run(*arguments))


def out(path):
    return lambda place: place.run(out=path(place))


CONFIG = {
    "unknown preset": (preset("sera-dop"), r"'sera-dop'.*Did you mean 'sera-dpo'"),
    "missing file": (preset("./nowhere.yaml"), r"No configuration file './nowhere.yaml'.*Known: "),
    "not yaml": (config("a: [1\nb: 2\n"), r"mine.yaml is not valid YAML.*line 2, column 2"),
    "not text": (config(b"name: caf\xe9\n"), r"mine.yaml is not UTF-8.*Save it as UTF-8"),
    "not a mapping": (config("- 1\n"), r"mine.yaml must hold a mapping.*such as.*got list"),
    "empty file": (config(""), r"mine.yaml must hold a mapping.*such as.*got nothing"),
    "extends a circle": (circle, r"'extends' runs in a circle: .*mine.yaml -> .*other.yaml.*Remove one"),
    "extends a stranger": (config("extends: dop\n"), r"'dop'.*Did you mean 'dpo'"),
    "extends a list": (config("extends: [dpo]\n"), r"'extends' must be one preset's name.*got \['dpo'\]"),
    "unknown section": (dpo("trainig.learning_rate=1"), r"Unknown key 'trainig'.*Did you mean 'training'"),
    "unknown key": (dpo("loop.iteratons=2"), r"'iteratons' in loop. Did you mean 'iterations'"),
    "unknown lora key": (dpo("policy.lora={rank: 8}"), r"Unknown key 'rank' in policy.lora.*Known: .*\br\b"),
    "text for a number": (dpo("loop.iterations=many"), r"loop.iterations = 'many': must be a whole number"),
    "number for a section": (dpo("loop=3"), r"loop = 3: must be a mapping"),
    "number out of range": (dpo("seed=-1"), r"seed = -1: must be greater than or equal to 0"),
    "bad name": (dpo("name=a/b"), r"name = 'a/b': must be letters"),
    "unknown source": (dpo("source=wrld"), r"Unknown source 'wrld'. Did you mean 'world'"),
    "unknown scorer": (dpo("offline.scorer=lenght"), r"Unknown scorer 'lenght'. Did you mean 'length'"),
    "unknown selector": (dpo("offline.selector=topp"), r"Unknown selector 'topp'. Did you mean 'top'"),
    "unknown labeler": (dpo("generated.labeler=best_wors"), r"labeler 'best_wors'. Did you mean 'best_worst'"),
    "unknown generator": (dpo("generated.generator=vlm"), r"Unknown generator 'vlm'.*Known: transformers"),
    "unknown objective": (dpo("objective.loss=dop"), r"Unknown objective 'dop'. Did you mean 'dpo'"),
    "unknown transform": (dpo("objective.transforms=[x]"), r"Unknown transform 'x'.*Known: "),
    "unknown smoother": (dpo("objective.smoother=constnt"), r"smoother 'constnt'. Did you mean 'constant'"),
    "unknown reweighter": (dpo("objective.reweighter=unifrm"), r"reweighter 'unifrm'. Did you mean 'uniform'"),
    "unknown judge": (dpo("evaluation.judge=god"), r"Unknown judge 'god'. Did you mean 'gold'"),
    "unknown option": (dpo("objective.loss.bta=1"), r"objective 'dpo' has no option 'bta'. Did you mean 'beta'"),
    "option out of range": (dpo("objective.loss.beta=-1"), r"option beta must be .*> 0.*got -1.*Change beta"),
    "option of the wrong type": (dpo("objective.loss.beta=a"), r"objective 'dpo': beta = 'a': must be a number"),
    "override without a value": (dpo("seed"), r"Override 'seed' is not of the form key.path=value, such as"),
    "override not yaml": (dpo("seed=[1"), r"Override 'seed=\[1'.*not valid YAML.*Quote"),
    "override inside a number": (dpo("seed=1", "seed.x=2"), r"'x' is inside 1, which has no settings"),
    "schedule misplaced": (dpo("seed={by_iteration: [1]}"), r"by_iteration is not possible in 'seed'. It may stand in"),
    "schedule empty": (dpo("objective.loss.beta={by_iteration: []}"), r"by_iteration must.*hold a list with an entry"),
    "schedule too long": (
        dpo("objective.loss.beta={by_iteration: [1, 2]}"),
        r"objective.loss.beta: by_iteration has 2 entries for loop.iterations = 1.*Shorten",
    ),
    "scorer unused": (dpo("offline.scorer=length"), r"offline.scorer is set.*would be ignored. Remove it"),
    "reference unused": (preset("orpo", "loop.reference=initial"), r"loop.reference is set.*'orpo'.*Remove it"),
    "patience too long": (dpo("loop.stop={patience: 3}"), r"loop.stop.patience = 3 can never act.*Lower the patience"),
    "generation too late": (
        preset("iterative-dpo", "generated.from_iteration=9"),
        r"generated.from_iteration = 9 lies beyond loop.iterations = 3: nothing would ever be generated",
    ),
    "irm before training": (
        preset("sera-dpo", "offline.select_from=1"),
        r"trained iterates.*Set offline.select_from=2",
    ),
    "plugin not installed": (plugins(""), r"scorer 'irm'.*sera-plugin-irm: pip install sera-plugin-irm"),
    "plugin list wrong": (
        plugins("imr"),
        r"SERA_PLUGINS names plugin 'imr', which is not installed.*Did you mean 'irm'",
    ),
    "no policy": (dpo("source=./pairs.jsonl"), r"policy.model is 'auto'.*Set policy.model to"),
    "judge without gold": (run("evaluation.judge=gold"), r"evaluation.judge needs gold.*evaluation.judge=null"),
    "training typo": (
        dpo("training.learning_rat=1"),
        r"training.learning_rat is unknown. Did you mean 'learning_rate'",
    ),
    "training owned": (dpo("training.output_dir=x"), r"training.output_dir cannot be set: .*Remove it"),
    "learning rate zero": (dpo("training.learning_rate=0"), r"learning_rate is 0: nothing.*Give a positive number"),
    "learning rate text": (dpo("training.learning_rate=fast"), r"learning_rate must be a number, got 'fast'"),
    "negative batch": (
        dpo("training.per_device_train_batch_size=-1"),
        r"per_device_train_batch_size must be at least 1, got -1",
    ),
    "negative clipping": (dpo("training.max_grad_norm=-1"), r"max_grad_norm must be at least 0, got -1"),
    "adam beyond one": (dpo("training.adam_beta2=2"), r"adam_beta2 must be at least 0 and below 1, got 2"),
    "scheduler typo": (dpo("training.lr_scheduler_type=cosin"), r"lr_scheduler_type.*'cosin'. Did you mean 'cosine'"),
    "optimiser typo": (dpo("training.optim=adam_torch"), r"training.optim.*'adam_torch'. Did you mean 'adamw_torch'"),
    "tracker not installed": (
        given(
            lambda: mock.patch("sera_core.train.arguments.get_available_reporting_integrations", lambda: []),
            dpo("training.report_to=wandb"),
        ),
        r"report_to is wandb, whose package is not installed. Install it",
    ),
    "tracker typo": (dpo("training.report_to=wandbb"), r"report_to has no value 'wandbb'. Did you mean 'wandb'"),
    "two precisions": (
        dpo("training.fp16=true", "training.bf16=true"),
        r"training fields: At most one of fp16 and bf16.*Change",
    ),
    "bad dtype": (dpo("policy.dtype=float8"), r"policy.dtype = 'float8': must be 'float32', 'bfloat16' or 'float16'"),
    "bad attention": (
        run("policy.attn_implementation=flsh"),
        r"attn_implementation 'flsh' cannot.*Choose sdpa or eager",
    ),
    "lora without modules": (dpo("policy.lora={target_modules: []}"), r"target_modules = \[\]: must be .*all-linear"),
    "lora modules unknown": (run("policy.lora={target_modules: [qproj]}"), r"'qproj'.*Did you mean 'q_proj'"),
    "lora without peft": (
        missing_package("peft", dpo("policy.lora={r: 2}")),
        r"policy.lora needs the package peft: pip install 'sera-core\[peft\]'",
    ),
    "revision of a folder": (run("policy.revision=main"), r"revision 'main'.*not from the hub. Remove"),
}

DATA = {
    "missing file": (run("source=./nowhere.jsonl"), r"'./nowhere.jsonl' does not exist. Give an existing file"),
    "empty file": (data("d.jsonl", ""), r"d.jsonl holds no rows. Give a file"),
    "broken line": (data("d.jsonl", '{"a": 1}\n{"prompt": \n'), r"d.jsonl, line 2 is not JSON.*must be one object"),
    "line of another type": (data("d.jsonl", "[1]\n"), r"d.jsonl, line 1 is list, expected an object"),
    "not text": (data("d.jsonl", b'{"prompt": "\xe9"}'), r"d.jsonl cannot be read.*Save it as UTF-8"),
    "unknown ending": (data("d.txt", "x"), r"d.txt has no known ending. Expected one of .*jsonl"),
    "wrong columns": (
        run(lambda place: place.rows([{"question": "a", "good": "b", "bad": "c"}])),
        r"has the columns bad, good, question; expected prompt, chosen, rejected.*source.columns",
    ),
    "all rows bad": (
        run(lambda place: place.first(24, chosen=None)),
        r"No row of .* can be used .*missing_value 24. Check format and columns",
    ),
    "folder without the split": (folder("test.jsonl"), r"has no split 'train': expected a file such as train"),
    "folder empty": (folder(), r"has no split 'train': expected a file such as train"),
    "not parquet": (data("d.parquet", "hello"), r"d.parquet cannot be read as .parquet.*Check that it is complete"),
    "not gzip": (data("d.jsonl.gz", "hello"), r"d.jsonl.gz cannot be read.*gzip.*Check that it is complete"),
    "not arrow": (data("d.arrow", "hello"), r"d.arrow cannot be read as .arrow.*Check that it is complete"),
    "one id for two pairs": (rows(id="same"), r"id 'same' names two different pairs.*Make ids unique"),
    "unknown format": (run("source.format=pair"), r"format = 'pair': must be 'auto', 'pairs'"),
    "noise out of range": (run("source.noise=0.7"), r"source.noise must be a rate in \[0, 0.5\).*not 0.7"),
    "noise of the world": (dpo("source.noise=1.5"), r"source.noise must lie between 0 and 1, got 1.5"),
    "noise file missing": (run("source.noise=./nowhere.json"), r"'./nowhere.json', which does not exist. Give a file"),
    "noise file broken": (noise('{"flip'), r"flip list .*noise.json cannot be read.*Expected JSON with `flip_ids`"),
    "noise file without ids": (noise('{"ids": []}'), r"noise.json has no list `flip_ids`. Expected"),
    "noise file of other data": (noise('["zzz"]'), r"None of the 1 flip_ids.*listed zzz.*Give the list made for these"),
    "too few prompts": (
        run(lambda place: place.rows(kit.good_rows(3))),
        r"'preferences' leaves no evaluation prompt.*Give more data",
    ),
    "word outside a closed vocabulary": (
        run(lambda place: place.first(3, chosen="zebra"), lambda place: place.model(kit.closed_vocabulary)),
        r"tokenizer of .*model' cannot encode the text.*Choose a policy whose vocabulary",
    ),
}

MODEL = {
    "missing folder": (run("policy.model=./nowhere"), r"no model folder './nowhere'. Give a folder"),
    "typo in a built-in name": (run("policy.model=smollm2-135"), r"'smollm2-135'. Did you mean 'smollm2-135m'"),
    "hub name offline": (
        given(
            lambda: mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", new=True),
            run("policy.model=nobody/nothing"),
        ),
        r"Model 'nobody/nothing' is neither a local folder.*Check the name and the connection",
    ),
    "no weights": (model(kit.without("model.safetensors")), r"model holds no weights.*give a folder"),
    "corrupt weights": (
        model(kit.with_bytes("model.safetensors", lambda content: b"garbage" * 100)),
        r"Cannot load a causal language model from .*model: .*Check that the folder was written completely",
    ),
    "truncated weights": (
        model(kit.with_bytes("model.safetensors", lambda content: content[:-100])),
        r"Cannot load a causal language model from .*model: .*Check that the folder was written completely",
    ),
    "a layer missing": (
        model(kit.with_weights(lambda name, tensor: None if "layers.1" in name else tensor)),
        r"lacks usable weights for 9 parameters.*layers.1.*the folder is incomplete",
    ),
    "weights of another shape": (
        model(kit.with_json("config.json", hidden_size=32)),
        r"lacks usable weights for 21 parameters.*another architecture",
    ),
    "no configuration": (model(kit.without("config.json")), r"Cannot read config.json in .*Give a folder"),
    "configuration broken": (
        model(kit.with_bytes("config.json", lambda content: b"{")),
        r"config.json is not valid JSON.*write the model folder again",
    ),
    "unknown architecture": (
        model(kit.with_json("config.json", model_type="llamma")),
        r"Cannot read config.json.*`llamma`.*Give a folder",
    ),
    "not a causal language model": (
        model(kit.with_json("config.json", model_type="t5", architectures=["T5Model"])),
        r"is of type 't5', which is no causal language model. Give one",
    ),
    "no tokenizer": (
        model(kit.without("tokenizer.json", "tokenizer_config.json")),
        r"No tokenizer .* from .*model': its tokenizer files.*missing. Save the tokenizer beside",
    ),
    "tokenizer without an end": (
        model(kit.with_json("tokenizer_config.json", eos_token=None)),
        r"tokenizer of .*model' has no eos token.*Set one",
    ),
    "vocabulary smaller than the ids": (
        model(kit.small_vocabulary),
        r"Scoring with .*model .*token id \d+; the model knows ids 0 to 9. Tokenise with the tokenizer of this model",
    ),
    "weights not finite": (
        model(kit.with_weights(lambda name, tensor: tensor * float("nan"))),
        r"Scoring with .*model the responses to .*response 0 is nan.*check the checkpoint",
    ),
    "context too short": (
        model(kit.with_json("config.json", max_position_embeddings=32)),
        r"tokens.max_prompt_tokens = 32 .* make 48, but the model has 32 positions. Lower",
    ),
}

MESSAGES = "{% for message in messages %}{{ message['content'] }}"
TEMPLATE = {
    "missing": (
        model(kit.without("chat_template.jinja")),
        r"model' has no chat template. Set `tokens.chat_template`",
    ),
    "not closed": (template(MESSAGES), r"chat template of .*Unexpected end of template.*set `tokens.chat_template`"),
    "raises": (
        template("{{ raise_exception('only three turns') }}"),
        r"refused a conversation: only three turns. Role sequences given: user/assistant. Change the data",
    ),
    "reads what is not there": (
        template(MESSAGES.replace("}}", "['text'] + 1 }}") + "{% endfor %}"),
        r"refused a conversation: 'str object' has no attribute 'text'.*set `tokens.chat_template`",
    ),
    "not appending": (
        template("{{ messages|length }}" + MESSAGES + "{% endfor %}"),
        r"does not begin with the prompt alone.*Set `tokens.chat_template` to one that only appends",
    ),
    "two bos": (
        template(MESSAGES.replace("{{ ", "{{ ' <user> <bos> <bos> ' + ") + "{{ ' <eos>' }}{% endfor %}"),
        r"writes two BOS tokens in a row.*Set `tokens.chat_template`",
    ),
    "file missing": (run("tokens.chat_template=./x.jinja"), r"'./x.jinja', which is neither.*Give the template itself"),
    "file not text": (
        run(lambda place: "tokens.chat_template=" + place.file("t.jinja", b"\xe9")),
        r"tokens.chat_template: .*t.jinja cannot be read as UTF-8",
    ),
}

FREE = r"No space left on device.*(Free|choose)"
DISK = {
    "out is a file": (out(lambda place: place.file("f")), r"Cannot create the folder .*/f: .*Choose another --out"),
    "out below a file": (
        out(lambda place: place.file("f") + "/run"),
        r"Cannot create the folder .*/f/run: Not a directory. Choose another --out",
    ),
    "out refused": (out(lambda place: "/proc/nowhere"), r"Cannot create the folder /proc/nowhere: .*Choose another"),
    "cache is a file": (
        lambda place: place.sera("run", "dpo", "--out", str(place.out), "--cache", place.file("f")),
        r"Cannot create the folder .*/f: .*Choose another --out or --cache",
    ),
    "full: log-probs": (
        full("sera_core.models.store.Path.replace"),
        r"(Cannot store|could not be written to).*" + FREE,
    ),
    "full: tables": (full("sera_core.data.tables.os.fsync"), r"The table .*pairs.arrow cannot be written: " + FREE),
    "full: stages": (full("sera_core.workspace.shutil.copytree"), r"Stage data could not be written to .*" + FREE),
    "full: model": (
        full("transformers.LlamaForCausalLM.save_pretrained"),
        r"Cannot save the model to .*model.partial: .*" + FREE,
    ),
    "full: checkpoint": (
        full("transformers.Trainer._save_rng_state", "training.max_steps=11"),
        r"Training could not write to .*train.partial: " + FREE,
    ),
    "full: metrics": (
        given(lambda: kit.full_disk_for("metrics.jsonl"), run()),
        r"The run could not be written to .*out: " + FREE,
    ),
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
        lambda place: place.apart(*place.small_run("training.max_steps=11"), before=FILE_LIMIT),
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


DROPS = {
    "identical answers": (rows(chosen="sky", rejected="sky "), "identical_answers"),
    "empty answer": (rows(chosen="  "), "empty_text"),
    "no answer": (rows(rejected=None), "missing_value"),
    "answer not text": (rows(chosen=5), "not_messages"),
    "empty prompt": (rows(prompt=kit.user(" ")), "empty_text"),
    "special token in the text": (rows(chosen="sky <eos> sea"), "special_token_in_text"),
    "roles not alternating": (rows(prompt=kit.user("sky") + kit.user("sea")), "roles_not_alternating"),
    "row given twice": (run(lambda place: place.rows([*kit.good_rows(), *kit.good_rows(3)])), "duplicate_row"),
    "answer too long": (rows("tokens.truncation=drop", chosen="sky " * 30), "too_long"),
    "tied scores": (run(lambda place: place.scored(1.0)), "tied_scores"),
    "score not a number": (run(lambda place: place.scored(float("nan"))), "bad_score"),
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
    with mock.patch("sera_core.iterate.train", side_effect=KeyboardInterrupt):
        ended = place.run()
    assert ended.code == 130
    assert ended.err == "Interrupted. Run the same command again to continue.\n"
    assert place.run().code == 0


def test_a_bug_keeps_its_traceback(place):
    with mock.patch("sera_core.iterate.train", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        place.run()


def test_a_good_run_says_nothing_on_standard_error(place):
    ended = place.apart(*place.small_run())
    assert (ended.code, ended.err) == (0, "")
