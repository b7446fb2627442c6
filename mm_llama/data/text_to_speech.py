"""A text-to-speech engine as a source of recordings: hibari (Apache-2.0), one American voice, made into several.

The engine's code is that of its package, whose SHA-256 the asset manifest pins. A voice that is played faster after
having been spoken slower has another pitch at the same tempo: what is trained on several of them minds the voice less.

Shapes: T samples.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from mm_llama.data.augment import change_speed
from mm_llama.data.sound import RATE, Sound, open_sound

MODULE = "hibari"
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

    def speak(self, text: str, speed: float = 1.0, pitch: float = 1.0, seed: int = 0) -> Sound:
        """Return a text spoken, at 16 kHz: the same sound for the same arguments.

        `speed` and `pitch` are factors from a half to two. Raises ValueError for a text with nothing to say.
        """
        for name, value in (("speed", speed), ("pitch", pitch)):
            if not 0.5 <= value <= 2:
                raise ValueError(f"{name} is {value}, expected a factor from 0.5 to 2")
        samples = self.engine(text, speed=speed / pitch, seed=seed)
        if not len(samples):
            raise ValueError(f"the engine finds nothing to say in {text!r}")
        sound = open_sound((torch.from_numpy(samples), self.rate), rate=RATE)
        if pitch == 1:
            return sound
        return Sound(change_speed(sound.samples, pitch), RATE)


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
