"""The voice: what is written to what is said, to phones, prosody and sound (paper section 8.3)."""

from __future__ import annotations


def check_factor(name: str, value: float) -> None:
    """Raise ValueError for a factor of tempo or pitch that is not from a half to two."""
    if not 0.5 <= value <= 2:
        raise ValueError(f"{name} is {value}, expected a factor from 0.5 to 2")
