"""Detection of strength 0 is the policy's own confidence, bit for bit, through a smoother written apart from spa's."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from sera_core.hookspecs import hookimpl
from sera_core.host import build_manager
from sera_core.protocols import Needs

ALPHA, SHARE, WARMUP, STEPS = 0.25, 0.7, 0.2, 6


@dataclass(frozen=True)
class OwnDoubt:
    """Smooths what lies below a quantile of all confidences so far. It asks for no extrapolated policy."""

    seen: list = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def needs(self):
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls):
        return cls()

    def flip_weights(self, confidence, batch):
        self.seen.extend(confidence.tolist())
        threshold = torch.quantile(torch.tensor(self.seen, dtype=torch.float64), SHARE)
        flip = ALPHA * ((confidence.double() < threshold) & (batch.progress >= WARMUP)).float()
        return 1 - flip, flip

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen[:] = state["seen"]


class Plugin:
    @hookimpl
    def sera_register_smoothers(self):
        return {"own_doubt": OwnDoubt}


def objective(combination, smoother):
    loss, transform, reweighter = combination
    transforms = [] if transform is None else [{"name": transform, "prefix": "one {prompt}", "strength": 0.5}]
    return {"loss": loss, "transforms": transforms, "smoother": smoother, "reweighter": reweighter}


@pytest.mark.parametrize(
    "combination",
    [("ipo", None, "uniform"), ("ipo", "self_refinement", "uniform"), ("dpo", "self_refinement", "wasserstein")],
    ids=lambda names: "-".join(name or "plain" for name in names),
)
def test_detection_of_strength_zero_is_plain_confidence(place, combination):
    spa = {"name": "spa", "alpha": ALPHA, "share": SHARE, "warmup": WARMUP, "window": 13 * STEPS}
    manager = build_manager(extra=[("own", Plugin())])
    own = place.run(objective(combination, {"name": "own_doubt"}), STEPS, manager=manager)
    plain, far = (place.run(objective(combination, {**spa, "extrapolation": e}), STEPS) for e in (0.0, 4.0))
    assert [step["loss"] for step in plain.steps] == [step["loss"] for step in own.steps]
    assert torch.equal(plain.weights, own.weights)
    assert sum(step["flagged"] for step in plain.steps) > 1
    assert [step["threshold"] for step in plain.steps] != [step["threshold"] for step in far.steps]
    if combination[0] == "ipo":
        assert not torch.equal(far.weights, own.weights), "a policy extrapolated far away must doubt other labels"
