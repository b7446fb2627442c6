"""Averages of runs: a sweep is ranked by a metric, and the weights of its best are averaged (paper section 7.5).

What is averaged must be alike: the same trained tensors on the same core, with the same frozen parts beside them,
ranked on the same held-out rows. The average is a run folder like any other, but for the optimizer state: it can be
asked, measured and started from, not continued.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.core.documents import mapping, read_json
from mm_llama.core.tensor_file import load_tensors
from mm_llama.stages.checkpoint import not_finite
from mm_llama.stages.checkpoint_files import FILES, read_run_config, read_state, validate, write_checkpoint
from mm_llama.stages.freeze import shorten, under
from mm_llama.stages.metrics import read_metrics, write_summary
from mm_llama.stages.resume import FREE_KEYS, flat

# Words at the end of a metric's name that say that less of it is better.
LESS_IS_BETTER = ("loss", "perplexity", "wer", "cer", "error", "nll")


@dataclass(frozen=True)
class Candidate:
    """One run that may be averaged: its checkpoint, and what it measured at that step."""

    run: Path
    checkpoint: Path
    state: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def adapter(self) -> str:
        """SHA-256 of the trained tensors: what lineages call it by."""
        return str(self.state["lineage"][-1]["adapter"])

    def tensors(self) -> dict[str, Tensor]:
        """Read the trained tensors. Raises ValueError when one holds a value that is not finite."""
        tensors = load_tensors(self.checkpoint / FILES[0])
        if broken := not_finite(tensors):
            raise ValueError(
                f"{self.checkpoint}: values are not finite in {shorten(broken)}; leave this run out"
            )
        return tensors


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the runs (or checkpoints) named, those of a sweep's folder in its place, and why others are left out.

    Only jobs of a sweep that did not finish are left out; a run named by itself must be finished. Raises ValueError
    for a folder that is neither, and for a run that comes twice.
    """
    found: list[Path] = []
    left_out: list[str] = []
    for path in (Path(path) for path in paths):
        if _is_run(path) or (path / "MANIFEST.json").is_file():
            found.append(path)
            continue
        jobs = sorted((job for job in path.glob("*") if job.is_dir() and _is_job(job)), key=_by_number)
        if not jobs:
            what = "holds no runs" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {what}: name folders of finished runs, or the folder of a sweep")
        for job in jobs:
            unfinished = _unfinished(job)
            if unfinished:
                left_out.append(unfinished)
            else:
                found.append(job)
    places = [path.resolve() for path in found]
    for path, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is given twice: in an average each run counts once")
    if not found:
        raise ValueError(f"there is no finished run to average: {'; '.join(left_out)}")
    return found, left_out


def read_candidate(path: Path) -> Candidate:
    """Read a finished run, or one checkpoint of a run with the record of its step."""
    if (path / "MANIFEST.json").is_file():
        run, checkpoint = path.parent.parent, path
        step = read_state(path)["step"]
        metrics = next((r for r in read_metrics(run / "metrics.jsonl") if r["step"] == step), {})
    else:
        if unfinished := _unfinished(path):
            raise ValueError(unfinished)
        summary = read_json(path / "summary.json")
        run, checkpoint = path, path / "checkpoints" / str(summary.get("checkpoint"))
        metrics = mapping(summary, "final", path / "summary.json")
    validate(checkpoint)
    return Candidate(path, checkpoint, read_state(checkpoint), read_run_config(checkpoint), metrics)


def rank(candidates: Sequence[Candidate], metric: str, *, lowest: bool | None = None) -> list[Candidate]:
    """Order candidates by a metric, the best first, equals in the order given.

    `lowest` None reads from the metric's name whether less is better. Raises ValueError for a run without the metric
    and for runs that were not measured on the same held-out rows.
    """
    for candidate in candidates:
        value = candidate.metrics.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = sorted(
                k for k, v in candidate.metrics.items() if isinstance(v, int | float) and k != "step"
            )
            said = "holds no number" if metric in candidate.metrics else "is missing"
            raise ValueError(
                f"{candidate.run}: the metric {metric!r} {said}; this run has {', '.join(known) or 'none'} "
                "(eval.* come from data.eval)"
            )
    if metric.startswith("eval."):
        for candidate in candidates[1:]:
            _same(candidates[0], candidate, "data.eval", "ranked by " + metric, _held_out)
    less = is_less_better(metric) if lowest is None else lowest
    return sorted(candidates, key=lambda one: float(one.metrics[metric]) * (1 if less else -1))


def is_less_better(metric: str) -> bool:
    """Say whether less of a metric is better, by its name."""
    return metric.rpartition(".")[2].endswith(LESS_IS_BETTER)


def settings_of(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return, per candidate, the settings of its config in which they differ."""
    flats = [dict(flat(json.loads(json.dumps(candidate.config)))) for candidate in candidates]
    keys = sorted({key for one in flats for key in one if key.rsplit(".", 1)[-1] not in (*FREE_KEYS, "name")})
    differing = [key for key in keys if any(one.get(key) != flats[0].get(key) for one in flats)]
    return [{key: one.get(key) for key in differing} for one in flats]


def prefix_averages(candidates: Sequence[Candidate]) -> Iterator[dict[str, Tensor]]:
    """Yield the average of the first one, the first two, and so on, summed in float64, in the tensors' own dtypes.

    Tensors that are not floating point (counters) are those of the first. Raises ValueError, naming both runs, when
    two are not alike.
    """
    first = candidates[0]
    own = first.tensors()
    sums = {n: t.to(torch.float64, copy=True) for n, t in own.items() if t.is_floating_point()}
    yield own
    for count, candidate in enumerate(candidates[1:], start=2):
        tensors = candidate.tensors()
        check_alike(first, candidate, own, tensors)
        for name, total in sums.items():
            total += tensors[name].double()
        yield {
            name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor
            for name, tensor in own.items()
        }


def check_alike(
    one: Candidate, other: Candidate, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> None:
    """Raise ValueError, naming both runs and what differs, unless their tensors may be averaged."""
    why = "averaged"
    _same(one, other, "the core", why, lambda run: run.state["core"])
    _same(one, other, "stage.train", why, lambda run: run.state["train"])
    _same(one, other, "the frozen encoder", why, lambda run: run.state["encoders"])
    _same(one, other, "modality", why, lambda run: _without_seeds(run.config.get("modality")))
    _same(one, other, "a frozen tensor", why, _frozen)
    shapes = [
        {name: (tuple(t.shape), str(t.dtype)) for name, t in each.items()} for each in (tensors, others)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"{one.run} and {other.run} cannot be averaged: {name} is {shapes[0].get(name)} in one and "
                f"{shapes[1].get(name)} in the other"
            )


def began_alike(candidates: Sequence[Candidate]) -> bool:
    """Say whether all runs started from the same tensors; averages of others are seldom of use."""
    starts = [
        {
            name: digest
            for name, digest in run.state.get("before", {}).items()
            if under(name, run.state["train"])
        }
        for run in candidates
    ]
    return all(start == starts[0] for start in starts)


def write_average(
    out: str | Path,
    candidates: Sequence[Candidate],
    tensors: Mapping[str, Tensor],
    *,
    metric: str,
    final: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the average of `candidates`, the best first, as a run folder; returns its checkpoint.

    `final` is what the average itself measured, `facts` what the summary is to hold besides. The folder appears whole
    or not at all. Raises ValueError when `out` holds something, or the average is not finite.
    """
    out, best = Path(out), candidates[0]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: choose another --out, or delete it")
    if broken := not_finite(tensors):
        raise ValueError(f"the average is not finite in {shorten(broken)}; nothing is written")
    parents = [
        {"run": str(one.run), "step": one.state["step"], "adapter": one.adapter, metric: one.metrics[metric]}
        for one in candidates
    ]
    lineage: list[Any] = []
    for candidate in candidates:
        lineage += [entry for entry in candidate.state["lineage"] if entry not in lineage]
    dropped = ("format", "lineage", "data", "random", "minutes")
    state = {key: value for key, value in best.state.items() if key not in dropped}
    state |= {"lineage": lineage, "average_of": parents}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        adapters = [parent["adapter"] for parent in parents]
        checkpoint = write_checkpoint(partial, tensors, {}, state, best.config, average_of=adapters)
        summary = {key: value for key, value in state.items() if key not in ("before", "lineage")}
        summary |= {
            "finished": True,
            "minutes": 0.0,
            "final": dict(final or {}),
            "checkpoint": checkpoint.name,
        }
        write_summary(partial, summary | {"lineage": lineage} | dict(facts or {}))
        partial.chmod(0o755)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out / "checkpoints" / checkpoint.name


def _same(one: Candidate, other: Candidate, what: str, why: str, of: Any) -> None:
    left, right = of(one), of(other)
    if left == right:
        return
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        flats = dict(flat(left)), dict(flat(right))
        key = next(k for k in sorted(flats[0].keys() | flats[1].keys()) if flats[0].get(k) != flats[1].get(k))
        what, left, right = f"{what} ({key})" if key else what, flats[0].get(key), flats[1].get(key)
    raise ValueError(
        f"{one.run} and {other.run} cannot be {why}: {what} is {left!r} in one and {right!r} in the other"
    )


def _held_out(candidate: Candidate) -> Any:
    data = candidate.config.get("data") or {}
    return {"rows": data.get("eval"), "eval_rows": data.get("eval_rows", 0)}


def _frozen(candidate: Candidate) -> dict[str, str]:
    """Digests of what stood frozen beside the trained tensors, outside the core (which has a digest of its own)."""
    before: Mapping[str, str] = candidate.state.get("before", {})
    train = candidate.state["train"]
    return {n: digest for n, digest in before.items() if not n.startswith("core.") and not under(n, train)}


def _without_seeds(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_seeds(value) for key, value in node.items() if key != "seed"}
    return node


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path / "summary.json").is_file()


def _is_job(path: Path) -> bool:
    # A job that failed before its first checkpoint has left its config only.
    return _is_run(path) or (path / "hydra").is_dir()


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.name), "") if path.name.isdigit() else (1 << 62, path.name)


def _unfinished(run: Path) -> str:
    """Say why a run is not finished, or nothing."""
    if not (run / "summary.json").is_file():
        return f"{run} has no summary.json: it did not finish"
    summary = read_json(run / "summary.json")
    if not summary.get("finished"):
        return f"{run} stopped after step {summary.get('step')} of {summary.get('num_steps')}"
    return ""
