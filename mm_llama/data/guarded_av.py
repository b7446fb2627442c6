"""The one way in which PyAV gets to see a file: opened by us, its demuxer named by us, nothing beside it reachable."""

from __future__ import annotations

from typing import Any, BinaryIO

from mm_llama.data.video_limits import Budget, ClipError, GuardedFile, damage


def open_container(file: BinaryIO, demuxer: str, whitelist: str, budget: Budget, **options: str) -> Any:
    """Return PyAV's container of an open file, read from its start; `options` go to the demuxer.

    Raises ClipError for a header that does not parse, and later, while it is read, where it refers to another file.
    """
    import av

    file.seek(0)
    with damage("its header does not parse"):
        return av.open(
            GuardedFile(file, budget),
            mode="r",
            format=demuxer,
            options={"format_whitelist": whitelist, "max_streams": "64", **options},
            metadata_errors="replace",
            buffer_size=1 << 16,
            io_open=_refuse,
        )


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    """Called when a demuxer wants a second file."""
    raise ClipError("refers to other files, which are not opened; export it as one file")
