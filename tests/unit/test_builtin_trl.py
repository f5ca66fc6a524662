"""Our losses against TRL's own code on random log-probs, and each difference of convention with its reason."""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from sera_core.builtin.dpo import DPO
from sera_core.builtin.hinge import Hinge
from sera_core.builtin.ipo import IPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.simpo import SimPO
from sera_core.builtin.smoothers import Constant, Unbiased
from sera_core.records import PairLogps
from sera_core.testing.samples import pair_batch

pytest.importorskip("trl", reason="the comparison needs TRL")

PAIRS, LONGEST, PROMPT = 16, 7, 3


def trainer(module, name):
    with warnings.catch_warnings():
        # TRL announces that its experimental trainers may change.
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(module), name)


class Tokens:
    """Random token log-probs of both responses of each pair, under policy and reference, as TRL's trainer sees them."""

    def __init__(self, seed):
        rng = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, LONGEST + 1, (2 * PAIRS,), generator=rng)
        answers = torch.arange(LONGEST)[None] < self.lengths[:, None]
        self.mask = torch.cat([torch.zeros(2 * PAIRS, PROMPT, dtype=torch.bool), answers], dim=1).long()
        shape = (2, 2 * PAIRS, PROMPT + LONGEST - 1)
        self.policy, self.reference = -3 * torch.rand(shape, generator=rng, dtype=torch.float64) * self.mask[:, 1:]

    def logps(self):
        """Chosen responses come first in TRL's batches, rejected ones after them."""
        policy, reference = self.policy.sum(1), self.reference.sum(1)
        return PairLogps(
            policy[:PAIRS],
            policy[PAIRS:],
            self.lengths[:PAIRS],
            self.lengths[PAIRS:],
            reference[:PAIRS],
            reference[PAIRS:],
        )

    def model(self, logps):
        none = torch.zeros_like(logps)
        outputs = SimpleNamespace(log_probs=logps, entropy=none, mean_logits=none, is_top1=none.bool())
        return lambda **_: outputs


class Here:
    """What TRL asks of accelerate, in one process."""

    device = torch.device("cpu")

    @staticmethod
    def gather(values):
        return values

    gather_for_metrics = gather


def trl_dpo_loss(tokens, loss_type, beta, label_smoothing=0.0):
    cls = trainer("trl.trainer.dpo_trainer", "DPOTrainer")
    metrics = defaultdict(lambda: defaultdict(list))
    policy, reference = tokens.model(tokens.policy), tokens.model(tokens.reference)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        ref_model=reference,
        accelerator=Here,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
    )
    chosen, rejected = tokens.reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(tokens.mask),
        "attention_mask": torch.ones_like(tokens.mask),
        "completion_mask": tokens.mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return cls._compute_loss(stub, policy, inputs, return_outputs=False)


def ours(objective, logps, smoother=None):
    margins = objective.margins(logps)
    if smoother is None:
        return objective.losses(margins)
    keep, flip = smoother.flip_weights(objective.confidence(margins), pair_batch(smoother.needs))
    return keep * objective.losses(margins) + flip * objective.losses(-margins)


def trl_cpo_losses(logps, loss_type, beta, gamma=0.0, label_smoothing=0.0, average=True):
    cls = trainer("trl.experimental.cpo.cpo_trainer", "CPOTrainer")
    stub = SimpleNamespace(
        alpha=0.0, accelerator=Here, loss_type=loss_type, simpo_gamma=gamma, beta=beta, label_smoothing=label_smoothing
    )
    chosen = logps.chosen_policy / (logps.chosen_length if average else 1)
    rejected = logps.rejected_policy / (logps.rejected_length if average else 1)
    return cls.cpo_loss(stub, chosen, rejected)[0]


def trl_orpo_losses(logps, beta):
    cls = trainer("trl.experimental.orpo.orpo_trainer", "ORPOTrainer")
    stub = SimpleNamespace(beta=beta, accelerator=Here)
    means = logps.chosen_policy / logps.chosen_length, logps.rejected_policy / logps.rejected_length
    return cls.odds_ratio_loss(stub, *means)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_dpo_equals_trl(seed, beta):
    tokens = Tokens(seed)
    torch.testing.assert_close(ours(DPO(beta), tokens.logps()).mean(), trl_dpo_loss(tokens, "sigmoid", beta))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_hinge_equals_trl(seed, beta):
    tokens = Tokens(seed)
    torch.testing.assert_close(ours(Hinge(beta), tokens.logps()).mean(), trl_dpo_loss(tokens, "hinge", beta))


def test_hinge_margin_is_1_over_beta_nats():
    # Both conventions put the hinge at a *reward* gap of 1, so at a log-ratio margin of 1 / beta; SLiC-HF itself puts
    # it at a fixed log-prob margin, without a reference.
    losses = Hinge(beta=0.1).losses(torch.tensor([9.999, 10.0, 10.001]))
    assert losses[0] > 0
    assert losses[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_mean_equals_trl(seed, beta):
    tokens = Tokens(seed)
    torch.testing.assert_close(ours(IPO(beta, "mean"), tokens.logps()).mean(), trl_dpo_loss(tokens, "ipo", beta))


def test_ipo_default_sums_where_trl_averages_over_tokens():
    tokens = Tokens(0)
    assert abs(ours(IPO(0.1), tokens.logps()).mean() - trl_dpo_loss(tokens, "ipo", 0.1)) > 1.0
    # With one token per response there is nothing to average, and both agree.
    tokens.lengths[:] = 1
    tokens.mask[:, PROMPT + 1 :] = 0
    tokens.policy, tokens.reference = tokens.policy * tokens.mask[:, 1:], tokens.reference * tokens.mask[:, 1:]
    torch.testing.assert_close(ours(IPO(0.1), tokens.logps()).mean(), trl_dpo_loss(tokens, "ipo", 0.1))


@pytest.mark.parametrize("seed", range(3))
def test_ipo_sum_equals_trl_cpo_on_reference_free_sums(seed):
    # TRL's CPO trainer has an IPO loss over summed log-probs without a reference: ours with a reference of zeros.
    logps = Tokens(seed).logps()
    zero = torch.zeros_like(logps.chosen_policy)
    free = PairLogps(logps.chosen_policy, logps.rejected_policy, logps.chosen_length, logps.rejected_length, zero, zero)
    torch.testing.assert_close(ours(IPO(0.3), free), trl_cpo_losses(logps, "ipo", 0.3, average=False))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
def test_unbiased_dpo_equals_trl_robust(epsilon):
    tokens = Tokens(1)
    expected = trl_dpo_loss(tokens, "robust", 0.2, epsilon)
    torch.testing.assert_close(ours(DPO(0.2), tokens.logps(), Unbiased(epsilon)).mean(), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
def test_conservative_dpo_equals_trl_label_smoothing(epsilon):
    # DPOTrainer takes label smoothing for other losses only; CPO's logistic loss without a reference still has it.
    logps = Tokens(2).logps()
    zero = torch.zeros_like(logps.chosen_policy)
    free = PairLogps(logps.chosen_policy, logps.rejected_policy, logps.chosen_length, logps.rejected_length, zero, zero)
    expected = trl_cpo_losses(logps, "sigmoid", 0.2, label_smoothing=epsilon, average=False)
    torch.testing.assert_close(ours(DPO(0.2), free, Constant(epsilon)), expected)


def test_trl_dpo_ignores_label_smoothing_of_the_plain_loss():
    tokens = Tokens(2)
    assert trl_dpo_loss(tokens, "sigmoid", 0.2, 0.3) == trl_dpo_loss(tokens, "sigmoid", 0.2, 0.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (10.0, 3.0), (2.5, 0.0)])
def test_simpo_equals_trl(seed, beta, gamma):
    logps = Tokens(seed).logps()
    torch.testing.assert_close(ours(SimPO(beta, gamma), logps), trl_cpo_losses(logps, "simpo", beta, gamma))


def test_simpo_gamma_is_a_reward_gap_not_a_ratio_to_beta():
    # TRL subtracts gamma / beta inside beta, which is our gamma; SimPO's own configs name the ratio gamma / beta.
    logps = Tokens(0).logps()
    ratio = 0.8
    torch.testing.assert_close(ours(SimPO(2.0, ratio * 2.0), logps), trl_cpo_losses(logps, "simpo", 2.0, ratio * 2.0))
    assert not torch.allclose(ours(SimPO(2.0, ratio), logps), trl_cpo_losses(logps, "simpo", 2.0, ratio * 2.0))


def test_smoothed_simpo_keeps_the_gap_for_the_flipped_label_where_trl_reverses_it():
    # Flipping a label swaps the responses: the other one must win by gamma. TRL flips the sign of margin *and* gap.
    logps = Tokens(0).logps()
    objective, epsilon = SimPO(2.0, 1.0), 0.2
    theirs = trl_cpo_losses(logps, "simpo", 2.0, 1.0, label_smoothing=epsilon)
    margins = objective.margins(logps)
    reversed_gap = -torch.nn.functional.logsigmoid(-(2.0 * margins - 1.0))
    torch.testing.assert_close((1 - epsilon) * objective.losses(margins) + epsilon * reversed_gap, theirs)
    assert (ours(objective, logps, Constant(epsilon)) > theirs).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_orpo_equals_trl_but_for_name_and_sign(seed, lam):
    # TRL names lambda beta, and returns beta log sigmoid(log odds ratio), which its trainer subtracts; in float32.
    logps = Tokens(seed).logps()
    expected = -trl_orpo_losses(logps, beta=lam)
    torch.testing.assert_close(ours(ORPO(lam), logps).float(), expected, rtol=1e-4, atol=1e-6)


def test_orpo_stays_finite_where_trl_does_not():
    certain = PairLogps(torch.zeros(1), torch.tensor([-2.0]), torch.tensor([2]), torch.tensor([2]))
    assert torch.isfinite(ORPO().margins(certain)).all()
    both = PairLogps(torch.zeros(1), torch.zeros(1), torch.tensor([2]), torch.tensor([2]))
    assert torch.isfinite(ORPO().losses(ORPO().margins(both))).all()
    assert torch.isnan(trl_orpo_losses(both, beta=0.1)).all()
