"""Reading letters: what is a letter, padding, that a wrong set is refused, that the readout's step learns with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.letters import LETTERS, LetterReadout
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.stages.speech import Letters, ctc_loss


def features(*lengths: int) -> list[torch.Tensor]:
    """Random features float[T, 12] of recordings of these lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, 12, generator=generator) for length in lengths]


def test_tokens_become_letters(asset_dir: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(asset_dir("smollm2_135m"))
    reader = Letters(LetterReadout(12), tokenizer)
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
        assert reader.best_pieces(together)[row] == reader.best_pieces(alone)[0]
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
    found = [[letter for letter, _, _ in spans] for spans in reader.best_pieces(reader.hear(items))]
    assert found == said


@pytest.mark.parametrize("letters", ["", "aa", "aB"])
def test_sets_of_letters_that_are_none_are_refused(letters: str) -> None:
    with pytest.raises(ValueError, match="each lower-case letter once"):
        LetterReadout(12, letters)


def test_seeds_differ() -> None:
    first, again, other = (LetterReadout(12, seed=seed).output.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
