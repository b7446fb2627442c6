"""What every test gets: torch threads that suit the machine, and the real models and data as fixtures.

Assets are fetched before the tests (`mm-llama assets fetch --for test`); the tests themselves are offline.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.assets import TOOLS, asset, find_asset, status_of

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Hydra sends logs to the output of the test that called it; later ones would write to what is closed by then."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def asset_dir() -> Callable[[str], Path]:
    """`asset_dir(name)`: folder of an unpacked asset.

    A missing asset that comes through npm or apt-get skips the test where those may be absent or without it;
    in continuous integration, and for anything that pip brings, it fails the test.
    """

    def folder(name: str) -> Path:
        entry = find_asset(name)
        if entry.optional and status_of(entry).state == "missing" and "CI" not in os.environ:
            pytest.skip(f"asset {name} was not fetched; {TOOLS[entry.kind]} brings it where there is one")
        return asset(name, progress=False)

    return folder


@pytest.fixture(scope="session")
def smollm2(asset_dir: Callable[[str], Path]) -> Any:
    """The real default core in fp32, loaded once: a `LoadedCore`. Tests must not change it."""
    from mm_llama.core.weights import load_core

    (path,) = asset_dir("smollm2_135m").glob("*.gguf")
    return load_core(path, dtype=torch.float32)
