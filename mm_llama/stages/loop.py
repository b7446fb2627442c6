"""The one training loop: every stage is this loop, a config, and a pure step function.

Fetch the micro-batches of a step, forward and backward each as its share of all targets, check that
everything is finite, clip, update; every N steps evaluate and save. The same call again continues where it
stopped, with the same losses as a run that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.best import Best
from mm_llama.stages.checkpoint import restore, save_checkpoint, trained_tensors
from mm_llama.stages.freeze import FreezeTable, freeze, set_train_mode, unreached, verify, warning_of
from mm_llama.stages.identity import identity
from mm_llama.stages.lock import one_writer
from mm_llama.stages.metrics import (
    MetricsLog,
    config_hash,
    environment,
    means,
    read_metrics,
    skip_report,
    skipped,
    sources,
    throughput,
    totals,
    write_summary,
)
from mm_llama.stages.optim import NonFinite, adamw, clip_gradients, schedule_factor, set_lr
from mm_llama.stages.preemption import Stopped, stop_signals
from mm_llama.stages.progress import Progress
from mm_llama.stages.randomness import random_state, seed_everything, set_random_state, undisturbed
from mm_llama.stages.resume import find_resume, load_init
from mm_llama.stages.spikes import Spikes
from mm_llama.stages.steps import StepOutput, count_targets, next_token

Step = Callable[[MultimodalLlama, Batch], StepOutput]
Evaluate = Callable[[MultimodalLlama], Mapping[str, float]]
EARLY = 5  # updates after which tensors without a gradient are named


class Loader(Protocol):
    """An endless stream of batches that can say, as JSON data, where it stands, and go on from there."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Summary:
    """What a run came to; `final` is its last record in `metrics.jsonl`."""

    step: int
    finished: bool
    final: dict[str, Any]
    checkpoint: Path | None
    minutes: float
    table: FreezeTable


@one_writer
def train(
    model: MultimodalLlama,
    loader: Loader,
    step: Step = next_token,
    *,
    run_dir: str | Path,
    train: Sequence[str],
    num_steps: int,
    name: str = "stage",
    accumulate: int = 1,
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    gate_lr_multiple: float = 10.0,
    gates: Sequence[str] = (),
    no_decay: Sequence[str] = (),
    schedule: str = "cosine",
    warmup_steps: int = 20,
    final_fraction: float = 0.0,
    clip_norm: float = 1.0,
    eval_fn: Evaluate | None = None,
    eval_every: int = 0,
    save_every: int = 100,
    keep_last: int = 2,
    keep_best: int = 0,
    best: str = "",
    max_nonfinite: int = 0,
    spike: float = 10.0,
    log_every: int = 10,
    seed: int = 0,
    init: Mapping[str, str | Path] | None = None,
    resume: str = "auto",
    allow_core_swap: bool = False,
    stop_after: int | None = None,
    config: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
    stream: TextIO | None = None,
) -> Summary:
    """Train the parameters under the prefixes `train` for `num_steps` updates; checkpoints go to `run_dir`.

    A step is `accumulate` batches, weighted by their targets: it equals one big batch. `eval_fn` runs every
    `eval_every` steps and after the last; 0 means only then. `save_every` 0 saves at the end only.
    The newest `keep_last` checkpoints stay, and the `keep_best` best by a figure of the evaluation (`best`, see
    `mm_llama.stages.best`). `stop_after` leaves after that step as if told to stop. SIGINT, SIGTERM and SIGUSR1 finish
    the step, save, and exit with code 75; an evaluation is left, and made when the run continues.

    `max_nonfinite` updates of the run may be left out because loss or gradient are not finite; each is logged. A loss
    more than `spike` deviations over those before it is told with its rows.

    Raises ValueError (FrozenChanged, NonFinite, Locked among them) when the stage is declared wrongly, breaks its
    declaration, stops being finite or another process writes the folder; `checkpoints` gets nothing after that, and of
    a step that was not finite the state before it goes to `failed`, for `mm_llama.stages.replay`.
    """
    run_dir, config = Path(run_dir), dict(config or {})
    if num_steps < 1 or accumulate < 1:
        raise ValueError(
            f"stage.num_steps and stage.accumulate must be at least 1, got {num_steps} and {accumulate}"
        )
    factor = schedule_factor(schedule, warmup_steps=warmup_steps, final_fraction=final_fraction)
    seed_everything(seed)
    # Restore order, the first that exists wins: this run; explicit `resume`; `init` of earlier stages; fresh.
    # `init` is loaded even when a run continues: a checkpoint holds only what its stage trains.
    told: list[str] = []
    lineage = load_init(model, init or {}, allow_core_swap, told.append)
    table = freeze(model, train)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = adamw(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        gate_lr_multiple=gate_lr_multiple,
        gates=gates,
        no_decay=no_decay,
    )
    facts = {"stage": name, "train": list(train), "seed": seed, "config_hash": config_hash(config)}
    facts |= identity(model, table.train) | environment()
    start, minutes_before = 0, 0.0
    kept: dict[str, Any] = {"best": [], "nonfinite": 0, "pending": None}
    saved = find_resume(run_dir, resume, config)
    if saved is not None:
        state = restore(saved, model, optimizer, table, name)
        start, minutes_before, lineage = state["step"], state["minutes"], state["lineage"][:-1]
        kept |= {key: state[key] for key in kept if key in state}
        loader.load_state_dict(state["data"])
        set_random_state(state["random"])
    bests = Best(best, keep_best, kept["best"])
    began = time.perf_counter()

    def save(folder: Path = run_dir, **at: Any) -> Path:
        # A run of one step from closed gates moves the gates alone, so change is asked for from two steps on.
        verify(model, table, require_change=done >= max(2, num_steps))
        log.sync()
        state = facts | {"step": done, "num_steps": num_steps, "minutes": minutes(), "lineage": lineage}
        state |= {"data": loader.state_dict(), "random": random_state(), **kept, "best": bests.to_json()} | at
        of = {"keep_last": keep_last, "best": bests.steps} if folder == run_dir else {"keep_last": 1}
        return save_checkpoint(folder, model, optimizer, table, state, config, **of)

    def minutes() -> float:
        return minutes_before + (time.perf_counter() - began) / 60

    def finish(record: dict[str, Any]) -> bool:
        """Evaluate where it is time, log, and say whether to save; left by a signal, the record waits in `kept`."""
        kept["pending"], step = record, record["step"]
        if eval_fn is not None and (step == num_steps or (eval_every and step % eval_every == 0)):
            with stop.release():
                record = record | _evaluate(model, table, eval_fn)
        kept["pending"] = None
        log.write(record)
        progress.show(record)
        return bests.meet(record)

    done, saved_step, batches = start, start, iter(loader)
    buffers = [one for name, one in trained_tensors(model, table.train).items() if name not in parameters]
    silent = set(parameters)  # without a gradient so far
    progress = Progress(name, num_steps, start, log_every=log_every, stream=stream)
    log = MetricsLog(run_dir, start, tensorboard=tensorboard, say=progress.note)
    spikes = Spikes(spike, log.losses)
    with closing(log), progress, stop_signals() as stop, stop.hold():
        for text in (*told, table):
            progress.note(text)
        if saved is not None:
            progress.note(f"continuing after step {start} of {num_steps}, from {saved}")
        with suppress(Stopped):
            if kept["pending"] and finish(kept["pending"]):
                saved = save()
        while done < num_steps and done != stop_after and not stop.received:
            clock = time.perf_counter()
            before = {"data": loader.state_dict(), "random": random_state()}
            micro_batches = [next_batch(batches, done).to(model.device) for _ in range(accumulate)]
            waited = time.perf_counter() - clock
            record = {"step": done + 1, "epoch": loader.state_dict().get("epoch", 0)}
            rate = set_lr(optimizer, factor(done, num_steps))
            try:
                with _undone_unless_finite(buffers, optimizer):
                    outputs = forward_backward(model, step, micro_batches)
                    losses = finite_losses(outputs, micro_batches)
                    norm = clip_gradients(parameters, clip_norm)
            except NonFinite as error:
                if kept["nonfinite"] >= max_nonfinite:
                    where = _keep_failed(save, run_dir / "failed", before, error)
                    last = f"the newest checkpoint is {saved}" if saved else "there is no checkpoint yet"
                    raise NonFinite(
                        f"stopped before update {done + 1}: {error}; rows: {sources(micro_batches)}; {last}. "
                        f"Look at these rows, or lower optim.lr{where}"
                    ) from error
                kept["nonfinite"] += 1
                done += 1
                record |= {"loss": None, "left_out": str(error), "rows": sources(micro_batches)}
                record |= {"lr": rate} | throughput(micro_batches, time.perf_counter() - clock, waited)
                record |= skipped(loader)
                progress.note(
                    f"update {done} left out, {kept['nonfinite']} of at most stage.max_nonfinite={max_nonfinite}: "
                    f"{error}; rows: {record['rows']}"
                )
            else:
                silent = unreached(parameters, silent)
                if silent and done - start == EARLY - 1:
                    progress.note(warning_of(silent, len(parameters), EARLY))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                record |= means(outputs, losses) | {"lr": rate, "grad_norm": norm}
                record |= throughput(micro_batches, time.perf_counter() - clock, waited) | skipped(loader)
                if leap := spikes.meet(record["loss"]):
                    record |= {"spike": leap, "rows": sources(micro_batches)}
                    progress.note(
                        f"loss spike at step {done}: {record['loss']:.4g}, {leap:.3g} times the median before it; "
                        f"rows: {record['rows']}"
                    )
            try:
                better = finish(record)
            except Stopped:
                break  # saved below with the record that waits; the same command evaluates first
            if better or done == num_steps or (save_every and done % save_every == 0):
                saved, saved_step = save(), done
        if saved_step != done or saved is None:
            saved = save()
        elif done == start:
            verify(model, table, require_change=done >= max(2, num_steps))
        progress.note(table)
        if report := skip_report(loader):
            progress.note(report)
    summary = Summary(done, done == num_steps, log.last, saved, minutes(), table)
    write_summary(
        run_dir,
        facts
        | {"finished": summary.finished, "step": done, "num_steps": num_steps, "minutes": summary.minutes}
        | {
            "final": summary.final,
            "totals": totals(read_metrics(log.path)),
            "skipped": skipped(loader),
            "checkpoint": saved.name,
            "lineage": lineage,
            "freeze": table.to_json(),
        },
    )
    if stop.received and not summary.finished:
        progress.note(f"{stop.received}: saved after step {done} of {num_steps}; the same command continues")
        raise Stopped(stop.received, told=True)
    return summary


def next_batch(batches: Iterator[Batch], done: int) -> Batch:
    """Return the next batch. Raises ValueError where the data ended."""
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the data ended after step {done}: a loader must go on from epoch to epoch"
        ) from None


def forward_backward(model: MultimodalLlama, step: Step, micro_batches: Sequence[Batch]) -> list[StepOutput]:
    """Leave the gradient of the mean over all targets of the micro-batches, as one big batch would.

    A step whose loss has other terms says so with a `count(batch)` of its own.
    """
    count = getattr(step, "count", count_targets)
    num_targets = sum(count(batch) for batch in micro_batches)
    if not num_targets:
        raise ValueError(f"nothing to learn from: no row of this step has targets: {sources(micro_batches)}")
    outputs = []
    for batch in micro_batches:
        output = step(model, batch)
        # Rows without media never meet what trains: their loss counts, their gradient is zero.
        if output.loss_sum.requires_grad:
            (output.loss_sum / num_targets).backward()
        outputs.append(output)
    assert sum(output.num_targets for output in outputs) == num_targets
    return outputs


def finite_losses(outputs: Sequence[StepOutput], micro_batches: Sequence[Batch]) -> list[float]:
    """Return the sum of losses of each micro-batch. Raises NonFinite, naming the rows."""
    losses: list[float] = torch.stack([output.loss_sum.detach() for output in outputs]).tolist()
    bad = [batch for batch, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
    if bad:
        raise NonFinite(f"the loss is not finite in a batch with {sources(bad)}")
    return losses


@contextmanager
def _undone_unless_finite(buffers: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Leave no trace of a step that is not finite: neither gradients nor statistics that its batches moved."""
    values = [tensor.clone() for tensor in buffers]
    try:
        yield
    except NonFinite:
        optimizer.zero_grad(set_to_none=True)
        for tensor, value in zip(buffers, values, strict=True):
            tensor.copy_(value)
        raise


def _keep_failed(save: Callable[..., Path], folder: Path, before: Mapping[str, Any], error: Exception) -> str:
    """Save the state before a step that is not finite, apart from the run's checkpoints; return how to look at it."""
    try:
        path = save(folder, **before, failed=str(error))
    except (ValueError, OSError):  # what stopped the run is what has to be told
        return ""
    return (
        f"; the state before it is kept: add replay={int(path.name.removeprefix('step_')) + 1} to the command"
    )


def _evaluate(model: MultimodalLlama, table: FreezeTable, eval_fn: Evaluate) -> dict[str, float]:
    model.eval()
    try:
        with undisturbed(), torch.no_grad():
            return {f"eval.{key}": value for key, value in eval_fn(model).items()}
    finally:
        set_train_mode(model, table)
