"""Checkpoints: what a stage trained, exactly, and all that continuing needs; no pickle, never half a folder.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mm_llama.model import MultimodalLlama
from mm_llama.stages.freeze import FreezeTable, shorten, stored_tensors, under
from mm_llama.stages.identity import check_identity, is_encoder

FORMAT = "mm_llama checkpoint 1"
FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
RELEASED = ("adapter.safetensors", "state.json", "config.yaml")  # of one that training does not go on from
_NAME = re.compile(r"step_(\d{8})")


class InvalidCheckpoint(ValueError):
    """A checkpoint folder is incomplete or its files are not what its manifest says."""


@dataclass(frozen=True)
class LoadedAdapter:
    """Where an adapter came from, and the state it was saved with."""

    path: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(
    run_dir: str | Path,
    model: MultimodalLlama,
    optimizer: torch.optim.Optimizer,
    table: FreezeTable,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    keep_last: int = 0,
) -> Path:
    """Write the checkpoint of `state["step"]`, then drop all but the `keep_last` newest (0: drop none)."""
    trained = trained_tensors(model, table.train)
    broken = not_finite(trained)
    if broken:
        raise ValueError(
            f"after step {state['step']} values are not finite in {shorten(broken)}; nothing is saved"
        )
    final = write_checkpoint(
        run_dir, trained, optimizer_tensors(optimizer), dict(state) | {"before": table.before}, config
    )
    _rotate(final.parent, keep_last)
    return final


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
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step_*"):
        shutil.rmtree(stale)
    partial.mkdir()
    save_file(_for_disk(trained), partial / FILES[0], metadata={"format": "pt"})
    save_file(_for_disk(optimizer), partial / FILES[1], metadata={"format": "pt"})
    entry = {key: state[key] for key in ("stage", "step", "core")} | {
        "adapter": sha256_of(partial / FILES[0])
    }
    whole = {"format": FORMAT} | dict(state) | {"lineage": [*state["lineage"], entry | entry_extra]}
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
    if final.exists():
        os.replace(final, _free_name(final))
    os.replace(partial, final)
    _sync(folder)
    # A plain file, not a link: it survives copying. Loading does not rely on it.
    pointer = folder / ".latest.partial"
    write_file(pointer, final.name + "\n")
    _sync(pointer)
    os.replace(pointer, folder / "latest")
    _sync(folder)
    return final


def restore(
    path: Path, model: MultimodalLlama, optimizer: torch.optim.Optimizer, table: FreezeTable
) -> dict[str, Any]:
    """Put a run's tensors and optimizer state back exactly; the rest of the returned state is the caller's.

    Raises ValueError when the checkpoint does not belong to this model and this declaration of what trains.
    """
    state = read_state(path)
    if list(table.train) != state["train"]:
        raise ValueError(
            f"{path} trained {state['train']}, but this stage trains {list(table.train)}: start another run, "
            "with this one as stage.init"
        )
    check_identity(model, path, state, allow_core_swap=False)
    frozen = [name for name in table.before if not under(name, table.train)]
    changed = [name for name in frozen if table.before[name] != state["before"].get(name)]
    if changed:
        raise ValueError(
            f"{path} was made with other frozen tensors: {shorten(changed)}; continuing would not be exact "
            "(another dtype, another encoder, or another adapter in stage.init?)"
        )
    load_adapter(model, path, fit=False)
    # What must change is judged from the start of the stage, not from here.
    table.start_from(state["before"])
    load_optimizer_tensors(optimizer, load_file(path / FILES[1]))
    return state


def load_adapter(
    model: MultimodalLlama,
    source: str | Path,
    *,
    allow_core_swap: bool = False,
    prefix: str = "",
    fit: bool = True,
) -> LoadedAdapter:
    """Load the newest valid adapter of a run folder, or of one checkpoint folder, into `model`.

    With a dotted `prefix` only the tensors below it are loaded. Those of an encoder (`modality.image.encoder`) go
    with any core, because an encoder knows nothing of language. With `fit` a tensor of another shape is first given to
    the nearest module above it that has `fit_tensor(name, tensor)`: a position table of another resolution is resized.

    Raises ValueError for another core or frozen encoder (both digests named), for tensors that the model
    lacks or the checkpoint lacks, for another shape, and for values that are not finite; nothing is loaded
    then.
    """
    path = find_checkpoint(source)
    state = read_state(path)
    check_identity(model, path, state, allow_core_swap or is_encoder(prefix))
    targets = _under(trained_tensors(model, state["train"]), prefix)
    loaded = _under(load_file(path / FILES[0]), prefix)
    if prefix and not loaded:
        raise ValueError(f"{path} holds {state['train']}, nothing below {prefix}")
    if fit:
        loaded = {name: _fitted(model, name, tensor, targets) for name, tensor in loaded.items()}
    for names, problem in (
        ([name for name in loaded if name not in targets], "the model has no place for"),
        ([name for name in targets if name not in loaded], "it lacks"),
        (
            [n for n in loaded if n in targets and loaded[n].shape != targets[n].shape],
            "shapes differ from the model's for",
        ),
        (not_finite(loaded), "values are not finite in"),
    ):
        if names:
            first = names[0]
            shapes = (
                f" ({tuple(loaded[first].shape)}, model {tuple(targets[first].shape)})"
                if "shapes" in problem
                else ""
            )
            raise ValueError(f"{path / FILES[0]} does not fit this model: {problem} {shorten(names)}{shapes}")
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(loaded[name])
    return LoadedAdapter(path, state["step"], state)


def find_checkpoint(source: str | Path) -> Path:
    """Return the newest valid checkpoint of a run folder, or `source` itself when it is a checkpoint folder.

    Invalid ones are named on stderr and left alone. Raises FileNotFoundError when there is none.
    """
    source = Path(source).expanduser()
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
    for path in reversed(_numbered(Path(run_dir) / "checkpoints")):
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
        manifest = json.loads((path / "MANIFEST.json").read_text("utf-8"))
        files = manifest["files"]
        for name in FILES if not manifest.get("released") else RELEASED:
            size, wanted = (path / name).stat().st_size, files[name]
            if size != wanted["bytes"]:
                raise InvalidCheckpoint(
                    f"{path}: {name} has {size} bytes, the manifest says {wanted['bytes']}"
                )
            if sha256_of(path / name) != wanted["sha256"]:
                raise InvalidCheckpoint(f"{path}: {name} has another SHA-256 than the manifest says")
    except InvalidCheckpoint:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{path} is incomplete: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state."""
    state: dict[str, Any] = json.loads((path / FILES[2]).read_text("utf-8"))
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {state.get('format')!r}; this version reads {FORMAT!r}")
    return state


def read_run_config(source: str | Path) -> dict[str, Any]:
    """Return the resolved config that a run or checkpoint folder was made with, as data."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(find_checkpoint(source) / FILES[3]), resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def trained_tensors(model: nn.Module, train: tuple[str, ...] | list[str]) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers under the prefixes: what a checkpoint holds."""
    return {name: tensor for name, tensor in stored_tensors(model).items() if under(name, train)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `<slot>.<parameter>`."""
    named = _named(optimizer)
    return {
        f"{slot}.{name}": torch.as_tensor(value)
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned. Raises ValueError for a parameter that is not trained."""
    named = _named(optimizer)
    optimizer.state.clear()
    for key, value in tensors.items():
        slot, _, name = key.partition(".")
        if name not in named:
            raise ValueError(f"the optimizer state has {key}, but {name} is not trained here")
        parameter = named[name]
        optimizer.state[parameter][slot] = value.to(parameter.device)


def _named(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not prefix or under(name, [prefix])}


def _fitted(model: nn.Module, name: str, tensor: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Return a loaded tensor as the module that owns it can hold it."""
    if name not in targets or tensor.shape == targets[name].shape:
        return tensor
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        owner: Any = model.get_submodule(".".join(parts[:end]))
        if hasattr(owner, "fit_tensor"):
            fitted: Tensor = owner.fit_tensor(".".join(parts[end:]), tensor)
            return fitted
    return tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold a value that is not finite."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def _for_disk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _numbered(folder: Path) -> list[Path]:
    """Return the folders named like checkpoints, by step."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _rotate(folder: Path, keep_last: int) -> None:
    valid = []
    for path in _numbered(folder):
        try:
            validate(path)
        except InvalidCheckpoint:
            continue
        valid.append(path)
    for path in valid[: -keep_last if keep_last > 0 else 0]:
        # Renamed first: a half-deleted folder never looks like a checkpoint.
        doomed = path.with_name(f".{path.name}.old")
        os.replace(path, doomed)
        shutil.rmtree(doomed)


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
