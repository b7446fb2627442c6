"""Clips through PyAV: a forced demuxer over a guarded file, and only the frames that are shown are decoded.

Frames are chosen from the times of packets, before anything is decoded. A wanted frame is decoded from the
last keyframe at or before it; on the way, frames that no other frame refers to are skipped. Which frame is
shown when and its pixels are those of decoding the whole clip: tests/data/test_video.py compares them.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_llama.data.guarded_av import open_container
from mm_llama.data.video_limits import (
    DAMAGED,
    NEAR,
    Budget,
    ClipError,
    ClipInfo,
    SoundAlone,
    check_length,
    check_size,
    damage,
)
from mm_llama.data.video_pixels import Converter

if TYPE_CHECKING:
    from PIL import Image

# Container, known by its signature -> FFmpeg's demuxer. It is forced: nothing is guessed from the bytes, so
# no playlist or list of files can take over.
DEMUXERS = {"mp4": "mov", "matroska": "matroska", "avi": "avi"}
_WHITELIST = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
# What cameras, phones, browsers and editors write. The rare decoders are where decoders break.
CODECS = (
    "h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "theora", "vc1",
    "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "h263", "flv1", "wmv1", "wmv2",
    "mjpeg", "prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "qtrle",
)  # fmt: skip
# Decoders that take "skip this frame if no other needs it" packet by packet.
_SKIPPING = ("h264", "hevc", "vp8", "vp9", "mpeg4")
_FAR = 2**52  # later than every time stamp, and far from overflow when it is rescaled
_REORDER = 16  # no codec shows a frame later than this many packets after its own


class AvClip:
    """One opened clip: `info`, known without decoding, and `frames`.

    `file` is an open binary file, `container` a key of DEMUXERS. ClipError for what is over the limits of
    `budget`, holds no pictures, or does not parse.
    """

    def __init__(self, file: BinaryIO, container: str, budget: Budget) -> None:
        self._file, self._container, self._budget = file, container, budget
        self._open()
        try:
            with damage("its pictures cannot be found"):
                self._start = self._first_time()
                self._end = self._last_time()
                self.info = self._describe()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the container; the file stays open."""
        self._av.close()

    def frames(self, moments: Sequence[float]) -> Iterator[tuple[int, float, Image.Image]]:
        """Pictures shown at `moments` (ascending seconds from the clip's start), each decoded once.

        Gives (how many of the moments show it, its own time in seconds, upright RGB picture), in order.
        """
        ticks = [self._start + math.floor((moment + NEAR) / self._tick) for moment in moments]
        with damage("its pictures cannot be found"):
            planned = [(place, self._runs(place, wanted)) for place, wanted in self._grouped(ticks)]
        self._settle(planned)
        for place, runs in planned:
            yield from self._decoded(place, runs)

    # --- opening

    def _open(self) -> None:
        # For the decoder, which pads frames; what is shown is checked exactly.
        max_pixels = str(2 * self._budget.limits.max_pixels + 65_536)
        demuxer = DEMUXERS[self._container]
        self._av: Any = open_container(self._file, demuxer, _WHITELIST, self._budget, max_pixels=max_pixels)
        try:
            with damage("its header does not parse"):
                self._choose_stream()
        except BaseException:
            self.close()
            raise
        # Enforced by the decoder itself too: a stream may change its size on the way.
        self._codec.options = {"max_pixels": max_pixels}
        self._codec.thread_type = "AUTO"
        self._converter = Converter(self._codec.width, self._codec.height)

    def _choose_stream(self) -> None:
        from av.stream import Disposition

        best = self._av.streams.best("video")
        if best is None or best.disposition & Disposition.attached_pic:
            if self._av.streams.audio:
                raise SoundAlone("holds sound and no moving pictures; expected a clip")
            raise ClipError("holds no moving pictures; expected a clip")
        self._stream, self._codec = best, best.codec_context
        if self._codec is None or self._codec.codec.name not in CODECS:
            raise ClipError("has a codec that is not read here; write it again as H.264, HEVC, VP9 or AV1")
        check_size(self._codec.width, self._codec.height, self._budget.limits)
        self._tick = Fraction(best.time_base)
        # AVI has no times of display, and those guessed for reordered H.264 are wrong: there a frame's time is
        # its place among all that come out of the decoder, from the first one on.
        reordered = self._codec.codec.name in ("h264", "hevc") and self._codec.reorder_depth > 0
        self._counted = self._container == "avi" and reordered
        self._skips = not self._counted and self._codec.codec.name in _SKIPPING

    def _describe(self) -> ClipInfo:
        from av.stream import Discard

        for stream in self._av.streams:
            if stream.index != self._stream.index:
                stream.discard = Discard.all
        duration = float((self._end - self._start) * self._tick)
        check_length(duration, self._budget.limits)
        return ClipInfo(
            container=self._container,
            codec=self._codec.codec.name,
            width=self._codec.width,
            height=self._codec.height,
            duration=duration,
            has_audio=bool(self._av.streams.audio),
            backend="pyav",
        )

    # --- times, from packets alone

    def _first_time(self) -> int:
        """Ticks at which the first frame is shown."""
        first: int | None = None
        key: int | None = None
        for count, packet in enumerate(self._packets()):
            shown = self._shown(packet)
            if key is None and packet.is_keyframe:
                key = shown
            if not packet.is_discard and (key is None or shown >= key):
                first = shown if first is None else min(first, shown)
            if first is not None and (count >= _REORDER or (packet.dts is not None and packet.dts >= first)):
                break
        if first is None:
            raise ClipError(DAMAGED + "it holds no picture")
        return first

    def _last_time(self) -> int:
        """Ticks at which the last frame ends, as the end of the file says, whatever its header says."""
        end = None
        for place in (_FAR, None):
            self._seek(place)
            ends = self._ends()
            if self._stream.index in ends:
                end = ends[self._stream.index]
                break
        if end is None:
            raise ClipError(DAMAGED + "it holds no picture")
        last = max(float(ticks * self._av.streams[index].time_base) for index, ticks in ends.items())
        declared = self._declared()
        if declared is not None and last < declared - max(0.5, declared / 50):
            raise ClipError(
                f"{DAMAGED}its header says that it ends at {declared:,.1f} s, but it ends at {last:,.1f} s"
            )
        return max(end, self._start)

    def _ends(self) -> dict[int, int]:
        """Of each stream, the end of its last packet from here on."""
        ends: dict[int, int] = {}
        for packet in self._av.demux():
            self._budget.check()
            stream = packet.stream
            if packet.size and not packet.is_discard and (packet.pts is not None or packet.dts is not None):
                shown = self._shown(packet) if stream.index == self._stream.index else packet.pts
                end = (shown if shown is not None else packet.dts) + (packet.duration or 0)
                ends[stream.index] = max(ends.get(stream.index, end), end)
        return ends

    def _declared(self) -> float | None:
        """Seconds at which the clip ends, as its header says."""
        if self._stream.duration is not None:
            return float((self._start + self._stream.duration) * self._tick)
        if self._av.duration is not None:
            # Of a Matroska file this is the end, not the length, where it does not begin at zero.
            return float(self._av.duration / 1_000_000)
        return None

    def _shown(self, packet: Any) -> int:
        """Ticks at which the packet's frame is shown."""
        times = (packet.dts, packet.pts) if self._counted else (packet.pts, packet.dts)
        for ticks in times:
            if ticks is not None:
                return int(ticks)
        raise ClipError("has pictures without times; write it again as MP4 or WebM")

    def _packets(self) -> Iterator[Any]:
        for packet in self._av.demux(self._stream):
            self._budget.check()
            if packet.size:
                yield packet

    def _seek(self, place: int | None) -> None:
        """Go to the keyframe at or before `place` (ticks); None, or what cannot be reached, is the beginning."""
        import av

        if place is not None:
            with contextlib.suppress(av.FFmpegError):
                self._av.seek(place, stream=self._stream)
                return
        self._av.close()
        self._open()

    # --- what to decode

    def _grouped(self, ticks: Sequence[int]) -> list[tuple[int | None, list[int]]]:
        """Wanted times, ascending, by the place to seek to before them."""
        if self._counted:
            return [(None, list(ticks))]
        groups: list[tuple[int | None, list[int]]] = []
        last_key = None
        for tick in ticks:
            place, key = self._keyframe(tick)
            if groups and key == last_key:
                groups[-1][1].append(tick)
            else:
                groups.append((place, [tick]))
            last_key = key
        return groups

    def _keyframe(self, tick: int) -> tuple[int | None, int]:
        """(where to seek to, time of the keyframe that this reaches), at or before `tick`."""
        place, step = tick, max(1, round(1 / self._tick))
        while place > self._start:
            self._seek(place)
            packet = next(self._packets(), None)
            if packet is not None and packet.is_keyframe and self._shown(packet) <= tick:
                return place, self._shown(packet)
            # Demuxers find keyframes by decoding time, so this one may be shown after the wanted moment: the
            # one before it is reached from just before its decoding time, or else from ever further back.
            before = packet.dts - 1 if packet is not None and packet.dts is not None else place
            if place == tick and before < place:
                place = before
            else:
                place, step = min(before, place - step), step * 4
        return None, self._start

    def _runs(self, place: int | None, ticks: Sequence[int]) -> list[_Run]:
        """What to decode for the wanted times, counting packets from `place`."""
        self._seek(place)
        shown: dict[int, int] = {}  # time -> packet
        keys: list[tuple[int, int]] = []  # packet, time
        for number, packet in enumerate(self._packets()):
            time = self._shown(packet)
            if not number or (packet.is_keyframe and not self._counted):
                keys.append((number, time))
            if not packet.is_discard:
                shown.setdefault(time, number)
            if packet.dts is not None and packet.dts > ticks[-1]:
                break
        if not shown:
            raise ClipError(DAMAGED + "a part of it holds no picture")
        times = sorted(shown)
        runs: dict[int, _Run] = {}
        for tick in ticks:
            time = times[max(0, bisect.bisect_right(times, tick) - 1)]
            number = shown[time]
            # A frame shown before a keyframe that it follows in the file needs the keyframe before that one.
            first = max((key for key, at in keys if key <= number and at <= time), default=0)
            run = runs.setdefault(first, _Run(first, number, {}))
            run.last = max(run.last, number)
            run.wanted[time] = run.wanted.get(time, 0) + 1
        if self._counted:
            runs[0].last += _REORDER
        return [runs[first] for first in sorted(runs)]

    def _settle(self, planned: Sequence[tuple[int | None, list[_Run]]]) -> None:
        """Give each frame to one run alone, and charge the budget before anything is decoded."""
        owners: dict[int, _Run] = {}
        for _, runs in planned:
            for run in runs:
                for time, count in list(run.wanted.items()):
                    if time in owners:  # two places to seek to can lead to one frame
                        owners[time].wanted[time] += count
                        del run.wanted[time]
                    else:
                        owners[time] = run
            runs[:] = [run for run in runs if run.wanted]
            self._budget.spend(sum(run.last - run.first + 1 for run in runs))

    # --- decoding

    def _decoded(self, place: int | None, runs: Sequence[_Run]) -> Iterator[tuple[int, float, Image.Image]]:
        with damage("its pictures cannot be found"):
            self._seek(place)
        packets = enumerate(self._packets())
        for run in runs:
            missing = dict(run.wanted)
            for time, frame in self._run_frames(packets, run):
                if time in missing:
                    yield missing.pop(time), self._seconds(time), self._picture(frame, time)
            if missing:
                raise ClipError(
                    f"{DAMAGED}the picture at {self._seconds(min(missing)):.2f} s does not decode"
                )

    def _run_frames(self, packets: Iterator[tuple[int, Any]], run: _Run) -> Iterator[tuple[int, Any]]:
        """(time, frame) of a run, as they come out of the decoder."""
        times: list[int] = []
        count = 0
        for frame in self._fed(packets, run, times):
            if self._counted:
                count += 1
                if count <= len(times):
                    yield times[count - 1], frame
            elif frame.pts is not None:
                yield frame.pts, frame

    def _fed(self, packets: Iterator[tuple[int, Any]], run: _Run, times: list[int]) -> Iterator[Any]:
        with damage("a picture of it does not decode"):
            for number, packet in packets:
                if number < run.first:
                    continue
                time = self._shown(packet)
                times.append(time)
                if self._skips:
                    self._codec.skip_frame = "DEFAULT" if time in run.wanted else "NONREF"
                yield from self._codec.decode(packet)
                if number >= run.last:
                    break
            yield from self._codec.decode(None)
            self._codec.flush_buffers()

    def _picture(self, frame: Any, time: int) -> Image.Image:
        from PIL import Image

        self._budget.check()
        if frame.is_corrupt:
            raise ClipError(f"{DAMAGED}the picture at {self._seconds(time):.2f} s is incomplete")
        check_size(frame.width, frame.height, self._budget.limits)
        with damage("a picture of it does not convert"):
            return Image.fromarray(self._converter.rgb(frame))

    def _seconds(self, time: int) -> float:
        return float((time - self._start) * self._tick)


@dataclass
class _Run:
    """Packets `first` to `last`, decoded in one go, and the wanted times: how many moments show each."""

    first: int
    last: int
    wanted: dict[int, int]
