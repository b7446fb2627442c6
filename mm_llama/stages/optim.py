"""AdamW over exactly what trains, schedules as pure functions of the step, clipping that refuses non-finite.

Gates (scalars that open a branch from zero) get a multiple of the learning rate and no weight decay: at the
common rate they barely leave zero and everything behind them learns slowly.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

Schedule = Callable[[int, int], float]


class NonFinite(ValueError):
    """A loss or gradient is infinite or not a number; the update was not made."""


def adamw(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    gate_lr_multiple: float = 10.0,
    gates: Sequence[str] = (),
    no_decay: Sequence[str] = (),
) -> torch.optim.AdamW:
    """Build AdamW (arXiv 1711.05101) over named parameters in three groups: decayed, not decayed, gates.

    Gates are parameters whose own name ends in `gate`, and those that `gates` lists by full name or dotted
    ending; one-dimensional tensors and those that `no_decay` lists are not decayed. Parameters must be
    float32 or wider, because they are the masters of lower-precision compute.
    """
    if not lr > 0:
        raise ValueError(f"optim.lr is {lr}, expected a rate above 0, such as 1e-3")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point() or torch.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"{name} is to be trained but is {str(parameter.dtype).removeprefix('torch.')}; trained "
                "tensors are masters and must be float32: load it in float32 (it may compute in bfloat16)"
            )
    _check_listed("optim.gates", gates, parameters)
    _check_listed("optim.no_decay", no_decay, parameters)
    split: dict[str, list[str]] = {"decayed": [], "not_decayed": [], "gates": []}
    for name, parameter in parameters.items():
        if name.rsplit(".", 1)[-1].endswith("gate") or _listed(name, gates):
            split["gates"].append(name)
        elif parameter.ndim < 2 or _listed(name, no_decay):
            split["not_decayed"].append(name)
        else:
            split["decayed"].append(name)
    groups = [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "group": group,
            "base_lr": lr * (gate_lr_multiple if group == "gates" else 1.0),
            "weight_decay": weight_decay if group == "decayed" else 0.0,
        }
        for group, names in split.items()
        if names
    ]
    beta1, beta2 = betas
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` times its own rate; returns the rate of what is not a gate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.defaults["lr"]) * factor


def schedule_factor(kind: str = "cosine", *, warmup_steps: int = 20, final_fraction: float = 0.0) -> Schedule:
    """Return `factor(step, num_steps)`: linear warm-up, then `cosine` or `linear` decay, or `constant`.

    `step` counts from 0. The first step already moves, and the last has not quite reached the final fraction:
    no step is spent at a rate of zero.
    """
    if kind not in ("cosine", "linear", "constant"):
        raise ValueError(f"optim.schedule must be cosine, linear or constant, not {kind!r}")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"optim.final_fraction must lie in [0, 1], not {final_fraction}")
    if warmup_steps < 0:
        raise ValueError(f"optim.warmup_steps must not be negative, got {warmup_steps}")

    def factor(step: int, num_steps: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if kind == "constant":
            return 1.0
        done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
        return final_fraction + (1 - final_fraction) * max(0.0, left)

    return factor


def clip_gradients(parameters: Mapping[str, nn.Parameter], most: float) -> float:
    """Scale gradients so that their global norm is at most `most` (0: leave them) and return the norm before.

    Raises NonFinite, naming the tensors, before anything is scaled or updated.
    """
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    value = float(norm)
    if not math.isfinite(value):
        bad = [name for name, gradient in gradients.items() if not _finite(gradient)]
        raise NonFinite(
            f"the gradient norm is {value} (from {', '.join(bad[:4]) or 'an overflow of the sum'})"
        )
    if most > 0:
        torch.nn.utils.clip_grads_with_norm_([parameters[name] for name in gradients], most, norm)
    return value


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _listed(name: str, listed: Iterable[str]) -> bool:
    return any(name == item or name.endswith(f".{item}") for item in listed)


def _check_listed(key: str, listed: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> None:
    for item in listed:
        if not any(_listed(name, [item]) for name in parameters):
            endings = {part for name in parameters for part in (name, name.rsplit(".", 1)[-1])}
            near = difflib.get_close_matches(item, sorted(endings), n=3, cutoff=0.4)
            raise ValueError(
                f"{key} lists {item!r}, which is no trained parameter; near: {', '.join(near) or 'none'}"
            )
