"""mm_llama: eyes for a frozen text Llama, as compositional adapters, with text-only behaviour unchanged.

`from mm_llama import load` gives a model to talk to; importing the package itself imports no torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from mm_llama.assistant import load

        return load
    raise AttributeError(f"module 'mm_llama' has no attribute {name!r}")
