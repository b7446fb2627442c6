"""Cutting at pauses: nothing is lost, pieces are short enough, cuts fall where nobody speaks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_llama.data.pauses import Cutter, cut
from mm_llama.data.sound import RATE


def speech(seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise as loud as speech."""
    return 0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def hush(seconds: float) -> torch.Tensor:
    """A quiet room."""
    return 1e-4 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(9))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.02, 7)), min_size=1, max_size=8),
    st.integers(37, 40_000),
)
def test_every_sample_is_in_one_piece(parts: list[tuple[bool, float]], block: int) -> None:
    samples = torch.cat([speech(length) if loud else hush(length) for loud, length in parts])
    pieces = list(cut(samples.split(block), max_seconds=5))
    assert torch.equal(torch.cat([piece.samples for piece in pieces]), samples)
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert after.start == pytest.approx(before.end)
    assert max(len(piece.samples) for piece in pieces) <= 5 * RATE + RATE // 100


def test_the_blocks_do_not_matter() -> None:
    samples = torch.cat((hush(1.3), speech(3), hush(0.9), speech(8), hush(2)))
    expected = [(piece.start, piece.end, piece.silent) for piece in cut([samples])]
    for block in (160, 1000, 4097):
        assert [(piece.start, piece.end, piece.silent) for piece in cut(samples.split(block))] == expected


def test_cuts_fall_into_pauses() -> None:
    samples = torch.cat((hush(1), speech(3), hush(1), speech(4, 1), hush(1)))
    spoken = [piece for piece in cut([samples]) if not piece.silent]
    assert len(spoken) == 2
    assert spoken[0].start <= 1.0 and 4.0 <= spoken[0].end <= 5.0 <= spoken[1].end
    assert spoken[1].start <= 5.0 and spoken[1].end >= 9.0


def test_silence_is_said_to_be_silence() -> None:
    pieces = list(cut([torch.zeros(10 * RATE)]))
    assert all(piece.silent for piece in pieces)
    assert sum(len(piece.samples) for piece in pieces) == 10 * RATE


def test_who_never_pauses_is_cut_at_the_quietest_place() -> None:
    samples = torch.cat((speech(3.5), 0.2 * speech(0.15, 3), speech(6, 1)))
    first = next(iter(cut([samples], max_seconds=5)))
    assert 3.5 <= first.end <= 3.65


def test_memory_is_that_of_a_piece() -> None:
    cutter = Cutter(max_seconds=5)
    most = 0
    for number in range(60):
        cutter.push(speech(1, number))
        most = max(most, len(cutter.open.samples))
    assert most <= 5 * RATE


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="expected 0.4 <= pause <= least < max_seconds"):
        Cutter(max_seconds=1, least=2)
