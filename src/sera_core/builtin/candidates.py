"""What labelers share: when responses are empty or the same, and how a generated pair is named."""

from __future__ import annotations

from sera_core.records import Pair, Response

GENERATED = "generated"


def wording(response: Response) -> str:
    """The words of a response; two responses of equal wording cannot be compared, however they were tokenised."""
    return response.text.strip()


def is_empty(response: Response) -> bool:
    """Whether a response has no tokens or no words; an end-of-turn token alone says nothing."""
    return response.ids.size == 0 or not wording(response)


def generated_pair(chosen: Response, rejected: Response) -> Pair:
    """A pair of source ``generated``, named after its prompt, with an empty template hash."""
    return Pair(id=f"{chosen.prompt.id}#gen", chosen=chosen, rejected=rejected, source=GENERATED, template="")
