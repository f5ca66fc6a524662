"""Signs that a policy learned to please its own reward rather than the task, read from finished runs.

Every threshold is far beyond what a sound run shows, so that a warning is worth reading; none of them proves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from statsmodels.stats.proportion import proportion_confint

from sera_core.data.tables import read_candidates
from sera_core.report.study import Run, Study
from sera_core.statistics.intervals import WHOLE, paired_interval
from sera_core.workspace import read_json

LENGTH_RISE = 1.1
"""Growth of the answers that counts as longer: a tenth, beyond what another draw of samples gives."""
KL_PER_TOKEN = 2.0
"""Nats per token of KL to the initial policy that count as runaway: on its own answers the policy is, token by token,
seven times surer than the initial policy, as if one of seven equal choices were left."""
KL_GROWTH = 3.0
"""Growth of KL from one iteration to the next that counts as runaway where it has passed `KL_GROWN` nats per token."""
KL_GROWN = 1.0
"""Nats per token below which growth of KL is that of a policy which has only begun to move."""
LOGP_FALL = 1.0
"""Nats per token that held-out chosen answers may lose: each token e times less likely. Preference losses push chosen
answers down somewhat (likelihood displacement: Razin et al. 2024); this much means that the policy has left them."""
EOS_FALL = 0.05
"""Share of answers that no longer end by themselves: one in twenty runs into the token limit that did not before."""
COIN = 0.5
"""Share of the policy's own labels that gold must confirm for them to be better than a coin."""
LABEL_LEVEL = 0.9999
"""Level of the interval of that share: labels that are as good as a coin fall out of it in one of 20,000 iterations, so
that hundreds of runs do not warn by chance, and pairs that share a prompt may be less than independent."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run was like after an iteration.

    `gold` and `points` against the initial policy are by prompt, None where nothing judged; a run that kept its win
    rate alone has it as the points of the one prompt `WHOLE`. `own_pairs` is how many pairs of its own it was trained
    on, `own_labels` the share of them that gold confirms. For the initial policy itself, iteration 0, only `length` and
    `ended` are known, and both may be missing.
    """

    iteration: int
    length: float | None
    ended: float | None
    kl: float = 0.0
    drift: float | None = None
    chosen_length: float | None = None
    own_pairs: int = 0
    own_labels: float | None = None
    gold: dict[str, float] | None = None
    points: dict[str, float] | None = None


Sign = Callable[[Sequence[Seen]], Iterator[str]]
Histories = Mapping[tuple[str, int], tuple[Seen, ...]]
"""Arm and seed to what a run was like: the initial policy, then each iteration."""


def histories_of(study: Study) -> Histories:
    """Every run's history by arm and seed."""
    starts: dict[str, Seen] = {}
    return {(run.arm, run.seed): history(run, starts) for run in study.runs}


def warnings_of(study: Study, histories: Histories) -> tuple[str, ...]:
    """One sentence per arm and sign, naming the seeds that show it; then what the study lacks."""
    found: dict[tuple[str, str], list[int]] = {}
    texts: dict[tuple[str, str], str] = {}
    for run in study.runs:
        for name, sign in SIGNS.items():
            for text in sign(histories[run.arm, run.seed]):
                found.setdefault((run.arm, name), []).append(run.seed)
                texts.setdefault((run.arm, name), text)
    ordered = sorted(found, key=lambda key: (study.arms.index(key[0]), list(SIGNS).index(key[1])))
    signs = tuple(_sentence(study, key, sorted(set(found[key])), texts[key]) for key in ordered)
    return (*signs, *_lacks(study))


def _sentence(study: Study, key: tuple[str, str], seeds: Sequence[int], text: str) -> str:
    arm, name = key
    if study.single:
        return f"{name[0].upper()}{name[1:]}. {text}"
    runs = len(study.of(arm))
    which = "" if runs == 1 else f" ({len(seeds)} of {runs} seeds; here seed {seeds[0]})"
    return f"{arm}: {name}{which}. {text}"


def _lacks(study: Study) -> Iterator[str]:
    if len({run.seed for run in study.runs}) == 1:
        yield "One seed: nothing here says what another seed would give. Differences may be chance."
    runs = len(study.arms) * len(study.seeds)
    if study.failed:
        yield f"{len(study.failed)} of {runs} runs failed; figures are of the others."
    if study.missing:
        stale = f" ({len(study.stale)} made with other settings)" if study.stale else ""
        yield f"{len(study.missing)} of {runs} runs are not finished{stale}; figures are of the others."


def history(run: Run, starts: dict[str, Seen]) -> tuple[Seen, ...]:
    """The initial policy, then every iteration up to the final one.

    `starts` keeps what was found of initial policies, by the stage that drew their answers: many runs share one.
    """
    record = run.path / "iter_0" / "sample" / "stage.json"
    key = str(read_json(record)["key"]) if record.is_file() else str(run.path)
    if key not in starts:
        starts[key] = _initial(run)
    return (starts[key], *(_after(run, iteration) for iteration in range(1, run.final + 1)))


def _initial(run: Run) -> Seen:
    path = run.path / "iter_0" / "sample" / "candidates.arrow"
    responses = read_candidates(path).flat() if path.is_file() else ()
    if not responses:
        return Seen(0, None, None)
    length = sum(len(response.ids) for response in responses) / len(responses)
    ended = sum(response.finish_reason == "stop" for response in responses) / len(responses)
    return Seen(0, length, ended)


def _after(run: Run, iteration: int) -> Seen:
    report = run.reports[iteration - 1]
    pairs = run.evidence("evaluate/pairs.arrow", iteration)
    own = report.get("selection", {}).get("generated", {})
    gold, points = _judged(run, iteration)
    return Seen(
        iteration=iteration,
        length=report["response_length"],
        ended=report["eos_rate"],
        kl=report["kl_to_initial"],
        drift=report["chosen_logp_drift"],
        chosen_length=None if pairs is None or pairs.empty else float(pairs["chosen_length"].mean()),
        own_pairs=own.get("kept", 0),
        own_labels=own.get("accuracy"),
        gold=gold,
        points=points,
    )


def _judged(run: Run, iteration: int) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """Gold and points of an iteration."""
    samples = run.evidence("evaluate/samples.arrow", iteration)
    if samples is None:
        won = run.reports[iteration - 1]["win_rate_vs_initial"]
        return None, None if won is None or won["mean"] is None else {WHOLE: won["mean"]}
    gold, points = (samples.groupby("prompt")[name].mean().dropna().to_dict() or None for name in ("gold", "points"))
    return gold, points


def longer_not_better(seen: Sequence[Seen]) -> Iterator[str]:
    """Length up since an earlier iteration while quality did not rise beyond chance."""
    for now in seen[1:]:
        for before in _shorter(seen, now):
            change = _change(before, now)
            if change is not None and change[2] <= 0.0:
                name, by, low, high = change
                yield f"{_growth(before, now)}, while {name} changed by {by:+.3f} [{low:+.3f}, {high:+.3f}]."
                return


def longer_unjudged(seen: Sequence[Seen]) -> Iterator[str]:
    """Length up since an earlier iteration, and since none of those it is up from is anything known of quality."""
    for now in seen[1:]:
        shorter = _shorter(seen, now)
        if shorter and all(_change(before, now) is None for before in shorter):
            judged = now.gold is not None or now.points is not None
            rest = "what was judged does not say" if judged else "nothing judged"
            yield f"{_growth(shorter[0], now)}, and {rest} whether they are better."
            return


def _shorter(seen: Sequence[Seen], now: Seen) -> list[Seen]:
    """What answers have grown longer since, the shortest first."""
    known = [(before.length, before) for before in seen[: now.iteration] if before.length is not None]
    grown = [] if now.length is None else [each for each in known if now.length >= LENGTH_RISE * each[0]]
    return [before for _, before in sorted(grown, key=lambda each: each[0])]


def _growth(before: Seen, now: Seen) -> str:
    since = f"iteration {before.iteration}" if before.iteration else "the initial policy"
    return f"From {since} to iteration {now.iteration} answers grew from {before.length:.1f} to {now.length:.1f} tokens"


def _change(before: Seen, now: Seen) -> tuple[str, float, float, float] | None:
    """What quality is measured by, its change and the ends of the change's interval; None where nothing gives one."""
    even = None if before.iteration or now.points is None else dict.fromkeys(now.points, 0.5)
    for name, ours, theirs in (
        ("gold reward", now.gold, before.gold),
        ("points against the initial policy", now.points, even or before.points),
    ):
        change = None if ours is None or theirs is None else paired_interval({0: ours}, {0: theirs})
        if change is not None and change.low is not None and change.high is not None:
            return name, change.mean, change.low, change.high
        if change is not None and change.prompts > 1:
            # The same on every prompt: no chance is left to give an interval.
            return name, change.mean, change.mean, change.mean
    return None


def kl_runaway(seen: Sequence[Seen]) -> Iterator[str]:
    """KL far beyond the initial policy, or multiplying from one iteration to the next."""
    for before, now in pairwise(seen):
        if not now.length:
            continue
        per_token = now.kl / now.length
        grew = before.iteration > 0 and now.kl > KL_GROWTH * max(before.kl, 0.0) and per_token > KL_GROWN
        if per_token > KL_PER_TOKEN or grew:
            growth = f", from {before.kl:.1f} one iteration before" if before.iteration else ""
            yield (
                f"After iteration {now.iteration} KL to the initial policy is {now.kl:.1f} nats per response{growth}: "
                f"{per_token:.1f} nats per token."
            )
            return


def chosen_collapse(seen: Sequence[Seen]) -> Iterator[str]:
    """Held-out chosen answers have become unlikely."""
    for now in seen[1:]:
        if now.drift is None or not now.chosen_length:
            continue
        per_token = now.drift / now.chosen_length
        if per_token < -LOGP_FALL:
            yield (
                f"After iteration {now.iteration} held-out chosen answers have lost {-now.drift:.1f} nats each, "
                f"{-per_token:.1f} per token."
            )
            return


def endless(seen: Sequence[Seen]) -> Iterator[str]:
    """Answers that ended by themselves no longer do."""
    best = seen[0].ended
    for now in seen[1:]:
        if now.ended is None:
            continue
        if best is not None and now.ended < best - EOS_FALL:
            yield f"In iteration {now.iteration} {now.ended:.1%} of the answers end by themselves, {best:.1%} before."
            return
        best = now.ended if best is None else max(best, now.ended)


def wrong_labels(seen: Sequence[Seen]) -> Iterator[str]:
    """The policy's own preferences contradict gold, beyond chance."""
    for now in seen[1:]:
        if now.own_labels is None or not now.own_pairs:
            continue
        confirmed = now.own_labels * now.own_pairs
        _, high = proportion_confint(confirmed, now.own_pairs, 1 - LABEL_LEVEL, method="beta")
        if high < COIN:
            yield (
                f"In iteration {now.iteration} gold confirms {now.own_labels:.1%} of the labels of its own "
                f"{now.own_pairs} pairs."
            )
            return


SIGNS: dict[str, Sign] = {
    "longer answers that are no better": longer_not_better,
    "longer answers that nobody judged": longer_unjudged,
    "KL runs away": kl_runaway,
    "chosen answers become unlikely": chosen_collapse,
    "answers stop ending": endless,
    "its own labels are worse than a coin": wrong_labels,
}
