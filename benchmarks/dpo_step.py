"""One DPO step (forward and backward) here and in TRL's DPOTrainer: same model, pairs, dtype, side by side.

Every step takes other pairs. On each, all ways compute loss and gradient from the same weights, in an order that
rotates; losses and gradient norms are compared before any time is printed. Then the weights move by one AdamW update.
Prompts and responses are the same token ids for all ways, and no pair needs cutting.

    sera             packs, reference log-probs from the store
    trl              DPOTrainer, reference model run at every step, no activation checkpointing
    trl-precomputed  DPOTrainer(precompute_ref_log_probs=True), no activation checkpointing
    trl-defaults     DPOTrainer as it comes: bf16 autocast, activation checkpointing, reference model at every step; its
                     rounding differs, so that its loss is printed, not compared
    sera-defaults    packs with bf16 autocast and activation checkpointing (only when asked for by --ways)

    python benchmarks/dpo_step.py [--data FOLDER] [--pairs 8] [--max-length 512] [--steps 5] [--ways sera,trl]
                                  [--device cpu] [--dtype float32] [--model smollm2-135m|llama-1b] [--json]
    python benchmarks/dpo_step.py --memory      peak memory of whole training steps, each way in its own process

TRL's padding-free mode is left out: version 1.16 accepts the option and pads all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from preference_batches import batches, data_folder, keep_heap, real_pairs, rotated, token_counts
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sera_core.builtin.dpo import DPO
from sera_core.builtin.smoothers import NoSmoothing
from sera_core.builtin.uniform import Uniform
from sera_core.models.load import load_policy, resolve_model
from sera_core.models.logps import Group, default_budget, group_logps
from sera_core.records import Pair, PairBatch, Pairs
from sera_core.train.batch import PairDataset, PairInputs, collate
from sera_core.train.measuring import Measurer
from sera_core.train.order import Draw
from sera_core.train.run import TrainRequest, train
from sera_core.train.step import Algebra, pair_losses, reduce
from sera_core.workspace import default_cache

BETA = 0.1
ALGEBRA = Algebra(DPO(beta=BETA), (), NoSmoothing(), Uniform())
WAYS = ("sera", "trl", "trl-precomputed", "trl-defaults")
COMPARED = ("sera", "trl", "trl-precomputed")
Step = Callable[[], Tensor]


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=data_folder, default="hh_harmless", help="folder of pairs, here or in SERA_TEST_DATA"
    )
    parser.add_argument("--pairing", help="of data with several scored responses")
    parser.add_argument("--pairs", type=int, default=8, help="per step")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and response")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--model", default="smollm2-135m", help="a folder, smollm2-135m, or llama-1b (random weights)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=int, help="tokens per forward pass of sera")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON for programs, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.way:
        print(json.dumps(peak_memory(options, options.way)))
    elif options.memory:
        compare_memory(options)
    else:
        keep_heap()
        compare_time(options)


def compare_time(options: argparse.Namespace) -> None:
    """Time all ways on the same batches, in turns."""
    model, tokenizer = loaded(options)
    drawn = batches(
        real_pairs(tokenizer, options.data, options.max_length, options.pairing), options.pairs, options.steps
    )
    known = [references(model, batch) for batch in drawn]
    ways = options.ways.split(",")
    trainers = {way: trl_trainer(options, way, model, tokenizer) for way in ways if way.startswith("trl")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    rows: list[dict[str, Any]] = []
    # The first batch is run once more beforehand: first calls allocate.
    for number, (batch, reference) in enumerate(zip([drawn[0], *drawn], [known[0], *known], strict=True)):
        found: dict[str, Any] = {}
        for way in rotated(ways, number):
            step = (
                sera_step(model, batch, reference, options, way)
                if way not in trainers
                else trl_step(trainers[way], batch, reference, way)
            )
            found[way] = timed(step, model)
        agree({way: found[way] for way in ways if way in COMPARED})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if number:
            rows.append({"tokens": token_counts(batch, budget(options)), "ways": found})
            if not options.json:
                print_step(number, rows[-1])
    report(rows, ways, options)


def loaded(options: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model on its device, training, without dropout, and SmolLM2's tokenizer."""
    path = resolve_model("smollm2-135m" if options.model == "llama-1b" else options.model, default_cache())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if options.model == "llama-1b":
        torch.manual_seed(0)
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        config = LlamaConfig(vocab_size=49152, num_key_value_heads=8, tie_word_embeddings=True, **sizes)
        model: Any = LlamaForCausalLM(config).to(getattr(torch, options.dtype)).to(options.device)
    else:
        model = load_policy(path, dtype=options.dtype, device=options.device)
    model.train()
    return model, tokenizer


def budget(options: argparse.Namespace) -> int:
    """Tokens per forward pass of sera."""
    return int(options.budget or default_budget(torch.device(options.device)))


def references(model: PreTrainedModel, batch: list[Pair]) -> tuple[Tensor, Tensor]:
    """Log-probs of both sides under the starting weights, as the store would give them."""
    groups = [Group(pair.prompt.ids, (pair.chosen.ids, pair.rejected.ids)) for pair in batch]
    with torch.inference_mode():
        sums = group_logps(model, groups, token_budget=default_budget(model.device)).sums.cpu().clone()
    return sums[0::2], sums[1::2]


def sera_step(
    model: PreTrainedModel, batch: list[Pair], reference: tuple[Tensor, Tensor], options: argparse.Namespace, way: str
) -> Step:
    """Loss of one micro-batch through the training room's own parts."""
    dataset = PairDataset(Pairs(tuple(batch)), (reference[0].numpy(), reference[1].numpy()))
    inputs: PairInputs = collate([dataset[Draw(i, True)] for i in range(len(batch))]).to(model.device)
    measurer = Measurer(model, budget(options), 0.0, None)
    half = way == "sera-defaults"

    def step() -> Tensor:
        if half:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
            logps = measurer.logps(model, inputs.plain)
            result = pair_losses(ALGEBRA, PairBatch(logps, 0.0, 1))
            loss = reduce(result, torch.ones_like(result.losses), len(batch))
        loss.backward()
        return loss.detach()

    return step


def trl_trainer(
    options: argparse.Namespace, way: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str = ""
) -> Any:  # noqa: ANN401  # TRL is no dependency
    """A DPOTrainer of `model`, its data replaced batch by batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    plain = {} if way == "trl-defaults" else {"bf16": options.dtype == "bfloat16", "gradient_checkpointing": False}
    config = DPOConfig(
        output_dir=folder or tempfile.mkdtemp(),
        per_device_train_batch_size=options.pairs,
        beta=BETA,
        max_length=options.max_length,
        learning_rate=1e-6,
        max_steps=2,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=options.device == "cpu",
        **plain,
    )
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * options.pairs
    with contextlib.redirect_stdout(sys.stderr):
        trainer: Any = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    if way == "trl-precomputed":
        # Read from the batch from now on: what precomputing would have put there, which keeps no reference model.
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    # Set by `train`, which the timed steps go past.
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_step(trainer: Any, batch: list[Pair], reference: tuple[Tensor, Tensor], way: str) -> Step:  # noqa: ANN401
    """TRL's own training step on one batch."""
    model = trainer.model
    inputs = trainer.data_collator(trl_rows(batch, reference if way == "trl-precomputed" else None))

    def step() -> Tensor:
        if way == "trl-defaults":
            model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        else:
            model.gradient_checkpointing_disable()
        # `train` has the model prepared for it, which the timed steps go past.
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=trainer.args.bf16):
            loss: Tensor = trainer.training_step(model, dict(inputs))
        return loss.detach()

    return step


def trl_rows(batch: list[Pair], reference: tuple[Tensor, Tensor] | None) -> list[dict[str, Any]]:
    """The pairs as TRL's collator takes them."""
    rows = []
    for i, pair in enumerate(batch):
        sides = {"prompt_ids": pair.prompt.ids, "chosen_ids": pair.chosen.ids, "rejected_ids": pair.rejected.ids}
        row: dict[str, Any] = {name: ids.tolist() for name, ids in sides.items()}
        if reference is not None:
            row |= {"ref_chosen_logps": float(reference[0][i]), "ref_rejected_logps": float(reference[1][i])}
        rows.append(row)
    return rows


def timed(step: Step, model: PreTrainedModel) -> dict[str, float]:
    """Seconds, loss and gradient norm of one way; gradients stay for the update."""
    model.zero_grad(set_to_none=True)
    synchronize(model)
    began = time.perf_counter()
    loss = step()
    synchronize(model)
    seconds = time.perf_counter() - began
    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return {"seconds": seconds, "loss": float(loss), "gradient_norm": float(torch.stack(norms).norm())}


def synchronize(model: PreTrainedModel) -> None:
    """Wait for the device."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def agree(found: dict[str, Any]) -> None:
    """All ways have one loss and one gradient norm, up to rounding."""
    first = next(iter(found.values()), None)
    for way, value in found.items():
        assert abs(value["loss"] - first["loss"]) <= 1e-4, (way, value, first)
        assert abs(value["gradient_norm"] / first["gradient_norm"] - 1) <= 1e-3, (way, value, first)


def print_step(number: int, row: dict[str, Any]) -> None:
    """One step as it comes."""
    times = "  ".join(f"{way} {value['seconds']:.2f} s" for way, value in row["ways"].items())
    print(f"step {number}: tokens {row['tokens']}  {times}", flush=True)


def report(rows: list[dict[str, Any]], ways: list[str], options: argparse.Namespace) -> None:
    """Medians and paired ratios to sera, with their range."""
    tokens = {name: sum(row["tokens"][name] for row in rows) for name in rows[0]["tokens"]}
    found = {}
    for way in ways:
        seconds = [row["ways"][way]["seconds"] for row in rows]
        ratios = [row["ways"][way]["seconds"] / row["ways"]["sera"]["seconds"] for row in rows]
        found[way] = {"seconds": statistics.median(seconds), "ratio": statistics.median(ratios)}
        found[way] |= {"low": min(ratios), "high": max(ratios), "loss": rows[-1]["ways"][way]["loss"]}
    if options.json:
        print(json.dumps({"tokens": tokens, "ways": found, "steps": rows}, indent=1))
        return
    print(f"\n{options.data.name}: {options.steps} steps of {options.pairs} pairs; tokens padded {tokens['padded']}, ")
    print(
        f"unpadded {tokens['unpadded']}, prompts once {tokens['shared']}, in sera's packs {tokens['packed']}; ", end=""
    )
    compared = [way for way in ways if way in COMPARED]
    print(f"losses and gradient norms of {', '.join(compared)} agree" if len(compared) > 1 else "nothing compared")
    for way, value in found.items():
        spread = f"{value['ratio']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]"
        print(f"{way:16} {value['seconds']:8.2f} s  {spread:24} last loss {value['loss']:.6f}")


def peak_memory(options: argparse.Namespace, way: str) -> dict[str, float]:
    """Peak resident memory (allocated memory on a GPU) in GiB of two whole training steps of one way."""
    model, tokenizer = loaded(options)
    batch = batches(
        real_pairs(tokenizer, options.data, options.max_length, options.pairing), options.pairs, options.steps
    )
    pairs = [pair for part in batch[:2] for pair in part]
    with tempfile.TemporaryDirectory() as folder:
        if way.startswith("trl"):
            from datasets import Dataset

            reference = references(model, pairs) if way == "trl-precomputed" else None
            trainer = trl_trainer(options, way, model, tokenizer, folder)
            trainer.train_dataset = Dataset.from_list(trl_rows(pairs, reference))
            trainer.train()
        else:
            known = references(model, pairs)
            request = TrainRequest(
                pairs=Pairs(tuple(pairs)),
                reference=(known[0].numpy(), known[1].numpy()),
                algebra=ALGEBRA,
                training={"max_steps": 2, "per_device_train_batch_size": options.pairs, "learning_rate": 1e-6},
                seed=0,
                iteration=1,
                workdir=Path(folder),
                load_model=lambda: model,
                tokenizer=tokenizer,
                policy_is_reference=True,
                card="",
                token_budget=options.budget,
            )
            train(request, lambda _: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {"peak_gib": peak, "padded_tokens": max(token_counts(part, budget(options))["padded"] for part in batch[:2])}


def compare_memory(options: argparse.Namespace) -> None:
    """Each way in a process of its own."""
    given = [argument for argument in sys.argv[1:] if argument not in ("--memory", "--json")]
    found = {}
    for way in options.ways.split(","):
        command = [sys.executable, __file__, *given, f"--way={way}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # this very file
        found[way] = json.loads(done.stdout.splitlines()[-1])
        if not options.json:
            share = found["sera"]["peak_gib"] / found[way]["peak_gib"] if "sera" in found else 1.0
            print(f"{way:16} {found[way]['peak_gib']:6.2f} GiB   sera takes {share:.2f} of it", flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
