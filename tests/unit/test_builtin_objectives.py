import math

import pytest
import torch

from sera_core.builtin.dpo import DPO
from sera_core.builtin.hinge import Hinge
from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO, log_odds
from sera_core.builtin.simpo import SimPO
from sera_core.errors import ConfigError, ModelError
from sera_core.protocols import Needs
from sera_core.records import PairLogps


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# Log-ratios: chosen 2 and -1, rejected -1 and 2, so h = 3 and -3. Mean token log-probs: chosen -1 and -2, rejected
# -2 and -1.
LOGPS = PairLogps(
    chosen_policy=tensor(-4.0, -6.0),
    rejected_policy=tensor(-6.0, -3.0),
    chosen_length=torch.tensor([4, 3]),
    rejected_length=torch.tensor([3, 3]),
    chosen_reference=tensor(-6.0, -5.0),
    rejected_reference=tensor(-5.0, -5.0),
)
WITHOUT_REFERENCE = PairLogps(LOGPS.chosen_policy, LOGPS.rejected_policy, LOGPS.chosen_length, LOGPS.rejected_length)


def close(actual, *expected):
    torch.testing.assert_close(actual, tensor(*expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [DPO(), IPO(), Hinge()])
def test_margin_is_the_log_ratio_difference_without_beta(objective):
    close(objective.margins(LOGPS), 3.0, -3.0)


def test_dpo_by_hand():
    close(DPO(beta=0.5).losses(tensor(0.0, 2.0, -2.0)), math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(1)))
    close(DPO(beta=0.5).confidence(tensor(2.0)), 1 / (1 + math.exp(-1)))


def test_ipo_by_hand():
    # 1 / (2 beta) = 2.5
    close(IPO(beta=0.2).losses(tensor(0.0, 2.5, 3.0, -3.0)), 6.25, 0.0, 0.25, 30.25)


def test_ipo_mean_divides_each_log_ratio_by_its_own_length():
    # 2/4 - (-1)/3 and -1/3 - 2/3
    close(IPO(reduction="mean").margins(LOGPS), 0.5 + 1 / 3, -1.0)


def test_hinge_by_hand():
    close(Hinge(beta=0.5).losses(tensor(0.0, 1.0, 2.0, 5.0, -2.0)), 1.0, 0.5, 0.0, 0.0, 2.0)


def test_simpo_by_hand():
    objective = SimPO(beta=2.0, gamma=1.0)
    close(objective.margins(WITHOUT_REFERENCE), 1.0, -1.0)
    close(objective.losses(tensor(1.0, 0.5)), math.log1p(math.exp(-1)), math.log(2))
    close(objective.confidence(tensor(0.0)), 0.5)


def test_orpo_by_hand():
    objective = ORPO(lam=0.25)
    odds_1, odds_2 = 1 / (math.e - 1), 1 / (math.e**2 - 1)
    close(objective.margins(WITHOUT_REFERENCE), math.log(odds_1 / odds_2), math.log(odds_2 / odds_1))
    close(objective.losses(tensor(0.0, 2.0)), 0.25 * math.log(2), 0.25 * math.log1p(math.exp(-2)))
    close(objective.anchor(WITHOUT_REFERENCE), 1.0, 2.0)
    close(objective.confidence(tensor(2.0)), 1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_is_finite_to_both_ends(dtype):
    logps = torch.tensor([0.0, -1e-30, -1e-12, -1e-6, -math.log(2), -1.0, -80.0, -1e4], dtype=dtype, requires_grad=True)
    odds = log_odds(logps)
    assert torch.isfinite(odds).all()
    (gradient,) = torch.autograd.grad(odds.sum(), logps)
    assert torch.isfinite(gradient).all()
    assert (odds.diff() <= 0).all()
    assert odds[4].item() == pytest.approx(0.0, abs=1e-6)
    assert odds[-1].item() == -1e4


def test_two_certain_responses_have_margin_zero():
    certain = PairLogps(tensor(0.0), tensor(0.0), torch.tensor([3]), torch.tensor([7]))
    close(ORPO().margins(certain), 0.0)


def test_needs():
    assert [o.needs for o in (DPO(), IPO(), Hinge())] == [Needs(reference=True)] * 3
    assert [o.needs for o in (SimPO(), ORPO())] == [Needs()] * 2


@pytest.mark.parametrize("objective", [DPO(), IPO(), Hinge()])
def test_missing_reference_is_named(objective):
    with pytest.raises(ModelError, match="chosen_reference"):
        objective.margins(WITHOUT_REFERENCE)


@pytest.mark.parametrize("factory", [DPO, IPO, Hinge, SimPO])
@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan"), float("inf"), True, "big"])
def test_bad_beta_is_named(factory, beta):
    with pytest.raises(ConfigError, match=rf"objective '{factory.__name__.lower()}': option beta must be"):
        factory(beta=beta)


def test_other_bad_options_are_named():
    with pytest.raises(ConfigError, match="reduction must be 'sum' or 'mean'; got 'average'"):
        IPO(reduction="average")
    with pytest.raises(ConfigError, match="option gamma must be a finite number >= 0"):
        SimPO(gamma=-1)
    with pytest.raises(ConfigError, match="option lam must be"):
        ORPO(lam=0)
