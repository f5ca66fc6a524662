"""Which pairs train and which are held out, so that no prompt, nor its continuation, is on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sera_core.data.cells import content_id
from sera_core.data.noise import uniform
from sera_core.records import TextPair, TextPrompt

_LARGEST_SHARE = 5


def opening(prompt: TextPrompt) -> str:
    """What two prompts have in common when they are one conversation at different lengths: the first user message."""
    if isinstance(prompt.messages, str):
        text = prompt.messages
    else:
        text = next((message.content for message in prompt.messages if message.role == "user"), "")
    return content_id(" ".join(text.casefold().split()))


def limited(pairs: Sequence[TextPair], limit: int | None) -> list[TextPair]:
    """At most `limit` pairs in their order; all pairs of a prompt or none, save where no prompt fits."""
    if limit is None:
        return list(pairs)
    sizes = Counter(pair.prompt.id for pair in pairs)
    kept: set[str] = set()
    room = limit
    for pair in pairs:
        if pair.prompt.id not in kept and sizes[pair.prompt.id] <= room:
            kept.add(pair.prompt.id)
            room -= sizes[pair.prompt.id]
    return [pair for pair in pairs if pair.prompt.id in kept] or list(pairs[:limit])


def shuffled(pairs: Sequence[TextPair], seed: int) -> list[TextPair]:
    """The pairs in an order that depends on `seed` and their ids alone."""
    return sorted(pairs, key=lambda pair: (uniform(seed, "order", pair.id), pair.id))


def carve(pairs: Sequence[TextPair], validation: int, evaluation: int, seed: int) -> tuple[list[TextPair], set[str]]:
    """Train pairs, in their order, and the openings held out for `validation` pairs and `evaluation` prompts.

    At most one opening in five is held out, so small data sets keep most of their pairs for training.
    """
    groups = _by_opening(pairs)
    order = _held_order(groups, seed)
    held: set[str] = set()
    for name in order[: len(order) // _LARGEST_SHARE]:
        if validation > 0:
            validation -= len(groups[name])
        elif evaluation > 0:
            evaluation -= len({pair.prompt.id for pair in groups[name]})
        else:
            break
        held.add(name)
    return [pair for pair in pairs if opening(pair.prompt) not in held], held


def hold_out(
    pairs: Sequence[TextPair], validation: int, evaluation: int, seed: int
) -> tuple[tuple[TextPair, ...], tuple[TextPrompt, ...], int]:
    """Validation pairs and evaluation prompts from held-out `pairs`, of different openings, and how many pairs remain.

    Where there are too few for both, each gets its proportional share. Evaluation prompts carry the chosen answer as
    `target`.
    """
    asked = validation + evaluation
    share = 1.0 if not asked else min(1.0, len(pairs) / asked)
    groups = _by_opening(pairs)
    quota = round(validation * share)
    kept: list[TextPair] = []
    prompts: dict[str, TextPrompt] = {}
    for name in _held_order(groups, seed):
        if len(kept) < quota:
            kept += groups[name][: quota - len(kept)]
            continue
        for pair in groups[name]:
            if len(prompts) < evaluation:
                prompts.setdefault(pair.prompt.id, replace(pair.prompt, target=pair.chosen))
    return tuple(kept), tuple(prompts.values()), len(pairs) - len(kept) - len(prompts)


def _by_opening(pairs: Sequence[TextPair]) -> dict[str, list[TextPair]]:
    groups: dict[str, list[TextPair]] = {}
    for pair in pairs:
        groups.setdefault(opening(pair.prompt), []).append(pair)
    return groups


def _held_order(groups: Iterable[str], seed: int) -> list[str]:
    """The order in which openings are held out, the same whichever others there are."""
    return sorted(groups, key=lambda name: (uniform(seed, "held-out", name), name))
