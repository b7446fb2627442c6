"""Text of a model, of a file or of its name on its way to a terminal: words, and nothing that a terminal obeys."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# C0 but for tab and newline, DEL and C1: escape sequences move the cursor, set the title, write the clipboard.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Return a text without control characters; tabs and line ends stay."""
    return _CONTROLS.sub("", text)


def visible(text: str, stream: TextIO | None = None) -> str:
    """Return a text as `stream` (default: standard output) may have it: a terminal gets it plain, a file as it is."""
    return plain(text) if (stream or sys.stdout).isatty() else text
