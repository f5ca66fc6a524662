"""Judges that ask a model: which model that is, what identifies it, and whether it can do what it is asked."""

from __future__ import annotations

import numpy as np

from sera_core.asker import JudgeModel, ModelAsker
from sera_core.context import Context, Policy
from sera_core.data.templates import template_hash
from sera_core.errors import ModelError, SeraError
from sera_core.models.hashes import weights_hash
from sera_core.models.load import load_tokenizer, resolve_model
from sera_core.protocols import Accounting, AsksModel, Judge, Progress


def _asks(judge: object) -> AsksModel | None:
    """The judge where it asks a model, else None."""
    return judge if isinstance(judge, AsksModel) else None


def judge_model(run: Context, judge: Judge | None, newest: Policy) -> JudgeModel | None:
    """The model a judge asks, found on rank 0; None for a judge that asks none. `newest` is the newest iterate.

    Raises:
        ModelError: the judge's model cannot be found, or has no weights or tokenizer.
    """
    asks = _asks(judge)
    if asks is None:
        return None
    policy = {"initial": run.initial, "policy": newest}.get(asks.model)
    if policy is not None:
        return JudgeModel(policy.path, policy.hash, run.template, own=True)
    name = asks.model

    def find() -> JudgeModel:
        path = resolve_model(name, run.workspace.cache)
        return JudgeModel(path, weights_hash(path), template_hash(load_tokenizer(path)), own=False)

    return run.ranks.on_main(find)


def model_key(run: Context, model: JudgeModel | None) -> list[str] | None:
    """What identifies a judge's model in a stage's key."""
    return None if model is None else [model.hash, model.template, *run.numerics]


def bound(
    run: Context,
    judge: Judge,
    model: JudgeModel | None,
    *,
    iteration: int,
    purpose: str,
    progress: Progress | None = None,
    dry: bool = False,
) -> Judge:
    """The judge with its model, or as it is where it asks none. Arguments as for `ModelAsker`."""
    asks = _asks(judge)
    if model is None or asks is None:
        return judge
    return asks.bind(ModelAsker(run, model, iteration=iteration, purpose=purpose, progress=progress, dry=dry))


def account(judge: Judge) -> dict[str, float]:
    """The figures of a judge that keeps count, else none.

    Raises:
        ModelError: one of them is not finite.
    """
    keeps: object = judge
    figures = dict(keeps.account()) if isinstance(keeps, Accounting) else {}
    for name, value in figures.items():
        if not np.isfinite(value):
            raise ModelError(f"{type(judge).__name__}.account() gave {name} = {value}; figures for reports are finite.")
    return figures


def check_judges(run: Context) -> None:
    """Ask every judge about one pair of the data without running its model, so that what it cannot do shows at once.

    Raises:
        SeraError: a model is missing or of the wrong kind, cannot read the judge's words, or has too short a context.
    """
    judges: list[tuple[str, Judge | None]] = [("evaluation.judge", run.plan.judge)]
    judges += [("generated.judge", step.generated.judge) for step in run.plan.iterations if step.generated is not None]
    for where, judge in {(where, repr(judge)): (where, judge) for where, judge in judges}.values():
        if judge is not None and _asks(judge) is not None:
            try:
                _rehearse(run, judge)
            except SeraError as error:
                raise type(error)(f"{where}: {error}") from error


def _rehearse(run: Context, judge: Judge) -> None:
    model = judge_model(run, judge, run.initial)
    pairs = run.data.pairs.pairs[:1]

    def ask() -> None:
        dry = bound(run, judge, model, iteration=0, purpose="rehearsal", dry=True)
        for pair in pairs:
            try:
                dry.grade([pair.chosen])
            except NotImplementedError:
                dry.compare([pair.chosen], [pair.rejected])

    run.ranks.on_main(ask)
