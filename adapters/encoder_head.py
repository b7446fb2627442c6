"""What stands beside an encoder only while it trains: it has no embeddings for a core."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


class EncoderHead(nn.Module):
    """In an adapter's place, where an encoder is trained by itself; asked for embeddings it says what to do instead."""

    def num_positions(self, num_frames: int) -> int:
        """Return the number of encoder frames: nothing enters a core here, but batches are cut by it."""
        return int(num_frames)

    def forward(self, *_: Any) -> NoReturn:
        """Raise ValueError: nothing of this enters a core."""
        raise ValueError(
            f"{type(self).__name__} trains an encoder and has nothing that enters a core: choose a modality/speech "
            "with a speech adapter, and take the encoder along with 'stage.init={speech.encoder: RUN}'"
        )

    # Whoever can be heard, as letters are, has its own.
    hear: Any = forward
    embeddings: Any = forward
