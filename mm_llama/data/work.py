"""What a worker does: render the rows of one batch, load their media, collate; and what goes to it and comes back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat
from mm_llama.data.causes import cause_of
from mm_llama.data.collate import LoadMedia, collate, load_item
from mm_llama.data.mix import Mixture, Place
from mm_llama.data.packing import collate_packed
from mm_llama.data.samples import KeyOf, MediaRef, Sample, make_sample


@dataclass(frozen=True)
class Position:
    """The next batch: its epoch, the window of samples it is cut from, and its number there."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Skip:
    """A row that was left out, and why: one of `mm_llama.data.causes.CAUSES`."""

    place: Place
    cause: str
    what: str


@dataclass(frozen=True)
class Job:
    """The rows of one batch, what was left out on the way to it, and where to go on after it.

    A row is one document, or several when rows are packed.
    """

    rows: tuple[tuple[Place, ...], ...]
    skips: tuple[Skip, ...]
    after: Position
    error: str = ""


@dataclass(frozen=True)
class Result:
    """A finished job. Errors travel as text: raised in a worker they would come back with its traceback."""

    batch: Batch | None
    skips: tuple[Skip, ...]
    after: Position
    error: str = ""


class Work(Dataset[Result]):
    """What a worker does: render the rows of a job, load their media, collate."""

    def __init__(
        self,
        mixture: Mixture,
        chat: ChatFormat,
        load_media: LoadMedia,
        encoded: Collection[str],
        media_keys: Mapping[str, KeyOf] | None,
        skip_errors: bool,
        pack: bool,
    ) -> None:
        self.mixture = mixture
        self.chat = chat
        self.load_media = load_media
        self.encoded = frozenset(encoded)
        self.media_keys = media_keys
        self.skip_errors = skip_errors
        self.pack = pack

    def __getitem__(self, job: Job) -> Result:
        if job.error or not job.rows:
            return Result(None, job.skips, job.after, job.error)
        rows: list[list[Sample]] = []
        skips = list(job.skips)
        loaded: dict[tuple[str, str], Tensor] = {}
        for places in job.rows:
            samples: list[Sample] = []
            for place in places:
                try:
                    samples.append(self._sample(place, loaded))
                except (ValueError, OSError) as problem:
                    if not self.skip_errors:
                        return Result(None, tuple(skips), job.after, str(problem))
                    skips.append(Skip(place, cause_of(problem), str(problem)))
            if samples:
                rows.append(samples)
        if not rows:
            return Result(None, tuple(skips), job.after)
        readers: dict[str, Callable[[MediaRef], Tensor]] = {
            kind: lambda ref: loaded[ref.kind, ref.key] for kind in self.load_media
        }
        if self.pack:
            batch = collate_packed(rows, readers, encoded=self.encoded)
        else:
            batch = collate([sample for (sample,) in rows], readers, encoded=self.encoded)
        return Result(batch, tuple(skips), job.after)

    def _sample(self, place: Place, loaded: dict[tuple[str, str], Tensor]) -> Sample:
        sample = make_sample(self.mixture.row(place), self.chat, media_keys=self.media_keys)
        for ref in sample.media:
            if (ref.kind, ref.key) not in loaded:
                loaded[ref.kind, ref.key] = load_item(ref, self.load_media, sample.source)
        return sample


def start_worker(number: int) -> None:
    """Signals are the main process's business: a worker that dies of one breaks the save they ask for."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
