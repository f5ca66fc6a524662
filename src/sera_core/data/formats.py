"""From rows to text pairs: the four shapes of preference data, and the reasons rows are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sera_core.data.cells import (
    BadRowError,
    answer_of,
    content_id,
    conversation_of,
    dialogue_of,
    prompt_of,
    score_of,
    text_of,
)
from sera_core.data.noise import uniform
from sera_core.errors import ConfigError, DataError, suggest
from sera_core.records import TextPair, TextPrompt

Row = Mapping[str, Any]
Format = Literal["pairs", "dialogues", "text", "scored"]
Pairing = Literal["best_vs_rest", "best_vs_random", "all"]

COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "dialogues": ("chosen", "rejected"),
    "text": ("prompt", "chosen", "rejected"),
    "scored": ("prompt", "responses"),
}
OPTIONAL = ("id", "scores", "score_chosen", "score_rejected")
RENAMEABLE = tuple(sorted({name for names in COLUMNS.values() for name in names} | set(OPTIONAL)))


@dataclass(frozen=True)
class RowOptions:
    """How to read rows: field names, the score's name, the pairing of scored answers and its seed.

    `strict` refuses rows that do not read an option that is set.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    score: str = "score"
    pairing: Pairing = "best_vs_random"
    seed: int = 0
    strict: bool = True


def text_pairs(
    rows: Sequence[Row], form: Format | Literal["auto"], options: RowOptions, where: str
) -> tuple[list[TextPair], Counter[str]]:
    """All usable pairs of `rows` in order, and the number of rows (of pairs, for scored data) dropped by reason.

    Raises:
        DataError: columns are missing, an id names two different pairs, no pair is left, or (where `options` are
            strict) an option is set that these rows do not read.
    """
    _require_sources(options.columns, rows, where)
    renamed = [_rename(row, options) for row in rows]
    present = {name for row in renamed for name in row}
    chosen_form = _detect(renamed, present, where) if form == "auto" else form
    _require(COLUMNS[chosen_form], present, rows, chosen_form, where)
    if options.strict and chosen_form != "scored":
        _refuse_unread(options, rows, chosen_form, where)
    dropped: Counter[str] = Counter()
    pairs: dict[str, TextPair] = {}
    for row in renamed:
        try:
            found, lost = _parse(row, chosen_form, options)
        except BadRowError as bad:
            dropped[str(bad)] += 1
            continue
        dropped += lost
        for pair in found:
            known = pairs.setdefault(pair.id, pair)
            if known is not pair:
                _refuse_clash(known, pair, where)
                dropped["duplicate_row"] += 1
    if not pairs:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DataError(f"No row of {where} can be used (read as '{chosen_form}'): {counts}. Check format and columns.")
    return list(pairs.values()), dropped


def text_prompts(
    rows: Sequence[Row], columns: Mapping[str, str | None], chat: bool, where: str
) -> tuple[list[TextPrompt], Counter[str]]:
    """Distinct prompts of a file with a ``prompt`` column, and unusable rows by reason; `chat` makes strings turns."""
    renamed = [_rename(row, RowOptions(columns)) for row in rows]
    _require(("prompt",), {name for row in renamed for name in row}, rows, "prompts", where)
    prompts: dict[str, TextPrompt] = {}
    dropped: Counter[str] = Counter()
    for row in renamed:
        try:
            prompt = prompt_of(_as_turn(row.get("prompt")) if chat else row.get("prompt"))
        except BadRowError as bad:
            dropped[str(bad)] += 1
            continue
        prompts.setdefault(prompt.id, prompt)
    return list(prompts.values()), dropped


def _parse(row: Row, form: Format, options: RowOptions) -> tuple[list[TextPair], Counter[str]]:
    """The pairs of one row under canonical names, and what was lost inside it."""
    return _parse_scored(row, options) if form == "scored" else ([_PARSERS[form](row)], Counter())


def _row_id(row: Row, *content: object) -> str:
    return str(row["id"]) if row.get("id") is not None else content_id(*content)


def _as_turn(prompt: object) -> object:
    """A string prompt of conversational data as its only message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def check_columns(columns: Mapping[str, str | None]) -> None:
    """ConfigError unless every key is a column that can be renamed."""
    unknown = sorted(set(columns) - set(RENAMEABLE))
    if unknown:
        raise ConfigError(f"source.columns has no {unknown[0]!r}. {suggest(unknown[0], RENAMEABLE)}")


def _rename(row: Row, options: RowOptions) -> dict[str, Any]:
    """The row under canonical column names; ``chosen_score`` is read as ``score_chosen``."""
    new = dict(row)
    for side in ("chosen", "rejected"):
        given = _score_columns(options.score, side)
        new[f"score_{side}"] = next((row[name] for name in given if name in row), None)
    for name, source in options.columns.items():
        new.pop(name, None)
        if source is not None and source in row:
            new[name] = row[source]
    return new


def _score_columns(score: str, side: str) -> tuple[str, str]:
    """Where a pair's row may hold the score of one side."""
    return f"{score}_{side}", f"{side}_{score}"


def _refuse_unread(options: RowOptions, rows: Sequence[Row], form: Format, where: str) -> None:
    """DataError where `pairing` or `score` is set for rows that hold pairs already, and so would do nothing."""
    default = RowOptions()
    if options.pairing != default.pairing:
        raise DataError(
            f"source.pairing is '{options.pairing}', but {where} holds pairs (read as '{form}'), not several scored "
            "answers to a prompt. Remove it."
        )
    names = [name for side in ("chosen", "rejected") for name in _score_columns(options.score, side)]
    if options.score != default.score and not any(name in row for row in rows for name in names):
        raise DataError(
            f"source.score is '{options.score}', but {where} (read as '{form}') has none of the columns"
            f" {', '.join(names)}. {suggest(names[0], {name for row in rows for name in row})} Correct or remove it."
        )


def _detect(rows: Sequence[Row], present: set[str], where: str) -> Format:
    """The format the columns speak for."""
    if {"prompt", "chosen", "rejected"} <= present:
        first = next((r for r in rows if None not in (r.get("prompt"), r.get("chosen"), r.get("rejected"))), {})
        plain = all(isinstance(first.get(name), str) for name in COLUMNS["text"])
        return "text" if plain else "pairs"
    if {"prompt", "responses"} <= present:
        return "scored"
    if {"chosen", "rejected"} <= present:
        return "dialogues"
    raise _columns_error(COLUMNS["pairs"], present, "any format (chosen and rejected, or prompt and responses)", where)


def _require(wanted: Sequence[str], present: set[str], rows: Sequence[Row], form: str, where: str) -> None:
    if not set(wanted) <= present:
        raise _columns_error(wanted, {name for row in rows for name in row}, f"format '{form}'", where)


def _require_sources(columns: Mapping[str, str | None], rows: Sequence[Row], where: str) -> None:
    """DataError when `columns` names a column that no row has."""
    found = {name for row in rows for name in row}
    for name, source in columns.items():
        if source is not None and source not in found:
            raise DataError(
                f"source.columns.{name} is '{source}', which {where} does not have. {suggest(source, found)}"
            )


def _columns_error(wanted: Sequence[str], present: set[str], form: str, where: str) -> DataError:
    found = sorted(present - {"score_chosen", "score_rejected"})
    return DataError(
        f"{where} has the columns {', '.join(found) or '(none)'}; expected {', '.join(wanted)} for {form}."
        f" Name yours with `source.columns`, for example {{{wanted[0]}: {found[0] if found else 'question'}}}."
    )


def _refuse_clash(first: TextPair, second: TextPair, where: str) -> None:
    same = (first.prompt.id, first.chosen, first.rejected) == (second.prompt.id, second.chosen, second.rejected)
    if not same:
        raise DataError(
            f"The id {first.id!r} names two different pairs in {where}. Make ids unique, map `source.columns.id` to"
            " another column, or set it to null to use hashes of the content."
        )


def _parse_pairs(row: Row) -> TextPair:
    prompt = row.get("prompt")
    asked = prompt_of(_as_turn(prompt))
    return _pair(row, asked, answer_of(row.get("chosen"), asked), answer_of(row.get("rejected"), asked))


def _parse_text(row: Row) -> TextPair:
    prompt, chosen, rejected = (text_of(row.get(name)) for name in COLUMNS["text"])
    return _pair(row, prompt_of(prompt), chosen, rejected)


def _parse_dialogues(row: Row) -> TextPair:
    """The longest common message prefix is the prompt; one assistant message must remain on each side."""
    chosen, rejected = (dialogue_of(row.get(name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRowError("identical_answers")
    shared = zip(chosen, rejected, strict=False)
    common = next((i for i, (a, b) in enumerate(shared) if a != b), min(len(chosen), len(rejected)))
    ends = chosen[common:], rejected[common:]
    if any(len(end) != 1 or end[0].role != "assistant" for end in ends):
        raise BadRowError("different_prefix")
    return _pair(row, conversation_of(chosen[:common]), ends[0][0].content, ends[1][0].content)


_PARSERS: Mapping[Format, Callable[[Row], TextPair]] = {
    "pairs": _parse_pairs,
    "dialogues": _parse_dialogues,
    "text": _parse_text,
}


def _parse_scored(row: Row, options: RowOptions) -> tuple[list[TextPair], Counter[str]]:
    """Pairs of answers with strictly different scores, chosen the higher; ties and identical texts are counted."""
    prompt = prompt_of(_as_turn(row.get("prompt")))
    answers = _scored_answers(row, options)
    answers.sort(key=lambda answer: (-answer[1], content_id(answer[0])))
    name = _row_id(row, prompt.id, answers)
    best = range(len(answers) if options.pairing == "all" else 1)
    couples = [(i, j) for i in best for j in range(i + 1, len(answers))]
    untied = [(i, j) for i, j in couples if answers[j][1] < answers[i][1]]
    found = [(i, j) for i, j in untied if answers[i][0].strip() != answers[j][0].strip()]
    if not found:
        raise BadRowError("identical_answers" if untied else "tied_scores")
    counts = Counter({"tied_scores": len(couples) - len(untied), "identical_answers": len(untied) - len(found)})
    if options.pairing == "best_vs_random":
        i, j = found[int(uniform(options.seed, "pairing", name) * len(found))]
        return [TextPair(name, prompt, answers[i][0], answers[j][0], answers[i][1], answers[j][1])], Counter()
    return [
        TextPair(f"{name}#{i}-{j}", prompt, answers[i][0], answers[j][0], answers[i][1], answers[j][1])
        for i, j in found
    ], +counts


def _scored_answers(row: Row, options: RowOptions) -> list[tuple[str, float]]:
    """Texts and finite scores: objects with content (or text) and a score, or strings beside a ``scores`` column."""
    responses, scores = row.get("responses"), row.get("scores")
    if not isinstance(responses, Sequence) or isinstance(responses, str):
        raise BadRowError("missing_value")
    if all(isinstance(response, str) for response in responses) and isinstance(scores, Sequence):
        if len(scores) != len(responses):
            raise BadRowError("bad_score")
        responses = [{"content": r, options.score: s} for r, s in zip(responses, scores, strict=True)]
    answers = []
    for response in responses:
        if not isinstance(response, Mapping):
            raise BadRowError("not_text")
        text = response.get("content", response.get("text"))
        score = score_of(response.get(options.score))
        if score is None:
            raise BadRowError("bad_score")
        answers.append((text_of(text), score))
    if len(answers) < 2:
        raise BadRowError("too_few_answers")
    return answers


def _pair(row: Row, prompt: TextPrompt, chosen: str, rejected: str) -> TextPair:
    for text in (chosen, rejected):
        text_of(text)
    if chosen.strip() == rejected.strip():
        raise BadRowError("identical_answers")
    high, low = score_of(row.get("score_chosen")), score_of(row.get("score_rejected"))
    if high is not None and high == low:
        raise BadRowError("tied_scores")
    name = _row_id(row, prompt.id, chosen, rejected)
    return TextPair(name, prompt, chosen, rejected, high, low)
