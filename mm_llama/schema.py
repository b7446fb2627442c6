"""Typed schema of what this package owns in a config: a wrong key or type fails while the config is composed.

`modality` and `data` stay open, because their `_target_` builds what researchers swap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class RopeScalingSchema:
    """The 3.1 frequency scaling."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass
class NumbersSchema:
    """Sizes of a core; they must agree with the checkpoint that `core.source` names."""

    dim: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING
    num_kv_heads: int = MISSING
    ffn_dim: int = MISSING
    vocab_size: int = MISSING
    head_dim: int = 0
    norm_eps: float = 1e-5
    rope_base: float = 500_000.0
    rope_scaling: RopeScalingSchema | None = None
    tied: bool = False
    max_context: int = 8192


@dataclass
class CoreSchema:
    """Which text core: a checkpoint (`source`: a path or asset:NAME/PATTERN) or `random` weights."""

    name: str = MISSING
    source: str | None = None
    tokenizer: str | None = None
    chat: str = "llama3"
    seed: int = 0
    numbers: NumbersSchema = field(default_factory=NumbersSchema)


@dataclass
class StageSchema:
    """What one stage trains, from where, how long; `augment` is a source that is put around each of `data.train`."""

    name: str = MISSING
    step: Any = None
    augment: Any = None
    train: list[str] = field(default_factory=list)
    init: dict[str, str | None] = field(default_factory=dict)
    allow_core_swap: bool = False
    num_steps: int = 100
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 100
    keep_last: int = 2
    keep_best: int = 0
    best: str = ""
    max_nonfinite: int = 0
    spike: float = 10.0
    resume: str = "auto"


@dataclass
class OptimSchema:
    """AdamW and its schedule; gates, and what `gates` names, get `gate_lr_multiple` times the rate and no decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    gate_lr_multiple: float = 1.0
    gates: list[str] = field(default_factory=list)
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_fraction: float = 0.0
    clip_norm: float = 1.0


@dataclass
class LoaderSchema:
    """Batching: rows per micro-batch, bucketing window, packing, workers, caching of frozen features, what is skipped.

    `shuffle_buffer` none or 0 shuffles all rows, exactly; above 0 among so many, shard by shard.
    """

    batch_size: int = 16
    batch_tokens: int = 0
    max_tokens: int = 2048
    bucket_batches: int = 16
    pack: bool = False
    pack_tokens: int = 512
    num_workers: int = 0
    shuffle_buffer: int | None = None  # as in runs begun before there was one
    cache_features: bool = True
    on_too_long: str = "error"
    on_error: str = "error"
    max_skipped: int = 0


@dataclass
class SweepSchema:
    """How a sweep goes on; no part of what a job computes. `job` is set by the sweep itself."""

    retry: bool = False
    code: str = "same"
    trials: int = 0
    seed: int = 0
    job: str = ""


@dataclass
class TrainSchema:
    """The root of `mm-llama train`."""

    name: str = MISSING
    runs: str = "runs"
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 0
    replay: int = 0
    core: CoreSchema = field(default_factory=CoreSchema)
    modality: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    stage: StageSchema = field(default_factory=StageSchema)
    optim: OptimSchema = field(default_factory=OptimSchema)
    loader: LoaderSchema = field(default_factory=LoaderSchema)
    sweep: SweepSchema = field(default_factory=SweepSchema)


def register() -> None:
    """Make the schema known to Hydra as `train_schema`; calling it again is harmless."""
    ConfigStore.instance().store(name="train_schema", node=TrainSchema)
