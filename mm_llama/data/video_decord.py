"""Clips through decord, in a child process: it holds the whole file in memory, and damaged files end it.

Measured beside PyAV (decord2 3.4): equal pixels. But an MP4 that is cut short ends the process, and jumps, skips and
batches give other frames than were asked for where groups of frames are open, or, now and then, on a busy machine.
So every frame is read in order up to the last wanted one, and PyAV, where it is installed, comes first. decord turns
by quarters only: mirrored clips stay mirrored. AVI with reordered frames it does not read at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_llama.data.video_limits import (
    DAMAGED,
    NEAR,
    Budget,
    ClipError,
    ClipInfo,
    Limits,
    check_length,
    check_size,
    moments,
)

if TYPE_CHECKING:
    from PIL import Image

CONTAINERS = ("mp4", "matroska")
MAX_BYTES = 256_000_000
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mm_llama.data.video_decord import serve
serve(json.loads(sys.argv[2]))
"""
_MEMORY = 2_000_000_000  # of the child, besides its libraries and the file
# Where a sound track says that it is one: MP4's handler, Matroska's track type.
_SOUND = {"mp4": re.compile(rb"hdlr.{8}soun", re.DOTALL), "matroska": re.compile(rb"\x83\x81\x02")}
_FIRST_CLUSTER = b"\x1f\x43\xb6\x75"


class DecordClip:
    """One clip in a child process: `info`, and `frames` at the centres of `num_frames` equal parts.

    `file` is an open binary file of a container in CONTAINERS. ClipError for what is over the limits of
    `budget` or does not decode, and for a child that ends or takes too long.
    """

    def __init__(self, file: BinaryIO, container: str, budget: Budget, num_frames: int = 0) -> None:
        if container not in CONTAINERS:
            raise ClipError(
                "is an AVI file, which decord reads wrongly; install PyAV: pip install mm_llama[video]"
            )
        if file.seek(0, io.SEEK_END) > MAX_BYTES:
            raise ClipError(
                f"has more than {MAX_BYTES:,} bytes, and decord holds the whole file in memory; install PyAV: "
                "pip install mm_llama[video]"
            )
        self._budget = budget
        limits = budget.limits
        asked = {
            "container": container,
            "num_frames": num_frames,
            "max_pixels": limits.max_pixels,
            "max_seconds": limits.max_seconds,
            "max_decoded": limits.max_decoded,
            "max_wall_seconds": budget.seconds_left,
        }
        with _readable(file) as given:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(asked)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self._timer = threading.Timer(budget.seconds_left, self._child.kill)
        self._timer.daemon = True
        self._timer.start()
        try:
            said = self._said()
            self.info = ClipInfo(**said["info"])
            self._shown: list[tuple[int, float]] = said["shown"]
            budget.num_decoded += said["num_decoded"]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child."""
        self._timer.cancel()
        self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def frames(self) -> Iterator[tuple[int, float, Image.Image]]:
        """Pictures shown at the wanted moments, each once: (how many moments show it, its time, RGB)."""
        from PIL import Image

        for count, time in self._shown:
            height, width = self._said()["size"]
            pixels = self._bytes(width * height * 3)
            yield count, time, Image.frombytes("RGB", (width, height), pixels)

    def _said(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            self._budget.check()
            raise ClipError(DAMAGED + "it does not decode")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ClipError(said["error"])
        return said

    def _bytes(self, size: int) -> bytes:
        assert self._child.stdout is not None
        data = self._child.stdout.read(size)
        if len(data) < size:
            self._budget.check()
            raise ClipError(DAMAGED + "it does not decode")
        return data


@contextlib.contextmanager
def _readable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file from its beginning, with a descriptor that a child can inherit."""
    file.seek(0)
    try:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
    except io.UnsupportedOperation:
        with tempfile.TemporaryFile() as copy:
            copy.write(file.read())
            copy.seek(0)
            yield copy
    else:
        yield file


# --- the child


def serve(asked: dict[str, Any]) -> None:
    """Child process: read the clip from standard input, answer in JSON lines, each frame's pixels after its own."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever a library prints stays out of the answer
        try:
            _answer(asked, out)
        except ClipError as error:
            _say(out, {"error": str(error)})
        except Exception:
            _say(out, {"error": DAMAGED + "it does not decode"})
    os._exit(0)  # decord's own threads have been seen to hang at exit


def _answer(asked: dict[str, Any], out: BinaryIO) -> None:
    import decord
    import numpy as np

    _limit_memory(_MEMORY + 4 * os.fstat(0).st_size)
    limits = Limits(*(asked[f"max_{name}"] for name in ("pixels", "seconds", "decoded", "wall_seconds")))
    budget = Budget(limits)
    data = sys.stdin.buffer.read()
    reader = decord.VideoReader(io.BytesIO(data))
    times = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)
    starts = times[:, 0] - times[0, 0]
    duration = float(times[:, 1].max() - times[0, 0])
    check_length(duration, limits)
    frame = reader.next()
    height, width = frame.shape[:2]
    check_size(width, height, limits)
    wanted = np.searchsorted(starts, np.array(moments(duration, asked["num_frames"])) + NEAR, "right") - 1
    indices, counts = np.unique(np.maximum(wanted, 0), return_counts=True)
    budget.spend(int(indices.max(initial=0)) + 1)
    info = ClipInfo(
        container=asked["container"],
        codec="",
        width=width,
        height=height,
        duration=duration,
        has_audio=_has_sound(data, asked["container"]),
        backend="decord",
    )
    shown = [[int(count), float(starts[index])] for index, count in zip(indices, counts, strict=True)]
    _say(out, {"info": vars(info), "shown": shown, "num_decoded": budget.num_decoded})
    position = 0
    for index in indices.tolist():
        for _ in range(index - position):
            frame = reader.next()
        position = index
        _say(out, {"size": frame.shape[:2]})
        out.write(_rgb(frame.asnumpy()).tobytes())


def _say(out: BinaryIO, what: dict[str, Any]) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


def _limit_memory(more: int) -> None:
    """Let this process have `more` bytes than now, where the system can say and limit that."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        with open("/proc/self/statm") as pages:
            now = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


def _rgb(pixels: Any) -> Any:
    """uint8[h, w, 3]. Of narrow frames decord takes the padding of the rows for more channels."""
    height, width, channels = pixels.shape
    return pixels if channels == 3 else pixels.reshape(height, -1)[:, : 3 * width]


def _has_sound(data: bytes, container: str) -> bool:
    head = data.partition(_FIRST_CLUSTER)[0] if container == "matroska" else data
    return _SOUND[container].search(head) is not None
