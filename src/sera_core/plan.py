"""The plan: a configuration with every name resolved to an object, and every contradiction refused before compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sera_core.catalog import Catalog, first_problem
from sera_core.config import ComponentSpec, GeneratedConfig, RunConfig
from sera_core.configfile import BY_ITERATION, as_spec, at_iteration, merge
from sera_core.errors import ConfigError, suggest
from sera_core.protocols import (
    Generator,
    Judge,
    Labeler,
    Objective,
    Reweighter,
    Sampling,
    Scorer,
    Selector,
    Smoother,
    Source,
    Transform,
)
from sera_core.schedules import check_schedules


@dataclass(frozen=True, slots=True)
class OfflinePlan:
    """The source's own pairs: how they are scored and chosen. `acts` is False before `select_from`."""

    scorer: Scorer | None
    selector: Selector
    acts: bool


@dataclass(frozen=True, slots=True)
class GeneratedPlan:
    """Pairs from the policy's own samples. `judge_name` is what ``auto`` came to."""

    settings: GeneratedConfig
    sampling: Sampling
    generator: Generator
    scorer: Scorer | None
    labeler: Labeler
    selector: Selector
    judge: Judge | None = None
    judge_name: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectivePlan:
    """The algebra of one iteration."""

    loss: Objective
    transforms: tuple[Transform, ...]
    smoother: Smoother
    reweighter: Reweighter


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """One iteration, everything built. `config` has every by_iteration entry resolved."""

    iteration: int
    config: RunConfig
    offline: OfflinePlan | None
    generated: GeneratedPlan | None
    objective: ObjectivePlan


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run, ready to start.

    `config` is that of the first iteration; `raw` the merged settings before validation; `user` those the user gave;
    `provenance` maps each role and name used to ``name@distribution==version``. `judge_name` is the evaluation judge's
    name, whatever chose it.
    """

    config: RunConfig
    raw: Mapping[str, Any]
    user: Mapping[str, Any]
    source: Source
    judge: Judge | None
    evaluation_generator: Generator
    evaluation_sampling: Sampling
    iterations: tuple[IterationPlan, ...]
    provenance: Mapping[str, str]
    judge_name: str | None = None


class _Builder:
    """Builds components once for the plan and remembers where each came from."""

    def __init__(self, catalog: Catalog, defaults: Mapping[str, Mapping[str, Any]]) -> None:
        self._catalog = catalog
        self._defaults = defaults
        self.provenance: dict[str, str] = {}

    def __call__(self, role: str, spec: ComponentSpec) -> Any:  # noqa: ANN401
        options = {**self._defaults.get(f"{role}:{spec.name}", {}), **spec.options}
        component = self._catalog.build(role, spec.name, options)
        self.provenance[f"{role}:{spec.name}"] = self._catalog.entry(role, spec.name).provenance
        return component


def make_plan(user: Mapping[str, Any], catalog: Catalog) -> Plan:
    """Validate settings, resolve every name, refuse what cannot be honoured.

    Args:
        user: settings from file and command line, `extends` already resolved.
        catalog: the components to resolve names against.

    Raises:
        ConfigError: unknown key, name or option, a wrong value, or a combination that cannot be honoured.
    """
    from sera_core.plancheck import check_plan  # the checks read Plan, which this module defines

    source_spec = _source_spec(user, catalog)
    factory = catalog.entry("source", source_spec.name).factory
    user = {**user, "source": {"name": source_spec.name, **source_spec.options}}
    loop = user.get("loop") or {}
    total = loop.get("iterations", 1) if isinstance(loop, dict) else 1
    count = total if isinstance(total, int) and not isinstance(total, bool) and total >= 1 else 1
    check_schedules(user, count)
    configs = [_validate(with_defaults(at_iteration(user, t), factory.defaults)) for t in range(1, count + 1)]
    build = _Builder(catalog, factory.component_defaults)
    source = build("source", source_spec)
    first = configs[0]
    judge = _auto(first.evaluation.judge, source, otherwise=None)
    plan = Plan(
        config=first,
        raw=with_defaults(user, factory.defaults),
        user=user,
        source=source,
        judge=None if judge is None else build("judge", judge),
        evaluation_generator=build("generator", first.evaluation.generator),
        evaluation_sampling=_evaluation_sampling(configs[-1]),
        iterations=tuple(_iteration(t, config, source, build) for t, config in enumerate(configs, start=1)),
        provenance=build.provenance,
        judge_name=None if judge is None else judge.name,
    )
    check_plan(plan)
    return plan


def with_defaults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The source's recommended settings under the user's; a section the user leaves out stays out if it is optional."""
    wanted = {key: value for key, value in defaults.items() if key != "generated" or isinstance(raw.get(key), dict)}
    for key in wanted:
        if isinstance(raw.get(key), dict) and BY_ITERATION in raw[key]:
            wanted = {k: v for k, v in wanted.items() if k != key}
    return merge(wanted, raw)


def _source_spec(user: Mapping[str, Any], catalog: Catalog) -> ComponentSpec:
    raw = as_spec(user.get("source", "world"))
    if isinstance(raw, dict) and "name" not in raw:
        raw = {"name": "world", **raw}
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigError(f"source must be a name, a path, or a mapping with the key 'name', got {raw!r}.")
    name, options = raw["name"], {key: value for key, value in raw.items() if key != "name"}
    if name in catalog.names("source"):
        return ComponentSpec(name=name, options=options)
    # A path or hub name instead of a source's name means preference data at that place.
    if Path(name).exists() or "/" in name:
        return ComponentSpec(name="preferences", options={"path": name, **options})
    catalog.entry("source", name)
    raise AssertionError("unreachable: entry() refuses unknown names")


def _validate(raw: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "extra_forbidden":
            *path, key = (str(part) for part in detail["loc"])
            where = ".".join(path) or "the configuration"
            raise ConfigError(f"Unknown key '{key}' in {where}. {suggest(key, _fields(path))}") from error
        raise ConfigError(f"Configuration: {first_problem(error)}") from error


def _fields(path: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in path:
        field = model.model_fields.get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field is not None else []
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)


def _evaluation_sampling(config: RunConfig) -> Sampling:
    asked, base = config.evaluation.sampling, config.generated or GeneratedConfig()
    return Sampling(
        samples=asked.samples,
        temperature=base.temperature if asked.temperature is None else asked.temperature,
        top_p=base.top_p if asked.top_p is None else asked.top_p,
        max_new_tokens=base.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens,
    )


def _auto(spec: ComponentSpec | None, source: Source, *, otherwise: str | None) -> ComponentSpec | None:
    """The judge meant by ``auto``: gold where the source knows the right answers, else `otherwise`."""
    if spec is None or spec.name != "auto":
        return spec
    name = "gold" if source.provides.gold else otherwise
    return None if name is None else ComponentSpec(name=name, options=spec.options)


def _iteration(iteration: int, config: RunConfig, source: Source, build: _Builder) -> IterationPlan:
    objective = config.objective
    return IterationPlan(
        iteration=iteration,
        config=config,
        offline=_offline(iteration, config, build),
        generated=_generated(iteration, config, source, build),
        objective=ObjectivePlan(
            loss=build("objective", objective.loss),
            transforms=tuple(build("transform", spec) for spec in objective.transforms),
            smoother=build("smoother", objective.smoother),
            reweighter=build("reweighter", objective.reweighter),
        ),
    )


def _offline(iteration: int, config: RunConfig, build: _Builder) -> OfflinePlan | None:
    if config.offline is None:
        return None
    return OfflinePlan(
        scorer=None if config.offline.scorer is None else build("scorer", config.offline.scorer),
        selector=build("selector", config.offline.selector),
        acts=iteration >= config.offline.select_from,
    )


def _generated(iteration: int, config: RunConfig, source: Source, build: _Builder) -> GeneratedPlan | None:
    settings = config.generated
    if settings is None:
        return None
    judge = _auto(settings.judge, source, otherwise="llm_judge")
    plan = GeneratedPlan(
        settings=settings,
        sampling=Sampling(settings.samples, settings.temperature, settings.top_p, settings.max_new_tokens),
        generator=build("generator", settings.generator),
        scorer=None if settings.scorer is None else build("scorer", settings.scorer),
        labeler=build("labeler", settings.labeler),
        selector=build("selector", settings.selector),
        judge=None if judge is None else build("judge", judge),
        judge_name=None if judge is None else judge.name,
    )
    return plan if iteration >= settings.from_iteration else None
