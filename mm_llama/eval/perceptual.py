"""Measures of how a sound is perceived beside its original, where their libraries are installed: PESQ and STOI.

Both compare sounds of the same timing. `pip install "mm_llama[perceptual]"` installs them.

Shapes: T samples.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from torch import Tensor

RATE = 16_000
Measure = Callable[[Tensor, Tensor], float]  # the original and what is measured, float32[T] at 16 kHz


def measures() -> dict[str, Measure]:
    """Return the measures whose libraries are installed, by name."""
    known: dict[str, Measure] = {"pesq": _pesq, "stoi": _stoi}
    modules = {"pesq": "pesq", "stoi": "pystoi"}
    return {name: known[name] for name, module in modules.items() if importlib.util.find_spec(module)}


def _pesq(truth_T: Tensor, found_T: Tensor) -> float:
    """Return wide-band PESQ (ITU-T P.862.2), from 1.04 to 4.64."""
    from pesq import pesq

    return float(pesq(RATE, truth_T.numpy(), found_T.numpy(), "wb"))


def _stoi(truth_T: Tensor, found_T: Tensor) -> float:
    """Return short-time objective intelligibility (Taal et al. 2011), from 0 to 1."""
    from pystoi import stoi

    return float(stoi(truth_T.numpy(), found_T[: len(truth_T)].numpy(), RATE))
