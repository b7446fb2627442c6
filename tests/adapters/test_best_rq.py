"""BEST-RQ's parts: codes by angle from what never trains, spans of the expected share, a loss on hidden frames."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adapters.best_rq import CodePredictor, RandomQuantizer, standardised
from mm_llama.data.augment import hide, span_mask, wholly_hidden


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_codes_are_the_nearest_by_cosine() -> None:
    quantizer = RandomQuantizer(12, num_codebooks=3, num_codes=50, code_dim=4)
    x = noise(2, 9, 12)
    codes = quantizer(x)
    assert codes.shape == (2, 9, 3)
    flat = standardised(x)
    for c in range(3):
        vectors = flat @ quantizer.projections[c]
        similarity = F.cosine_similarity(vectors[:, :, None], quantizer.codebooks[c][None, None], dim=-1)
        assert torch.equal(codes[..., c], similarity.argmax(-1))
    assert any((codes[..., 0] != codes[..., c]).any() for c in (1, 2))


def test_the_quantizer_never_trains_and_comes_from_its_seed() -> None:
    quantizer = RandomQuantizer(seed=3)
    assert not list(quantizer.parameters())
    assert quantizer.projections.shape == (16, 320, 16) and quantizer.codebooks.shape == (16, 8192, 16)
    again, other = RandomQuantizer(seed=3), RandomQuantizer(seed=4)
    assert torch.equal(quantizer.codebooks, again.codebooks)
    assert not torch.equal(quantizer.codebooks, other.codebooks)
    assert set(quantizer.state_dict()) == {
        "projections",
        "codebooks",
    }  # a checkpoint can be held against them


def test_codes_do_not_hear_loudness_padding_or_company() -> None:
    quantizer = RandomQuantizer(12, num_codebooks=4, num_codes=64, code_dim=4)
    x, lengths = noise(2, 20, 12) + 7, torch.tensor([20, 11])
    codes = quantizer(x, lengths)
    padded = x.clone()
    padded[1, 11:] = 1e4
    assert torch.equal(quantizer(padded, lengths)[1, :11], codes[1, :11])
    assert torch.equal(quantizer(x[1:, :11])[0], codes[1, :11])
    assert torch.equal(quantizer(3 * x - 40, lengths)[0], codes[0])


def test_many_codes_are_used() -> None:
    # Mels of speech have a large common offset and correlated channels, made here by smoothing and shifting noise.
    mels = F.avg_pool1d(noise(1, 320, 8000, seed=1), 9, 1, 4).transpose(1, 2) + 5
    used = RandomQuantizer(num_codebooks=2, num_codes=1024)(mels)
    for c in range(2):
        counts = torch.bincount(used[0, :, c], minlength=1024).double()
        shares = counts / counts.sum()
        perplexity = float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))
        assert perplexity > 400


@pytest.mark.parametrize(("probability", "span"), [(0.025, 32), (0.01, 10)])
def test_the_expected_share_is_hidden_in_spans(probability: float, span: int) -> None:
    lengths = torch.tensor([6000, 3000, 6000, 4500] * 8)
    hidden = span_mask(lengths, 6000, probability=probability, span=span, generator=generator())
    share = hidden.sum() / lengths.sum()
    assert share == pytest.approx(1 - (1 - probability) ** span, abs=0.015)  # 55.5 % of frames
    assert not hidden[1, 3000:].any()
    # Runs are spans or longer, but for the one that the end cuts.
    row = hidden[0].int()
    edges = F.pad(row, (1, 1)).diff()
    runs = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
    assert (runs[:-1] >= span).all()
    again = span_mask(lengths, 6000, probability=probability, span=span, generator=generator())
    assert torch.equal(hidden, again)


def test_a_short_recording_hides_something_and_an_empty_one_nothing() -> None:
    hidden = span_mask(torch.tensor([5, 1, 0]), 9, probability=1e-9, span=3, generator=generator())
    assert hidden[0].sum() >= 1 and hidden[1].sum() == 1 and not hidden[2].any()
    assert not hidden[0, 5:].any() and not hidden[1, 1:].any()


def test_hidden_frames_are_noise_and_the_rest_is_left() -> None:
    mels = noise(2, 400, 80, seed=5) + 3
    hidden = span_mask(torch.tensor([400, 300]), 400, generator=generator())
    shown = hide(mels, hidden, generator=generator(1))
    assert torch.equal(shown[~hidden], mels[~hidden])
    assert shown[hidden].mean().abs() < 0.01 and shown[hidden].std() == pytest.approx(0.1, rel=0.05)


def test_only_what_is_wholly_hidden_is_predicted() -> None:
    hidden = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]]).bool()
    assert wholly_hidden(hidden, 4).tolist() == [[True, False]]


def test_the_loss_is_the_mean_over_codebooks_of_sums_over_frames() -> None:
    predictor = CodePredictor(6, num_codebooks=3, num_codes=11)
    frames, codes = noise(7, 6).requires_grad_(), torch.randint(0, 11, (7, 3), generator=generator())
    loss, right = predictor(frames, codes)
    logits = torch.stack([head(frames) for head in predictor.heads], dim=1)
    expected = -logits.log_softmax(-1).gather(-1, codes[..., None]).sum() / 3
    torch.testing.assert_close(loss, expected)
    assert torch.equal(right, (logits.argmax(-1) == codes).sum(0))
    loss.backward()
    assert frames.grad is not None and frames.grad.abs().sum() > 0
