"""Asking a judge's model: the numbers are the model's own, stored, drawn by seed, and never cut."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from judge_models import ASK, opened, save_model, save_reward, settings, tokenizer_of, write_scored
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sera_core import asker as asking
from sera_core.asker import ModelAsker
from sera_core.builtin.asking import question
from sera_core.builtin.llm_judge import LlmJudge
from sera_core.errors import DataError, ModelError
from sera_core.judging import account, bound, judge_model, model_key
from sera_core.models.answers import AnswerStore, stored
from sera_core.records import Message, Prompt, Response, TextPrompt
from sera_core.world.gold import Gold

ASKED = [question("what is {prompt}", {"prompt": text}) for text in ("sky", "sea and sun", "dog", "cat or tree")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "policy")
    save_model(folder / "judge", seed=5)
    save_model(folder / "plain", seed=5, tokenizer=tokenizer_of(chat=False))
    save_reward(folder / "reward")
    write_scored(folder / "pairs.jsonl")
    return folder


@pytest.fixture
def run(models, tmp_path):
    with opened(tmp_path, settings("dpo", models / "pairs.jsonl", models / "policy")) as context:
        yield context


@pytest.fixture
def ask(run, models):
    def make(name="judge", **options):
        model = judge_model(run, LlmJudge(model=str(models / name)), run.initial)
        return ModelAsker(run, model, **{"iteration": 1, "purpose": "judge", **options})

    return make


@pytest.fixture
def loads(monkeypatch):
    """Counts which models are loaded: for log-probs, for rewards, and by the generator."""
    counted = []

    def counting(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kw: (counted.append(name), real(*args, **kw))[1])

    counting(asking, "load_policy")
    counting(asking, "load_reward_model")
    from sera_core.models.generate import hf

    counting(hf, "load_policy")
    return counted


def by_hand(folder, text, answers):
    """log p(answer | rendered question) by one plain forward pass."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logps = model(ids).logits[0, -1].log_softmax(-1)
    return [float(logps[tokenizer.convert_tokens_to_ids(answer)]) for answer in answers]


def test_log_probs_are_the_models_own_at_the_end_of_its_rendered_question(ask, models):
    found = ask().answer_logps(ASKED, ("A", "B"))
    assert found.shape == (4, 2)
    for row, asked in zip(found, ASKED, strict=True):
        text = f"<bos> <user> {asked.messages[0].content} <assistant>"
        assert row == pytest.approx(by_hand(models / "judge", text, "AB"), abs=1e-5)


def test_a_model_without_a_template_reads_plain_text(ask, models):
    found = ask("plain").answer_logps(ASKED[:1], ("A", "B"))
    assert found[0] == pytest.approx(by_hand(models / "plain", "what is sky", "AB"), abs=1e-5)


def test_what_a_judges_log_probs_cost_is_counted(ask, run):
    ask().answer_logps(ASKED, ("A", "B"))
    meter = run.workspace.meter
    assert (meter.scored, meter.stored) == (8, 0)
    assert meter.useful_tokens > 0
    meter.begin()
    ask().answer_logps(ASKED, ("A", "B"))
    assert (meter.scored, meter.stored) == (8, 8)


def test_asking_again_loads_nothing(ask, loads):
    first = ask().answer_logps(ASKED, ("A", "B"))
    assert loads == ["load_policy"]
    assert np.array_equal(ask().answer_logps(ASKED[::-1], ("A", "B")), first[::-1])
    assert loads == ["load_policy"]
    assert ask().answer_logps([], ("A", "B")).shape == (0, 2)


@pytest.mark.parametrize("labels", [("yes", "no"), ("A", "no"), ("A", " A")])
def test_answers_the_model_cannot_tell_apart_are_refused(ask, loads, labels):
    with pytest.raises(ModelError, match="cannot tell the answers"):
        ask().answer_logps(ASKED, labels)
    assert loads == []


def test_a_question_beyond_the_context_is_refused_and_not_cut(ask, loads):
    long = question("{prompt}", {"prompt": "sky " * 300})
    for call in (
        lambda: ask().answer_logps([*ASKED, long], ("A", "B")),
        lambda: ask().replies([*ASKED, long], samples=1, temperature=1.0, max_new_tokens=4),
    ):
        with pytest.raises(
            ModelError, match=r"has 30\d tokens, but the judge's model .*judge reads 256\. Nothing is cut"
        ):
            call()
    fits = question("{prompt}", {"prompt": "sky " * 200})
    with pytest.raises(ModelError, match="has 263 tokens"):
        ask().replies([fits], samples=1, temperature=1.0, max_new_tokens=60)
    assert loads == []


def test_special_tokens_in_a_text_are_not_asked_about(ask):
    spelt = question("{prompt}", {"prompt": "sky <eos> sea"})
    found = ask().answer_logps([spelt, ASKED[0]], ("A", "B"))
    assert np.isnan(found[0]).all()
    assert np.array_equal(found[1], ask().answer_logps(ASKED[:1], ("A", "B"))[0])
    replies = ask().replies([spelt, ASKED[0]], samples=2, temperature=1.0, max_new_tokens=4)
    assert replies[0] == ("", "")
    assert all(replies[1])


def say(asker, asked=ASKED, **options):
    return asker.replies(asked, **{"samples": 3, "temperature": 1.0, "max_new_tokens": 6, **options})


def test_replies_depend_on_seed_purpose_and_question_alone(ask, loads):
    first = say(ask())
    assert [len(group) for group in first] == [3] * 4
    assert len({reply for group in first for reply in group}) > 6
    assert loads == ["load_policy"]
    assert say(ask(), ASKED[::-1]) == first[::-1]
    assert say(ask(), [ASKED[2], ASKED[2]]) == (first[2], first[2])
    assert loads == ["load_policy"]
    for changed in (
        say(ask(iteration=2)),
        say(ask(purpose="other")),
        say(ask(), temperature=2.0),
        say(ask("plain")),
    ):
        assert changed != first
    assert len(loads) == 5


def test_replies_in_pieces_survive_a_kill(ask, monkeypatch, loads):
    whole = say(ask(purpose="whole"))
    monkeypatch.setattr(asking, "_QUESTIONS", 1)
    # What a question draws does not depend on what was asked with it.
    alone = ask(purpose="piecewise")
    real, calls = asking.Transformers.generate, []

    def dies_in_the_third(self, *args, **kw):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kw)

    monkeypatch.setattr(asking.Transformers, "generate", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        say(alone)
    said = say(ask(purpose="piecewise"))
    assert len(calls) == 5
    assert said != whole
    monkeypatch.setattr(asking, "_QUESTIONS", 256)
    assert say(ask(purpose="piecewise")) == said
    assert len(calls) == 5


def answers_to(prompt, *texts):
    owner = Prompt("p", np.array([1], dtype=np.int32), TextPrompt("p", (Message("user", prompt),)))
    return [Response(owner, np.array([3], dtype=np.int32), text, "stop", "policy:1") for text in texts]


def test_rewards_are_the_models_own_output(ask, models, loads):
    responses = answers_to("what is sky", "blue", "red and green and blue", "")
    found = ask("reward").rewards(responses)
    model = AutoModelForSequenceClassification.from_pretrained(models / "reward")
    tokenizer = AutoTokenizer.from_pretrained(models / "reward")
    for value, each in zip(found, responses, strict=True):
        text = f"<bos> <user> what is sky <assistant> {each.text} <eos>"
        with torch.no_grad():
            logits = model(tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]).logits
        assert value == pytest.approx(float(logits[0, 0]), abs=1e-5)
    assert len(set(found.tolist())) == 3
    assert np.array_equal(ask("reward").rewards(responses[::-1]), found[::-1])
    assert loads == ["load_reward_model"]


def test_rewards_of_what_cannot_be_read(ask):
    found = ask("reward").rewards(answers_to("what is sky", "blue <pad> red", "blue"))
    assert math.isnan(found[0])
    assert math.isfinite(found[1])
    with pytest.raises(ModelError, match=r"The response to prompt 'p' has 30\d tokens, but .* reads 256"):
        ask("reward").rewards(answers_to("what is sky", "blue " * 300))


def test_a_language_model_is_no_reward_model(ask):
    with pytest.raises(ModelError, match="has 2 outputs; a reward model has one"):
        ask().rewards(answers_to("what", "blue"))


def test_a_dry_asker_checks_everything_and_runs_nothing(ask, loads):
    dry = {"dry": True}
    assert not ask(**dry).answer_logps(ASKED, ("A", "B")).any()
    assert say(ask(**dry)) == (("",) * 3,) * 4
    assert not ask("reward", **dry).rewards(answers_to("what", "blue")).any()
    assert loads == []
    assert len(set(ask().answer_logps(ASKED, ("A", "B")).flatten().tolist())) == 8


def test_which_model_is_asked(run, models):
    newest = dataclasses.replace(run.initial, iteration=3, hash="f" * 32)
    assert judge_model(run, None, newest) is None
    assert judge_model(run, Gold(), newest) is None
    initial, policy = (judge_model(run, LlmJudge(model=name), newest) for name in ("initial", "policy"))
    assert (initial.hash, policy.hash, initial.own) == (run.initial.hash, "f" * 32, True)
    other = judge_model(run, LlmJudge(model=str(models / "judge")), newest)
    assert (other.own, other.template) == (False, run.template)
    assert len({other.hash, initial.hash, policy.hash}) == 3
    assert model_key(run, None) is None
    assert model_key(run, other) == [other.hash, other.template, "float32", "default"]
    with pytest.raises(ModelError, match="There is no model folder"):
        judge_model(run, LlmJudge(model="./nowhere"), newest)


def test_the_key_goes_by_weights_not_by_place(run, models, tmp_path):
    shutil.copytree(models / "judge", tmp_path / "copy")
    keys = [
        model_key(run, judge_model(run, LlmJudge(model=str(m)), run.initial))
        for m in (models / "judge", tmp_path / "copy")
    ]
    assert keys[0] == keys[1]


def test_a_judge_is_bound_to_its_model(run, models):
    gold = Gold()
    assert bound(run, gold, None, iteration=1, purpose="judge") is gold
    judge = LlmJudge(model=str(models / "judge"), template=ASK)
    found = bound(run, judge, judge_model(run, judge, run.initial), iteration=1, purpose="judge")
    first, second = answers_to("what is sky", "blue", "red"), answers_to("what is sky", "green", "red")
    verdicts = found.compare(first, second)
    assert verdicts[0] in ("win", "loss")
    assert verdicts[1] == "tie"
    assert account(found)["comparisons"] == 1.0
    assert account(gold) == {}


def test_figures_that_are_not_finite_are_refused():
    class Broken(Gold):
        def account(self):
            return {"share": math.nan}

    with pytest.raises(ModelError, match=r"Broken.account\(\) gave share = nan"):
        account(Broken())


REFUSED = {
    "no such model": (
        "llm_judge, model: ./nowhere",
        ModelError,
        r"generated.judge: There is no model folder './nowhere'",
    ),
    "labels": (
        "llm_judge, labels: [good, bad]",
        ModelError,
        r"generated.judge: .* cannot tell the answers 'good' and 'bad'",
    ),
    "kind": ("reward_model, model: {policy}", ModelError, r"generated.judge: .* has 2 outputs"),
    "context": (
        "llm_grades, max_new_tokens: 250",
        ModelError,
        r"generated.judge: A judge's question with its answer has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_judge_cannot_do_shows_before_anything_is_generated(case, models, tmp_path, loads):
    judge, kind, message = REFUSED[case]
    judge = judge.replace("{policy}", str(models / "policy"))
    config = settings("oaif", models / "pairs.jsonl", models / "policy", f"generated.judge={{name: {judge}}}")
    config = {**config, "generated": {**config["generated"], "max_new_tokens": 6}}
    with pytest.raises(kind, match=message), opened(tmp_path, config):
        raise AssertionError("the run was opened")
    assert loads == []


def test_an_evaluation_judge_is_checked_too(models, tmp_path):
    config = settings(
        "dpo", models / "pairs.jsonl", models / "policy", "evaluation.judge={name: llm_judge, labels: [x, y]}"
    )
    with pytest.raises(ModelError, match=r"evaluation.judge: .* cannot tell"), opened(tmp_path, config):
        pass


def test_a_closed_vocabulary_says_so(models, tmp_path, run):
    save_model(tmp_path / "closed", tokenizer=tokenizer_of(closed=True))
    judge = LlmJudge(model=str(tmp_path / "closed"))
    dry = bound(run, judge, judge_model(run, judge, run.initial), iteration=0, purpose="x", dry=True)
    with pytest.raises(DataError, match="cannot encode the text"):
        dry.compare(answers_to("what", "blue"), answers_to("what", "red"))


def test_stored_answers_outlive_damage(tmp_path, caplog):
    store, calls = AnswerStore(tmp_path), []

    def compute(keys):
        calls.append(list(keys))
        return {key: [key.upper(), "ü"] for key in keys}

    found = stored(store, "x", ["a", "b", "a", "c"], compute, chunk=2)
    assert calls == [["a", "b"], ["c"]]
    assert found == {key: [key.upper(), "ü"] for key in "abc"}
    assert stored(AnswerStore(tmp_path), "x", ["c", "a"], compute, chunk=2) == {key: found[key] for key in "ca"}
    assert len(calls) == 2
    for shard in (tmp_path / "x").glob("*.json"):
        shard.write_text(shard.read_text(encoding="utf-8").replace("A", "Z"), encoding="utf-8")
    stored(AnswerStore(tmp_path), "x", ["a", "c"], compute, chunk=2)
    assert calls[2:] == [["a"]]
    assert len(list((tmp_path / "x").glob("*.corrupt"))) == 1
    assert "are damaged" in caplog.text
    assert stored(store, "y", ["a"], compute, chunk=2) == {"a": ["A", "ü"]}


def test_progress_of_stored_answers(tmp_path):
    told = []
    stored(
        AnswerStore(tmp_path), "x", ["a", "b", "c"], lambda keys: dict.fromkeys(keys, 0), 2, lambda *at: told.append(at)
    )
    assert told == [(0, 3), (2, 3), (3, 3)]
