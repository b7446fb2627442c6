"""Being told to stop: SIGINT, SIGTERM or SIGUSR1 ends a run with exit code 75, and the same command continues.

A step that is being made is finished first, and saved. Anything else that takes long (an evaluation, features that are
being encoded, an engine that speaks training data) is left where it is: what it has written is whole, and is not made
again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# "Temporary failure, try again" (EX_TEMPFAIL): the same command continues.
EXIT_CODE = 75
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Stopped(SystemExit):
    """Raised where a signal leaves what is being done; `told` says that a person knows already."""

    def __init__(self, name: str, told: bool = False) -> None:
        super().__init__(EXIT_CODE)
        self.name, self.told = name, told

    def __str__(self) -> str:
        return f"{self.name}: stopped; the same command continues"


class StopSignals:
    """Whether a signal has come (`received`), and whether it has to wait for a step to be whole.

    Between `hold` and the end of its block a signal is only noted; outside of such a block, and within `release`, it
    raises `Stopped` at once. A second signal acts as if nothing had been set up here: it leaves at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._held = False
        self._previous: dict[int, Any] = {}

    @contextmanager
    def hold(self, held: bool = True) -> Iterator[None]:
        """Only note a signal until the end of the block, which has to look at `received` itself."""
        before, self._held = self._held, held
        try:
            if not held and self.received:
                raise Stopped(self.received)
            yield
        finally:
            self._held = before

    def release(self) -> Any:
        """Within a block that holds: let a signal end what is being done at once, also one that has come already."""
        return self.hold(False)

    def _enter(self) -> None:
        # Python delivers signals to the main thread only; elsewhere the owner of that thread handles them.
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()
        if not self._held:
            raise Stopped(self.received)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


_entered: list[StopSignals] = []


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle signals until the end of the block; within another such block, that one's handling serves."""
    if _entered:
        yield _entered[-1]
        return
    stop = StopSignals()
    _entered.append(stop)
    stop._enter()
    try:
        yield stop
    finally:
        stop._restore()
        _entered.clear()
