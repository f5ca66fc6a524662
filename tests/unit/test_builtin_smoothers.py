import pytest
import torch

from sera_core.builtin.dpo import DPO
from sera_core.builtin.hinge import Hinge
from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.simpo import SimPO
from sera_core.builtin.smoothers import Constant, NoSmoothing, Unbiased
from sera_core.builtin.uniform import Uniform
from sera_core.errors import ConfigError
from sera_core.testing.samples import batch_stats, pair_batch

MARGINS = torch.tensor([-30.0, -1.5, 0.0, 0.3, 7.0, 1e4], dtype=torch.float32)


def smoothed(smoother, objective, margins=MARGINS):
    keep, flip = smoother.flip_weights(objective.confidence(margins), pair_batch(smoother.needs))
    return keep * objective.losses(margins) + flip * objective.losses(-margins)


def test_weights_by_hand():
    confidence = torch.full((2,), 0.9, dtype=torch.float64)
    for smoother, keep, flip in [(NoSmoothing(), 1, 0), (Constant(0.2), 0.8, 0.2), (Unbiased(0.2), 4 / 3, -1 / 3)]:
        weights = smoother.flip_weights(confidence, pair_batch(smoother.needs))
        torch.testing.assert_close(weights[0], torch.full((2,), keep, dtype=torch.float64))
        torch.testing.assert_close(weights[1], torch.full((2,), flip, dtype=torch.float64))


@pytest.mark.parametrize("objective", [DPO(), IPO(), Hinge(), SimPO(), ORPO()])
@pytest.mark.parametrize("smoother", [NoSmoothing(), Constant(0.0), Unbiased(0.0)])
def test_rate_0_is_exactly_the_base_loss(smoother, objective):
    margins = MARGINS.clone().requires_grad_()
    plain, changed = objective.losses(margins), smoothed(smoother, objective, margins)
    assert torch.equal(changed, plain)
    gradients = [torch.autograd.grad(losses.sum(), margins)[0] for losses in (changed, plain)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("objective", [DPO(), IPO(beta=1.0), Hinge(), SimPO(), ORPO()])
def test_unbiased_loss_is_the_clean_loss_in_expectation(objective):
    margins, rate = MARGINS[:5].double(), 0.3
    expected = (1 - rate) * smoothed(Unbiased(rate), objective, margins) + rate * smoothed(
        Unbiased(rate), objective, -margins
    )
    torch.testing.assert_close(expected, objective.losses(margins))


@pytest.mark.parametrize(("factory", "name"), [(Constant, "constant"), (Unbiased, "unbiased")])
@pytest.mark.parametrize("epsilon", [-0.01, 0.5, 0.7, float("nan"), True, None])
def test_bad_rate_is_named(factory, name, epsilon):
    with pytest.raises(ConfigError, match=rf"smoother '{name}': option epsilon must be a rate of wrong labels"):
        factory(epsilon=epsilon)


def test_uniform_weighs_every_pair_1():
    assert Uniform().weights(batch_stats()).tolist() == [1.0] * 6
