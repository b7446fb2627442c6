"""Changed files through the readers, in a process of its own: `python -m tests.data.mutate_media KIND SEED FOLDER`.

KIND is a key of READERS. Every file of the folder is changed as often as the number at its name's end says. Prints one
JSON object with, for each: how many were read, how many refused, the longest seconds of one, and how much memory grew
after the first fifth of them.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile import mutated

MOST_SECONDS = 30
MOST_BYTES = 6 << 30  # of address space: torch's libraries alone take more than half of it
TELLTALE = re.compile(r"0x[0-9a-f]{6}|object at|\[mov|Errno|av\.|PIL\.|libpng|Traceback")


def read_picture(data: bytes) -> None:
    from mm_llama.data.decode import open_image

    picture = open_image(data, max_pixels=1_000_000)
    assert picture.mode == "RGB" and 0 < picture.width * picture.height <= 1_000_000
    picture.resize((8, 8)).tobytes()


def read_sound(data: bytes) -> None:
    import torch

    from mm_llama.data.sound import open_sound

    sound = open_sound(data, max_seconds=60, max_wall_seconds=MOST_SECONDS)
    assert sound.rate == 16_000 and bool(torch.isfinite(sound.samples).all()) and sound.seconds <= 61


def read_clip(data: bytes) -> None:
    from mm_llama.data.video import open_clip

    clip = open_clip(data, num_frames=4, max_pixels=1_000_000, max_wall_seconds=MOST_SECONDS)
    assert len(clip.frames) == 4 and clip.frames[0].mode == "RGB"


READERS: dict[str, Callable[[bytes], None]] = {
    "picture": read_picture,
    "sound": read_sound,
    "clip": read_clip,
}


def sealed(data: bytes) -> bytes:
    """A PNG with the checksum of each chunk made right: what they would keep from the decoder reaches it."""
    changed, place = bytearray(data), 8
    while place + 12 <= len(changed):
        end = place + 8 + int.from_bytes(changed[place : place + 4], "big")
        changed[end : end + 4] = (
            zlib.crc32(changed[place + 4 : end]).to_bytes(4, "big") if end < len(changed) else b""
        )
        place = end + 4
    return bytes(changed)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(kind: str, seed: int, path: Path) -> dict[str, Any]:
    whole, read, count = path.read_bytes(), READERS[kind], int(path.suffix[1:])
    read(whole)
    found: dict[str, Any] = {"read": 0, "refused": 0, "seconds": 0.0}
    before = 0
    for number in range(count):
        print(path.name, number, file=sys.stderr, flush=True)  # the last one before a crash
        if number == count // 5:
            before = resident()
        started = time.monotonic()
        try:
            tried = mutated(whole, seed, number)
            read(sealed(tried) if whole.startswith(b"\x89PNG") and number % 2 else tried)
        except (ValueError, OSError) as error:
            found["refused"] += 1
            said = str(error)
            assert said and len(said) < 400 and not TELLTALE.search(said), said
        else:
            found["read"] += 1
        found["seconds"] = max(found["seconds"], time.monotonic() - started)
    return found | {"grown": resident() - before}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    warnings.simplefilter("error")
    files = sorted(Path(sys.argv[3]).iterdir())
    print(json.dumps({path.stem: main(sys.argv[1], int(sys.argv[2]), path) for path in files}))
