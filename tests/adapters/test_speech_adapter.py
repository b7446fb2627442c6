"""The speech adapter: lengths, padding, the readout, the paper's size."""

from __future__ import annotations

import pytest
import torch

from adapters.speech import Heard, SpeechAdapter, log_sum_exp, runs

WIDTH, DIM, ROWS = 12, 32, 50


def make(**options: object) -> SpeechAdapter:
    """An adapter whose norms are away from one."""
    settings = {"width": 16, "num_heads": 2, "ffn_width": 24, "num_begin": 2, "num_end": 3, **options}
    adapter = SpeechAdapter(WIDTH, DIM, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return adapter.requires_grad_(False)


def features(*lengths: int) -> list[torch.Tensor]:
    """Random features float[T, E] of recordings of these lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


@pytest.fixture
def table() -> torch.Tensor:
    """A random embedding table float[V, D]."""
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "options", [{}, {"stack": 2}, {"stack": 2, "stride": 1}, {"emit": "tokens", "num_pieces": 20}]
)
def test_a_recording_gives_the_same_alone_and_in_a_batch(
    options: dict[str, object], table: torch.Tensor
) -> None:
    adapter = make(**options)
    items = features(40, 23, 9, 40)
    together = adapter(items, table)
    for item, found in zip(items, together, strict=True):
        alone = adapter([item], table)[0]
        assert found.shape == alone.shape
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", [1, 2])
def test_lengths_are_those_announced(stack: int, table: torch.Tensor) -> None:
    adapter = make(stack=stack)
    for length in range(stack, 12):
        (found,) = adapter(features(length), table)
        assert len(found) == adapter.num_positions(length) == 2 + -(-(length // stack) // 2) + 3


def test_own_tokens_stand_around_the_recording(table: torch.Tensor) -> None:
    adapter = make()
    (found,) = adapter(features(10), table)
    assert torch.equal(found[:2], adapter.begin) and torch.equal(found[-3:], adapter.end)


def test_later_frames_change_earlier_ones_and_padding_none(table: torch.Tensor) -> None:
    adapter = make()
    (item,) = features(20)
    changed = item.clone()
    changed[-1] += 5
    assert not torch.equal(adapter([item], table)[0][2], adapter([changed], table)[0][2])


def heard(frames: list[int], sure: float = 30.0) -> Heard:
    """What an adapter with 20 pieces would hear that is this sure of each frame's piece; 0 is the blank."""
    scores = torch.zeros(1, len(frames), 20)
    blank = torch.zeros(1, len(frames))
    for frame, piece in enumerate(frames):
        if piece:
            scores[0, frame, piece - 1] = sure
        else:
            blank[0, frame] = sure
    normaliser = torch.cat((blank[..., None], scores), -1).logsumexp(-1)
    return Heard(torch.zeros(1, len(frames), DIM), torch.tensor([len(frames)]), blank, scores, normaliser)


def test_tokens_come_once_a_run(table: torch.Tensor) -> None:
    assert runs(torch.tensor([0, 2, 2, 0, 2, 3, 3])) == [
        (0, 0, 1),
        (2, 1, 3),
        (0, 3, 4),
        (2, 4, 5),
        (3, 5, 7),
    ]
    adapter = make(emit="tokens", num_pieces=20)
    said = heard([0, 2, 2, 0, 2, 3, 3])
    assert said.best_pieces() == [[(1, 1, 3), (1, 4, 5), (2, 5, 7)]]
    (found,) = adapter.embeddings(said, table)
    torch.testing.assert_close(found[2:-3], table[[1, 1, 2]])
    (nothing,) = adapter.embeddings(heard([0, 0, 0]), table)
    assert torch.equal(nothing, torch.cat((adapter.begin, adapter.end)))


def test_an_unsure_readout_gives_a_mean(table: torch.Tensor) -> None:
    adapter = make(emit="tokens", num_pieces=20)
    said = heard([0, 2, 0])
    assert said.scores_MFP is not None and said.normaliser_MF is not None
    said.scores_MFP[0, 1, 7] = 30.0 - torch.log(torch.tensor(3.0))
    said.normaliser_MF = torch.cat((said.blank_MF[..., None], said.scores_MFP), -1).logsumexp(-1)  # type: ignore[index]
    (found,) = adapter.embeddings(said, table)
    torch.testing.assert_close(found[2:-3], (0.75 * table[1] + 0.25 * table[7])[None])
    adapter.sharpen = 2.0
    (found,) = adapter.embeddings(said, table)
    torch.testing.assert_close(found[2:-3], (0.9 * table[1] + 0.1 * table[7])[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_normaliser_and_its_gradient(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 41, 17, dtype=dtype, requires_grad=True)
    weights = torch.randn(3, 41)
    expected = scores.float().logsumexp(-1)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), scores)
    found = log_sum_exp(scores)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), scores)[0], gradient)


def test_the_core_teaches_the_readout(table: torch.Tensor) -> None:
    adapter = make(emit="tokens", num_pieces=20).requires_grad_(True)
    with torch.no_grad():
        adapter.blank.bias.fill_(-20)  # else a random readout hears nothing
    (found,) = adapter(features(30), table)
    assert len(found) > 5
    found.square().sum().backward()
    for name in ("begin", "end", "convolution.weight", "output.weight", "sharpness"):
        gradient = adapter.get_parameter(name).grad
        assert gradient is not None and bool(gradient.abs().sum() > 0), name


def test_the_papers_size() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in SpeechAdapter(1536, dim).parameters()) for dim in (4096, 8192)]
    assert [round(count / 1e6, 1) for count in counts] == [102.3, 114.9]


def test_masters_in_float32_compute_in_bfloat16(table: torch.Tensor) -> None:
    adapter = make(emit="tokens", num_pieces=20)
    found = adapter([item.bfloat16() for item in features(30, 20)], table.bfloat16())
    assert {item.dtype for item in found} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"emit": "words"}, "emit is 'words', expected one of frames, tokens"),
        ({"emit": "tokens"}, "set num_pieces"),
        ({"width": 18, "num_heads": 6}, "does not give 6 heads of an even width"),
        ({"kernel": 2}, "kernel=2 is odd"),
        ({"sharpen": 0}, "sharpen is 0, expected a power above 0"),
    ],
)
def test_what_cannot_be_built(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_what_cannot_be_heard(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expects features \[T, 12\] .* but these are \[5, 3\]"):
        make()([torch.zeros(5, 3)], table)
    with pytest.raises(ValueError, match="too short to be heard"):
        make(stack=4)([torch.zeros(3, WIDTH)], table)
