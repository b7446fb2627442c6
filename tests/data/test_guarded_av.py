"""A container is opened by the demuxer that was named, and by none that is not on the list."""

from __future__ import annotations

import io

import pytest

from mm_llama.data.video_limits import Budget, ClipError, Limits
from mm_llama.testing.clips import encode_sound

pytest.importorskip("av")

from mm_llama.data.guarded_av import open_container


def test_only_listed_demuxers_read() -> None:
    file = io.BytesIO(encode_sound("wav", "pcm_s16le", 0.1))
    file.read(20)  # where it stands plays no part
    with open_container(file, "wav", "wav,mov", Budget(Limits())) as container:
        assert container.format.name == "wav" and len(container.streams.audio) == 1
    with pytest.raises(ClipError, match="its header does not parse"):
        open_container(file, "wav", "mov,matroska", Budget(Limits()))
    with pytest.raises(ClipError, match="its header does not parse"):
        open_container(file, "mov", "wav,mov", Budget(Limits()))
