"""The random states of python, numpy and torch as JSON: a continued run draws what an unbroken one draws."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return every global generator's state as plain JSON data."""
    version, numbers, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, _encode(np.array(numbers, dtype=np.uint32)), gauss],
        "numpy": numpy_state | {"state": {"key": _encode(inner["key"]), "pos": int(inner["pos"])}},
        "torch": _encode(torch.get_rng_state().numpy()),
        "cuda": [_encode(state.numpy()) for state in cuda],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned; accelerator states only where there are as many accelerators."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(_decode(numbers, np.uint32).tolist()), gauss))
    inner = state["numpy"]["state"]
    key = _decode(inner["key"], np.uint32)
    np.random.set_state(state["numpy"] | {"state": {"key": key, "pos": inner["pos"]}})
    torch.set_rng_state(torch.from_numpy(_decode(state["torch"], np.uint8)))
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([torch.from_numpy(_decode(item, np.uint8)) for item in state["cuda"]])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the global generators as they were: how often a run evaluates must not change what it trains."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _encode(state: np.ndarray) -> str:
    return base64.b64encode(state.tobytes()).decode("ascii")


def _decode(text: str, dtype: type[np.generic]) -> np.ndarray:
    return np.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)
