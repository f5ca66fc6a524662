"""The stages a run will go through, known from its plan alone: which of them two runs will share, before either runs.

A stage's key hangs on the outputs of earlier stages. Here each earlier output is replaced by the signature of the stage
that makes it, so that stages with one signature have one key. The reverse need not hold: two arms may select the same
pairs by different rules, and then share more than was foreseen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sera_core import __version__
from sera_core.ablating.stages import POLICY, Foreseen
from sera_core.plan import GeneratedPlan, IterationPlan, Plan
from sera_core.protocols import Component, Sampling, Scorer
from sera_core.train.arguments import normal_training_fields
from sera_core.workspace import digest


def foresee(plan: Plan, seed: int) -> tuple[Foreseen, ...]:
    """The stages of a run of `plan` with `seed`, in order; all iterations, also where the loop may stop earlier."""
    ours, seedless = _Walk(plan, seed).stages(), _Walk(plan, None).stages()
    # The seed stands in digests only, so that both walks meet the same places in the same order.
    return tuple(
        Foreseen(where, name, signature, kind, _sort(plan, name), _load(plan, where, name))
        for (where, (name, signature)), (_, kind) in zip(ours.items(), seedless.values(), strict=True)
    )


def _sort(plan: Plan, name: str) -> str:
    config = plan.config
    return digest([name, config.source.name, config.policy.model_dump(mode="json")])


def _load(plan: Plan, where: str, name: str) -> float:
    """Epochs for training, 1 for anything else."""
    if name != "train":
        return 1.0
    iteration = int(where.partition("/")[0].removeprefix("iter_"))
    # 3 is what transformers takes where nothing is said.
    return float(plan.iterations[iteration - 1].config.training.get("num_train_epochs") or 3.0)


class _Walk:
    """One pass over a plan; `seed` None leaves the seed out of every signature."""

    def __init__(self, plan: Plan, seed: int | None) -> None:
        self._plan, self._seed, self._config = plan, seed, plan.config
        self._found: dict[str, tuple[str, str]] = {}
        policy = self._config.policy
        self._numerics = [policy.dtype, policy.attn_implementation]
        self._initial = self._policy()
        tokens = self._config.tokens.model_dump()
        source = self._component("source", self._config.source.name, plan.source)
        self._data = self._add("data", "data", [source, seed, policy.model, policy.revision, tokens])

    def stages(self) -> dict[str, tuple[str, str]]:
        """Place to (name, signature), in order."""
        trained: list[tuple[str, str]] = []
        for step in self._plan.iterations:
            trained.insert(0, self._iteration(step, trained))
        return self._found

    def _add(self, where: str, name: str, inputs: Any) -> str:  # noqa: ANN401 (any JSON value)
        signature = digest([name, __version__, inputs])
        self._found.setdefault(where, (name, signature))
        return signature

    def _component(self, role: str, name: str, built: Component) -> str:
        return f"{self._plan.provenance[f'{role}:{name}']} {built!r}"

    def _policy(self) -> str:
        policy, source = self._config.policy, self._config.source.name
        own = [source, self._plan.provenance[f"source:{source}"], self._seed]
        named = [policy.model, policy.revision, policy.base]
        return self._add(POLICY, POLICY, [*named, own if "auto" in named else None])

    def _iteration(self, step: IterationPlan, trained: list[tuple[str, str]]) -> tuple[str, str]:
        """(signature of the trained policy, of its reference)."""
        at, loop = f"iter_{step.iteration}", self._plan.config.loop
        newest = trained[0][0] if trained else self._initial
        pairs = self._curate(step, newest, trained)
        start = newest if loop.start == "previous" else self._initial
        reference = newest if loop.reference == "previous" else self._initial
        config, parts = step.config, step.objective
        inputs = [
            [start, reference if parts.loss.needs.reference else None, pairs, self._objective(step)],
            normal_training_fields(config.training),
            config.policy.model_dump(exclude={"model", "revision", "base"}),
            [config.tokens.model_dump(), config.scoring.token_budget, self._seed, step.iteration],
        ]
        policy = self._add(f"{at}/train", "train", inputs)
        self._evaluate(step, policy)
        return policy, reference

    def _objective(self, step: IterationPlan) -> list[str]:
        names, parts = step.config.objective, step.objective
        transforms = zip(names.transforms, parts.transforms, strict=True)
        return [
            self._component("objective", names.loss.name, parts.loss),
            *(self._component("transform", spec.name, part) for spec, part in transforms),
            self._component("smoother", names.smoother.name, parts.smoother),
            self._component("reweighter", names.reweighter.name, parts.reweighter),
        ]

    def _curate(self, step: IterationPlan, newest: str, trained: list[tuple[str, str]]) -> str:
        at, draw = f"iter_{step.iteration}", [self._seed, step.iteration]
        offline, generated = step.offline, step.generated
        drawn = None if generated is None else self._generate(step, generated, newest)
        judged = None
        if generated is not None and generated.judge is not None and generated.judge_name is not None:
            judge = self._component("judge", generated.judge_name, generated.judge)
            judged = self._add(f"{at}/judge", "judge", [drawn, judge, newest, self._initial, draw, self._data])
        scorers: dict[str, tuple[Scorer, str, str]] = {}
        if offline is not None and offline.acts and offline.scorer is not None and step.config.offline is not None:
            spec = step.config.offline.scorer
            scorers["offline"] = offline.scorer, spec.name if spec else "", self._data
        if generated is not None and generated.scorer is not None and drawn is not None:
            spec = generated.settings.scorer
            scorers["generated"] = generated.scorer, spec.name if spec else "", drawn
        scored = self._score(at, scorers, trained) if scorers else None
        labelled = None
        if generated is not None:
            labeler = self._component("labeler", generated.settings.labeler.name, generated.labeler)
            own = judged or (scored if generated.scorer is not None else None)
            labelled = self._add(f"{at}/label", "label", [drawn, own, labeler, draw, self._data])
        return self._select(step, (scored, labelled), draw)

    def _generate(self, step: IterationPlan, plan: GeneratedPlan, newest: str) -> str:
        settings = plan.settings
        prompts: list[Any] = [settings.prompts, settings.limit, settings.disjoint, plan.labeler.needs.targets]
        if settings.disjoint:
            prompts += [settings.from_iteration, self._plan.config.loop.iterations]
        return self._samples(
            f"iter_{step.iteration}/generate",
            (newest, [self._data, prompts]),
            (settings.generator.name, plan.generator),
            (plan.sampling, step.iteration, "curate"),
        )

    def _samples(
        self,
        where: str,
        asked: tuple[str, object],
        generator: tuple[str, Component],
        draw: tuple[Sampling, int, str],
    ) -> str:
        sampling, iteration, purpose = draw
        inputs = [asked, self._numerics, self._component("generator", *generator), repr(sampling)]
        return self._add(where, "generate", [*inputs, [self._seed, iteration, purpose]])

    def _score(self, at: str, scorers: dict[str, tuple[Scorer, str, str]], trained: list[tuple[str, str]]) -> str:
        depth = max(scorer.needs.history for scorer, _, _ in scorers.values())
        sections = {name: [repr(scorer.needs), responses] for name, (scorer, _, responses) in scorers.items()}
        measured = self._add(f"{at}/measure", "measure", [trained[:depth], self._initial, self._numerics, sections])
        named = {name: self._component("scorer", spec, scorer) for name, (scorer, spec, _) in scorers.items()}
        return self._add(f"{at}/score", "score", [measured, named])

    def _select(self, step: IterationPlan, made: tuple[str | None, str | None], draw: Iterable[object]) -> str:
        """The signature of the selected pairs, which may have been selected in several ways."""
        inputs: list[Any] = [self._data, list(draw), made, self._judge()]
        offline, generated = step.config.offline, step.config.generated
        if step.offline is not None and offline is not None:
            name = offline.selector.name
            inputs.append(self._component("selector", name, step.offline.selector) if step.offline.acts else "all")
        if step.generated is not None and generated is not None:
            inputs.append(self._component("selector", generated.selector.name, step.generated.selector))
        selected = self._add(f"iter_{step.iteration}/select", "select", inputs)
        whole = step.offline is not None and (
            not step.offline.acts or getattr(step.offline.selector, "keeps_all", False)
        )
        return digest(["all pairs", self._data]) if whole and step.generated is None else selected

    def _judge(self) -> str | None:
        plan = self._plan
        if plan.judge is None or plan.judge_name is None:
            return None
        return self._component("judge", plan.judge_name, plan.judge)

    def _evaluate(self, step: IterationPlan, policy: str) -> None:
        settings, sampling = self._config.evaluation, self._plan.evaluation_sampling
        generator = settings.generator.name, self._plan.evaluation_generator
        plain = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=sampling.max_new_tokens)
        held = [self._data, settings.prompts]
        at, t = f"iter_{step.iteration}", step.iteration
        keys = [
            self._samples("iter_0/sample", (self._initial, held), generator, (sampling, 0, "evaluate sample")),
            self._samples(f"{at}/sample", (policy, held), generator, (sampling, t, "evaluate sample")),
            self._samples(
                f"{at}/ancestral", (policy, [*held, settings.kl_prompts]), generator, (plain, t, "evaluate ancestral")
            ),
        ]
        prefixes = [prefix for transform in step.objective.transforms for prefix in transform.needs.prefixes]
        measured = [settings.level, settings.prefixes, prefixes, settings.tuning_pairs, self._objective(step)[0]]
        self._add(f"{at}/evaluate", "evaluate", [keys, self._data, self._judge(), measured, self._numerics])
