"""What a run records: `metrics.jsonl` (one object a step), TensorBoard where installed, `summary.json`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mm_llama
from mm_llama.batch import Batch
from mm_llama.stages.freeze import shorten
from mm_llama.stages.steps import StepOutput, count_targets


class MetricsLog:
    """Appends records to `metrics.jsonl` and TensorBoard; a continued run holds no step twice."""

    def __init__(
        self,
        run_dir: str | Path,
        restored_step: int,
        *,
        tensorboard: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(self.path) if record["step"] <= restored_step]
        write_atomically(self.path, "".join(_line(record) for record in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {}
        self.losses = [record["loss"] for record in kept if record.get("loss") is not None]
        self._file = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            if importlib.util.find_spec("tensorboard") is None:
                say("TensorBoard is not installed: only metrics.jsonl is written (install mm_llama[train])")
            else:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=restored_step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one step's record; it reaches the file at once."""
        self.last = dict(record)
        self._file.write(_line(record))
        self._file.flush()
        if self._board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self._board.add_scalar(key.replace(".", "/"), value, record["step"])

    def sync(self) -> None:
        """Bring what was written to the disk itself: a checkpoint never knows of more steps than the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def means(outputs: Sequence[StepOutput], losses: Sequence[float]) -> dict[str, float]:
    """Return the loss and metrics of a step, each a mean over the targets of all its micro-batches."""
    num_targets = sum(output.num_targets for output in outputs)
    names = dict.fromkeys(name for output in outputs for name in output.metrics)
    means = {
        name: sum(output.metrics.get(name, 0.0) * output.num_targets for output in outputs) / num_targets
        for name in names
    }
    return {"loss": sum(losses) / num_targets} | means


def throughput(micro_batches: Sequence[Batch], seconds: float, waited: float) -> dict[str, float]:
    """Return what went through a step of `seconds`, of which the data were `waited` for.

    `padding` is the share of the batches' positions that hold no token.
    """
    tokens = sum(int(batch.lengths_B.sum()) for batch in micro_batches)
    positions = sum(batch.tokens_BS.numel() for batch in micro_batches)
    samples = sum(batch.num_samples for batch in micro_batches)
    return {
        "tokens": tokens,
        "padding": 1 - tokens / positions,
        "targets": sum(count_targets(batch) for batch in micro_batches),
        "samples": samples,
        "tokens_per_s": tokens / seconds,
        "samples_per_s": samples / seconds,
        "data_wait": waited / seconds,
        "seconds": seconds,
        "memory_mb": peak_memory_mb(),
    }


def totals(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what went through all steps of a run, evaluations and saving left out; records as of `throughput`."""
    counted = [record for record in records if "padding" in record]
    tokens, samples, seconds = (
        sum(record[key] for record in counted) for key in ("tokens", "samples", "seconds")
    )
    if not counted:
        return {}
    positions = sum(record["tokens"] / (1 - record["padding"]) for record in counted)
    return {
        "tokens": tokens,
        "samples": samples,
        "padding": 1 - tokens / positions,
        "tokens_per_s": tokens / seconds,
        "samples_per_s": samples / seconds,
    }


def skipped(loader: Any) -> dict[str, int]:
    """Return how many rows of its data a loader has left out so far, in all and by cause; nothing for none."""
    causes: Mapping[str, int] = getattr(loader, "skipped", {})
    total = sum(causes.values())
    return (
        {"skipped": total} | {f"skipped.{cause}": causes[cause] for cause in sorted(causes)} if total else {}
    )


def skip_report(loader: Any) -> str:
    """Say at the end of a run what was left out, with the first rows by name; nothing for nothing."""
    found = skipped(loader)
    if not found:
        return ""
    causes = ", ".join(
        f"{key.removeprefix('skipped.')} {count}" for key, count in found.items() if "." in key
    )
    named = "".join(f"\n  {example}" for example in loader.skip_examples)
    return f"skipped {found['skipped']} rows ({causes}), none of them replaced:{named}"


def sources(batches: Sequence[Batch]) -> str:
    """Name the rows of batches for a message, the first few of them."""
    return shorten([source for batch in batches for source in batch.sources]) or "rows without a named source"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read records back; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    records = []
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number}: not JSON ({error}); move the file away to continue without it"
                ) from error
    return records


def write_summary(run_dir: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json`, whole or not at all."""
    path = Path(run_dir) / "summary.json"
    write_atomically(path, json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file through a temporary name beside it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a resolved config; the order of keys is irrelevant."""
    text = json.dumps(config, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def environment() -> dict[str, Any]:
    """Return versions, the commit of a checkout, and the machine's size: what a figure needs beside it."""
    versions = {
        "python": platform.python_version(),
        "mm_llama": mm_llama.__version__,
        "torch": str(torch.__version__),
    }
    for name in ("numpy", "safetensors", "timm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
    }


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, and the accelerator's where there is one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@cache
def _commit() -> str | None:
    """Return the commit of the checkout that holds this package, with `+` when tracked files differ."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy inside somebody else's repository is not that repository's commit.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Make a value JSON: numbers that are not finite become null, because JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    return str(value)
