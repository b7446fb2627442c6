"""Whisper tiny.en, whole, as a judge of speech: what does a recogniser that knows nothing of this project hear?

The checkpoint is the one whose encoder hears for the default core; here it runs with its own decoder, by CTranslate2.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RATE, SECONDS = 16_000, 30
PROMPT = ("<|startoftranscript|>", "<|notimestamps|>")


class Whisper:
    """Recordings of at most 30 seconds to text, greedily. `folder` holds model.bin and tokenizer.json.

    `mel` maps samples float32[T] at 16 kHz to log-mels float32[frames, 80], as Whisper has them
    (`encoders.log_mel.LogMel`). Raises ValueError, naming what to install, without CTranslate2.
    """

    def __init__(self, folder: str | Path, mel: Any, threads: int = 1) -> None:
        try:
            import ctranslate2
        except ImportError:
            raise ValueError(
                'Whisper runs on ctranslate2, which is not installed: pip install "mm_llama[eval]"'
            ) from None
        from tokenizers import Tokenizer

        self._ctranslate2: Any = ctranslate2
        self.model: Any = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type="float32", intra_threads=threads
        )
        self.tokenizer: Any = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.prompt = [self.tokenizer.token_to_id(text) for text in PROMPT]
        self.mel = mel

    def __call__(self, recordings: Sequence[Tensor]) -> list[str]:
        """Return what is said in recordings float32[T] at 16 kHz. Raises ValueError for one that is too long."""
        texts = []
        for samples in recordings:
            if len(samples) > RATE * SECONDS:
                raise ValueError(
                    f"a recording of {len(samples) / RATE:.1f} s is longer than Whisper's {SECONDS} s"
                )
            whole = torch.nn.functional.pad(samples.float(), (0, RATE * SECONDS - len(samples)))
            mels = self.mel(whole).T[None].contiguous().numpy()
            (found,) = self.model.generate(
                self._ctranslate2.StorageView.from_array(mels), [self.prompt], beam_size=1, max_length=224
            )
            texts.append(self.tokenizer.decode(found.sequences_ids[0]).strip())
        return texts
