"""Generation with vLLM: a fresh engine from the checkpoint for each call, token ids in and out."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sera_core.errors import ConfigError, ModelError
from sera_core.models.generate.common import Row, candidates_of, check_prompts, check_sampling, vocabulary_size
from sera_core.models.generate.engine import missing, run_engine
from sera_core.models.generate.seeds import row_seed
from sera_core.models.load import load_config, load_tokenizer
from sera_core.options import require_number
from sera_core.protocols import GenerationContext, Needs, Progress, Sampling
from sera_core.records import Candidates, Ids, Prompt

_COMPONENT = "generator 'vllm'"
_TEMPERATURES = (0.01, 2.0)
_CPU_CACHE_GIB = 4.0


@dataclass(frozen=True)
class VLLM:
    """Samples with vLLM (extra ``vllm``), in a process of its own that is gone before `generate` returns.

    A draw depends on the run's seed, iteration, purpose, prompt id and sample alone: every sample is a request with a
    seed of its own. The tokens are not those that generator ``transformers`` draws, and last-digit differences of
    vLLM's kernels between batches may rarely change one. The context's attention implementation is not read: vLLM has
    kernels of its own.

    gpu_memory_utilization: the share of each GPU's memory that weights, activations and cache may fill, in (0, 1].
    kv_cache_gib: GiB for keys and values, > 0; None means what `gpu_memory_utilization` leaves, without a GPU 4 GiB.
    enforce_eager: whether the model runs without compilation and CUDA graphs; None means only without a GPU, where
        compiling takes longer than it saves.
    """

    gpu_memory_utilization: float = 0.85
    kv_cache_gib: float | None = None
    enforce_eager: bool | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_number(
            _COMPONENT,
            "gpu_memory_utilization",
            self.gpu_memory_utilization,
            low=math.ulp(0.0),
            high=1.0,
            expected="a number in (0, 1] (typically 0.85)",
        )
        if self.kv_cache_gib is not None:
            expected = "null or a finite number > 0 (typically 2 to 40)"
            require_number(_COMPONENT, "kv_cache_gib", self.kv_cache_gib, low=math.ulp(0.0), expected=expected)

    @property
    def needs(self) -> Needs:
        """Nothing beyond the policy."""
        return Needs()

    def unavailable(self) -> str | None:
        """Why this cannot run here and what to do about it; None where it can."""
        return missing()

    def generate(
        self, model: Path, prompts: Sequence[Prompt], sampling: Sampling, context: GenerationContext
    ) -> Candidates:
        """`sampling.samples` responses per prompt, as generator ``transformers`` gives them.

        A response ends with the first stop id, which it keeps (``stop``), or at the token limit (``length``). Ids that
        are banned, and the tokenizer's padding, are never drawn. Temperature 0 is greedy and allows one sample.

        Raises:
            ConfigError: sampling values out of range. ModelError: vLLM is not installed or cannot run the model, an
                empty prompt, or one too long.
        """
        check_sampling(sampling)
        _check_temperature(sampling.temperature)
        if not prompts:
            return Candidates((), ())
        config, tokenizer = load_config(model), load_tokenizer(model)
        check_prompts(prompts, sampling, config)
        size = vocabulary_size(config)
        unwanted = {*context.banned, *(() if tokenizer.pad_token_id is None else (tokenizer.pad_token_id,))}
        banned = frozenset(i for i in unwanted - set(context.stop) if i < size)
        longest = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
        rows = [Row(i, k) for i in range(len(prompts)) for k in range(sampling.samples)]
        # The older variable would win over the option.
        unset = () if self.kv_cache_gib is None else ("VLLM_CPU_KVCACHE_SPACE",)

        def draw(llm: Any) -> list[Ids]:  # noqa: ANN401
            make: Any = importlib.import_module("vllm").SamplingParams
            stop = [i for i in context.stop if i < size]
            parameters = [make(**_parameters(prompts, row, sampling, context, stop, banned)) for row in rows]
            return _written(llm, [prompts[row.prompt].ids for row in rows], parameters, context.progress)

        written = run_engine(lambda gpu: self._engine(model, longest, context.dtype, gpu=gpu), draw, unset)
        _check_bans(written, banned)
        return candidates_of(prompts, dict(zip(rows, written, strict=True)), sampling.samples, tokenizer, context)

    def _engine(self, model: Path, longest: int, dtype: str, *, gpu: bool) -> Mapping[str, Any]:
        """What to start the engine with."""
        gib = self.kv_cache_gib if self.kv_cache_gib is not None or gpu else _CPU_CACHE_GIB
        return {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": longest,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": None if gib is None else int(gib * 2**30),
            "enforce_eager": not gpu if self.enforce_eager is None else self.enforce_eager,
            # Where it cuts a prompt in two it sets the sample's generator back, which no CPU generator can do.
            "enable_chunked_prefill": None if gpu else False,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "use_tqdm_on_load": False,
        }


def _parameters(
    prompts: Sequence[Prompt],
    row: Row,
    sampling: Sampling,
    context: GenerationContext,
    stop: Sequence[int],
    banned: frozenset[int],
) -> Mapping[str, Any]:
    """The request of one sample. A bias of minus infinity bans exactly; the 63-bit seed is never -1, which is none."""
    seed = row_seed(context.seed, context.iteration, context.purpose, prompts[row.prompt].id, row.sample)
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed & (2**63 - 1),
        "stop_token_ids": list(stop),
        "ignore_eos": True,
        "logit_bias": dict.fromkeys(sorted(banned), -math.inf) or None,
        "detokenize": False,
    }


def _written(llm: Any, prompts: Sequence[Ids], parameters: Sequence[Any], progress: Progress | None) -> list[Ids]:  # noqa: ANN401
    """New ids of each request, int32, in the order asked."""
    asked = [{"prompt_token_ids": ids.tolist()} for ids in prompts]
    llm.enqueue(asked, parameters, use_tqdm=False)
    outputs = llm.wait_for_completion(use_tqdm=False if progress is None else _bar(progress, len(asked)))
    return [np.asarray(output.outputs[0].token_ids, dtype=np.int32) for output in outputs]


def _bar(progress: Progress, total: int) -> Callable[..., Any]:
    """Makes progress bars that draw nothing and tell `progress`."""
    tqdm: Any = importlib.import_module("tqdm").tqdm

    def made(**options: object) -> Any:  # noqa: ANN401
        bar = tqdm(file=io.StringIO(), **options)
        step = bar.update

        def update(count: int = 1) -> None:
            step(count)
            progress(int(bar.n), total)

        bar.update = update
        return bar

    return made


def _check_temperature(temperature: float) -> None:
    low, high = _TEMPERATURES
    if temperature and not low <= temperature <= high:
        raise ConfigError(
            f"{_COMPONENT}: temperature must be 0, or from {low} to {high:g}, which is what vLLM takes; got "
            f"{temperature}. Change temperature, or choose generator 'transformers'."
        )


def _check_bans(written: Sequence[Ids], banned: frozenset[int]) -> None:
    drawn = sorted(banned & {int(i) for ids in written for i in ids})
    if drawn:
        raise ModelError(
            f"vLLM drew the banned token ids {drawn[:5]}, so this version does not honour bans. Install a version that "
            "sera-core[vllm] names, or choose generator 'transformers'."
        )
