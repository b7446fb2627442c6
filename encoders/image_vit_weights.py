"""Weights for the own image tower: its own files, checkpoints of stages, and published vision transformers.

Shapes: P positions, W width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from encoders.weight_files import read_tensors

FORMATS = ("own", "timm", "dinov2_onnx")
ONNX_GRID = (37, 37)  # patches of the exported model's own pictures: nothing is resized on reading
_IN_A_MODEL = re.compile(r"modality\.\w+\.encoder\.(.+)")
_TIMM_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}
_TIMM_SCALE = {"ls1": "attention.out", "ls2": "feed_forward.down"}
_TIMM_BLOCK_KEY = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")


def read_weights(tower: Any, path: Path, weights_format: str = "own") -> None:
    """Fill a tower from a file or folder; the trunk must be whole, `across` may be absent and is then left as it is.

    Raises FileNotFoundError or ValueError, naming what is missing, unknown or of another shape.
    """
    if weights_format not in FORMATS:
        raise ValueError(
            f"modality.image.encoder.weights_format must be one of {', '.join(FORMATS)}, not {weights_format!r}"
        )
    if weights_format == "dinov2_onnx":
        from encoders.vit_s14_focus import read_weights as read_onnx_weights

        grid = SimpleNamespace(patch_embed=SimpleNamespace(grid_size=ONNX_GRID))
        state = from_timm(read_onnx_weights(_existing(path), grid))
    elif weights_format == "timm":
        state = from_timm(read_tensors(_existing(path)))
    else:
        path = _file_of(path)
        state = _own_names(read_tensors(path))
    prefix = "trunk."
    state = {
        name: tower.trunk.fit_tensor(name.removeprefix(prefix), tensor) if name.startswith(prefix) else tensor
        for name, tensor in state.items()
    }
    wanted = tower.state_dict()
    if not any(name.startswith("across.") for name in state):
        wanted = {name: tensor for name, tensor in wanted.items() if name.startswith(prefix)}
    shapes = [
        f"{name} is {tuple(state[name].shape)}, here {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    problems = [
        f"{what} {len(names)}: {', '.join(names[:3])}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("differs in shape in", shapes))
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit the image tower (modality.image.encoder): it {'; '.join(problems)}"
        )
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{path}: values are not finite in {', '.join(broken[:3])}")
    tower.load_state_dict(state, strict=False)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a timm vision transformer under the tower's names; its classifier is left out.

    The class token's position is added to the token, and LayerScale is multiplied into the map before it.
    Raises ValueError for tensors that the tower has no place for (registers, query norms, gated feed-forward).
    """
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "fc_norm."))}
    found: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    if "patch_embed.proj.weight" in rest:
        found["trunk.patches.weight"] = rest.pop("patch_embed.proj.weight").flatten(1)
        found["trunk.patches.bias"] = rest.pop("patch_embed.proj.bias")
    if "pos_embed" in rest:
        positions_PW = rest.pop("pos_embed")[0]
        if "cls_token" in rest:
            token_W = rest.pop("cls_token")[0, 0]
            # Some keep a position for the class token, some none: a square number of patches is what is left.
            has_own = round((len(positions_PW) - 1) ** 0.5) ** 2 == len(positions_PW) - 1
            found["trunk.class_token"] = token_W + positions_PW[0] if has_own else token_W
            positions_PW = positions_PW[1:] if has_own else positions_PW
        found["trunk.positions"] = positions_PW
    for name in list(rest):
        block = _TIMM_BLOCK_KEY.fullmatch(name)
        if name in ("norm.weight", "norm.bias"):
            found[f"trunk.{name}"] = rest.pop(name)
        elif block and block[2] in _TIMM_BLOCK:
            found[f"trunk.blocks.{block[1]}.{_TIMM_BLOCK[block[2]]}.{block[3]}"] = rest.pop(name)
        elif block and block[2] in _TIMM_SCALE:
            scales[f"trunk.blocks.{block[1]}.{_TIMM_SCALE[block[2]]}"] = rest.pop(name)
    if rest:
        raise ValueError(
            f"the image tower has no place for {len(rest)} tensors of this timm model: {sorted(rest)[:3]}"
        )
    for name, scale_W in scales.items():
        found[f"{name}.weight"] = scale_W[:, None] * found[f"{name}.weight"]
        found[f"{name}.bias"] = scale_W * found[f"{name}.bias"]
    return found


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tower's tensors of a file of its own, or of a whole model's trained tensors."""
    inside = {name: _IN_A_MODEL.fullmatch(name) for name in state}
    if any(inside.values()):
        return {match[1]: state[name] for name, match in inside.items() if match}
    return dict(state)


def _file_of(path: Path) -> Path:
    """Return the tensor file of a run (its newest checkpoint), of a checkpoint, or the file itself."""
    if not path.is_dir():
        return _existing(path)
    # A checkpoint folder appears whole, by renaming, so the highest number is the newest that is complete.
    folders = [path, *sorted(path.glob("checkpoints/step_*[0-9]"), reverse=True)]
    for folder in folders:
        if (folder / "adapter.safetensors").is_file():
            return folder / "adapter.safetensors"
    raise FileNotFoundError(
        f"{path} holds no checkpoint: modality.image.encoder.weights must be a safetensors file or the folder of a "
        "run that trained the encoder (mm-llama train stage=image_encoder)"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no weights of the image tower at {path} (modality.image.encoder.weights)")
    return path
