"""The source for preference data of one's own: hub data sets, files and folders, in four formats."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from sera_core.data.formats import Pairing, RowOptions, check_columns, text_pairs, text_prompts
from sera_core.data.noise import check_noise, flip_by_ids, flip_by_rate, read_flip_ids
from sera_core.data.readers import Row, has_splits, held_out_split, read_rows
from sera_core.data.splits import carve, hold_out, limited, opening, shuffled
from sera_core.errors import ConfigError, DataError, suggest
from sera_core.protocols import Needs, Progress, Provides
from sera_core.records import SourceData, TextPair, TextPrompt

_VALIDATION, _EVALUATION = 100, 64
_SPLIT = "train"
AnyFormat = Literal["auto", "pairs", "dialogues", "text", "scored"]


@dataclass(frozen=True)
class Preferences:
    """Preference pairs from a hub data set or local files.

    path: a file (jsonl, json, either gzipped, parquet, csv, arrow), a folder of ``<split>.<ending>`` files, a folder
        written by ``save_to_disk``, or a hub name, read at `revision`.
    format: ``pairs`` (explicit prompt, conversational; strings become single turns), ``dialogues`` (the longest common
        message prefix is the prompt), ``text`` (three strings, no template), ``scored`` (several answers with scores).
        ``auto`` goes by the columns; three plain strings are ``text``.
    split, validation_split: names; ``auto`` finds a validation or test split. Without one, held-out pairs are carved
        off by prompt, at most a fifth of all prompts.
    limit: how many training pairs to keep at most; the pairs of a prompt stay together. validation, evaluation: how
    many pairs and prompts to hold out; null means a quarter of the training pairs each, at most 100 and 64. Where there
    are fewer, both shrink in proportion.
    noise: the share of training labels to flip, in [0, 0.5), or a JSON file with ``flip_ids``.
    pairing: how ``scored`` answers become pairs. score: the name of the score field.
    columns: canonical name -> the name in the data; null hides a column.
    fresh: a file of further prompts, offered as the set ``fresh``; those that occur elsewhere are dropped.
    """

    path: str
    format: AnyFormat = "auto"
    split: str = _SPLIT
    validation_split: str | None = "auto"
    limit: int | None = None
    validation: int | None = None
    evaluation: int | None = None
    noise: float | str = 0.0
    pairing: Pairing = "best_vs_random"
    score: str = "score"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    revision: str | None = None
    fresh: str | None = None

    provides: ClassVar[Provides] = Provides(gold=False, policy=False, prompts=("sft", "fresh"))
    defaults: ClassVar[Mapping[str, Any]] = {
        "training": {
            "learning_rate": 5e-6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
        }
    }
    component_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective:dpo": {"beta": 0.1}}

    @classmethod
    def example(cls) -> Self:
        """A valid setting."""
        return cls(path="pairs.jsonl")

    def __post_init__(self) -> None:
        """Refuse options that cannot be honoured, with ConfigError."""
        for name, words in (("format", get_args(AnyFormat)), ("pairing", get_args(Pairing))):
            if getattr(self, name) not in words:
                given = str(getattr(self, name))
                raise ConfigError(f"source.{name} has no value {given!r}. {suggest(given, words)}")
        for name, least in (("validation", 0), ("evaluation", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"source.{name} must be at least {least}, not {value}.")
        if self.validation_split == self.split:
            raise ConfigError(f"source.validation_split is '{self.split}', the training split. Name another or none.")
        check_noise(self.noise)
        check_columns(self.columns)

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def policy(self, seed: int, cache: Path, progress: Progress | None = None) -> Path:  # noqa: ARG002 (the role's signature)
        """Preference data bring no model: always ConfigError."""
        raise ConfigError(
            "The source 'preferences' has no policy of its own. Set `policy.model` to a folder or hub name."
        )

    def load(self, seed: int) -> SourceData:
        """Pairs, held-out pairs and prompts; order, hold-out and noise fixed by `seed`.

        Label noise touches training pairs only. Every count of refused rows is in `dropped`: rows of any split by
        reason, ``in_validation_split`` (training rows whose prompt is held out elsewhere), ``held_out_surplus`` and
        ``flip_ids_unknown`` (listed ids the data lack).

        Raises:
            DataError: the data cannot be read, do not use an option that is set, or no usable pair is left.
            ConfigError: a revision or a split is named where there is none.
        """
        self._check_place()
        rows = read_rows(self.path, self.split, self.revision)
        found, dropped = text_pairs(rows, self.format, self._row_options(seed), self._where(self.split))
        train, held, held_rows = self._divide(found, seed, dropped)
        validation, evaluation, surplus = hold_out(held, *self._held_out_sizes(found), seed)
        dropped["held_out_surplus"] = surplus
        flips = read_flip_ids(self.noise) if isinstance(self.noise, str) else None
        pairs = self._flip(limited(shuffled(train, seed), self.limit), found, flips, seed, dropped)
        fresh, fresh_rows = self._fresh([*train, *held], dropped)
        return SourceData(
            name="preferences",
            pairs=pairs,
            validation=validation,
            evaluation=evaluation,
            prompts={"sft": _with_targets(pairs), **({"fresh": fresh} if self.fresh else {})},
            dropped={reason: count for reason, count in sorted(dropped.items()) if count},
            fingerprint=self._fingerprint(seed, (rows, held_rows, fresh_rows, sorted(flips or ()))),
        )

    def _check_place(self) -> None:
        """ConfigError for a revision or split that the place at `path` does not have."""
        if self.revision is not None and Path(self.path).expanduser().exists():
            raise ConfigError(
                f"source.revision is '{self.revision}', but source.path is the local {self.path}. Remove it."
            )
        if self.split != _SPLIT and not has_splits(self.path):
            raise ConfigError(f"source.split is '{self.split}', but {self.path} is not divided into splits. Remove it.")

    def _where(self, split: str) -> str:
        return f"'{self.path}' (split '{split}')"

    def _row_options(self, seed: int, *, strict: bool = True) -> RowOptions:
        return RowOptions(self.columns, self.score, self.pairing, seed, strict)

    def _divide(
        self, found: Sequence[TextPair], seed: int, dropped: Counter[str]
    ) -> tuple[list[TextPair], list[TextPair], list[Row]]:
        """Training pairs, held-out pairs and the raw rows of a split of their own."""
        split = self.validation_split
        if split == "auto":
            split = held_out_split(self.path, self.split)
        if split is None:
            train, openings = carve(found, *self._held_out_sizes(found), seed)
            return train, [pair for pair in found if opening(pair.prompt) in openings], []
        rows = self._held_out_rows(split)
        held, lost = text_pairs(rows, self.format, self._row_options(seed, strict=False), self._where(split))
        dropped += lost
        openings = {opening(pair.prompt) for pair in held}
        train = [pair for pair in found if opening(pair.prompt) not in openings]
        dropped["in_validation_split"] = len(found) - len(train)
        if not train:
            raise DataError(f"Every prompt of {self._where(self.split)} is also in split '{split}'. Name other splits.")
        if {pair.id for pair in held} & {pair.id for pair in train}:
            held = [dataclasses.replace(pair, id=f"{split}:{pair.id}") for pair in held]
        return train, held, rows

    def _held_out_sizes(self, found: Sequence[TextPair]) -> tuple[int, int]:
        """How many validation pairs and evaluation prompts to hold out."""
        quarter = max(1, min(len(found), self.limit or len(found)) // 4)
        validation = min(_VALIDATION, quarter) if self.validation is None else self.validation
        return validation, min(_EVALUATION, quarter) if self.evaluation is None else self.evaluation

    def _held_out_rows(self, split: str) -> list[Row]:
        if not has_splits(self.path):
            raise ConfigError(
                f"source.validation_split is '{split}', but {self.path} is not divided into splits. Give a folder"
                " with one file per split, or leave it out to have pairs carved off."
            )
        return read_rows(self.path, split, self.revision)

    def _flip(
        self,
        pairs: Sequence[TextPair],
        found: Sequence[TextPair],
        flips: frozenset[str] | None,
        seed: int,
        dropped: Counter[str],
    ) -> tuple[TextPair, ...]:
        """The training pairs with their label noise."""
        if flips is None:
            return flip_by_rate(pairs, float(self.noise), seed)
        known = {pair.id for pair in found}
        if not flips & known:
            raise DataError(
                f"None of the {len(flips)} flip_ids in {self.noise} occurs in {self._where(self.split)}: listed"
                f" {', '.join(sorted(flips)[:2]) or '(none)'}, the data have {', '.join(sorted(known)[:2])}."
                " Give the list made for these data."
            )
        dropped["flip_ids_unknown"] = len(flips - known)
        return flip_by_ids(pairs, flips)

    def _fresh(self, pairs: Sequence[TextPair], dropped: Counter[str]) -> tuple[tuple[TextPrompt, ...], list[Row]]:
        """Prompts of the file `fresh` whose opening occurs in no pair, and its rows."""
        if self.fresh is None:
            return (), []
        rows = read_rows(self.fresh, self.split)
        chat = not isinstance(pairs[0].prompt.messages, str)
        prompts, lost = text_prompts(rows, self.columns, chat, f"'{self.fresh}'")
        known = {opening(pair.prompt) for pair in pairs}
        kept = tuple(prompt for prompt in prompts if opening(prompt) not in known)
        dropped += lost
        dropped["fresh_known"] = len(prompts) - len(kept)
        if not kept:
            raise DataError(f"No prompt of '{self.fresh}' is usable and new. Give prompts that the pairs do not hold.")
        return kept, rows

    def _fingerprint(self, seed: int, content: Sequence[Sequence[object]]) -> str:
        """16 hex digits of the rows read, the options and the seed; where the files lie does not matter."""
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("path", "fresh")}
        if isinstance(self.noise, str):
            options["noise"] = "list"
        # The sizes say which part a line belongs to, so that no two contents share a text.
        head = [seed, options, [len(part) for part in content]]
        return _digest(itertools.chain([head], *content))


def _digest(values: Iterable[object]) -> str:
    """16 hex digits of values, one JSON line each; none is held beside the next."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def _with_targets(pairs: Sequence[TextPair]) -> tuple[TextPrompt, ...]:
    """Each distinct prompt once, its first pair's chosen answer as target."""
    prompts: dict[str, TextPrompt] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt.id, dataclasses.replace(pair.prompt, target=pair.chosen))
    return tuple(prompts.values())
