"""What a checkpoint is to a model: what a stage trained, exactly, and all that continuing needs.

The folder itself, its manifest and its rotation: `mm_llama.stages.checkpoint_files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.core.tensor_file import load_tensors
from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint_files import (
    FILES,
    find_checkpoint,
    point,
    read_state,
    rotate,
    write_checkpoint,
)
from mm_llama.stages.freeze import FreezeTable, shorten, stored_tensors, under
from mm_llama.stages.identity import check_identity, is_encoder


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
    best: Sequence[int] = (),
) -> Path:
    """Write the checkpoint of `state["step"]`, then drop all but the `keep_last` newest (0: drop none).

    Those of the steps `best`, best first, stay as well, and the file `best` names the first.
    """
    trained = trained_tensors(model, table.train)
    broken = not_finite(trained)
    if broken:
        raise ValueError(
            f"after step {state['step']} values are not finite in {shorten(broken)}; nothing is saved"
        )
    final = write_checkpoint(
        run_dir, trained, optimizer_tensors(optimizer), dict(state) | {"before": table.before}, config
    )
    if best:
        point(final.parent, "best", f"step_{best[0]:08d}")
    rotate(final.parent, keep_last, best)
    return final


def restore(
    path: Path, model: MultimodalLlama, optimizer: torch.optim.Optimizer, table: FreezeTable, stage: str = ""
) -> dict[str, Any]:
    """Put a run's tensors and optimizer state back exactly; the rest of the returned state is the caller's.

    Raises ValueError when the checkpoint does not belong to this model, to this declaration of what trains, or to
    the stage, where its name is given.
    """
    state = read_state(path)
    if stage and stage != state["stage"]:
        raise ValueError(
            f"{path} is of the stage {state['stage']}, but this is {stage}: start another run, with this one as "
            "stage.init"
        )
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
    load_optimizer_tensors(optimizer, load_tensors(path / FILES[1]))
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
    loaded = _under(load_tensors(path / FILES[0]), prefix)
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
