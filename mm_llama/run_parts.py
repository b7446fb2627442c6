"""Which modalities finished runs bring, and which runs are loaded for them: what they trained, and beside what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_llama.released.detect import is_vision
from mm_llama.targets import check_run_parts


def modalities_of_runs(
    adapters: Sequence[str | Path],
) -> tuple[list[tuple[Path, str]], dict[str, Any]]:
    """Return the runs to load, in order, with what of each, and the config of every modality that they bring.

    A run brings what it trained. What it was trained beside (the image adapter of a video run) comes from another
    run that is given, else from the run or the released checkpoint that it named as its start.
    """
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state

    parts: dict[str, Any] = {}
    runs: list[tuple[Path, str]] = []
    beside: dict[str, tuple[Path, Path]] = {}  # modality -> its run, the run that names it
    sources: dict[str, Any] = {}
    for run in map(Path, adapters):
        if is_vision(run):
            if "image" in parts:
                raise ValueError(f"{run} brings a second image adapter; attach one adapter of a kind")
            parts["image"] = {"source": str(run)}
            continue
        config = _config_of(run)
        trained = {prefix.split(".")[1] for prefix in read_state(find_checkpoint(run))["train"]}
        for name, part in config["modality"].items():
            if part and name in trained:
                if name in parts:
                    raise ValueError(f"{run} brings a second {name} adapter; attach one adapter of a kind")
                parts[name] = _checked_parts(run, name, part)
            elif part and part.get("source"):
                sources[name] = {"source": part["source"]}
        for name, start in (config["stage"].get("init") or {}).items():
            if start and name.split(".")[0] not in trained:
                beside[name.split(".")[0]] = (Path(start), run)
        runs += [*_parts_before(run), (run, "")]
    for name, (start, run) in beside.items():
        if name in parts:
            continue
        if not start.is_dir():
            start = run.parent / start.name  # its sibling, when both were moved or are named from elsewhere
        if not start.is_dir():
            raise ValueError(
                f"{run} was trained beside the {name} adapter of {start}, which is not there: give that run too"
            )
        _check_start(run, name, start, "beside")
        parts[name] = _checked_parts(start, name, _config_of(start)["modality"].get(name))
        runs[:0] = [*_parts_before(start), (start, "")]
    parts = sources | parts
    # Those that read another's encoder stand behind it, whatever the order in which they were given.
    return runs, dict(sorted(parts.items(), key=lambda entry: bool(entry[1].get("reads"))))


def _config_of(run: Path) -> dict[str, Any]:
    """Return a run's config, which has the parts that every stage's has."""
    from mm_llama.stages.checkpoint_files import read_run_config

    config = read_run_config(run)
    for key in ("modality", "stage"):
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{run}: {key} is missing in its config.yaml, so no stage of mm_llama wrote it")
    return config


def _check_start(run: Path, name: str, start: Path, how: str) -> None:
    """Raise ValueError where the run beside or after which another was trained has been trained anew since."""
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state

    *before, _ = read_state(find_checkpoint(run))["lineage"]
    found = read_state(find_checkpoint(start))["lineage"][-1]["adapter"]
    if before and found not in {entry["adapter"] for entry in before}:
        remedy = {
            "beside": f"give the {name} run to attach as well, the one that it was trained beside if it is still there",
            "after": "put the one that it was trained after there, or train this one again",
        }[how]
        raise ValueError(
            f"{run} was trained {how} the {name} adapter of {start}, but that folder holds another one now, {found}: "
            f"{remedy}"
        )


def _parts_before(run: Path) -> list[tuple[Path, str]]:
    """Return the runs whose parts a run goes on from and does not hold itself, in order, and what of each.

    These are a frozen encoder that came out of another run, and the rest of an adapter of which a run trained a part.
    """
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state
    from mm_llama.stages.identity import is_encoder

    state = read_state(find_checkpoint(run))
    init = _config_of(run)["stage"].get("init") or {}
    found: list[tuple[Path, str]] = []
    for key, start in init.items():
        if not start:
            continue
        name = key.split(".")[0]
        if is_encoder(f"modality.{key}"):
            if name in state["encoders"]:
                found.append((Path(start), f"modality.{key}"))
        elif key == name and _only_parts(state["train"], name):
            before = Path(start) if Path(start).is_dir() else run.parent / Path(start).name
            if not before.is_dir():
                raise ValueError(
                    f"{run} trained a part of the {name} adapter of {start}, which is not there: put that run beside it"
                )
            _check_start(run, name, before, "after")
            found += [*_parts_before(before), (before, "")]
    return found


def _only_parts(trained: Sequence[str], name: str) -> bool:
    """Say whether a run trained some of a modality's adapter, and not all of it."""
    adapter = f"modality.{name}.adapter"
    return any(one.startswith(f"{adapter}.") for one in trained) and not {adapter, f"modality.{name}"} & set(
        trained
    )


def _checked_parts(run: Path, name: str, part: Any) -> Mapping[str, Any]:
    """Return a modality of a run's config as it is, once it is known to be data and to name modules of ours."""
    if not isinstance(part, Mapping) or not isinstance(part.get("adapter"), Mapping):
        raise ValueError(
            f"{run}: modality.{name} of its config has no adapter: it was not written by mm_llama"
        )
    check_run_parts(part, f"{run}: modality.{name}")
    return part
