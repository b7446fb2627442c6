"""The Conformer: its size, an independent one's parts, padding that changes nothing, streams that are the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from encoders.speech_conformer import (
    Conformer,
    ConformerStream,
    ConvolutionModule,
    FeedForward,
    RotaryAttention,
    chunk_mask,
    rotary,
)

SMALL = {
    "num_mels": 8,
    "stack": 2,
    "width": 24,
    "num_layers": 3,
    "num_heads": 3,
    "ffn_width": 40,
    "kernel": 5,
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**settings: object) -> Conformer:
    """A Conformer whose norms and biases are away from what they begin as, in float64."""
    model = Conformer(**{**SMALL, **settings}).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def test_the_papers_size_has_a_billion_parameters() -> None:
    with torch.device("meta"):
        model = Conformer()
    matrices = sum(weight.numel() for name, weight in model.layers.named_parameters() if weight.ndim > 1)
    assert matrices == 1_000_599_552  # 41.7M a layer
    total = sum(weight.numel() for weight in model.parameters())
    assert total == 1_001_952_768  # with norms, biases and the projection of 4 x 80 mels
    assert model.num_frames(6000) == 1500  # a minute


def test_its_parts_are_those_of_an_independent_conformer() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as theirs

    width, heads, ffn, kernel = 24, 3, 40, 5
    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=ffn,
        conv_depthwise_kernel_size=kernel,
        hidden_act="swish",
        position_embeddings_type=None,
    )
    layer = theirs.Wav2Vec2ConformerEncoderLayer(config).double().eval()
    for index, weight in enumerate(layer.parameters()):
        weight.data = noise(*weight.shape, seed=index).double() * (0.3 if weight.ndim > 1 else 1)
    x = noise(2, 11, width, seed=50).double()

    ours = FeedForward(width, ffn).double()
    ours.norm.load_state_dict(layer.ffn1_layer_norm.state_dict())
    ours.up.load_state_dict(layer.ffn1.intermediate_dense.state_dict())
    ours.down.load_state_dict(layer.ffn1.output_dense.state_dict())
    torch.testing.assert_close(ours(x), layer.ffn1(layer.ffn1_layer_norm(x)))

    attention = RotaryAttention(width, heads).double()
    for name in "qkv":
        getattr(attention, name).load_state_dict(getattr(layer.self_attn, f"linear_{name}").state_dict())
    attention.o.load_state_dict(layer.self_attn.linear_out.state_dict())
    nowhere = rotary(torch.zeros(11), width // heads)
    # Rotary positions are turned in float32.
    torch.testing.assert_close(attention(x, nowhere, None), layer.self_attn(x)[0], rtol=0, atol=2e-6)

    # Their norm over the batch is ours over the width: both are put to the same map of its statistics, none.
    convolution = ConvolutionModule(width, kernel, causal=False).double()
    convolution.norm.load_state_dict(layer.conv_module.layer_norm.state_dict())
    convolution.gated.weight.data = layer.conv_module.pointwise_conv1.weight.data[..., 0]
    convolution.depthwise.load_state_dict(layer.conv_module.depthwise_conv.state_dict())
    convolution.output.weight.data = layer.conv_module.pointwise_conv2.weight.data[..., 0]
    convolution.depthwise_norm = nn.Identity()  # type: ignore[assignment]
    layer.conv_module.batch_norm = nn.Identity()
    torch.testing.assert_close(convolution(x), layer.conv_module(x))


def test_rotary_attention_depends_on_distances_alone() -> None:
    attention = RotaryAttention(24, 3).double()
    x = noise(1, 9, 24).double()
    here = attention(x, rotary(torch.arange(9), 8), None)
    there = attention(x, rotary(torch.arange(100, 109), 8), None)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5)
    assert (here - attention(x, rotary(torch.zeros(9), 8), None)).abs().max() > 1e-3
    assert (here - attention(x, rotary(2 * torch.arange(9), 8), None)).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [0, 3])
def test_padding_and_company_change_nothing(chunk: int) -> None:
    model = small(chunk=chunk)
    lengths = [23, 8, 14]
    mels = noise(3, 31, 8).double()
    for row, length in enumerate(lengths):
        mels[row, length:] = 1e3 * noise(31 - length, 8, seed=row).double()  # whatever lies there
    together = model(mels, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = model(mels[row : row + 1, :length])[0]
        T = length // 2
        assert alone.shape == (T, 24)
        torch.testing.assert_close(together[row, :T], alone, rtol=0, atol=1e-9)
        assert not together[row, T:].any()


@pytest.mark.parametrize("left_chunks", [-1, 0, 2])
@pytest.mark.parametrize("pieces", [[1] * 40, [7, 7, 7, 7, 7, 5], [40], [13, 1, 26]])
def test_a_stream_gives_the_whole(left_chunks: int, pieces: list[int]) -> None:
    model = small(chunk=4, left_chunks=left_chunks)
    mels = noise(40, 8).double()
    stream = ConformerStream(model)
    parts = [stream.push(part) for part in mels.split(pieces)] + [stream.finish()]
    assert len(parts[-1]) in (0, 4)
    torch.testing.assert_close(torch.cat(parts), model(mels[None])[0], rtol=0, atol=1e-9)
    held = stream._past[0]["keys"].shape[2]
    assert held <= 20 if left_chunks < 0 else held <= 4 * (left_chunks + 1)


def test_chunks_see_what_they_may_and_no_more() -> None:
    model, mels = small(chunk=4, left_chunks=1), noise(1, 32, 8).double()
    whole = model(mels)
    later = mels.clone()
    later[:, 16:] += 1  # from frame 8, chunk 2, on
    assert torch.equal(model(later)[:, :8], whole[:, :8])
    assert (model(later)[:, 8:] - whole[:, 8:]).abs().amin() > 0
    expected = torch.tensor(
        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    ).bool()
    assert torch.equal(chunk_mask(5, 2, 1, torch.device("cpu")), expected)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="a kernel of 4 has no middle"):
        small(kernel=4)
    with pytest.raises(ValueError, match="a width of 24 does not give 5 heads of an even width"):
        small(num_heads=5)
    with pytest.raises(ValueError, match="one that streams has chunk above 0"):
        ConformerStream(small())
    with pytest.raises(ValueError, match=r"takes log-mels \[B, A, 8\], but these are \[1, 4, 9\]"):
        small()(noise(1, 4, 9).double())
    assert small()(noise(1, 1, 8).double()).shape == (1, 0, 24)
