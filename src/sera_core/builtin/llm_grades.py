"""A judge that asks a language model for grades in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sera_core.builtin.asking import (
    Unbound,
    conversation,
    question,
    require_model,
    require_template,
    verdicts,
)
from sera_core.errors import ConfigError
from sera_core.options import require_number, require_positive, require_whole
from sera_core.protocols import Asker, Judge, Needs, Verdict
from sera_core.records import Floats, Response

TEMPLATE = """\
You will read a message from a user and a reply to it. Grade the reply from {low} to {high} by adding up points.

Start from {low}. Of the points up to {high}, the first fifth is for a reply on the subject, however incomplete; the \
second for one that deals with a good part of what was asked; the third for one that settles the essentials in a way \
the user can act on; the fourth for one that is complete, well ordered and written for this user; the last for one \
that shows real knowledge of the matter and holds nothing that should be cut.

### Message
{prompt}

### Reply
{response}

### Your task
Explain in at most four sentences which points the reply earns. Then close with one line of this form:
Score: <number>"""

# The number must be whole words of its own: neither the start of a range such as 0-5 nor of a longer figure.
_SCORE = re.compile(
    r"score[^\w+\-]*(?:-\s+)?([+\-]?\d+(?:\.\d+)?)(?![\w]|[.,]\d|\s*[-\u2013]\s*\d)",
    re.IGNORECASE,
)


def parse_grade(reply: str, low: float, high: float) -> float | None:
    """The number behind the last ``Score:`` of a reply; None where there is none, or it lies outside [low, high].

    Case and punctuation such as ``**Score:** 4/5`` do not matter.
    """
    found = _SCORE.findall(reply)
    grade = float(found[-1]) if found else np.nan
    return grade if low <= grade <= high else None


@dataclass(frozen=True)
class LlmGrades(Unbound):
    """Grades a response by asking a language model for points, several times; the mean of what can be read counts.

    Options: `model` is ``policy`` (the newest iterate judges its own samples), ``initial``, ``smollm2-135m``, a folder
    or a hub name. `template` holds ``{prompt}`` and ``{response}``, and may hold ``{low}`` and ``{high}``; it must ask
    for a line ``Score: <number>``. `samples` >= 1 replies per response, drawn at `temperature` > 0 with at most
    `max_new_tokens` each. Grades outside [`low`, `high`] are not read. A response none of whose replies can be read
    gets no grade.

    Raises:
        ConfigError: a template without its placeholders, or a value out of range.

    Source: Yuan et al. 2024 (Self-Rewarding), Section 2.2: additive grades 0 to 5; Section 3.1: the mean of three.
    """

    model: str = "policy"
    template: str = TEMPLATE
    samples: int = 3
    temperature: float = 0.7
    max_new_tokens: int = 256
    low: float = 0.0
    high: float = 5.0

    def __post_init__(self) -> None:
        name = "judge 'llm_grades'"
        require_model(name, self.model)
        require_template(name, self.template, ("prompt", "response"))
        require_whole(name, "samples", self.samples, low=1)
        require_whole(name, "max_new_tokens", self.max_new_tokens, low=1)
        require_positive(name, "temperature", self.temperature, typical="0.7")
        bound = float(np.finfo(np.float64).max)
        for option in ("low", "high"):
            value = getattr(self, option)
            require_number(name, option, value, low=-bound, high=bound, expected="a finite number")
        if not self.low < self.high:
            raise ConfigError(f"{name}: option low = {self.low!r} must be below high = {self.high!r}. Change one.")

    @property
    def needs(self) -> Needs:
        """Nothing beside its model."""
        return Needs()

    def bind(self, asker: Asker) -> Judge:
        """This judge with its model."""
        return Grading(self, asker)


@dataclass
class Grading:
    """`LlmGrades` with its model, and counts of what has been judged."""

    options: LlmGrades
    asker: Asker
    _counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("replies", "parse_failures", "abstained"), 0)
    )

    @property
    def needs(self) -> Needs:
        """Those of the judge."""
        return self.options.needs

    def grade(self, responses: Sequence[Response]) -> Floats:
        """Mean grade float64 [n] in [low, high]; nan where no reply could be read."""
        options = self.options
        limits = {"low": f"{options.low:g}", "high": f"{options.high:g}"}
        questions = [
            question(options.template, {"prompt": conversation(r.prompt.source), "response": r.text} | limits)
            for r in responses
        ]
        replies = self.asker.replies(
            questions,
            samples=options.samples,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
        )
        return np.array([self._mean(each) for each in replies], dtype=np.float64)

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:
        """The higher grade wins, equal ones tie; abstains where either side has no grade."""
        grades = self.grade([*first, *second])
        return verdicts(grades[: len(first)], grades[len(first) :])

    def account(self) -> Mapping[str, float]:
        """Over all grading: `replies`, how many of them could not be read, and how many responses got no grade."""
        return {name: float(count) for name, count in self._counts.items()}

    def _mean(self, replies: Sequence[str]) -> float:
        parsed = [parse_grade(reply, self.options.low, self.options.high) for reply in replies]
        grades = [grade for grade in parsed if grade is not None]
        self._counts["replies"] += len(replies)
        self._counts["parse_failures"] += len(replies) - len(grades)
        self._counts["abstained"] += not grades
        return float(np.mean(grades)) if grades else float("nan")
