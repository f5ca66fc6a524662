"""Which prompts an iteration samples from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sera_core.errors import ConfigError
from sera_core.records import Pair, Prompt, SourceData, TextPrompt

AnyPrompt = TypeVar("AnyPrompt")


def prompt_set(data: SourceData, name: str) -> str:
    """The set that `name` means: ``auto`` is ``fresh`` where the source brought such prompts, else ``offline``."""
    if name != "auto":
        return name
    return "fresh" if data.prompts.get("fresh") else "offline"


def offline_prompts(pairs: Sequence[Pair]) -> tuple[Prompt, ...]:
    """The distinct prompts of the offline pairs, in their order."""
    return tuple({pair.prompt.id: pair.prompt for pair in pairs}.values())


def named_prompts(data: SourceData, name: str) -> tuple[TextPrompt, ...]:
    """A prompt set of the source by name.

    Raises:
        ConfigError: the source brought no such set, or an empty one.
    """
    found = data.prompts.get(name, ())
    if not found:
        raise ConfigError(
            f"generated.prompts = '{name}': source '{data.name}' brought no such prompts for these options."
        )
    return found


def share_of_round(prompts: Sequence[AnyPrompt], index: int, rounds: int) -> tuple[AnyPrompt, ...]:
    """The prompts of round `index` (from 0) when they are split over `rounds` rounds: consecutive, equally many.

    Raises:
        ConfigError: there are fewer prompts than rounds.
    """
    share = len(prompts) // rounds
    if share == 0:
        raise ConfigError(f"generated.disjoint: {len(prompts)} prompts cannot be split over {rounds} iterations.")
    return tuple(prompts[index * share : (index + 1) * share])
