"""Checkpoints that are to be shared: what was trained in 16 bits, without what only training needs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mm_llama.core.tensor_file import load_tensors
from mm_llama.stages.checkpoint import not_finite
from mm_llama.stages.checkpoint_files import (
    FILES,
    FORMAT,
    RELEASED,
    find_checkpoint,
    read_state,
    sha256_of,
    write_file,
)
from mm_llama.stages.freeze import shorten


def release(source: str | Path, folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Write what a run trained to a new folder, in `dtype`, without what only training needs; return its manifest.

    It is loaded as a run is. Raises ValueError where a value does not fit into the dtype, and FileExistsError for a
    folder that is there; the folder appears whole or not at all.
    """
    path = find_checkpoint(source)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: name a new folder")
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_tensors(path / FILES[0]).items()
    }
    if broken := not_finite(tensors):
        raise ValueError(
            f"{path}: values of {shorten(broken)} do not fit into {str(dtype).removeprefix('torch.')}"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(tensors, partial / FILES[0], metadata={"format": "pt"})
        state = {
            key: value for key, value in read_state(path).items() if key not in ("random", "before", "data")
        }
        write_file(partial / FILES[2], json.dumps(state, indent=1, allow_nan=False) + "\n")
        shutil.copyfile(path / FILES[3], partial / FILES[3])
        files = {}
        for name in RELEASED:
            os.chmod(partial / name, 0o644)
            files[name] = {"sha256": sha256_of(partial / name), "bytes": (partial / name).stat().st_size}
        manifest = {"format": FORMAT, "released": True, "dtype": str(dtype).removeprefix("torch.")}
        manifest |= {key: state[key] for key in ("step", "core", "lineage")} | {"files": files}
        write_file(partial / "MANIFEST.json", json.dumps(manifest, indent=1) + "\n")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest
