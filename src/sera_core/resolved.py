"""The resolved settings of an iteration: every value that acted, component defaults included."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from sera_core.plan import IterationPlan, Plan


def resolved_settings(plan: Plan, step: IterationPlan) -> dict[str, Any]:
    """The configuration of one iteration with every component written as its name and all its options. JSON-able."""
    config = step.config
    found = config.model_dump(mode="json")
    found["source"] = spelled(config.source.name, plan.source)
    sampling = plan.evaluation_sampling
    found["evaluation"]["sampling"] = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    found["evaluation"]["generator"] = spelled(config.evaluation.generator.name, plan.evaluation_generator)
    found["evaluation"]["judge"] = None if plan.judge_name is None else spelled(plan.judge_name, plan.judge)
    names, parts = config.objective, step.objective
    found["objective"] = {
        "loss": spelled(names.loss.name, parts.loss),
        "transforms": [spelled(spec.name, part) for spec, part in zip(names.transforms, parts.transforms, strict=True)],
        "smoother": spelled(names.smoother.name, parts.smoother),
        "reweighter": spelled(names.reweighter.name, parts.reweighter),
    }
    for section in ("offline", "generated"):
        settings, built = getattr(config, section), getattr(step, section)
        for role in ("scorer", "selector", "labeler", "generator"):
            spec = getattr(settings, role, None)
            if spec is not None and built is not None:
                found[section][role] = spelled(spec.name, getattr(built, role))
    if step.generated is not None and step.generated.judge_name is not None:
        found["generated"]["judge"] = spelled(step.generated.judge_name, step.generated.judge)
    return found


def spelled(name: str, component: object) -> dict[str, Any]:
    """A component as its name and all its options, defaults included."""
    options = {field.name: getattr(component, field.name) for field in fields(component) if field.init}  # type: ignore[arg-type]
    return {"name": name, **{key: _plain(value) for key, value in options.items()}}


def _plain(value: object) -> object:
    """An option value as JSON has it: tuples as lists, structured options such as a schedule as mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
