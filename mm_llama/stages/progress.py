"""What a person sees while a stage runs: one live line on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Shows records of steps on `stream` (default: stderr); `note` prints a line above."""

    def __init__(
        self, name: str, num_steps: int, start: int = 0, *, log_every: int = 1, stream: TextIO | None = None
    ) -> None:
        self.name, self.num_steps, self.start = name, num_steps, start
        self.log_every = max(1, log_every)
        self.stream = stream if stream is not None else sys.stderr
        self._began = time.perf_counter()
        self._live: Any = None
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            # Drawn when a step ends: no second thread beside the computation.
            self._live = Live(console=Console(file=self.stream), auto_refresh=False)

    def __enter__(self) -> Progress:
        self._began = time.perf_counter()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one step's record: every step on a terminal, else every `log_every` and the last."""
        step = record["step"]
        if self._live is not None:
            self._live.update(self._line(record), refresh=True)
        elif step % self.log_every == 0 or step == self.num_steps:
            left = {"eta_seconds": round(self.seconds_left(step))}
            shown = {key: _rounded(value) for key, value in record.items()}
            print(json.dumps({"stage": self.name, **shown, **left}), file=self.stream, flush=True)

    def note(self, text: Any) -> None:
        """Print text, or a table, above the live line."""
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            print(str(text), file=self.stream, flush=True)

    def seconds_left(self, step: int) -> float:
        """Estimate the time to the last step from the steps of this process."""
        done = step - self.start
        return (time.perf_counter() - self._began) / done * (self.num_steps - step) if done > 0 else 0.0

    def _line(self, record: Mapping[str, Any]) -> Any:
        from rich.text import Text

        step, left = record["step"], int(self.seconds_left(record["step"]))
        parts = [
            f"step {step}/{self.num_steps}",
            "left out" if record["loss"] is None else f"loss {record['loss']:.4f}",
            f"lr {record['lr']:.2e}",
            f"{record['tokens_per_s']:,.0f} tokens/s",
            f"{record['samples_per_s']:.1f} samples/s",
            f"padding {record['padding']:.0%}",
            f"data wait {record['data_wait']:.0%}",
            f"{record['memory_mb'] / 1024:.1f} GB",
            f"{left // 60}:{left % 60:02d} left",
        ]
        if record.get("skipped"):
            causes = [
                f"{key.removeprefix('skipped.')} {record[key]}"
                for key in record
                if key.startswith("skipped.")
            ]
            parts.insert(2, f"skipped {record['skipped']} ({', '.join(causes)})")
        return Text.assemble((self.name, "bold"), "  ", "  ".join(parts), no_wrap=True, overflow="ellipsis")


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
