"""What runs came to: one row for each, from the files that it and its sweep left. Configs are read as data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mm_llama.average import is_less_better
from mm_llama.stages.metrics import read_metrics
from mm_llama.stages.resume import FREE_KEYS, flat
from mm_llama.sweeps.ledger import FAILED, FINISHED, NAME, STOPPED, Entry, Ledger, is_running, typed

RUNNING, BROKEN = "running", "broken"
# Where a run is and how often it writes: never what a table is about.
ASIDE = (FREE_KEYS - {"num_steps", "resume", "max_nonfinite"}) | {"name", "sweep"}


@dataclass(frozen=True)
class Row:
    """One run, finished or not. `config` is nested, `overrides` are what was typed, `choices` Hydra's groups."""

    folder: Path
    status: str
    error: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    config_dirs: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_metrics(self.folder / "metrics.jsonl")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config, flat, without where it ran and how often it wrote."""
        pairs = flat(json.loads(json.dumps(self.config, default=str)))
        return {
            key: value for key, value in pairs if key.rsplit(".", 1)[-1] not in ASIDE or key == "stage.name"
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The loss and what was measured on held-out rows, of the last step."""
        final = self.summary.get("final") or (self.records[-1] if self.records else {})
        names = ["loss", *(name for name in final if name.startswith("eval."))]
        return {name: float(final[name]) for name in names if isinstance(final.get(name), int | float)}

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(self.summary.get("step") or (self.records[-1]["step"] if self.records else 0))

    @property
    def num_steps(self) -> int:
        """The step at which the run is finished; 0 where that is not known."""
        return int((self.config.get("stage") or {}).get("num_steps") or 0)

    @property
    def minutes(self) -> float | None:
        """How long it took, of a finished run."""
        return self.summary.get("minutes")

    def value(self, key: str) -> Any:
        """Return what a key, or a group of configs, was set to."""
        if key in self.choices:
            return self.choices[key]
        node: Any = self.config
        for part in key.split("."):
            if isinstance(node, Mapping):
                node = node.get(part)
            elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                return None
        return node


def find_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Return a row for each run named, for those of a sweep or of a folder of runs in its place; each comes once.

    Raises ValueError for a folder that holds no runs.
    """
    rows: dict[Path, Row] = {}
    for path in map(Path, paths):
        found = list(_rows_below(path))
        if not found:
            what = "holds no runs" if path.is_dir() else "does not exist"
            raise ValueError(
                f"{path} {what}: name folders of runs, or the folder of a sweep (runs/NAME_sweep)"
            )
        rows |= {row.folder.resolve(): row for row in found}
    return list(rows.values())


def is_run(path: Path) -> bool:
    """Say whether a folder is one run's."""
    return any(
        (path / name).exists() for name in ("checkpoints", "summary.json", "metrics.jsonl", "demo.json")
    )


def holds_runs(path: Path) -> bool:
    """Say whether a folder is a sweep's, or has runs or sweeps in it."""
    return path.is_dir() and not is_run(path) and any(_rows_below(path))


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the settings in which rows differ: of those that were typed, or, where that is not known, of all."""
    given = dict.fromkeys(text.partition("=")[0].lstrip("+") for row in rows for text in row.overrides)
    keys = [
        key
        for key in given
        if key.rsplit(".", 1)[-1] not in ASIDE and len({_key(row.value(key)) for row in rows}) > 1
    ]
    if keys and all(row.overrides for row in rows):
        return keys
    return differing([row.settings for row in rows])


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that are not the same in all of several flat configs."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({_key(one.get(key)) for one in settings}) > 1]


def main_metric(rows: Sequence[Row]) -> str:
    """Return what runs are ranked by when nothing is said: held-out answers, another held-out metric, or the loss."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    held_out = sorted(name for name in names if name.startswith("eval."))
    return "eval.answers" if "eval.answers" in names else held_out[0] if held_out else "loss"


def rank(rows: Sequence[Row], metric: str, lowest: bool | None = None) -> list[Row]:
    """Order rows: finished ones by a metric, the best first, then those without it, then failed ones."""
    less = is_less_better(metric) if lowest is None else lowest

    def place(row: Row) -> tuple[int, float]:
        if row.status == FAILED:
            return 2, 0.0
        if row.status != FINISHED or metric not in row.metrics:
            return 1, 0.0
        return 0, row.metrics[metric] * (1 if less else -1)

    return sorted(rows, key=place)


def command_of(row: Row, name: str) -> str:
    """Return the command line that trains a row's config again, in a run of another name."""
    given = [text for text in row.overrides if not text.startswith(("name=", "sweep."))]
    if any(text.lstrip("+").startswith("sweep=") for text in given):
        given.append("hydra.mode=RUN")
    folders = [part for folder in row.config_dirs for part in ("--config-dir", folder)]
    return shlex.join(["mm-llama", "train", *given, f"name={name}", *folders])


def text_of(value: Any) -> str:
    """Return a setting as a table shows it."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows_below(path: Path) -> Iterator[Row]:
    if (path / NAME).is_file():
        for entry in Ledger(path).read().values():
            yield read_row(path / entry.folder, entry)
    elif is_run(path) or (path / "hydra" / "config.yaml").is_file():
        yield read_row(path)
    elif path.is_dir():
        for child in sorted(child for child in path.iterdir() if child.is_dir()):
            if (child / NAME).is_file() or is_run(child) or (child / "hydra" / "config.yaml").is_file():
                yield from _rows_below(child)


def read_row(folder: Path, entry: Entry | None = None) -> Row:
    """Read one run's folder; `entry` is what the ledger of its sweep says of it."""
    summary = _json(folder / "summary.json")
    finished = bool(summary.get("finished"))
    if entry is not None and entry.status in (FINISHED, FAILED):
        status, error = entry.status, entry.error
    else:
        status, error = FINISHED if finished else RUNNING if is_running(folder) else BROKEN, ""
    if status == FINISHED and not finished:
        status, error = BROKEN, "its summary.json is gone"
    elif status == BROKEN and entry is not None:
        error = (
            "stopped" if entry.status == STOPPED else "ended without a word: killed, or the machine went down"
        )
    hydra = _yaml(folder / "hydra" / "hydra.yaml").get("hydra") or {}
    overrides = entry.overrides if entry is not None else (hydra.get("overrides") or {}).get("task") or []
    return Row(
        folder,
        status,
        error,
        _config(folder),
        typed(overrides),
        entry.config_dirs if entry is not None else [],
        (hydra.get("runtime") or {}).get("choices") or {},
        summary,
    )


def _config(folder: Path) -> dict[str, Any]:
    stored = sorted(folder.glob("checkpoints/step_*/config.yaml"))
    return _yaml(stored[-1] if stored else folder / "hydra" / "config.yaml")


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = OmegaConf.load(path)
    try:
        # What Hydra left is not resolved yet; a checkpoint's config is, and nothing in it is looked up.
        data = OmegaConf.to_container(loaded, resolve=path.parent.name == "hydra" and path.stem == "config")
    except OmegaConfBaseException:  # what a failed job left open
        data = OmegaConf.to_container(loaded, resolve=False)
    return {str(key): value for key, value in data.items()} if isinstance(data, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); give the run's command again, which writes it anew"
        ) from error
    return data if isinstance(data, dict) else {}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
