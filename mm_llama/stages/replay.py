"""One step of a run again, from the state before it: what it learned from, and whether data or numbers are at fault.

The state is that of the step's own failure where the run stopped there, else the newest checkpoint before it, from
which the steps between are made again, exactly; the run's folder is only read, but for `replay_STEP.json`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.batch import Batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint_files import (
    InvalidCheckpoint,
    numbered,
    read_run_config,
    read_state,
    validate,
)
from mm_llama.stages.loop import Loader, Step, finite_losses, forward_backward, next_batch, train
from mm_llama.stages.metrics import means, read_metrics, sources, write_atomically
from mm_llama.stages.optim import NonFinite, clip_gradients
from mm_llama.stages.randomness import random_state, set_random_state
from mm_llama.stages.resume import check_same

FAILED = "failed"  # where the loop keeps the state before a step that was not finite
ROWS = 8  # that a person is told of


@dataclass
class Attempt:
    """A step without its update: `error` says what was not finite."""

    loss: float
    grad_norm: float
    error: str = ""


@dataclass
class Replay:
    """What a step gave when it was made again; losses are means over targets."""

    step: int
    verdict: str
    again: Attempt
    recorded: dict[str, Any]  # loss and gradient norm, or why it failed, as the run itself has it
    rows: list[dict[str, Any]] = field(default_factory=list)  # the worst first
    first_nonfinite: str = ""  # the module whose output was not finite first
    other_rows: Attempt | None = None  # the next batch, in the same state
    in_float32: Attempt | None = None

    @property
    def sound(self) -> bool:
        """Say whether the step is finite."""
        return not self.again.error

    def __str__(self) -> str:
        told = self.recorded.get("error") or f"loss {self.recorded.get('loss')}"
        lines = [
            f"step {self.step}: {self.verdict}",
            f"  as recorded: {told}",
            f"  again: {_words(self.again)}",
        ]
        if self.other_rows is not None:
            lines.append(f"  the next batch in the same state: {_words(self.other_rows)}")
        if self.in_float32 is not None:
            lines.append(f"  the same rows in float32: {_words(self.in_float32)}")
        if self.first_nonfinite:
            lines.append(f"  not finite first behind: {self.first_nonfinite}")
        lines += [
            f"  {row['source']}: {row['error'] or format(row['loss'], '.6g')} a target, {row['targets']} targets"
            f", {row['tokens']} tokens"
            for row in self.rows[:ROWS]
        ]
        return "\n".join(lines)


def replay(
    model: MultimodalLlama,
    loader: Loader,
    step: Step,
    number: int,
    *,
    run_dir: str | Path,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Replay:
    """Make step `number` of the run in `run_dir` again; `settings` are those of `mm_llama.stages.loop.train`.

    Raises ValueError when the run has not come to this step or was begun with another config.
    """
    run_dir = Path(run_dir)
    if number < 1 or number > settings["num_steps"]:
        raise ValueError(
            f"replay={number}: steps of this run are 1 to stage.num_steps={settings['num_steps']}"
        )
    saved = _state_before(run_dir, number)
    if saved is not None:
        check_same(run_dir, read_run_config(saved), settings.get("config") or {})
    recorded = _recorded(run_dir, number, saved)
    start = 0 if saved is None else read_state(saved)["step"]
    say(f"replay of step {number}: from {saved or 'the beginning'}, {number - 1 - start} steps on the way")
    with tempfile.TemporaryDirectory() as scratch:
        unwatched = {"eval_fn": None, "save_every": 0, "keep_best": 0, "best": "", "tensorboard": False}
        train(
            model,
            loader,
            step,
            run_dir=scratch,
            **settings | unwatched | {"resume": str(saved) if saved else "never", "stop_after": number - 1},
        )
    random, batches = random_state(), iter(loader)

    def attempt(micro_batches: Sequence[Batch]) -> Attempt:
        set_random_state(random)
        return _attempt(model, step, micro_batches, settings.get("clip_norm", 1.0))

    def taken() -> list[Batch]:
        return [next_batch(batches, number).to(model.device) for _ in range(settings.get("accumulate", 1))]

    micro_batches = taken()
    again = attempt(micro_batches)
    found = Replay(number, "", again, recorded, rows=_rows(micro_batches, attempt))
    broken = [source for batch in micro_batches for source in _broken_media(batch)]
    if again.error:
        with _watched(model) as first:
            attempt(micro_batches)
        found.first_nonfinite = first[0] if first else ""
        found.other_rows = attempt(taken())
        if model.dtype != torch.float32:
            model.float()
            found.in_float32 = attempt([batch.to(model.device, torch.float32) for batch in micro_batches])
    else:
        found.other_rows = attempt(taken())
    found.verdict = _verdict(found, broken)
    text = json.dumps(_plain(asdict(found)), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(run_dir / f"replay_{number}.json", text + "\n")
    return found


def _state_before(run_dir: Path, number: int) -> Path | None:
    """Return the newest valid state from which the step can be made: that of its failure, or a checkpoint before it."""
    folders = [*numbered(run_dir / "checkpoints"), *numbered(run_dir / FAILED / "checkpoints")]
    for path in sorted(
        folders, key=lambda one: (int(one.name.removeprefix("step_")), FAILED in one.parts), reverse=True
    ):
        if int(path.name.removeprefix("step_")) < number:
            try:
                validate(path)
            except InvalidCheckpoint:
                continue
            return path
    return None


def _recorded(run_dir: Path, number: int, saved: Path | None) -> dict[str, Any]:
    for record in read_metrics(run_dir / "metrics.jsonl"):
        if record["step"] == number:
            kept = {key: record.get(key) for key in ("loss", "grad_norm", "spike")}
            return kept | {"error": record.get("left_out", "")}
    state = {} if saved is None else read_state(saved)
    if state.get("failed") and state["step"] == number - 1:
        return {"loss": None, "error": state["failed"]}
    raise ValueError(
        f"replay={number}: {run_dir} has not come to this step: metrics.jsonl has no such record, and no failure of "
        "it is kept in failed/"
    )


def _attempt(model: MultimodalLlama, step: Step, micro_batches: Sequence[Batch], clip_norm: float) -> Attempt:
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for parameter in trained.values():
        parameter.grad = None
    loss = norm = math.nan
    try:
        outputs = forward_backward(model, step, micro_batches)
        sums = [float(output.loss_sum.detach()) for output in outputs]
        loss = means(outputs, sums)["loss"]
        finite_losses(outputs, micro_batches)
        norm = clip_gradients(trained, clip_norm)
    except NonFinite as error:
        return Attempt(loss, norm, str(error))
    return Attempt(loss, norm)


def _rows(
    micro_batches: Sequence[Batch], attempt: Callable[[Sequence[Batch]], Attempt]
) -> list[dict[str, Any]]:
    """Each row by itself, the worst first."""
    found = []
    for batch in micro_batches:
        for row in range(len(batch.tokens_BS)):
            alone = batch.alone(row)
            told = {"source": sources([alone]), "tokens": int(alone.lengths_B.sum())}
            told["targets"] = 0 if alone.targets_BS is None else int(alone.targets_BS.sum())
            try:
                result = attempt([alone])
            except ValueError as error:  # of a loss that compares rows with each other
                found.append(told | {"loss": None, "error": str(error)})
            else:
                found.append(told | {"loss": result.loss, "error": result.error})
    return sorted(
        found,
        key=lambda row: (
            not row["error"],
            -(row["loss"] or 0) if math.isfinite(row["loss"] or 0) else -math.inf,
        ),
    )


def _broken_media(batch: Batch) -> Iterator[str]:
    """Name the rows whose media hold values that are not finite."""
    for kind, media in batch.media.items():
        broken = [not bool(item.isfinite().all()) for item in media.items]
        for row, position, item in zip(
            media.rows_M.tolist(), media.positions_M.tolist(), media.items_M.tolist(), strict=True
        ):
            if broken[item]:
                yield f"{batch.source_of(row, position)} ({kind})"


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules whose outputs are not finite, in the order in which they are computed."""
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            tensors = output if isinstance(output, list | tuple) else [output]
            if any(
                isinstance(one, Tensor) and one.is_floating_point() and not bool(one.isfinite().all())
                for one in tensors
            ):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _verdict(found: Replay, broken: Sequence[str]) -> str:
    again, recorded = found.again, found.recorded
    if broken:
        return f"data: media with values that are not finite in {', '.join(broken[:ROWS])}"
    if again.error and found.other_rows is not None and found.other_rows.error:
        return (
            "numeric: other rows fail in this state too, so weights have diverged; go back and lower optim.lr"
        )
    if again.error and found.in_float32 is not None and not found.in_float32.error:
        return (
            "numeric: the same rows are finite in float32, so values leave the range of the dtype computed in"
        )
    if again.error:
        return "data: other rows are finite in this state, these are not, and no wider dtype helps"
    if recorded.get("error"):
        return "not reproduced: finite now, so neither these rows nor this state explain it (hardware, other code)"
    same = again.loss == recorded.get("loss") and again.grad_norm == recorded.get("grad_norm")
    how = "equal to the bit" if same else f"recorded {recorded.get('loss')}"
    beside = found.other_rows.loss if found.other_rows is not None else math.nan
    if recorded.get("spike"):
        return f"finite, {how}; the next batch in the same state has loss {beside:.4g}, so " + (
            "these rows are hard or wrong"
            if beside < again.loss / 2
            else "the state has moved, not these rows"
        )
    return f"finite, {how}"


def _words(attempt: Attempt) -> str:
    return attempt.error or f"loss {attempt.loss:.8g}, gradient norm {attempt.grad_norm:.6g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
