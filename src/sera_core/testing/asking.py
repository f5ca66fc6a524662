"""An asker without a model, so that judges that ask one can be checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from sera_core.records import Floats, Response, TextPrompt


class FakeAsker:
    """Answers by hashes of what it is asked: deterministic, different for different texts, nothing to do with sense.

    Every fourth reply holds no grade; the others close with ``Score: <0 to 5>``.
    """

    def answer_logps(self, questions: Sequence[TextPrompt], answers: Sequence[str]) -> Floats:
        """Between -4 and 0 nats, float64 [q, a]."""
        rows = [[-4 * _share("logp", str(each.messages), answer) for answer in answers] for each in questions]
        return np.array(rows, dtype=np.float64).reshape(len(questions), len(answers))

    def replies(
        self,
        questions: Sequence[TextPrompt],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,  # noqa: ARG002 (the role's signature)
    ) -> tuple[tuple[str, ...], ...]:
        """`samples` replies to each question."""
        seeds = [(str(each.messages), f"{temperature} {k}") for each in questions for k in range(samples)]
        texts = [
            "No idea." if _share("said", *seed) < 0.25 else f"It is so. Score: {int(6 * _share('grade', *seed))}"
            for seed in seeds
        ]
        return tuple(tuple(texts[i : i + samples]) for i in range(0, len(texts), samples))

    def rewards(self, responses: Sequence[Response]) -> Floats:
        """Between -2 and 2, float64 [n]."""
        return np.array([4 * _share("reward", r.prompt.id, r.text) - 2 for r in responses], dtype=np.float64)


def _share(*texts: str) -> float:
    """A number in [0, 1) that the texts decide."""
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=6).digest(), "little") / 2**48
