"""Log-probs of responses per second: plain padded transformers loops, and Sera's packs.

All score the same responses to the same prompts with SmolLM2-135M, without gradient. The plain loops take the responses
as they come, `--batch` at a time, pad them on the right, and read log softmax of all logits, as most scripts do. Sums
are compared before any time is printed; the ways take turns, and every turn takes other responses.

    padded    rows as long as `--max-length`, as tokenizers do with padding="max_length"
    longest   rows as long as the longest of their batch
    sorted    the same, over responses sorted by length
    sera      packs

    python benchmarks/scoring.py [--data FOLDER] [--prompts 24] [--repeats 3] [--batch 8] [--max-length 512] [--json]
    python benchmarks/scoring.py --data alpaca_scored/scored --pairing best_vs_rest      all responses of a prompt
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from preference_batches import data_folder, keep_heap, real_pairs, rotated
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from sera_core.models.load import load_policy, resolve_model
from sera_core.models.logps import Group, default_budget, group_logps
from sera_core.models.packed import packed_batches
from sera_core.records import Pair
from sera_core.workspace import default_cache

CPU = torch.device("cpu")
Row = tuple[Tensor, int]


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=data_folder, default="hh_harmless", help="folder of pairs, here or in SERA_TEST_DATA"
    )
    parser.add_argument("--pairing", help="of data with several scored responses")
    parser.add_argument("--prompts", type=int, default=24, help="per turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="responses per batch of the plain loop")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=int, help="tokens per forward pass of sera")
    parser.add_argument("--json", action="store_true", help="print JSON for programs, nothing else")
    options = parser.parse_args()
    keep_heap()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    path = resolve_model("smollm2-135m", default_cache())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    # Two copies, so that the plain loop sees a model nobody has touched.
    plain, own = (load_policy(path, dtype=options.dtype, device=options.device) for _ in range(2))
    groups = by_prompt(real_pairs(tokenizer, options.data, options.max_length, options.pairing))
    turns = [groups[start : start + options.prompts] for start in range(0, len(groups), options.prompts)]
    if len(turns) <= options.repeats:
        raise SystemExit(f"{options.data} has {len(groups)} prompts; ask for fewer repeats or prompts.")
    ways: dict[str, Callable[[Sequence[Group]], Tensor]] = {
        "padded": lambda found: padded(plain, rows(found), options.batch, least=options.max_length),
        "longest": lambda found: padded(plain, rows(found), options.batch),
        "sorted": lambda found: padded(plain, rows(found), options.batch, by_length=True),
        "sera": lambda found: group_logps(own, found, token_budget=options.budget or default_budget(own.device)).sums,
    }
    # The first turn is run once more beforehand: first calls allocate.
    tolerance = 1e-4 if options.dtype == "float32" else 1e-2
    measured = [
        turn(ways, found, number, tolerance) for number, found in enumerate([turns[0], *turns[: options.repeats]])
    ]
    report(measured[1:], turns[: options.repeats], options)


def by_prompt(pairs: Sequence[Pair]) -> list[Group]:
    """Every prompt with its distinct responses."""
    found: dict[bytes, tuple[Any, dict[bytes, Any]]] = {}
    for pair in pairs:
        _, responses = found.setdefault(pair.prompt.ids.tobytes(), (pair.prompt.ids, {}))
        responses |= {side.ids.tobytes(): side.ids for side in (pair.chosen, pair.rejected)}
    return [Group(prompt, tuple(responses.values())) for prompt, responses in found.values()]


def rows(groups: Sequence[Group]) -> list[Row]:
    """Prompt and response in one sequence, with the length of the prompt."""
    return [
        (torch.cat([torch.from_numpy(ids).long() for ids in (group.prompt, response)]), len(group.prompt))
        for group in groups
        for response in group.responses
    ]


def padded(
    model: PreTrainedModel, found: Sequence[Row], size: int, *, least: int = 0, by_length: bool = False
) -> Tensor:
    """Sums of a plain loop; rows have at least `least` tokens."""
    order = sorted(range(len(found)), key=lambda i: len(found[i][0])) if by_length else list(range(len(found)))
    sums = torch.zeros(len(found))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        ids = torch.nn.utils.rnn.pad_sequence([found[i][0] for i in part], batch_first=True).to(model.device)
        ids = torch.nn.functional.pad(ids, (0, max(least - ids.shape[1], 0)))
        ends = torch.tensor([len(found[i][0]) for i in part], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < ends[:, None]
        call: Any = model
        logps = call(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float().log_softmax(-1)
        values = logps.gather(2, ids[:, 1:, None]).squeeze(2)
        starts = torch.tensor([found[i][1] for i in part], device=ids.device)
        answer = mask[:, 1:] & (torch.arange(1, ids.shape[1], device=ids.device) >= starts[:, None])
        sums[part] = (values * answer).sum(1).cpu()
    return sums


@torch.inference_mode()
def turn(ways: dict[str, Any], groups: Sequence[Group], number: int, tolerance: float) -> dict[str, float]:
    """Seconds of every way on the same responses, beginning with another way each time; sums agree to `tolerance`."""
    seconds, sums = {}, {}
    for name in rotated(list(ways), number):
        began = time.perf_counter()
        sums[name] = ways[name](groups).cpu()
        seconds[name] = time.perf_counter() - began
    for name, found in sums.items():
        torch.testing.assert_close(found, sums["longest"], rtol=tolerance, atol=1e-3, msg=name)
    return seconds


def report(measured: Sequence[dict[str, float]], turns: Sequence[Sequence[Group]], options: argparse.Namespace) -> None:
    """Useful tokens per second (prompt and response of every response), and how much longer than packs each takes."""
    apart = [sum(len(row) for row, _ in rows(groups)) for groups in turns]
    shared = [sum(len(g.prompt) + sum(map(len, g.responses)) for g in groups) for groups in turns]
    packs = (
        packed_batches(groups, options.budget or default_budget(torch.device(options.device)), CPU) for groups in turns
    )
    packed = sum(pack.ids.numel() for turn_packs in packs for pack in turn_packs)
    padded_tokens = sum(len(rows(groups)) for groups in turns) * options.max_length
    found = {}
    for way in measured[0]:
        speeds = [tokens / seconds[way] for tokens, seconds in zip(apart, measured, strict=True)]
        ratios = [seconds[way] / seconds["sera"] for seconds in measured]
        found[way] = {"tokens_per_second": statistics.median(speeds), "ratio": statistics.median(ratios)}
        found[way] |= {"low": min(ratios), "high": max(ratios)}
    if options.json:
        tokens = {"padded": padded_tokens, "unpadded": sum(apart), "shared": sum(shared), "packed": packed}
        print(json.dumps({"tokens": tokens, "ways": found, "seconds": measured}, indent=1))
        return
    responses = sum(len(rows(groups)) for groups in turns)
    print(f"{options.data.name}: {options.repeats} turns of {options.prompts} prompts, {responses} responses; tokens ")
    print(f"padded {padded_tokens}, unpadded {sum(apart)}, prompts once {sum(shared)}, in packs {packed}; sums agree")
    for way, value in found.items():
        spread = f"{value['ratio']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]"
        print(f"{way:8} {value['tokens_per_second']:8.0f} tokens/s  time over sera's {spread}")


if __name__ == "__main__":
    main()
