"""EfficientNet-Lite0 weights in the original TensorFlow-style names, for timm's `tf_efficientnet_lite0`.

The published file names its blocks in one running count (`_blocks.0` to `_blocks.15`); timm counts stages
and blocks within a stage. The first block has no expansion, so the same suffix means another layer there
than in all later ones.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.weight_files import read_tensors

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_BLOCK_OF = [(stage, block) for stage, num in enumerate(_BLOCKS_PER_STAGE) for block in range(num)]
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(key: str) -> str | None:
    """timm's name of one published tensor, or None when the key belongs to no part of EfficientNet-Lite0."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key)
    if inner:
        number = int(inner[1])
        part = (_LATER_BLOCKS if number else _FIRST_BLOCK).get(inner[2])
        if part is None or number >= len(_BLOCK_OF):
            return None
        stage, block = _BLOCK_OF[number]
        return f"blocks.{stage}.{block}.{part}.{inner[3]}"
    outer = re.fullmatch(r"(_\w+)\.(\w+)", key)
    if outer and outer[1] in _OUTER:
        return f"{_OUTER[outer[1]]}.{outer[2]}"
    return None


def read_weights(path: Path, model: Any) -> dict[str, Tensor]:
    """The published `.pth` file as a state dict in timm's names; a key that fits no pattern is a ValueError.

    `model` is not needed here: EfficientNet's tensors are the same at every picture size.
    """
    published = read_tensors(path)
    named = {key: timm_name(key) for key in published}
    unknown = sorted(key for key, name in named.items() if name is None)
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(named)} tensors are not EfficientNet-Lite0's, for example "
            f"{unknown[:3]}; expected names such as '_blocks.3._project_conv.weight'. "
            "Weights in timm's own names load with weights_format: timm"
        )
    return {name: published[key] for key, name in named.items() if name is not None}
