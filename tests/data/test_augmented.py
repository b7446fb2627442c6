"""Rows whose recordings are played at other speeds with noise beneath: drawn once for each, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from mm_llama.core.messages import MediaPart
from mm_llama.data import speech_recipes as recipes
from mm_llama.data.augmented import Augmented
from mm_llama.data.sound import RATE, open_sound
from mm_llama.data.sources import Row


def samples_of(row: Row) -> torch.Tensor:
    (part,) = (one for message in row.messages for one in message.parts if isinstance(one, MediaPart))
    return open_sound(part.source).samples


def test_rows_are_changed_the_same_way_each_time(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.librivox(asset_dir("librivox_clips"), tmp_path / "clips")
    faster = Augmented(source, speeds=[1.25])
    for index in range(2):
        plain, changed = source.row(index), faster.row(index)
        assert len(samples_of(changed)) == pytest.approx(len(samples_of(plain)) / 1.25, abs=2)
        assert changed.messages[-1] == plain.messages[-1] and faster.name_of(index) == source.name_of(index)
    drawn = Augmented(source, speeds=[0.9, 1.1], copies=3)
    assert len(drawn) == 15
    ratios = [len(samples_of(drawn.row(n))) / len(samples_of(source.row(n % 5))) for n in range(15)]
    assert {round(ratio, 2) for ratio in ratios} == {0.91, 1.11}
    assert torch.equal(samples_of(drawn.row(7)), samples_of(drawn.row(7)))
    assert drawn.digest != Augmented(source, speeds=[0.9, 1.1], copies=3, seed=1).digest != source.digest


def test_noise_lies_beneath(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.librivox(asset_dir("librivox_clips"), tmp_path / "clips")
    (tmp_path / "noise").mkdir()
    hiss = 0.2 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "noise" / "hiss.wav", hiss.numpy(), RATE)
    noisy = Augmented(source, speeds=[1.0], noise=tmp_path / "noise", snr_db=[10, 10])
    clean, heard = samples_of(source.row(0)), samples_of(noisy.row(0))
    ratio = clean.square().mean() / (heard - clean).square().mean()
    assert float(10 * ratio.log10()) == pytest.approx(10, abs=0.1)


def test_refusals(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = recipes.librivox(asset_dir("librivox_clips"), tmp_path / "clips")
    with pytest.raises(ValueError, match="copies=0 is at least 1"):
        Augmented(source, copies=0)
    with pytest.raises(ValueError, match="snr_db=.* must be the least and the greatest"):
        Augmented(source, snr_db=[20, 5])
    with pytest.raises(FileNotFoundError, match="no recording below"):
        Augmented(source, noise=tmp_path / "nothing")
