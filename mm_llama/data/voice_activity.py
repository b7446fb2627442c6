"""Where somebody speaks, by a small network (Silero VAD 6, MIT), for recordings with noise that is as loud as speech.

The model is a file of the asset `silero_vad`; onnxruntime runs it, none of that package's code.

Shapes: n samples, W windows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.data.sound import RATE

WINDOW, CONTEXT = (
    RATE * 32 // 1000,
    64,
)  # samples that one probability is for, and those before them that are seen
STATE = 128


class VoiceActivity:
    """Probabilities of speech in one recording, window by window, as it comes; make a new one for each recording."""

    def __init__(self, folder: str | Path) -> None:
        """Load the network from the asset's folder; raises ValueError, naming what to install, without onnxruntime."""
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(
                'finding speech by a network needs onnxruntime, which is not installed: pip install "mm_llama[speech]"'
            ) from None
        found = sorted(Path(folder).rglob("silero_vad_16k_sequence.onnx"))
        if not found:
            raise FileNotFoundError(
                f"{folder} holds no silero_vad_16k_sequence.onnx; mm-llama assets fetch silero_vad"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._network: Any = onnxruntime.InferenceSession(
            str(found[0]), options, providers=["CPUExecutionProvider"]
        )
        self._before = torch.zeros(CONTEXT)
        self._state = [torch.zeros(1, 1, STATE).numpy() for _ in range(2)]

    def push(self, samples_n: Tensor) -> Tensor:
        """Take samples float32[W * 512] of 16 kHz and return float32[W]; they follow those of the call before.

        Raises ValueError for another number of samples than whole windows.
        """
        if len(samples_n) % WINDOW:
            raise ValueError(f"{len(samples_n)} samples are no whole windows of {WINDOW}")
        if not len(samples_n):
            return samples_n.new_zeros(0)
        seen = torch.cat((self._before, samples_n.float()))
        self._before = seen[-CONTEXT:]
        windows = seen.unfold(0, CONTEXT + WINDOW, WINDOW).contiguous()
        said, *self._state = self._network.run(
            None, {"input": windows.numpy(), "h": self._state[0], "c": self._state[1]}
        )
        return torch.from_numpy(said)
