"""A DINOv2-style ViT-S/14 exported to ONNX, for timm's `vit_small_patch14_dinov2`.

The export kept the names of norms, biases and LayerScale, but not those of the linear weights
(`onnx::MatMul_1966`): those are found through the node that multiplies by them, whose name says which layer
it is.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from encoders.onnx_file import OnnxGraph, read_onnx

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_HEAD = "decoder."  # the saliency head on top of the encoder, left out
_EMBEDDINGS = "/backbone/embeddings/"
_MATMUL = re.compile(r"/(backbone/encoder/layer\.\d+/.+)/MatMul")
_LAYER = re.compile(r"backbone\.encoder\.layer\.(\d+)\.(.+)")
_OUTER = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "backbone.layernorm.weight": "norm.weight",
    "backbone.layernorm.bias": "norm.bias",
}
_INNER = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("query", "key", "value")
_QKV_KEY = re.compile(r"attention\.attention\.(query|key|value)\.(weight|bias)")


def read_weights(path: Path, model: Any) -> dict[str, Tensor]:
    """The exported encoder in timm's names, its position embeddings resized to the grid of `model`.

    Every tensor of the file is used, belongs to the saliency head, or is a ValueError.
    """
    published = _named(read_onnx(path), path)
    state: dict[str, Tensor] = {}
    qkv: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in published.items():
        layer = _LAYER.fullmatch(key)
        if key in _OUTER:
            state[_OUTER[key]] = tensor
        elif layer and (part := _QKV_KEY.fullmatch(layer[2])):
            qkv.setdefault((layer[1], part[2]), {})[part[1]] = tensor
        elif layer and layer[2] in _INNER:
            state[f"blocks.{layer[1]}.{_INNER[layer[2]]}"] = tensor
        elif layer and layer[2].rpartition(".")[0] in _INNER:
            inner, _, kind = layer[2].rpartition(".")
            state[f"blocks.{layer[1]}.{_INNER[inner]}.{kind}"] = tensor
        elif key not in ("position_class", "position_patches"):
            unknown.append(key)
    for (number, kind), parts in qkv.items():
        if set(parts) != set(_QKV):
            raise ValueError(
                f"{path}: layer {number} has {sorted(parts)} {kind}, expected query, key and value"
            )
        state[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat([parts[name] for name in _QKV])
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} tensors are not of a DINOv2-style ViT, for example {unknown[:3]}"
        )
    if "position_class" not in published or "position_patches" not in published:
        raise ValueError(
            f"{path}: no node of {_EMBEDDINGS} adds position embeddings; is this a DINOv2-style ViT?"
        )
    state["pos_embed"] = torch.cat([published["position_class"], published["position_patches"]], dim=1)
    return fit(state, model)


def fit(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The same tensors with the position embeddings resized to the grid of `model`."""
    class_11E, patches_1PE = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    resized_1PE = resize_positions(patches_1PE, model.patch_embed.grid_size)
    return state | {"pos_embed": torch.cat([class_11E, resized_1PE], dim=1)}


def resize_positions(positions_1PE: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings float[1, P, E] of a square grid, resized to `grid` as the exported graph does."""
    side = math.isqrt(positions_1PE.shape[1])
    if (side, side) == grid:
        return positions_1PE
    map_1Ehw = rearrange(positions_1PE, "1 (h w) E -> 1 E h w", h=side)
    resized = F.interpolate(map_1Ehw, size=grid, mode="bicubic", align_corners=False)
    return rearrange(resized, "1 E h w -> 1 (h w) E")


def _named(graph: OnnxGraph, path: Path) -> dict[str, Tensor]:
    """The encoder's tensors; those with generated names are named after the node that reads them."""
    named = {
        key: value for key, value in graph.tensors.items() if "::" not in key and not key.startswith(_HEAD)
    }
    anonymous = {key for key in graph.tensors if "::" in key}
    for node in graph.nodes:
        for key in anonymous.intersection(node.inputs):
            tensor = graph.tensors[key]
            matmul = _MATMUL.fullmatch(node.name)
            if matmul:
                # MatMul multiplies from the right by [in, out]; torch keeps linear weights as [out, in].
                name, tensor = matmul[1].replace("/", ".") + ".weight", tensor.T.contiguous()
            elif node.name.startswith(_EMBEDDINGS) and tensor.ndim == 3:
                name = "position_class" if tensor.shape[1] == 1 else "position_patches"
            else:
                raise ValueError(
                    f"{path}: {node.op_type} {node.name!r} reads {key}, which fits no part of a ViT"
                )
            if name in named:
                raise ValueError(f"{path}: two tensors claim to be {name}")
            named[name] = tensor
    unread = anonymous - {key for node in graph.nodes for key in node.inputs}
    if unread:
        raise ValueError(f"{path}: no node reads {sorted(unread)[:3]}")
    return named
