"""A text-to-speech engine as a source of recordings: hibari (Apache-2.0), one American voice, made into several.

The engine's code is that of its package, whose SHA-256 the asset manifest pins. A voice that is played faster after
having been spoken slower has another pitch at the same tempo: what is trained on several of them minds the voice less.

As a teacher of a voice it also tells what it did: how long each phone was, and how high (`teach`).

Shapes: T samples, P phones, F frames of 12.5 ms.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.data.augment import change_speed
from mm_llama.data.sound import RATE, Sound, open_sound
from mm_llama.voice import check_factor

MODULE = "hibari"
DURATIONS = b"/Clip_output_0"  # of the network: one number for each phone
_IMPORTING = threading.Lock()  # engines may be made in several threads at once


class Hibari:
    """The engine. `folder` is its unpacked package; raises ValueError, naming what to install, without onnxruntime."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise ValueError(
                'the text-to-speech engine runs on onnxruntime, which is not installed: pip install "mm_llama[speech]"'
            ) from None
        with _IMPORTING:
            module = _module(Path(folder))
        self.engine: Any = module.Hibari(threads=threads)
        self.rate = int(self.engine.sample_rate)
        self._teaching: Any = None

    def phones(self, text: str) -> str:
        """Return the phones of a text as one string, each a character: the engine's own, of American English."""
        return " ".join(self.engine.phonemize(text))

    def teach(self, phones: str, seed: int = 0) -> Taught:
        """Return phones spoken, and how: the same for the same arguments.

        Raises ValueError for phones that the engine does not know, or none.
        """
        import numpy as np

        ids = self.engine.ids(phones)
        if unknown := sorted(set(phones) - set(self.engine.vocab)):
            raise ValueError(f"the engine has no phone {unknown[0]!r} (of {phones!r})")
        if not phones:
            raise ValueError("there are no phones to speak")
        if self._teaching is None:
            self._teaching = _with_durations(Path(self.engine.model_path))
        inputs = {"ids": np.asarray([ids], np.int64), "speed": np.ones(1, np.float32)}
        *parts, durations = self._teaching.run(None, inputs)
        found = [part[0] for part in parts]
        # Of the silence before and behind, too; the engine counts in units of two frames.
        frames = [2 * round(float(one)) for one in durations.reshape(-1)]
        samples = sys.modules[f"{MODULE}.dsp"].synth(*found, np.random.default_rng(seed))
        return Taught(torch.from_numpy(samples), self.rate, frames, torch.from_numpy(found[-1].copy()))

    def speak(self, text: str, speed: float = 1.0, pitch: float = 1.0, seed: int = 0) -> Sound:
        """Return a text spoken, at 16 kHz: the same sound for the same arguments.

        `speed` and `pitch` are factors from a half to two. Raises ValueError for a text with nothing to say.
        """
        check_factor("speed", speed)
        check_factor("pitch", pitch)
        samples = self.engine(text, speed=speed / pitch, seed=seed)
        if not len(samples):
            raise ValueError(f"the engine finds nothing to say in {text!r}")
        sound = open_sound((torch.from_numpy(samples), self.rate), rate=RATE)
        if pitch == 1:
            return sound
        return Sound(change_speed(sound.samples, pitch), RATE)


@dataclass(frozen=True)
class Taught:
    """A text as its teacher spoke it: samples float32[T], frames of each phone and of the silence around, pitch."""

    samples: Tensor
    rate: int
    frames: list[int]  # P + 2 of them
    f0_F: Tensor  # float32, Hz; near zero where there is no voice


def _with_durations(model: Path) -> Any:
    """Return a session of the engine's network that also gives the tensor in which its durations are.

    A message that stands behind another of its kind is added to it (the encoding of protocol buffers), so an output
    more is a few bytes more.
    """
    import onnxruntime

    def field(number: int, value: bytes) -> bytes:
        assert len(value) < 128
        return bytes([number << 3 | 2, len(value)]) + value

    graph = field(12, field(1, DURATIONS))  # GraphProto.output, ValueInfoProto.name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.read_bytes() + field(7, graph), options, providers=["CPUExecutionProvider"]
    )


def _module(folder: Path) -> Any:
    """Import the package from its folder, once in a process, without a word to `sys.path`."""
    if MODULE in sys.modules:
        return sys.modules[MODULE]
    start = next(
        (path for path in (folder / MODULE / "__init__.py", folder / "__init__.py") if path.is_file()), None
    )
    if start is None:
        raise FileNotFoundError(f"{folder} holds no {MODULE} package; mm-llama assets fetch hibari_tts")
    spec = importlib.util.spec_from_file_location(
        MODULE, start, submodule_search_locations=[str(start.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE]
        raise
    return module
