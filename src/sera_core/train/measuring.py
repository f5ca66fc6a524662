"""The forward passes of training: policy log-probs of micro-batches, and what components ask for beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sera_core.meter import Meter
from sera_core.models.extrapolation import extrapolated_logps
from sera_core.models.logps import GroupLogps, group_logps
from sera_core.records import PairLogps
from sera_core.train.batch import Answers, PairInputs
from sera_core.train.lora import adapter_off

ReferenceModel = Callable[[], AbstractContextManager[nn.Module]]


@dataclass(frozen=True, slots=True, eq=False)
class Extras:
    """What is measured of b pairs beside their log-probs, without gradient.

    `prefixed`: policy and reference log-probs under each prompt prefix. `extrapolated`: as the plain log-probs, with an
    extrapolated policy in place of the policy; None where no smoother asks for it.
    """

    prefixed: Mapping[str, PairLogps] = field(default_factory=dict)
    extrapolated: PairLogps | None = None

    def to(self, device: torch.device) -> Extras:
        """The same with all tensors on `device`."""
        extrapolated = None if self.extrapolated is None else moved(self.extrapolated, device)
        return Extras({prefix: moved(logps, device) for prefix, logps in self.prefixed.items()}, extrapolated)

    def take(self, order: Tensor) -> Extras:
        """Those of the pairs numbered by int64 `order`, in that order."""
        extrapolated = None if self.extrapolated is None else taken(self.extrapolated, order)
        return Extras({prefix: taken(logps, order) for prefix, logps in self.prefixed.items()}, extrapolated)


class Measurer:
    """Measures micro-batches under `policy`, at most `token_budget` tokens per forward pass.

    `strength` is that of the extrapolation, 0 for none; `reference` enters the model it leads away from. `tokens`
    counts what went through models.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        token_budget: int,
        strength: float,
        reference: ReferenceModel | None,
    ) -> None:
        self.policy, self.tokens = policy, Meter()
        self._budget, self._strength, self._reference = token_budget, strength, reference

    def logps(self, model: nn.Module, answers: Answers) -> PairLogps:
        """Log-probs of `answers` under `model`, with a gradient where torch has gradients enabled."""
        return answers.logps(self._counted(group_logps(model, answers.groups, token_budget=self._budget)))

    @torch.no_grad()
    def extras(self, inputs: PairInputs, *, extrapolate: bool) -> Extras:
        """Everything that components ask for beside the log-probs of `inputs`.

        A policy that still equals its reference is its own extrapolation, up to rounding that would pass for
        confidence: with `extrapolate` false none is measured.
        """
        prefixed = {prefix: self.logps(self.policy, answers) for prefix, answers in inputs.prefixed.items()}
        if self._reference is None or not extrapolate:
            return Extras(prefixed)
        groups = inputs.plain.groups
        far = extrapolated_logps(self.policy, self._reference, groups, self._strength, token_budget=self._budget)
        return Extras(prefixed, inputs.plain.logps(self._counted(far)))

    @torch.no_grad()
    def with_live_reference(self, inputs: PairInputs) -> PairInputs:
        """`inputs` with the policy's own log-probs, adapter off, in place of the stored reference log-probs."""
        with adapter_off(self.policy):
            prefixed = {prefix: self._live(answers) for prefix, answers in inputs.prefixed.items()}
            return replace(inputs, plain=self._live(inputs.plain), prefixed=prefixed)

    def _counted(self, found: GroupLogps) -> Tensor:
        self.tokens.forward(found.attention, found.forwarded_tokens, found.useful_tokens)
        return found.sums

    def _live(self, answers: Answers) -> Answers:
        logps = self.logps(self.policy, answers)
        return replace(answers, chosen_reference=logps.chosen_policy, rejected_reference=logps.rejected_policy)


def reference_model(policy: PreTrainedModel, other: PreTrainedModel | None) -> ReferenceModel:
    """The reference that extrapolation leads away from: `other`, or where that is None the policy without adapter."""
    if other is not None:
        return lambda: nullcontext(other)
    return lambda: _base(policy)


def moved(logps: PairLogps, device: torch.device) -> PairLogps:
    """The same log-probs on `device`."""
    columns: list[Tensor | None] = [getattr(logps, column.name) for column in fields(PairLogps)]
    return PairLogps(*(None if column is None else column.to(device) for column in columns))  # type: ignore[arg-type]


def taken(logps: PairLogps, order: Tensor) -> PairLogps:
    """Those of the pairs numbered by int64 `order`, in that order."""
    columns: list[Tensor | None] = [getattr(logps, column.name) for column in fields(PairLogps)]
    return PairLogps(*(None if column is None else column[order] for column in columns))  # type: ignore[arg-type]


@contextmanager
def _base(policy: PreTrainedModel) -> Iterator[nn.Module]:
    with adapter_off(policy):
        yield policy
