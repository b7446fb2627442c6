"""The spoken port: what reads the core's states at one layer, and moves none of them (paper section 8.3).

Shapes: B rows, S positions, D core width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.core.llama import Llama


class Spoken(nn.Module):
    """An adapter that is told what the core thinks of each token, after `layer` of its layers; 0 means half of them.

    The paper reads the 16th of the 32 layers of Llama 3 8B.
    """

    # What the other ports have too: another modality's encoder, frames of a clip. The core is the encoder here.
    reads = ""
    num_frames = 0

    def __init__(self, adapter: nn.Module, layer: int = 0) -> None:
        super().__init__()
        if layer < 0:
            raise ValueError(
                f"layer is {layer}, expected how many layers of the core are run, or 0 for half of them"
            )
        self.adapter: Any = adapter
        self.layer = layer

    def states(self, core: Llama, tokens_BS: Tensor, **how: Any) -> Tensor:
        """Return the core's states float[B, S, D] after the layer, without gradients; `how` is of `Llama.run`.

        Raises ValueError when the core has fewer layers.
        """
        num_layers = len(core.layers)
        stop = self.layer or num_layers // 2
        if stop > num_layers:
            raise ValueError(f"layer {stop} of the core is to be read, but it has {num_layers} layers")
        with torch.no_grad():
            return core.run(core.embedding(tokens_BS), stop=stop, **how)
