"""Objectives, transforms, smoothers and reweighters that each break one line of the contract."""

from dataclasses import dataclass

import numpy as np
import torch

from sera_core.builtin.dpo import DPO
from sera_core.builtin.orpo import ORPO
from sera_core.builtin.smoothers import Constant
from sera_core.builtin.uniform import Uniform
from sera_core.protocols import Needs
from sera_core.records import Smoothed, Weighted


def objective(base=DPO, **methods):
    return dataclass(frozen=True)(type("Broken", (base,), {"__doc__": "Broken.", **methods}))


def double_in_place(self, margins):
    margins *= 1.0001
    return DPO().losses(margins)


def in_place(self, logps):
    logps.chosen_reference.add_(1.0)
    return DPO().margins(logps)


@dataclass(frozen=True)
class GoodTransform:
    """Sr-DPO's shape: subtracts a detached margin under a prefix."""

    lam: float = 0.5

    @property
    def needs(self):
        return Needs(prefixes=("quality",))

    @classmethod
    def neutral(cls):
        return cls(lam=0.0)

    def other(self, batch):
        return batch.prefixed["quality"]

    def apply(self, margins, batch):
        return margins - self.lam * self.other(batch).detach()


def transform(apply):
    return dataclass(frozen=True)(type("Broken", (GoodTransform,), {"__doc__": "Broken.", "apply": apply}))


def add_in_place(self, margins, batch):
    with torch.no_grad():
        margins += 1
    return margins - 1


def smoother(flip_weights):
    body = {"__doc__": "Broken.", "flip_weights": lambda self, c, batch: flip_weights(c)}
    return dataclass(frozen=True)(type("Broken", (Constant,), body))


def reweighter(weights):
    body = {"__doc__": "Broken.", "weights": lambda self, stats: weights(stats)}
    return dataclass(frozen=True)(type("Broken", (Uniform,), body))


@dataclass(frozen=True)
class GoodWeighing:
    """Weighs by confidence and says how."""

    power: float = 1.0

    @property
    def needs(self):
        return Needs(whole_batch=True)

    @classmethod
    def neutral(cls):
        return cls(power=0.0)

    def weights(self, stats):
        return stats.confidences.detach() ** self.power

    def metrics(self, stats):
        known = stats.flipped[~stats.flipped.isnan()]
        return {"power": self.power, "mean_confidence": stats.confidences.detach().mean()} | (
            {"known_flips": known.mean()} if len(known) else {}
        )

    def weigh(self, stats):
        return Weighted(self.weights(stats), self.metrics(stats))


def weighing(**methods):
    return dataclass(frozen=True)(type("Broken", (GoodWeighing,), {"__doc__": "Broken.", **methods}))


def reporting(**metrics):
    return weighing(metrics=lambda self, stats: {k: v(stats) if callable(v) else v for k, v in metrics.items()})


@dataclass(frozen=True)
class GoodSmoothing(Constant):
    """cDPO that says how confident the policy was."""

    def metrics(self, confidence):
        return {"lowest": confidence.min(), "rate": self.epsilon}

    def smooth(self, confidence, batch):
        return Smoothed(*self.flip_weights(confidence, batch), self.metrics(confidence))


def smoothing(**methods):
    return dataclass(frozen=True)(type("Broken", (GoodSmoothing,), {"__doc__": "Broken.", **methods}))


def without_neutral(base):
    def missing(cls):
        return 3

    return dataclass(frozen=True)(type("Broken", (base,), {"__doc__": "Broken.", "neutral": classmethod(missing)}))


BROKEN = [
    ("objective", "margins-per-pair", objective(margins=lambda self, x: DPO().margins(x).mean())),
    ("objective", "margins-per-pair", objective(margins=lambda self, x: DPO().margins(x) - DPO().margins(x).mean())),
    ("objective", "margins-antisymmetric", objective(margins=lambda self, x: DPO().margins(x) + 1)),
    ("objective", "losses-per-pair", objective(losses=lambda self, h: DPO().losses(h).mean())),
    ("objective", "losses-per-pair", objective(losses=lambda self, h: DPO().losses(h) / len(h))),
    ("objective", "gradcheck", objective(losses=lambda self, h: DPO().losses(h) + h.detach() ** 2)),
    ("objective", "gradcheck", objective(losses=lambda self, h: DPO().losses(h.detach()))),
    ("objective", "gradcheck", objective(margins=lambda self, x: DPO().margins(x).detach())),
    ("objective", "finite-at-extremes", objective(losses=lambda self, h: -torch.sigmoid(h).log())),
    ("objective", "finite-at-extremes", objective(losses=lambda self, h: torch.log1p(torch.exp(-h.clamp(min=-1e4))))),
    ("objective", "finite-at-extremes", objective(confidence=lambda self, h: h.exp() / (1 + h.exp()))),
    ("objective", "confidence", objective(confidence=lambda self, h: torch.sigmoid(-h))),
    ("objective", "confidence", objective(confidence=lambda self, h: 2 * torch.sigmoid(h))),
    ("objective", "confidence", objective(confidence=lambda self, h: torch.full_like(h, 0.5))),
    ("objective", "leaves-inputs-alone", objective(losses=double_in_place)),
    ("objective", "leaves-inputs-alone", objective(margins=in_place)),
    ("objective", "anchor-per-pair", objective(ORPO, anchor=lambda self, x: -x.chosen_policy / x.chosen_length.sum())),
    ("objective", "anchor-per-pair", objective(ORPO, anchor=lambda self, x: -x.chosen_policy.mean())),
    ("transform", "keeps-shape", transform(lambda self, h, batch: h.mean())),
    ("transform", "keeps-shape", transform(lambda self, h, batch: h / 0.0)),
    ("transform", "keeps-shape", transform(add_in_place)),
    ("transform", "neutral", transform(lambda self, h, batch: h - 0.1)),
    ("transform", "neutral", without_neutral(GoodTransform)),
    ("transform", "no-gradient-of-its-own", transform(lambda self, h, batch: h - self.lam * self.other(batch))),
    ("transform", "no-gradient-of-its-own", transform(lambda self, h, batch: 2 * h)),
    ("transform", "no-gradient-of-its-own", transform(lambda self, h, batch: h.detach())),
    ("smoother", "shapes", smoother(lambda c: (c.detach().mean(), 1 - c.detach().mean()))),
    ("smoother", "shapes", smoother(lambda c: (c.detach() * np.nan, c.detach()))),
    ("smoother", "sums-to-one", smoother(lambda c: (torch.ones_like(c), torch.ones_like(c)))),
    ("smoother", "no-gradient", smoother(lambda c: (c, 1 - c))),
    ("smoother", "neutral", smoother(lambda c: (c.detach(), 1 - c.detach()))),
    ("smoother", "neutral", without_neutral(Constant)),
    ("smoother", "smooth-agrees", smoothing(smooth=lambda self, c, batch: Smoothed(torch.ones_like(c), 0.0 * c))),
    ("smoother", "smooth-agrees", smoothing(smooth=lambda self, c, batch: self.flip_weights(c, batch))),
    ("smoother", "smooth-agrees", smoothing(metrics=lambda self, c: {"lowest": float("nan")})),
    ("smoother", "needs", smoothing(needs=property(lambda self: Needs(extrapolation=-0.5)))),
    ("smoother", "needs", smoothing(needs=property(lambda self: Needs(dataset_every=float("inf"))))),
    ("smoother", "needs", smoothing(needs=property(lambda self: Needs(dataset_from=1.5)))),
    ("reweighter", "non-negative", reweighter(lambda stats: stats.margins)),
    ("reweighter", "non-negative", reweighter(lambda stats: stats.losses.mean())),
    ("reweighter", "non-negative", reweighter(lambda stats: stats.losses / (len(stats.losses) - 1))),
    ("reweighter", "no-gradient", reweighter(lambda stats: stats.losses)),
    ("reweighter", "permutation-equivariant", reweighter(lambda stats: torch.arange(len(stats.losses)).float())),
    ("reweighter", "neutral", reweighter(lambda stats: stats.confidences)),
    ("reweighter", "neutral", without_neutral(Uniform)),
    ("reweighter", "dataset-interval", weighing(needs=Needs(dataset_every=-1.0))),
    ("reweighter", "dataset-interval", weighing(needs=Needs(dataset_every=float("nan")))),
    ("reweighter", "weigh-agrees", weighing(weigh=lambda self, stats: Weighted(2 * self.weights(stats)))),
    ("reweighter", "weigh-agrees", weighing(weigh=lambda self, stats: (self.weights(stats), {}))),
    ("reweighter", "weigh-metrics", reporting(share=float("nan"))),
    ("reweighter", "weigh-metrics", reporting(share=lambda stats: stats.flipped.mean())),
    (
        "reweighter",
        "weigh-metrics",
        reporting(spread=lambda stats: stats.losses.var(correction=0) / (len(stats.losses) - 1)),
    ),
    ("reweighter", "weigh-metrics", reporting(all_of_them=lambda stats: stats.losses)),
    ("reweighter", "weigh-metrics", reporting(**{"": 1.0})),
    ("reweighter", "weigh-metrics", reporting(loss=1.0)),
    ("reweighter", "weigh-metrics", reporting(method="kl")),
]
