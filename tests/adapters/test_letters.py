"""Reading letters: what is a letter, padding, that a wrong set is refused, that the readout's step learns with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.letters import LETTERS, LetterReadout
from mm_llama.core.pieces import Letters
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.stages.speech import ctc_loss


def features(*lengths: int) -> list[torch.Tensor]:
    """Random features float[T, 12] of recordings of these lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, 12, generator=generator) for length in lengths]


def test_tokens_become_letters(asset_dir: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(asset_dir("smollm2_135m"))
    reader = Letters(tokenizer, LETTERS)
    tokens = tokenizer.encode(" It's 5 o'clock, Émile!")
    assert "".join(LETTERS[place] for place in reader.split(tokens)) == "it's  o'clock mile"
    assert reader.split([]) == []


def test_a_recording_is_read_the_same_alone_and_in_a_batch() -> None:
    reader = LetterReadout(12)
    items = features(40, 23, 9)
    together = reader.hear(items)
    for row, item in enumerate(items):
        alone = reader.hear([item])
        torch.testing.assert_close(together.log_probabilities()[row], alone.log_probabilities()[0])
        assert together.best_pieces()[row] == alone.best_pieces()[0]
    sums = together.log_probabilities()[0].exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_it_learns_to_read() -> None:
    reader, items = LetterReadout(12), features(30, 18)
    said = [[1, 2, 2, 5], [7, 0, 3]]
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        ctc_loss(reader.hear(items), said).backward()
        optimizer.step()
    found = [[letter for letter, _, _ in spans] for spans in reader.hear(items).best_pieces()]
    assert found == said


@pytest.mark.parametrize("letters", ["", "aa", "aB"])
def test_sets_of_letters_that_are_none_are_refused(letters: str) -> None:
    with pytest.raises(ValueError, match="each lower-case letter once"):
        LetterReadout(12, letters)


def test_seeds_differ() -> None:
    first, again, other = (LetterReadout(12, seed=seed).output.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gain_makes_it_learn_faster_and_changes_nothing_before() -> None:
    items, moved = features(20), []
    for gain in (1.0, 10.0):
        reader = LetterReadout(12, gain=gain)
        before = reader.hear(items)
        expected = LetterReadout(12, gain=1.0).hear(items)
        torch.testing.assert_close(before.scores_MFP, expected.scores_MFP)
        ctc_loss(before, [[3, 4]]).backward()
        torch.optim.Adam(reader.parameters(), lr=1e-4).step()
        after = reader.hear(items)
        assert before.scores_MFP is not None and after.scores_MFP is not None
        moved.append(float((after.scores_MFP - before.scores_MFP).detach().norm()))
    assert moved[1] / moved[0] == pytest.approx(10, rel=1e-3)
    with pytest.raises(ValueError, match="gain is 0"):
        LetterReadout(12, gain=0)
