"""Labelers, generators, judges and sources that each break one line of the contract."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sera_core.builtin.best_worst import BestWorst
from sera_core.models.generate.hf import Transformers
from sera_core.protocols import Needs, Provides
from sera_core.records import Pairs
from sera_core.world.gold import Gold


def labeler(change):
    """best_worst whose pairs are rewritten by `change(pairs, candidates, scores, rng)`."""

    def label(self, candidates, scores, rng):
        return change(BestWorst().label(candidates, scores, rng), candidates, scores, rng)

    return dataclass(frozen=True)(type("Broken", (BestWorst,), {"__doc__": "Broken.", "label": label}))


def pairs_changed(**changes):
    return labeler(
        lambda made, *_: Pairs(
            tuple(replace(p, **{k: v(p) for k, v in changes.items()}) for p in made.pairs), made.dropped
        )
    )


def keeps_hopeless(made, candidates, scores, rng):
    group = candidates.responses[2]
    extra = replace(made.pairs[0], id="p2#gen", chosen=group[0], rejected=group[1])
    dropped = {"some": made.pool - len(made.pairs) - 1}
    return Pairs((*made.pairs, extra), dropped)


def keeps_ties(made, candidates, scores, rng):
    nudged = [s - 1e-9 * np.arange(len(s)) for s in scores]
    return BestWorst().label(candidates, nudged, rng)


def unseeded(made, candidates, scores, rng):
    shuffled = np.random.default_rng().random((len(scores), 4))
    return BestWorst().label(candidates, list(shuffled), rng)


def generator(change):
    """The transformers generator with rewritten candidates: change(generate, model, prompts, sampling, context)."""

    def generate(self, model, prompts, sampling, context):
        return change(Transformers().generate, model, prompts, sampling, context)

    return dataclass(frozen=True)(type("Broken", (Transformers,), {"__doc__": "Broken.", "generate": generate}))


def responses_changed(**changes):
    def change(generate, model, prompts, sampling, context):
        made = generate(model, prompts, sampling, context)
        groups = tuple(
            tuple(replace(r, **{k: v(r) for k, v in changes.items()}) for r in group) for group in made.responses
        )
        return replace(made, responses=groups)

    return generator(change)


def seeds_by_position(generate, model, prompts, sampling, context):
    renamed = [replace(prompt, id=str(index)) for index, prompt in enumerate(prompts)]
    made = generate(model, renamed, sampling, context)
    groups = tuple(
        tuple(replace(response, prompt=prompt) for response in group)
        for prompt, group in zip(prompts, made.responses, strict=True)
    )
    return replace(made, prompts=tuple(prompts), responses=groups)


def judge(**methods):
    body = {name: staticmethod(method) for name, method in methods.items()}
    return dataclass(frozen=True)(type("Broken", (Gold,), {"__doc__": "Broken.", **body}))


def asking(judge=None, **attributes):
    """A judge that asks a model; `judge` is what its bind gives."""
    body = {"model": "initial", "bind": lambda self, asker: judge or self, **attributes}
    return dataclass(frozen=True)(type("Asking", (Gold,), {"__doc__": "Asks.", **body}))


def refuses(*args):
    raise NotImplementedError


# Asks a model, only grades, and has no grade for anything: sound, if useless.
Abstaining = asking(
    grade=lambda self, responses: np.full(len(responses), np.nan), compare=lambda self, first, second: refuses()
)


@dataclass(frozen=True)
class GoodSource:
    """Offers nothing."""

    provides: ClassVar[Provides] = Provides()
    defaults: ClassVar[Mapping[str, Any]] = {"beta": 0.5}
    component_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective:dpo": {"beta": 0.5}}

    @property
    def needs(self):
        return Needs()

    def load(self, seed):
        raise NotImplementedError


def source(**attributes):
    return dataclass(frozen=True)(type("Broken", (GoodSource,), {"__doc__": "Broken.", **attributes}))


BROKEN = [
    ("labeler", "makes-pairs", labeler(lambda made, *_: Pairs((), {"lazy": made.pool}))),
    ("labeler", "makes-pairs", pairs_changed(rejected=lambda p: p.chosen)),
    ("labeler", "makes-pairs", pairs_changed(confidence=lambda p: 1.5)),
    ("labeler", "makes-pairs", pairs_changed(id=lambda p: "same")),
    ("labeler", "keeps-prompts", labeler(lambda made, *_: Pairs(made.pairs * 2))),
    ("labeler", "keeps-prompts", pairs_changed(rejected=lambda p: replace(p.rejected, ids=np.array([9, 9, 9])))),
    ("labeler", "counts-drops", labeler(lambda made, *_: Pairs(made.pairs))),
    ("labeler", "counts-drops", labeler(keeps_hopeless)),
    ("labeler", "drops-ties", labeler(keeps_ties)),
    ("labeler", "deterministic", labeler(unseeded)),
    ("generator", "complete", generator(lambda generate, model, prompts, *rest: generate(model, prompts[1:], *rest))),
    ("generator", "complete", responses_changed(sample=lambda r: 0)),
    ("generator", "complete", responses_changed(ids=lambda r: r.ids.astype(np.int64))),
    ("generator", "finish-reasons", responses_changed(finish_reason=lambda r: "given")),
    ("generator", "finish-reasons", responses_changed(ids=lambda r: np.append(r.ids[:-1], np.int32(0)))),
    ("generator", "independent-of-batch", generator(seeds_by_position)),
    (
        "generator",
        "seeded",
        generator(lambda generate, m, p, s, context: generate(m, p, s, replace(context, purpose="fixed"))),
    ),
    ("judge", "grades-or-compares", judge(grade=refuses, compare=refuses)),
    ("judge", "verdicts", judge(compare=lambda a, b: ("better",) * len(a))),
    ("judge", "verdicts", judge(compare=lambda a, b: ("win",))),
    ("judge", "antisymmetric", judge(compare=lambda a, b: ("win",) * len(a))),
    (
        "judge",
        "antisymmetric",
        judge(compare=lambda a, b: tuple("win" if x.text >= y.text else "loss" for x, y in zip(a, b, strict=True))),
    ),
    ("judge", "grades", judge(grade=lambda responses: [1.0] * len(responses))),
    ("judge", "grades", judge(grade=lambda responses: np.arange(len(responses), dtype=np.float64))),
    ("judge", "grades", judge(grade=lambda responses: np.full(len(responses), np.nan))),
    ("judge", "grades", asking(grade=lambda self, responses: np.full(len(responses), np.inf))),
    ("judge", "names-a-model", asking(model="")),
    ("judge", "names-a-model", asking(judge(needs=Needs(history=1))())),
    ("judge", "account", judge(account=lambda: {"judged": np.nan})),
    ("judge", "account", asking(account=lambda self: {1: 1.0})),
    ("source", "attributes", source(provides={"gold": True})),
    ("source", "attributes", source(defaults=[("beta", 1)])),
    ("source", "attributes", source(defaults={"beta": np.float32(1)})),
    ("source", "component-defaults", source(component_defaults={"dpo": {"beta": 1}})),
    ("source", "component-defaults", source(component_defaults={"objectives:dpo": {"beta": 1}})),
    ("source", "methods", source(load=None)),
    ("source", "methods", source(provides=Provides(policy=True))),
]
