"""One stage from its composed config to a finished run: what `mm-llama train` and the demos call."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.build import build, build_model, resolve
from mm_llama.core.chat import ChatFormat
from mm_llama.data.collate import collate
from mm_llama.data.features import FeatureCache
from mm_llama.data.held_out import held_out_samples
from mm_llama.data.loader import Loader
from mm_llama.data.media import KEYS, medium_reader, num_mel_frames
from mm_llama.data.mix import Mixture
from mm_llama.data.samples import MediaRef, Sample, SizeOf, content_key, distinct_media
from mm_llama.data.sources import Source
from mm_llama.dtypes import choose_dtype
from mm_llama.eval.answers import answer_accuracy
from mm_llama.model import MultimodalLlama
from mm_llama.paths import cache_dir
from mm_llama.prefixes import Prefixes
from mm_llama.splice import Spliced
from mm_llama.spoken import Spoken
from mm_llama.stages.lock import run_lock
from mm_llama.stages.loop import Evaluate, Step, train
from mm_llama.stages.preemption import stop_signals
from mm_llama.stages.replay import replay
from mm_llama.stages.resume import load_init
from mm_llama.stages.steps import next_token

EVAL_BATCH = 64
ENCODE_BATCH = 16  # pictures, or frames of whole clips, that are encoded together
# Of a stage's config, what the loop takes as it stands.
LOOP_KEYS = (
    "name",
    "train",
    "num_steps",
    "accumulate",
    "eval_every",
    "save_every",
    "keep_last",
    "keep_best",
    "best",
    "max_nonfinite",
    "spike",
    "log_every",
    "resume",
    "allow_core_swap",
)


@dataclass(frozen=True)
class StageResult:
    """What a stage came to; `objective` is what a sweeper minimises."""

    run_dir: Path
    objective: float
    final: Mapping[str, Any]
    minutes: float
    exit_code: int


def run_stage(cfg: DictConfig | Mapping[str, Any], run_dir: str | Path | None = None) -> StageResult:
    """Build everything a train config names and train; the same config in the same folder continues.

    `run_dir` defaults to the config's `runs`/`name`; in a sweep every job has a folder of its own.
    """
    config = resolve(cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg)))
    run_dir = Path(config["runs"]) / config["name"] if run_dir is None else Path(run_dir)
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    choose_dtype(config["dtype"], config["device"])  # a wrong name ends here, before anything is read
    if not config["data"].get("train"):
        raise ValueError(
            "the stage has no training data: choose one with data=NAME (conf/data), or set data.train"
        )
    with stop_signals(), nullcontext() if config["replay"] else run_lock(run_dir):
        return _run(config, run_dir)


def _run(config: dict[str, Any], run_dir: Path) -> StageResult:
    stage, optim = config["stage"], config["optim"]
    model, chat, held_out = _begin(config)
    sources = [build(entry["source"]) for entry in config["data"]["train"]]
    if stage.get("augment"):
        sources = [build(stage["augment"], source=source) for source in sources]
    step = _step_of(stage, model, chat)
    media = _media_of(config, model, step)
    media.prepare([*sources, *held_out], config["loader"]["on_error"])
    loader = _loader(config, sources, chat, media)
    if _prefixes_hold(model, stage["train"]):
        model.prefixes = Prefixes()
    settings: dict[str, Any] = {key: stage[key] for key in LOOP_KEYS} | optim
    settings |= {"seed": config["seed"], "init": _init_of(stage), "config": config}
    settings["eval_fn"] = _evaluation(held_out, chat, media, step, config)
    if config["replay"]:
        found = replay(model, loader, step, config["replay"], run_dir=run_dir, **settings)
        print(found)
        return StageResult(run_dir, found.again.loss, {}, 0.0, 0 if found.sound else 1)
    summary = train(model, loader, step, run_dir=run_dir, **settings)
    final = dict(summary.final)
    loss = final.get("loss")
    objective = 1 - final["eval.answers"] if "eval.answers" in final else math.inf if loss is None else loss
    return StageResult(run_dir, objective, final, summary.minutes, 0 if summary.finished else 75)


def held_out_evaluation(config: Mapping[str, Any]) -> tuple[MultimodalLlama, Evaluate]:
    """Return the model of a resolved train config, as its stage starts it, and the evaluation that the stage runs.

    Load a checkpoint's tensors into the model, then call the evaluation with it. Raises ValueError when the config
    holds no rows out.
    """
    stage = config["stage"]
    model, chat, held_out = _begin(config)
    step = _step_of(stage, model, chat)
    media = _media_of(config, model, step)
    media.prepare(held_out, config["loader"]["on_error"])
    measure = _evaluation(held_out, chat, media, step, config)
    if measure is None:
        raise ValueError(f"{config['name']} has no held-out data to evaluate on: set data.eval")

    def evaluate(model: MultimodalLlama) -> Mapping[str, float]:
        # Anew each time: between two evaluations other tensors may have been loaded.
        model.prefixes = Prefixes() if _prefixes_hold(model, stage["train"]) else None
        model.eval()
        return measure(model)

    return model, evaluate


def _begin(config: Mapping[str, Any]) -> tuple[MultimodalLlama, ChatFormat, list[Source]]:
    """Return the model that a stage starts from, its chat format and the held-out rows."""
    model, _, chat = build_model(config, choose_dtype(config["dtype"], config["device"]), config["device"])
    # Before any medium is encoded: what the stage starts from may bring an encoder.
    load_init(model, _init_of(config["stage"]), config["stage"]["allow_core_swap"], say=None)
    return model, chat, [build(entry) for entry in config["data"].get("eval") or []]


def _step_of(stage: Mapping[str, Any], model: MultimodalLlama, chat: ChatFormat) -> Step:
    step: Any = next_token if stage["step"] is None else build(stage["step"])
    if hasattr(step, "meet"):  # a step that needs to know more than a batch says
        step.meet(model, chat)
    return step


def _media_of(config: Mapping[str, Any], model: MultimodalLlama, step: Step) -> MediaReader:
    settings, train = config["loader"], config["stage"]["train"]
    unread = getattr(step, "unread", ())
    return MediaReader(model, train, cache_features=settings["cache_features"], unread=unread)


def _init_of(stage: Mapping[str, Any]) -> dict[str, str]:
    return {kind: run for kind, run in stage["init"].items() if run}


class MediaReader:
    """Reads the media of samples: cached features where an encoder is frozen, pixels where it trains."""

    def __init__(
        self,
        model: MultimodalLlama,
        train: Iterable[str] = (),
        *,
        cache_features: bool = True,
        folder: Path | None = None,
        unread: Collection[str] = (),
    ) -> None:
        """`unread` are kinds that nobody looks at: nothing is read of them, an item is an empty tensor."""
        self.model = model
        self.caches: dict[str, FeatureCache] = {}
        self.pixels: dict[str, Callable[[MediaRef], Tensor]] = {}
        for kind, modality in model.modality.items():
            if isinstance(modality, Spoken):
                continue  # it reads no media
            if kind in unread:
                self.pixels[kind] = lambda ref: torch.zeros(0)
                continue
            encoder = model.encoder_of(kind)
            self.pixels[kind] = _reader(medium_reader(model, kind))
            prefix = f"modality.{modality.reads or kind}.encoder"
            trains = any(
                f"{prefix}.".startswith(f"{name}.") or name.startswith(f"{prefix}.") for name in train
            )
            if cache_features and not trains:
                frames = f" frames {modality.num_frames}" if modality.num_frames else ""
                self.caches[kind] = FeatureCache(
                    folder or cache_dir() / "features",
                    encoder.digest,
                    encoder.identity + frames,
                    dtype="bfloat16",
                )

    @property
    def load_media(self) -> dict[str, Callable[[MediaRef], Tensor]]:
        """Return what `collate` and the loader read media with."""
        return {kind: self.caches.get(kind, read) for kind, read in self.pixels.items()}

    @property
    def encoded(self) -> frozenset[str]:
        """Return the kinds that come as features."""
        return frozenset(self.caches)

    def prepare(self, sources: Iterable[Source], on_error: str = "error") -> None:
        """Encode every medium of the sources that no cache holds yet, with progress on stderr.

        With `on_error` "skip" a medium that cannot be read is left to the loader, which counts its rows.
        """
        if not self.caches:
            return
        refs = distinct_media(sources, KEYS, skip_errors=on_error == "skip")
        for kind, cache in self.caches.items():
            self.encode(kind, [ref for ref in refs if ref.kind == kind], cache, on_error)

    def encode(
        self, kind: str, refs: Iterable[MediaRef], cache: FeatureCache, on_error: str = "error"
    ) -> None:
        """Fill one cache. Features are kept in bfloat16, and computed in it where the device does."""
        encoder = self.model.encoder_of(kind)
        device = next(encoder.parameters()).device
        dtype = choose_dtype("auto", str(device))
        modality = self.model.modality[kind]
        ragged = isinstance(modality, Spliced)

        def encode(media: Any) -> Any:
            if ragged:
                return modality.features([item.to(device, dtype) for item in media], encoder)
            return modality.features(media.to(device, dtype), encoder)

        with _cast(encoder, dtype):
            made = cache.build(
                refs,
                self.pixels[kind],
                encode,
                batch_size=max(1, ENCODE_BATCH // (modality.num_frames or 1)),
                on_error=on_error,
                ragged=ragged,
                progress=_say(kind),
            )
        if made:
            what = "recordings" if ragged else f"{kind}s"
            print(f"features of {made} {what} -> {cache.folder}", file=sys.stderr)

    @property
    def sizes(self) -> dict[str, SizeOf]:
        """Return how many positions a source takes in a row, at most, for the kinds that are spliced in."""
        return {
            kind: self._size_of(kind)
            for kind, modality in self.model.modality.items()
            if isinstance(modality, Spliced)
        }

    def _size_of(self, kind: str) -> SizeOf:
        modality, cache = self.model.modality[kind], self.caches.get(kind)
        encoder = self.model.encoder_of(kind)

        def size(source: Any) -> int:
            if cache is not None and (key := content_key(KEYS[kind], source)) in cache:
                return int(modality.num_positions(len(cache.get(key))))
            return int(modality.num_positions(encoder.num_frames(num_mel_frames(source))))

        return size


@contextmanager
def _cast(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Compute in another dtype for a while; afterwards the weights are what they were, not rounded."""
    kept = {name: tensor.data for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    module.to(dtype)
    try:
        yield
    finally:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.data = kept[name]


def prepared(
    model: MultimodalLlama, source: Source
) -> tuple[dict[str, Callable[[MediaRef], Tensor]], frozenset[str]]:
    """Encode what a source shows and no cache holds yet; return what `collate` reads it with, and the kinds encoded."""
    media = MediaReader(model)
    media.prepare([source])
    return media.load_media, media.encoded


def _reader(read: Callable[[Any], Tensor]) -> Callable[[MediaRef], Tensor]:
    return lambda ref: read(ref.source)


def _say(kind: str) -> Callable[[int, int], None]:
    told = [time.monotonic()]

    def say(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{kind} features {done}/{total}", end="\n" if done == total else "", file=sys.stderr)
        elif done == total or time.monotonic() - told[0] > 10:
            told[0] = time.monotonic()
            print(f"{kind} features {done}/{total}", file=sys.stderr)

    return say


def _loader(config: Mapping[str, Any], sources: list[Source], chat: ChatFormat, media: MediaReader) -> Loader:
    settings = config["loader"]
    weights = [entry.get("weight") for entry in config["data"]["train"]]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        raise ValueError(
            "data.train: give every source a weight, or none (then every row comes once an epoch)"
        )
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world_size = (
        (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
    )
    return Loader(
        Mixture(
            sources,
            None if None in weights else weights,
            seed=config["seed"],
            buffer=settings["shuffle_buffer"] or 0,
        ),
        chat,
        media.load_media,
        batch_size=settings["batch_size"],
        batch_tokens=settings["batch_tokens"],
        bucket_batches=settings["bucket_batches"],
        max_tokens=settings["max_tokens"],
        pack=settings["pack"],
        pack_tokens=settings["pack_tokens"],
        encoded=media.encoded,
        media_keys=KEYS,
        media_sizes=media.sizes,
        num_workers=settings["num_workers"],
        on_error=settings["on_error"],
        on_too_long=settings["on_too_long"],
        max_skipped=settings["max_skipped"],
        rank=rank,
        world_size=world_size,
    )


def batches_of(samples: list[Sample], media: MediaReader, batch_size: int = EVAL_BATCH) -> Iterator[Batch]:
    """Collate samples in order of length, for evaluation, on the device of the model."""
    order = sorted(range(len(samples)), key=lambda index: (samples[index].num_tokens, index))
    for start in range(0, len(order), batch_size):
        chosen = [samples[index] for index in order[start : start + batch_size]]
        yield collate(chosen, media.load_media, encoded=media.encoded).to(media.model.device)


def _evaluation(
    sources: list[Source], chat: ChatFormat, media: MediaReader, step: Step, config: Mapping[str, Any]
) -> Callable[[MultimodalLlama], dict[str, float]] | None:
    if not sources:
        return None
    settings = config["loader"]
    samples, num_skipped = held_out_samples(
        sources,
        chat,
        media.load_media,
        limit=config["data"].get("eval_rows", 0),
        on_error=settings["on_error"],
        max_skipped=settings["max_skipped"],
    )
    skipped = {"skipped": float(num_skipped)} if num_skipped else {}
    # A step that answers cannot measure brings its own.
    measure = getattr(step, "evaluate", answer_accuracy)
    return lambda model: measure(model, batches_of(samples, media)) | skipped


def _prefixes_hold(model: MultimodalLlama, train: Iterable[str]) -> bool:
    """Say whether nothing below the lowest block trains: neither the core nor a placeholder."""
    if os.environ.get("MM_LLAMA_NO_PREFIXES") or any(name.split(".")[0] == "core" for name in train):
        return False
    placeholders = [getattr(modality.adapter, "placeholder", None) for modality in model.modality.values()]
    return bool(placeholders) and not any(isinstance(one, torch.nn.Parameter) for one in placeholders)
