"""SPA's refinement inside training, against the equations in plain numpy on the token logits of every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import train_cases as cases

from sera_core.train.measuring import Measurer
from sera_core.train.run import train
from sera_plugin_spa.official import OfficialCodeRefinement
from sera_plugin_spa.refinement import SelfRefinement

BETA, ALPHA, SHARE, WARMUP, WINDOW = 0.1, 0.3, 0.25, 0.2, 12


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def margin(pair, strength):
    """rho(chosen) - rho(rejected) of the policy whose logits are (1 + strength) own - strength reference (Eq. 11, 12)."""
    ratios = []
    for own, reference, ids in pair:
        mixed = log_softmax((1 + strength) * own - strength * reference)
        rows = np.arange(len(ids))
        ratios.append(mixed[rows, ids].sum() - log_softmax(reference)[rows, ids].sum())
    return ratios[0] - ratios[1]


def step_loss(pairs, z):
    """Mean of (1 - alpha z)(-log p) + alpha z (-log(1 - p)), p = sigmoid(beta h) (Eq. 10)."""
    p = sigmoid(BETA * np.array([margin(pair, 0.0) for pair in pairs]))
    return np.mean((1 - ALPHA * z) * -np.log(p) + ALPHA * z * -np.log(1 - p))


def paper(steps, strength):
    seen = []
    for done, pairs in enumerate(steps):
        confidence = sigmoid(BETA * np.array([margin(pair, strength) for pair in pairs]))
        seen = [*seen, *confidence][-WINDOW:]
        tau = np.percentile(seen, 100 * SHARE)
        z = (confidence < tau) & (done / len(steps) >= WARMUP)
        yield tau, z.mean(), step_loss(pairs, z)


def released(steps, strength):
    ring = []
    for done, pairs in enumerate(steps):
        flags = []
        for pair in pairs:  # micro-batches of one pair
            value = BETA * margin(pair, strength)
            ring = [*ring, value][-WINDOW:]
            at = int(WINDOW * SHARE)
            tau = sum(sorted(ring)[at : at + 2]) / 2 if len(ring) == WINDOW else 0.0
            flags.append(not value > tau and done >= WARMUP * len(steps))
        yield tau, np.mean(flags), step_loss(pairs, np.array(flags, dtype=float))


def recorded(folder, smoother, monkeypatch):
    """Per step: for each pair the logits at response positions of policy and reference and the ids; and the records."""
    reference, steps, records = cases.tiny_model(), [], []
    extras = Measurer.extras

    def positions(model, prompt, response):
        ids = torch.tensor([*prompt.tolist(), *response.tolist()])[None]
        return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().numpy()

    def spy(measurer, inputs, *, extrapolate):
        with torch.no_grad():
            steps.append(
                [
                    [
                        (positions(measurer.policy, g.prompt, ids), positions(reference, g.prompt, ids), ids)
                        for ids in g.responses
                    ]
                    for g in inputs.plain.groups
                ]
            )
        return extras(measurer, inputs, extrapolate=extrapolate)

    monkeypatch.setattr(Measurer, "extras", spy)
    request = cases.request(
        folder,
        algebra=cases.algebra(smoother=smoother),
        load_reference=cases.tiny_model,
        training={"num_train_epochs": 4, "optim": "sgd", "learning_rate": 1.0},
    )
    train(request, records.append)
    return steps, [record.metrics for record in records]


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize(("factory", "oracle"), [(SelfRefinement, paper), (OfficialCodeRefinement, released)])
def test_threshold_flags_and_loss_follow_the_equations(tmp_path, monkeypatch, factory, oracle, strength):
    options = {"alpha": ALPHA, "share": SHARE, "warmup": WARMUP, "window": WINDOW}
    steps, records = recorded(tmp_path, factory(extrapolation=strength, **options), monkeypatch)
    assert len(steps) == len(records) == 12
    flagged = 0.0
    for (tau, share, loss), record in zip(oracle(steps, strength), records, strict=True):
        assert record["threshold"] == pytest.approx(tau, abs=2e-5)
        assert record["flagged"] == pytest.approx(share)
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        flagged += share
    assert flagged > 0.5, "refinement must have acted"
