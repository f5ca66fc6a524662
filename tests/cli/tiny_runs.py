"""A run that takes seconds: a random model, thirty pairs in its vocabulary, and settings that keep everything small."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from sera_core import configfile
from sera_core.testing.tiny import WORDS

TINY = (
    "tokens.max_prompt_tokens=32",
    "tokens.max_response_tokens=16",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "training.learning_rate=1.0e-3",
    "training.num_train_epochs=1",
    "evaluation.sampling.samples=2",
    "evaluation.sampling.max_new_tokens=8",
)
GENERATED = ("generated.samples=2", "generated.max_new_tokens=8")


def write_pairs(path: Path, count: int = 30, start: int = 0) -> Path:
    """Conversational pairs with explicit, distinct prompts: the chosen answer speaks of the asked word, once or twice."""
    words = [word for word in WORDS if word not in ("what", "is")]
    rows = []
    for i, (first, second) in enumerate(itertools.islice(itertools.permutations(words, 2), start, start + count)):
        rows.append(
            {
                "id": f"row-{start + i}",
                "prompt": [{"role": "user", "content": f"what is {first} and {second}"}],
                "chosen": [
                    {"role": "assistant", "content": " ".join([first, "is", second, "and", "blue"][: 3 + i % 3])}
                ],
                "rejected": [{"role": "assistant", "content": " ".join(["not", second, "or", "red"][: 2 + i % 3])}],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_overrides(preset: str, source: Path, model: Path, *more: str) -> list[str]:
    """The command-line overrides that make a preset tiny; what it has no use for, or would refuse, is left out."""
    raw = configfile.read(configfile.locate(preset))
    generated = GENERATED if isinstance(raw.get("generated"), dict) else ()
    # One-stage presets have no loop, and one that stops by itself has schedules as long as its loop.
    loop = ("loop.iterations=2",) if "loop" in raw and "stop" not in raw["loop"] else ()
    return [f"source={source}", f"policy.model={model}", *TINY, *generated, *loop, *more]


def tiny_config(preset: str, source: Path, model: Path, *more: str) -> dict:
    """The same run as settings for `sera_core.run`."""
    raw = configfile.read(configfile.locate(preset))
    return configfile.override(raw, tiny_overrides(preset, source, model, *more))
