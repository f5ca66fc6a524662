"""Whole runs of a tiny policy: strength 0 leaves nothing behind, and the report's held-out figures by another way."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

import sera_core
from sera_core import configfile
from sera_core.errors import ConfigError
from sera_core.testing.tiny import WORDS

PREFIX, TEMPLATE = "she is blue", "not {prompt} green"
REFINED = f"objective.transforms.0={{name: self_refinement, strength: 0.5, prefix: {PREFIX}}}"


@pytest.fixture(scope="module")
def rows():
    """Thirty conversational pairs in the tiny policy's vocabulary, with scores of uneven gaps."""
    words = [word for word in WORDS if word not in ("what", "is")]
    return [
        {
            "id": f"row-{i}",
            "prompt": [{"role": "user", "content": f"what is {first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} is {second}"}],
            "rejected": [{"role": "assistant", "content": " ".join(["not", second, "red"][: 2 + i % 2])}],
            "score_chosen": 5.0,
            "score_rejected": 4.0 - (i * 7 % 10) / 4,
        }
        for i, (first, second) in enumerate(itertools.islice(itertools.permutations(words, 2), 30))
    ]


@pytest.fixture(scope="module")
def run(rows, tiny_model_dir, tmp_path_factory):
    """Run a preset with these settings changed, and give its folder; runs share a cache."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def start(preset, *overrides):
        tiny = (
            f"source={pairs}",
            "source.validation=5",
            "source.evaluation=1",
            f"policy.model={tiny_model_dir}",
            "tokens.max_prompt_tokens=32",
            "tokens.max_response_tokens=16",
            "training.per_device_train_batch_size=8",
            "training.gradient_accumulation_steps=1",
            "training.learning_rate=1.0e-2",
            "training.num_train_epochs=1",
            "evaluation.sampling.max_new_tokens=4",
        )
        config = configfile.override(configfile.read(configfile.locate(preset)), [*tiny, *overrides])
        out = folder / str(len(list(folder.iterdir())))
        return sera_core.run(config, out=out, cache=folder / "cache").out

    return start


@pytest.fixture(scope="module")
def refined(run):
    return run("sr-dpo", REFINED, f"evaluation.prefixes=['{TEMPLATE}']")


def weights_of(out):
    return (out / "model" / "model.safetensors").read_bytes()


def losses_of(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def report_of(out):
    return json.loads((out / "iter_1" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "hinge", "simpo", "orpo"])
def test_every_preset_trains_and_strength_0_is_its_base_bit_for_bit(run, loss):
    changed, base = run(f"sr-{loss}", REFINED), run("dpo", f"objective.loss={loss}")
    neutral = run(f"sr-{loss}", f"objective.transforms.0={{name: self_refinement, strength: 0, prefix: {PREFIX}}}")
    assert weights_of(neutral) == weights_of(base)
    assert losses_of(neutral) == losses_of(base)
    # Weights need not: below the kink the gradient of the hinge does not depend on the margin.
    assert losses_of(neutral) != losses_of(changed)


def held_out(out, rows):
    """The rows behind the held-out pairs, in their order."""
    from sera_core.data.tables import read_pairs

    by_id = {row["id"]: row for row in rows}
    return [by_id[pair.id] for pair in read_pairs(out / "data" / "validation.arrow").pairs]


def log_prob(folder, question, answer):
    """log p(answer | question) by a plain forward pass of the model in `folder`, end of turn included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    start = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(start, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*start, {"role": "assistant", "content": answer}], tokenize=False)
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False).input_ids])
    first = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[first - 1 :].sum().item()


def gap(folder, row, question):
    chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
    return log_prob(folder, question, chosen) - log_prob(folder, question, rejected)


def test_held_out_figures_under_every_prefix(refined, rows, tiny_model_dir):
    def margins(text):
        asked = [(row, text.replace("{prompt}", row["prompt"][0]["content"])) for row in held_out(refined, rows)]
        return np.array([gap(refined / "model", *each) - gap(tiny_model_dir, *each) for each in asked])

    report = report_of(refined)
    assert list(report["augmented"]) == [TEMPLATE, PREFIX]
    assert len(held_out(refined, rows)) >= 3
    for found, text in (
        (report, "{prompt}"),
        (report["augmented"][TEMPLATE], TEMPLATE),
        (report["augmented"][PREFIX], f"{PREFIX} {{prompt}}"),
    ):
        assert found["margin_mean"] == pytest.approx(margins(text).mean(), abs=1e-4)
        assert found["accuracy"] == np.mean(margins(text) > 0)
    assert report["augmented"][TEMPLATE] != report["augmented"][PREFIX]


def test_correlations_with_scores(refined, rows, tiny_model_dir):
    held = held_out(refined, rows)
    scores = [row["score_chosen"] - row["score_rejected"] for row in held]
    plain, initial = (
        np.array([gap(folder, row, row["prompt"][0]["content"]) for row in held])
        for folder in (refined / "model", tiny_model_dir)
    )
    report = report_of(refined)
    gaps = report["logp_gap_score_correlation"]
    for found, values in (
        (report["margin_score_correlation"], plain - initial),
        (gaps["policy"], plain),
        (gaps["initial"], initial),
    ):
        assert found["n"] == len(held)
        assert found["pearson"] == pytest.approx(stats.pearsonr(values, scores).statistic, abs=1e-3)
        assert found["spearman"] == pytest.approx(stats.spearmanr(values, scores).statistic)
        assert found["kendall"] == pytest.approx(stats.kendalltau(values, scores).statistic)


def test_the_summary_keeps_to_its_contract(refined):
    (iteration,) = json.loads((refined / "summary.json").read_text(encoding="utf-8"))["iterations"]
    assert not {"augmented", "tuning", "margin_score_correlation", "logp_gap_score_correlation"} & set(iteration)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.prefixes=['<eos> good']"], "spells the special token '<eos>'"),
        ([f"evaluation.prefixes=['{'good ' * 300}']"], "but the model has 256 positions"),
        (["evaluation.prefixes=[good]", "source.validation=0"], "leaves no held-out pairs"),
        (["evaluation.tuning_pairs=9"], "must leave at least one of the"),
    ],
    ids=["special token", "too long", "no pairs", "too many tuning pairs"],
)
def test_what_the_data_cannot_give_is_refused_before_training(run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run("dpo", "training.learning_rate=0.5", *overrides)
