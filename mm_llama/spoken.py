"""The spoken port: what reads the core's states at one layer, and moves none of them (paper section 8.3).

Shapes: B rows, S positions, D core width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
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
        stop = self.layer_of(core)
        with torch.no_grad():
            return core.run(core.embedding(tokens_BS), stop=stop, **how)

    def layer_of(self, core: Llama) -> int:
        """Return how many layers of a core are run before it is read. Raises ValueError when it has fewer."""
        num_layers = len(core.layers)
        stop = self.layer or num_layers // 2
        if stop > num_layers:
            raise ValueError(f"layer {stop} of the core is to be read, but it has {num_layers} layers")
        return stop


@dataclass(frozen=True)
class Written:
    """A token that the core has written or read: its bytes, and by layer the state behind it, float[D]."""

    data: bytes
    states: Mapping[int, Tensor]


class Watch:
    """The states behind some layers of a core, seen while it runs for other purposes; nothing of it is changed."""

    def __init__(self, core: Llama, layers: Collection[int]) -> None:
        self.core, self.layers = core, sorted(set(layers))
        self._seen: dict[int, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        for layer in self.layers:
            self._hooks.append(self.core.layers[layer - 1].register_forward_hook(self._keeping(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def at(self, position: int) -> dict[int, Tensor]:
        """Return by layer the state float[D] at a position of the first row of what was run last."""
        return {layer: seen_BSD[0, position] for layer, seen_BSD in self._seen.items()}

    def _keeping(self, layer: int) -> Any:
        def keep(module: nn.Module, given: Any, found_BSD: Tensor) -> None:
            self._seen[layer] = found_BSD

        return keep
