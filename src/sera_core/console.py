"""What people see: progress bars while a run works, tables when something is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from sera_core.meter import total


class ConsoleReporter:
    """Progress per stage and one table per iteration, on a rich console. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ConsoleReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage_started(self, where: str) -> Callable[[int, int], None]:
        """Shows a bar for the stage."""
        self._clear()
        task = self._task = self._progress.add_task(where, total=None)

        def advance(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)

        return advance

    def stage_finished(self, where: str, seconds: float, reused: bool) -> None:
        """Leaves one line for the finished stage."""
        self._clear()
        took = "reused" if reused else f"{seconds:.1f} s"
        self._console.print(f"  [green]✓[/green] {where:<20} [dim]{took}[/dim]", highlight=False)

    def iteration_finished(self, values: Mapping[str, Any]) -> None:
        """Prints the iteration's table."""
        self._clear()
        self._console.print(iteration_table(values))

    def _clear(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(value: Mapping[str, float] | None, digits: int = 2) -> str:
    """``mean [low, high]``; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def iteration_table(values: Mapping[str, Any]) -> Table:
    """One iteration's report as rows of name and value."""
    table = Table(title=f"Iteration {values['iteration']}", show_header=False, title_justify="left")
    for name, value in _rows(values):
        table.add_row(name, value)
    return table


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    dropped = ", ".join(f"{reason} {count}" for reason, count in values["dropped"].items() if count) or "none"
    length, gold = values["reward_length_correlation"], values["reward_gold_correlation"]
    rows = [
        ("pairs", f"{values['pairs_offline']} offline, {values['pairs_generated']} generated"),
        ("dropped", dropped),
        ("win rate vs initial", interval(values["win_rate_vs_initial"])),
        ("KL to initial", f"{number(values['kl_to_initial'], 2)} nats"),
        ("gold reward", interval(values["gold_reward"])),
        ("held-out accuracy", f"{number(values['accuracy'])}, margin {number(values['margin_mean'])}"),
        ("chosen log-prob drift", f"{number(values['chosen_logp_drift'], 2)} nats"),
        ("response length", f"{number(values['response_length'], 1)} tokens, EOS rate {number(values['eos_rate'])}"),
        ("reward correlation", f"length {number(length, 2)}, gold {number(gold, 2)}"),
    ]
    selection = values.get("selection", {})
    auc = selection.get("offline", {}).get("flip_auc")
    if auc is not None:
        rows.append(("flip detection AUC", number(auc, 2)))
    accuracy = selection.get("generated", {}).get("accuracy")
    if accuracy is not None:
        rows.append(("own pairs vs gold", number(accuracy, 2)))
    seconds = values["seconds"]
    rows.append(("seconds", "  ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items())))
    rows.append(("log-probs", _work(values.get("work", {}))))
    return rows


def _work(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """What log-probabilities cost in an iteration, when its stages were computed."""
    work = total(stages.values())
    tokens, asked = work.forward_tokens.total(), work.scored + work.stored
    padding = f", {1 - work.useful_tokens / tokens:.0%} padding" if tokens else ""
    return f"{tokens:,} tokens through models{padding}; {work.stored:,} of {asked:,} responses from the store"


def comparison_table(summaries: Sequence[Mapping[str, Any]], final: Sequence[int]) -> Table:
    """Runs side by side, each by the iteration its final model comes from; KL stands beside every win rate."""
    seeds = {summary["seed"] for summary in summaries}
    title = f"Runs, seed {min(seeds)}" if len(seeds) == 1 else "Runs"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for heading in ("iter", "win rate", "KL", "gold reward", "len", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary, iteration in zip(summaries, final, strict=True):
        report = summary["iterations"][iteration - 1]
        spent = sum(sum(each["seconds"].values()) for each in summary["iterations"])
        table.add_row(
            summary["name"] if len(seeds) == 1 else f"{summary['name']} seed {summary['seed']}",
            f"{iteration}/{len(summary['iterations'])}",
            interval(report["win_rate_vs_initial"]),
            number(report["kl_to_initial"], 2),
            interval(report["gold_reward"]),
            number(report["response_length"], 1),
            f"{spent:.0f}",
        )
    return table
