"""Checkpoint folders on disk: written whole or not at all, checked by digest, rotated; no pickle.

`checkpoints/step_00000100/` holds `adapter.safetensors` (the trained tensors and no others),
`optimizer.safetensors`, `state.json` (step, data position, random states, digests, lineage), `config.yaml`
and `MANIFEST.json` (size and SHA-256 of each file). A checkpoint is written under a temporary name, synced to
disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mm_llama.core.documents import read_json
from mm_llama.stages.state_file import check_state
from mm_llama.stages.yaml_file import read_yaml

FORMAT = "mm_llama checkpoint 1"
FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
RELEASED = ("adapter.safetensors", "state.json", "config.yaml")  # of one that training does not go on from
_NAME = re.compile(r"step_(\d{8})")


class InvalidCheckpoint(ValueError):
    """A checkpoint folder is incomplete or its files are not what its manifest says."""


def write_checkpoint(
    run_dir: str | Path,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    **entry_extra: Any,
) -> Path:
    """Write tensors and state as the checkpoint of `state["step"]`, whole or not at all; others are left alone.

    The adapter's own digest closes the lineage, with `entry_extra` beside it: a later stage that starts from this
    checkpoint names it.
    """
    folder = Path(run_dir) / "checkpoints"
    final = folder / f"step_{state['step']:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step_*"):
            shutil.rmtree(stale)
        partial.mkdir()
        _write_files(partial, trained, optimizer, state, config, entry_extra)
        _put_in_place(partial, final)
        point(folder, "latest", final.name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {state['step']} cannot be written to {folder}: {error}; checkpoints before it are "
            "whole. Make room, or let the folder be written to; then the same command continues"
        ) from error
    return final


def _write_files(
    partial: Path,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    entry_extra: Mapping[str, Any],
) -> None:
    """Fill a folder with the files of a checkpoint and sync them."""
    save_file(_for_disk(trained), partial / FILES[0], metadata={"format": "pt"})
    save_file(_for_disk(optimizer), partial / FILES[1], metadata={"format": "pt"})
    entry = {key: state[key] for key in ("stage", "step", "core")} | {
        "adapter": sha256_of(partial / FILES[0])
    }
    whole = {"format": FORMAT} | dict(state) | {"lineage": [*state["lineage"], {**entry, **entry_extra}]}
    write_file(partial / FILES[2], json.dumps(whole, indent=1, allow_nan=False) + "\n")
    write_file(partial / FILES[3], _to_yaml(config))
    for name in FILES[:2]:
        # Tensor files come out readable by their owner alone; they are to be shared as the rest is.
        shutil.copymode(partial / FILES[2], partial / name)
    files = {
        name: {"sha256": sha256_of(partial / name), "bytes": (partial / name).stat().st_size}
        for name in FILES
    }
    manifest = {"format": FORMAT, "step": state["step"], "core": state["core"], "lineage": whole["lineage"]}
    write_file(partial / "MANIFEST.json", json.dumps(manifest | {"files": files}, indent=1) + "\n")
    for name in (*FILES, "MANIFEST.json", "."):
        _sync(partial / name)


def _put_in_place(partial: Path, final: Path) -> None:
    """Give a whole folder its name; what has the name is set aside when it is damaged, else replaced."""
    doomed = None
    if final.exists():
        try:
            validate(final)
        except InvalidCheckpoint:
            os.replace(final, _free_name(final))
        else:
            doomed = _doom(final)
    os.replace(partial, final)
    _sync(final.parent)
    if doomed is not None:
        shutil.rmtree(doomed)


def point(folder: Path, name: str, target: str) -> None:
    """Write which checkpoint is `latest` or `best`: a plain file, not a link, since it survives copying.

    Loading the newest does not rely on it.
    """
    pointer = folder / f".{name}.partial"
    write_file(pointer, target + "\n")
    _sync(pointer)
    os.replace(pointer, folder / name)
    _sync(folder)


def _doom(path: Path) -> Path:
    """Rename a checkpoint that is to be deleted: a half-deleted folder never looks like one."""
    doomed = path.with_name(f".{path.name}.old")
    os.replace(path, doomed)
    return doomed


def find_checkpoint(source: str | Path) -> Path:
    """Return the newest valid checkpoint of a run folder, or `source` itself when it is a checkpoint folder.

    `RUN/checkpoints/best` and `latest` are files that name one. Invalid ones are named on stderr and left alone. Raises
    FileNotFoundError when there is none.
    """
    source = Path(source).expanduser()
    if source.name in ("best", "latest") and source.is_file():
        named = source.read_text("utf-8").strip()
        if not _NAME.fullmatch(named):
            raise ValueError(
                f"{source} names {named[:40]!r}, expected a checkpoint beside it, such as step_00000100"
            )
        source = source.with_name(named)
    if (source / "MANIFEST.json").is_file() or _NAME.fullmatch(source.name):
        validate(source)
        return source
    newest = newest_checkpoint(source)
    if newest is None:
        what = "holds no valid checkpoint" if source.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{source} {what}: give the folder of a run (it holds checkpoints/), or make one with "
            "`make demo` or `mm-llama train stage=image_pretrain`"
        )
    return newest


def newest_checkpoint(run_dir: str | Path, say: Callable[[str], None] | None = None) -> Path | None:
    """Return the valid checkpoint of the highest step, or None; `say` (default: stderr) is told of others."""
    for path in reversed(numbered(Path(run_dir) / "checkpoints")):
        try:
            validate(path)
        except InvalidCheckpoint as error:
            message = f"warning: left alone, {error}"
            say(message) if say else print(message, file=sys.stderr)
        else:
            return path
    return None


def validate(path: Path) -> None:
    """Raise InvalidCheckpoint unless every file has the size and SHA-256 of the manifest."""
    try:
        manifest = read_json(path / "MANIFEST.json")
        files = manifest["files"]
        for name in FILES if not manifest.get("released") else RELEASED:
            size, wanted = (path / name).stat().st_size, files[name]
            if size != wanted["bytes"]:
                raise InvalidCheckpoint(
                    f"{path}: {name} has {size} bytes, the manifest says {wanted['bytes']!r}"
                )
            if sha256_of(path / name) != wanted["sha256"]:
                raise InvalidCheckpoint(f"{path}: {name} has another SHA-256 than the manifest says")
    except InvalidCheckpoint:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{path} is incomplete: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state. Raises ValueError where it lacks what every state has."""
    state = read_json(path / FILES[2])
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {state.get('format')!r}; this version reads {FORMAT!r}")
    check_state(state, path / FILES[2])
    return state


def read_run_config(source: str | Path) -> dict[str, Any]:
    """Return the resolved config that a run or checkpoint folder was made with, as data."""
    return read_yaml(find_checkpoint(source) / FILES[3])


def _for_disk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def numbered(folder: Path) -> list[Path]:
    """Return the folders named like checkpoints, by step."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def rotate(folder: Path, keep_last: int, keep: Collection[int] = ()) -> None:
    valid = []
    for path in numbered(folder):
        try:
            validate(path)
        except InvalidCheckpoint:
            continue
        valid.append(path)
    for path in valid[: -keep_last if keep_last > 0 else 0]:
        if int(path.name.removeprefix("step_")) not in keep:
            shutil.rmtree(_doom(path))


def _free_name(path: Path) -> Path:
    """Return a name beside `path` that sets it aside."""
    number = 1
    while (aside := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    return aside


def _to_yaml(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def write_file(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
