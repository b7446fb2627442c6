"""`mm-llama translate FILE --to LANGUAGE`: `mm-llama transcribe` with another task."""

from mm_llama.cli.transcribe import translate as main

__all__ = ["main"]
