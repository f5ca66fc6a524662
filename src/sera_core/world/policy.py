"""The world's initial policy: a small Llama trained on demonstrations, once per seed."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sera_core.errors import StoreError
from sera_core.protocols import Progress
from sera_core.world.questions import content
from sera_core.world.rules import Rules
from sera_core.world.spec import DEMOS, VERSION, VOCABULARY, stream
from sera_core.world.tokenizer import build_tokenizer
from sera_core.world.writers import demonstrations

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the initial policy is made: sizes of the model, then of the training."""

    hidden: int = 128
    layers: int = 2
    feed_forward: int = 256
    heads: int = 4
    demos: int = DEMOS
    steps: int = 400
    batch: int = 128
    learning_rate: float = 2e-3
    final_share: float = 0.1

    def digest(self) -> str:
        """Eight hex digits that change with the recipe or the world's version."""
        return hashlib.sha256(repr((VERSION, sorted(asdict(self).items()))).encode()).hexdigest()[:8]


def cached_policy(seed: int, cache: Path, progress: Progress | None = None, recipe: Recipe | None = None) -> Path:
    """The folder of the policy of `seed` under `cache`, trained and put there whole if it is missing.

    `progress` is told (steps done, steps). The global random state is left as it was.

    Raises:
        StoreError: the cache cannot be written.
    """
    recipe = recipe or Recipe()
    target = cache / "world" / f"policy-seed{seed}-{recipe.digest()}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StoreError(
            f"cannot write the world's policy to {target}: {error}; free the disk or move the cache."
        ) from error
    try:
        tokenizer = build_tokenizer()
        train_policy(seed, recipe, tokenizer, progress).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        _publish(draft, target)
    except OSError as error:
        raise StoreError(
            f"cannot write the world's policy to {target}: {error}; free the disk or move the cache."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _publish(draft: Path, target: Path) -> None:
    """Renames `draft` to `target`, unless another process was first."""
    try:
        draft.replace(target)
    except OSError:
        if not target.is_dir():
            raise


@torch.enable_grad()
def train_policy(
    seed: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
) -> LlamaForCausalLM:
    """Trains a fresh model on the demonstrations of `seed`, with loss on reply tokens only, end of turn included.

    float32 on the CPU; AdamW, cosine from `learning_rate` to `final_share` of it, gradients clipped to norm 1.
    """
    ids, labels = demonstration_tensors(seed, recipe.demos, tokenizer)
    model = fresh_model(seed, recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    floor = recipe.final_share

    def rate(step: int) -> float:
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for done, rows in enumerate(_batches(seed, recipe), start=1):
        loss = reply_loss(model, ids[rows], labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(done, recipe.steps)
    model.train(mode=False)
    return model


def fresh_model(seed: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained float32 model; its weights depend on `seed` and `recipe` alone."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "weights").integers(2**62)))
        model: LlamaForCausalLM = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def demonstration_tensors(seed: int, count: int, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Token ids and labels of the first `count` demonstrations, int64 [count, longest], right-padded.

    Labels are -100 wherever there is no reply token.
    """
    vocabulary = tokenizer.get_vocab()
    pad, bos, sep, eos = (
        vocabulary[str(t)] for t in (tokenizer.pad_token, tokenizer.bos_token, tokenizer.sep_token, tokenizer.eos_token)
    )
    rows: list[list[int]] = []
    starts: list[int] = []
    for question, words in islice(demonstrations(Rules.draw(seed), seed), count):
        prompt = [bos, *(vocabulary[word] for word in content(question).split()), sep]
        rows.append([*prompt, *(vocabulary[word] for word in words), eos])
        starts.append(len(prompt))
    ids, replies = _right_padded(rows, starts, pad)
    return ids, torch.where(replies, ids, _IGNORED)


def _right_padded(rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    place = torch.arange(width)
    ends = torch.tensor([len(row) for row in rows])
    return ids, (place >= torch.tensor(starts)[:, None]) & (place < ends[:, None])


def reply_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the labelled tokens of right-padded rows."""
    longest = int((labels != _IGNORED).nonzero()[:, 1].max()) + 1
    logits = model(input_ids=ids[:, : longest - 1], use_cache=False).logits
    targets = labels[:, 1:longest]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)


def _batches(seed: int, recipe: Recipe) -> list[Tensor]:
    """`steps` batches of row numbers, through one reshuffled pass after another."""
    rng = stream(seed, "demos/order")
    passes = math.ceil(recipe.steps * recipe.batch / recipe.demos)
    order = np.concatenate([rng.permutation(recipe.demos) for _ in range(passes)])
    rows = torch.from_numpy(order[: recipe.steps * recipe.batch])
    return list(torch.split(rows, recipe.batch))
