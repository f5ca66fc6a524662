"""The run configuration: one validated tree. Unknown keys are errors; nothing here builds or computes anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator


class Section(BaseModel):
    """Base of every section: frozen, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ComponentSpec(Section):
    """A component by name, with its options. Written as ``name`` or ``{name: ..., option: value}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _read_spec(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict):
        if "name" not in value:
            raise ValueError("a component is written as its name, or as a mapping with the key 'name'")
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def _write_spec(spec: ComponentSpec) -> dict[str, Any]:
    return {"name": spec.name, **spec.options}


Spec: TypeAlias = Annotated[ComponentSpec, BeforeValidator(_read_spec), PlainSerializer(_write_spec)]


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning; the adapter is merged when an iteration ends."""

    r: int = Field(default=8, ge=1, description="Rank of the adapter matrices.")
    alpha: int = Field(default=16, ge=1, description="Scale; the update is alpha / r times the product.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        default="all-linear", description="Module names that get an adapter."
    )


class PolicyConfig(Section):
    """The model to align."""

    model: str = Field(
        default="auto",
        description="A local folder, a hub name, smollm2-135m, or auto: the source's own initial policy.",
    )
    revision: str | None = Field(default=None, description="Hub revision; only with a hub name.")
    base: str | None = Field(
        default=None,
        description="What the model was tuned from; it then counts as an iterate whose reference this is. As `model`.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of weights in training, scoring and generation alike."
    )
    attn_implementation: str | None = Field(
        default=None,
        description="None: packs where exact, with the best kernel. packed_sdpa or packed_flex insist on packs; "
        "transformers' names (sdpa, eager, ...) mean padded batches with that kernel.",
    )
    lora: LoraConfig | None = Field(default=None, description="Train adapters instead of all weights.")


class StopConfig(Section):
    """Stop when a metric of the iteration report has not improved for `patience` iterations."""

    metric: Literal["accuracy", "win_rate_vs_initial", "gold_reward"] = Field(
        default="accuracy", description="accuracy is that of the margin on held-out pairs."
    )
    patience: int = Field(default=1, ge=1, description="Iterations without improvement before stopping.")


class LoopConfig(Section):
    """The shape of the loop."""

    iterations: int = Field(default=1, ge=1, description="How many times to curate and train.")
    reference: Literal["previous", "initial"] = Field(
        default="previous", description="Whose log-probs the objective subtracts: the previous iterate's or policy 0's."
    )
    start: Literal["previous", "initial"] = Field(
        default="previous", description="Where each iteration's training starts."
    )
    stop: StopConfig | None = Field(default=None, description="Stop at convergence; the best iterate is the result.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, raw: object) -> object:
        """Leave out a `reference` or `start` that is null, so that what a preset sets can be taken back."""
        unset = {key for key in ("reference", "start") if isinstance(raw, dict) and raw.get(key, "") is None}
        return {key: value for key, value in raw.items() if key not in unset} if isinstance(raw, dict) else raw


class OfflineConfig(Section):
    """How the source's own pairs are used."""

    scorer: Spec | None = Field(default=None, description="Scores responses; the pair margin is the difference.")
    selector: Spec = Field(default_factory=lambda: ComponentSpec(name="all"), description="Keeps pairs by margin.")
    select_from: int = Field(default=1, ge=1, description="First iteration that selects; all pairs before it.")


class GeneratedConfig(Section):
    """Pairs made from the policy's own samples."""

    from_iteration: int = Field(default=1, ge=1, description="First iteration that generates.")
    prompts: str = Field(
        default="offline",
        description="Prompt set: offline (that of the pairs), one of the source, or auto: fresh if any, else offline.",
    )
    limit: int | None = Field(default=None, ge=1, description="Use only the first so many prompts.")
    disjoint: bool = Field(default=False, description="Split the prompts over iterations instead of reusing them.")
    samples: int = Field(default=4, ge=1, description="Samples per prompt.")
    temperature: float = Field(default=0.7, gt=0.0)
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    max_new_tokens: int = Field(default=256, ge=1)
    generator: Spec = Field(default_factory=lambda: ComponentSpec(name="transformers"))
    scorer: Spec | None = Field(default=None, description="Scores the samples.")
    judge: Spec | None = Field(
        default=None,
        description="Scores the samples instead of a scorer: by grades, or by wins over the prompt's other samples.",
    )
    labeler: Spec = Field(default_factory=lambda: ComponentSpec(name="best_worst"), description="Samples to pairs.")
    selector: Spec = Field(default_factory=lambda: ComponentSpec(name="all"), description="Keeps pairs by margin.")


class ObjectiveConfig(Section):
    """The loss and what surrounds it, in the order they apply."""

    loss: Spec = Field(default_factory=lambda: ComponentSpec(name="dpo"))
    transforms: list[Spec] = Field(default_factory=list)
    smoother: Spec = Field(default_factory=lambda: ComponentSpec(name="none"))
    reweighter: Spec = Field(default_factory=lambda: ComponentSpec(name="uniform"))


class TokensConfig(Section):
    """From text to token ids: one policy for prompts and for both responses."""

    max_prompt_tokens: int = Field(default=512, ge=1)
    max_response_tokens: int = Field(default=512, ge=1)
    truncation: Literal["drop", "cut"] = Field(default="cut", description="Drop long pairs, or cut prompt and answers.")
    prompt_side: Literal["left", "right"] = Field(default="left", description="Which side of a long prompt to cut.")
    chat_template: str | None = Field(default=None, description="Jinja text or file that replaces the tokenizer's.")


class SamplingConfig(Section):
    """How evaluation samples are drawn; what is null follows `generated`, so that both see the same policy."""

    samples: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, gt=0.0, description="Null: generated.temperature, else 0.7.")
    top_p: float | None = Field(default=None, gt=0.0, le=1.0, description="Null: generated.top_p, else 0.95.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Null: generated.max_new_tokens, else 256.")


class EvaluationConfig(Section):
    """What is measured after each iteration, on held-out prompts and pairs."""

    judge: Spec | None = Field(
        default_factory=lambda: ComponentSpec(name="auto"),
        description="A judge; auto takes gold where the source knows the right answers; null for none.",
    )
    prompts: int | None = Field(default=None, ge=1, description="Use only the first so many evaluation prompts.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    kl_prompts: int | None = Field(
        default=None, ge=1, description="Prompts for the KL estimate, which draws samples of its own; null: all."
    )
    generator: Spec = Field(default_factory=lambda: ComponentSpec(name="transformers"))
    level: float = Field(default=0.95, gt=0.0, lt=1.0, description="Coverage of every interval.")
    prefixes: list[str] = Field(
        default_factory=list,
        description="Prompt prefixes under which held-out accuracy is measured too, beside those the transforms use.",
    )
    tuning_pairs: int = Field(
        default=0, ge=0, description="Held-out pairs set aside to choose options by; other figures leave them out."
    )


class ScoringConfig(Section):
    """How log-probs are computed."""

    token_budget: int | None = Field(
        default=None, ge=1, description="Tokens per forward, padding included; null: 2048 on a CPU, 16384 on a GPU."
    )


class RunConfig(Section):
    """A whole run. ``by_iteration`` lists may stand for any value in offline, generated, objective and training."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    cites: list[str] = Field(default_factory=list, description="Papers and equations.")
    seed: int = Field(default=0, ge=0)
    source: Spec = Field(default_factory=lambda: ComponentSpec(name="world"))
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    loop: LoopConfig = Field(default_factory=LoopConfig)
    offline: OfflineConfig | None = Field(default_factory=OfflineConfig)
    generated: GeneratedConfig | None = None
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    tokens: TokensConfig = Field(default_factory=TokensConfig)
    scoring: ScoringConfig = Field(default_factory=ScoringConfig)
    training: dict[str, Any] = Field(default_factory=dict, description="Any TrainingArguments field.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
