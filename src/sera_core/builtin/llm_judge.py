"""A judge that asks a language model which of two responses is better, in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sera_core.builtin.asking import Unbound, conversation, question, require_model, require_template
from sera_core.errors import ConfigError
from sera_core.options import require_number
from sera_core.protocols import Asker, Judge, Needs, Verdict
from sera_core.records import Floats, Response, TextPrompt

TEMPLATE = """\
A user and an assistant are talking. Two replies to the last message have been proposed.

### Conversation
{prompt}

### Reply {first_label}
{first}

### Reply {second_label}
{second}

### Task
Decide which reply serves the user better. Look at whether it is right, useful, honest and harmless, not at how long \
it is or where it stands. Respond with {first_label} or {second_label} and nothing else."""


@dataclass(frozen=True)
class LlmJudge(Unbound):
    """Compares two responses by the probabilities a language model gives to the label of each, in both orders.

    Options: `model` is a folder, a hub name, ``smollm2-135m``, ``initial`` or ``policy``. `template` holds
    ``{prompt}``, ``{first}`` and ``{second}``, and may hold ``{first_label}`` and ``{second_label}``, which stand for
    the two `labels`. `tie_margin` in [0, 0.5): the preference ties within so much of one half.

    Raises:
        ConfigError: a template without its placeholders, labels that are empty or the same, or a value out of range.

    Source: Kim et al. 2024 (SPA), Appendix B.2: preference by log-probs of the labels; Zheng et al. 2023, Section 3.4:
    both orders.
    """

    model: str = "initial"
    template: str = TEMPLATE
    labels: tuple[str, str] = ("A", "B")
    tie_margin: float = 0.0

    def __post_init__(self) -> None:
        name = "judge 'llm_judge'"
        require_model(name, self.model)
        require_template(name, self.template, ("prompt", "first", "second"))
        require_number(name, "tie_margin", self.tie_margin, low=0, high=0.5, expected="a number in [0, 0.5)")
        if self.tie_margin >= 0.5:
            raise ConfigError(f"{name}: option tie_margin must be a number in [0, 0.5); got {self.tie_margin!r}.")
        if len({label.strip() for label in self.labels} - {""}) != 2:
            raise ConfigError(f"{name}: option labels must be two different texts; got {self.labels!r}.")

    @property
    def needs(self) -> Needs:
        """Nothing beside its model."""
        return Needs()

    def bind(self, asker: Asker) -> Judge:
        """This judge with its model."""
        return Comparing(self, asker)


@dataclass
class Comparing:
    """`LlmJudge` with its model, and counts of what has been judged."""

    options: LlmJudge
    asker: Asker
    _preferences: list[tuple[float, float]] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        """Those of the judge."""
        return self.options.needs

    def grade(self, responses: Sequence[Response]) -> Floats:
        """Not supported: this judge only compares."""
        raise NotImplementedError

    def compare(self, first: Sequence[Response], second: Sequence[Response]) -> tuple[Verdict, ...]:
        """One verdict per comparison, by the preference averaged over both orders.

        Responses of equal words tie without being asked about; a preference that is not finite abstains. Swapping the
        two sides swaps wins and losses exactly.
        """
        different = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a.text.strip() != b.text.strip()]
        ahead = self._first_shown([(first[i], second[i]) for i in different])
        behind = self._first_shown([(second[i], first[i]) for i in different])
        self._preferences += zip(ahead.tolist(), behind.tolist(), strict=True)
        verdicts: list[Verdict] = ["tie"] * len(first)
        for i, gap in zip(different, (ahead - behind) / 2, strict=True):
            verdicts[i] = self._verdict(float(gap))
        return tuple(verdicts)

    def account(self) -> Mapping[str, float]:
        """Figures over all comparisons of different responses.

        `comparisons` and how many `abstained`; `order_flip_rate`, the share of decided ones whose two orders name
        different winners, so that the position decides; `first_position_bias`, the mean preference for what is shown
        first minus one half, in [-0.5, 0.5]. The last two are left out where nothing was decided.
        """
        asked = np.array(self._preferences, dtype=np.float64).reshape(-1, 2)
        decided = asked[np.isfinite(asked).all(1)]
        found = {"comparisons": float(len(asked)), "abstained": float(len(asked) - len(decided))}
        if len(decided):
            ahead, behind = decided.T - 0.5
            found["order_flip_rate"] = float(np.mean(ahead * behind > 0))
            found["first_position_bias"] = float(np.mean((ahead + behind) / 2))
        return found

    def _first_shown(self, shown: Sequence[tuple[Response, Response]]) -> Floats:
        """Preference for the response shown first, float64 [n] in [0, 1]: the softmax over both labels' log-probs."""
        if not shown:
            return np.zeros(0)
        logps = self.asker.answer_logps([self._question(*both) for both in shown], self.options.labels)
        gaps = logps[:, 1] - logps[:, 0]
        with np.errstate(over="ignore"):
            preferences: Floats = 1 / (1 + np.exp(gaps))
        return preferences

    def _question(self, first: Response, second: Response) -> TextPrompt:
        values = {"prompt": conversation(first.prompt.source), "first": first.text, "second": second.text}
        labels = dict(zip(("first_label", "second_label"), self.options.labels, strict=True))
        return question(self.options.template, values | labels)

    def _verdict(self, gap: float) -> Verdict:
        """`gap`: averaged preference for the first side minus one half."""
        if not np.isfinite(gap):
            return "abstain"
        return "tie" if abs(gap) <= self.options.tie_margin else "win" if gap > 0 else "loss"
