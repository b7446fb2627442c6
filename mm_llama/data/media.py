"""Media of every kind by name: how a source is opened, read for an encoder, and told from another.

A new kind of bytes is one line in each table here and one function that opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.data.decode import image_key, open_image
from mm_llama.data.files import Member, Stamp, stamp_of

if TYPE_CHECKING:
    from torch import Tensor


def clip_key(source: Any) -> str:
    """Content identity of a clip; the decoders are imported where a clip is met and not before."""
    from mm_llama.data.video import video_key

    return video_key(source)


def recording_key(source: Any) -> str:
    """Content identity of a recording; its readers are imported where one is met."""
    from mm_llama.data.sound import sound_key

    return sound_key(source)


# Content identity of a source, by kind: two sources of one key are one medium.
KEYS: Mapping[str, Callable[[Any], str]] = {"image": image_key, "video": clip_key, "speech": recording_key}


def read_medium(kind: str, source: Any, encoder: Any, num_frames: int = 0) -> Tensor:
    """Return what the encoder takes: one picture, the `num_frames` pictures of a clip stacked, [F, *picture], or mels.

    Raises ValueError or OSError, naming the source, when it cannot be read.
    """
    if kind not in KEYS:
        raise ValueError(f"no reader for {kind} media; there are {', '.join(KEYS)}")
    if kind == "image":
        picture: Tensor = encoder.preprocess(open_image(source))
        return picture
    if kind == "speech":
        from mm_llama.data.sound import open_sound

        mels: Tensor = encoder.preprocess(open_sound(source).samples)
        return mels
    import torch

    from mm_llama.data.video import open_clip

    # Each frame is prepared when it is decoded: one picture at a time is in memory at the clip's own size.
    return torch.stack(open_clip(source, num_frames=num_frames, each=encoder.preprocess).frames)


def num_mel_frames(source: Any) -> int:
    """Return how many frames of 10 ms a recording has; a file is read for it once, while it stays as it is."""
    stamp = stamp_of(source)
    return _mel_frames(source) if stamp is None else _file_mel_frames(source, stamp)


def _mel_frames(source: Any) -> int:
    from mm_llama.data.sound import RATE, sound_blocks

    if isinstance(source, str | bytes | Path | Member):
        return sum(len(block) for block in sound_blocks(source)) // (RATE // 100)
    from mm_llama.data.sound import open_sound

    return len(open_sound(source).samples) // (RATE // 100)


@lru_cache(maxsize=1 << 17)
def _file_mel_frames(source: str | Member, stamp: Stamp) -> int:
    return _mel_frames(source)


def medium_reader(model: Any, kind: str) -> Callable[[Any], Tensor]:
    """Return the function from a source of this kind to what the model's encoder for it takes."""
    encoder, num_frames = model.encoder_of(kind), model.modality[kind].num_frames

    def read(source: Any) -> Tensor:
        return read_medium(kind, source, encoder, num_frames)

    return read
