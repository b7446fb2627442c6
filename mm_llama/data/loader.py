"""Batches from a mixture: bucketed by length or packed, in one order whatever the worker count, resumable anywhere."""

from __future__ import annotations

import time
import warnings
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from mm_llama.batch import Batch
from mm_llama.core.chat import ChatFormat
from mm_llama.data.causes import cause_of
from mm_llama.data.collate import LoadMedia
from mm_llama.data.mix import Mixture, Place
from mm_llama.data.order import permutation
from mm_llama.data.packing import cut
from mm_llama.data.samples import KeyOf, SizeOf, TooLongError, check_length, count_tokens
from mm_llama.data.work import Job, Position, Result, Skip, Work, start_worker

BATCH_ORDER = 1 << 20  # apart from the source numbers that key a mixture's own shuffles


class Loader:
    """An endless stream of batches over the epochs of a mixture.

    A window of `bucket_batches * batch_size` samples is sorted by length and cut into batches of at most
    `batch_size` rows and at most `batch_tokens` padded positions (0: no limit); the order of the batches is
    shuffled. With `bucket_batches` 1 rows stay in the mixture's order. Micro-batches of one update are
    consecutive batches.

    With `pack`, the documents of a window are packed into rows of at most `pack_tokens` first (see
    `mm_llama.data.packing`), and `batch_size` counts those rows; a window is as many documents as without.

    Of several ranks each has a part of every epoch of its own, as long as the others' or one row shorter, and batches
    of its own: without `batch_tokens` and `pack` as many of them as the others in every epoch. No row is in two parts,
    and none in none.

    `max_tokens` is the longest row (0: no limit). `on_too_long` and `on_error` are `error` or `skip`; rows that
    are skipped are counted in `skipped` by cause, each once, never replaced by another row, and more than `max_skipped`
    are an error. `load_media`, `encoded`: see `collate`; `media_sizes`: see `make_sample`. `wait_seconds` is the
    time spent waiting for batches so far.
    """

    def __init__(
        self,
        mixture: Mixture,
        chat: ChatFormat,
        load_media: LoadMedia | None = None,
        *,
        batch_size: int,
        batch_tokens: int = 0,
        bucket_batches: int = 16,
        max_tokens: int = 0,
        pack: bool = False,
        pack_tokens: int = 0,
        encoded: Collection[str] = (),
        media_keys: Mapping[str, KeyOf] | None = None,
        media_sizes: Mapping[str, SizeOf] | None = None,
        num_workers: int = 0,
        on_error: str = "error",
        on_too_long: str = "error",
        max_skipped: int = 100,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("bucket_batches", bucket_batches, 1),
            ("batch_tokens", batch_tokens, 0),
            ("max_tokens", max_tokens, 0),
            ("pack_tokens", pack_tokens, 1 if pack else 0),
            ("num_workers", num_workers, 0),
            ("max_skipped", max_skipped, 0),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise ValueError(f"loader.{name} must be at least {least}, got {value}")
        for name, choice in (("on_error", on_error), ("on_too_long", on_too_long)):
            if choice not in ("error", "skip"):
                raise ValueError(f"loader.{name} must be 'error' or 'skip', not {choice!r}")
        if pack and 0 < batch_tokens < pack_tokens:
            raise ValueError(
                f"loader.pack_tokens={pack_tokens} positions of one row do not fit in a batch of "
                f"loader.batch_tokens={batch_tokens}: lower the one or raise the other"
            )
        if not 0 <= rank < world_size <= len(mixture):
            raise ValueError(
                f"rank {rank} of {world_size} (loader.rank, loader.world_size) has no part of {len(mixture)} rows: "
                "ranks count from 0, and each needs a row"
            )
        self.rank, self.world_size = rank, world_size
        self.mixture = mixture
        self.chat = chat
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.bucket_batches = bucket_batches
        self.max_tokens = max_tokens
        self.pack_tokens = pack_tokens if pack else 0
        self.media_sizes = media_sizes
        self.num_workers = num_workers
        self.on_error = on_error
        self.on_too_long = on_too_long
        self.max_skipped = max_skipped
        self.position = Position()
        self.num_batches = 0
        self.num_samples = 0
        self.skipped: Counter[str] = Counter()
        self.skip_examples: list[str] = []
        self._skipped_rows: set[tuple[int, int]] = set()
        self.wait_seconds = 0.0
        self._work = Work(mixture, chat, load_media or {}, encoded, media_keys, on_error == "skip", pack)
        # Lengths are found by rendering; remembered as -1 unknown, 0 not usable.
        self._lengths = [array("i", [-1]) * len(source) for source in mixture.sources]

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where the loader stands, without end. Handing out a batch moves the loader on."""
        for result in self._results(self._jobs(self.position)):
            self._count(result)
            self.position = result.after
            if result.batch is not None:
                self.num_batches += 1
                self.num_samples += result.batch.num_samples
                yield result.batch

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """The batches of one whole epoch; where the loader stands does not change."""
        for result in self._results(self._jobs(Position(number), stop=number + 1)):
            self._count(result)
            if result.batch is not None:
                yield result.batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, for JSON: batches handed out count, batches prefetched do not."""
        return {
            "order": self._order(),
            "epoch": self.position.epoch,
            "window": self.position.window,
            "batch": self.position.batch,
            "num_batches": self.num_batches,
            "num_samples": self.num_samples,
            "skipped": dict(self.skipped),
            "skip_examples": list(self.skip_examples),
            "skipped_rows": sorted(self._skipped_rows),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises ValueError when data or batching have changed since."""
        now = self._order()
        # States from before rows could be packed, or split over ranks, do not say that theirs were not.
        for key, value in ({"pack_tokens": 0, "rank": 0, "world_size": 1} | state["order"]).items():
            if now.get(key) != value:
                raise ValueError(
                    f"the data position was saved with {key}={value!r} and now it is {now.get(key)!r}: "
                    "the order of rows would differ, so this run cannot be resumed exactly"
                )
        self.position = Position(state["epoch"], state["window"], state["batch"])
        self.num_batches = state["num_batches"]
        self.num_samples = state["num_samples"]
        self.skipped = Counter(state["skipped"])
        self.skip_examples = list(state.get("skip_examples", ()))
        self._skipped_rows = {(source, row) for source, row in state.get("skipped_rows", ())}

    def _order(self) -> dict[str, Any]:
        return {
            "mixture": self.mixture.digest,
            "seed": self.mixture.seed,
            "chat": self.chat.name,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "bucket_batches": self.bucket_batches,
            "max_tokens": self.max_tokens,
            "pack_tokens": self.pack_tokens,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def _count(self, result: Result) -> None:
        for skip in result.skips:
            row = (skip.place.source, skip.place.row)
            if row in self._skipped_rows:
                continue  # of an earlier epoch
            self._skipped_rows.add(row)
            self.skipped[skip.cause] += 1
            if len(self.skip_examples) < 20:
                self.skip_examples.append(f"{skip.cause}: {skip.what}")
        if self.skipped.total() > self.max_skipped:
            causes = ", ".join(f"{count} {cause}" for cause, count in sorted(self.skipped.items()))
            raise ValueError(
                f"{self.skipped.total()} rows skipped ({causes}), "
                f"more than loader.max_skipped={self.max_skipped}; "
                f"the last: {result.skips[-1].what if result.skips else 'before this run was resumed'}"
            )
        if result.error:
            raise ValueError(result.error)

    def _results(self, jobs: Iterator[Job]) -> Iterator[Result]:
        if self.num_workers == 0:
            results: Iterator[Result] = map(self._work.__getitem__, jobs)
        else:
            results = self._start_workers(jobs)
        while True:
            start = time.perf_counter()
            result = next(results, None)
            self.wait_seconds += time.perf_counter() - start
            if result is None:
                return
            yield result

    def _start_workers(self, jobs: Iterator[Job]) -> Iterator[Result]:
        # One job is one "sample" to torch, so that its ordered, prefetching worker pool serves as it is. It
        # draws a seed when it starts: from a generator of its own, so that the global one does not depend
        # on workers.
        pool = DataLoader(
            self._work,
            batch_size=None,
            sampler=jobs,
            num_workers=self.num_workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; torch's workers are made for it (they use one
            # thread).
            warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
            return iter(pool)

    def _jobs(self, position: Position, stop: int | None = None) -> Iterator[Job]:
        """Jobs from `position` to the start of epoch `stop`."""
        num_windows = self._num_windows()
        epoch, window, first = position.epoch, position.window, position.batch
        empty_windows = 0
        while stop is None or epoch < stop:
            batches, skips, error = self._plan(epoch, window)
            following = (epoch, window + 1) if window + 1 < num_windows else (epoch + 1, 0)
            if error:
                yield Job((), (), Position(epoch, window, first), error)
                return
            empty_windows = 0 if batches else empty_windows + 1
            if empty_windows >= num_windows:
                # Skips are what is left to say why.
                yield Job((), skips, Position(*following), "no row of the data can be used")
                return
            for number in range(first, max(1, len(batches))):
                last = number + 1 >= len(batches)
                after = Position(*following) if last else Position(epoch, window, number + 1)
                rows = batches[number] if batches else ()
                yield Job(rows, skips if number == 0 else (), after)
            (epoch, window), first = following, 0

    def _part(self, rank: int) -> tuple[int, int]:
        """First and end of a rank's places in an epoch."""
        return rank * len(self.mixture) // self.world_size, (rank + 1) * len(self.mixture) // self.world_size

    def _num_windows(self) -> int:
        size = self.bucket_batches * self.batch_size
        if self.world_size == 1:
            return -(-len(self.mixture) // size)
        # As many on every rank: what is left over makes the last one longer, so that no rank has none.
        return max(1, len(self.mixture) // self.world_size // size)

    def _window(self, number: int) -> tuple[int, int, int]:
        """First and end of a window's places, and how many batches it must give (0: as many as it does)."""
        size = self.bucket_batches * self.batch_size
        first, end = self._part(self.rank)
        longest = -(-len(self.mixture) // self.world_size) - number * size  # of any rank
        start = first + number * size
        if number + 1 < self._num_windows():
            end, longest = start + size, size
        even = self.world_size > 1 and not self.batch_tokens and not self.pack_tokens
        return start, end, -(-longest // self.batch_size) if even else 0

    def _plan(
        self, epoch: int, window: int
    ) -> tuple[list[tuple[tuple[Place, ...], ...]], tuple[Skip, ...], str]:
        """The batches of a window in their order, what was left out, and the error that ends the stream."""
        skips: list[Skip] = []
        documents: list[tuple[int, int, Place]] = []
        start, end, count = self._window(window)
        places = [self.mixture.place(epoch, index) for index in range(start, end)]
        self.mixture.read_ahead(places)
        for index, place in enumerate(places, start):
            try:
                documents.append((self._length(place), index, place))
            except TooLongError as problem:
                if self.on_too_long == "error":
                    return [], (), str(problem)
                skips.append(Skip(place, "too_long", str(problem)))
            except (ValueError, OSError) as problem:
                if self.on_error == "error":
                    return [], (), str(problem)
                skips.append(Skip(place, cause_of(problem), str(problem)))
        batches = cut(
            documents,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            sort=self.bucket_batches > 1,
            pack_tokens=self.pack_tokens,
            count=count,
        )
        if self.mixture.shuffle and self.bucket_batches > 1:
            order = permutation(len(batches), self.mixture.seed, BATCH_ORDER, epoch, window)
            batches = [batches[number] for number in order]
        return batches, tuple(skips), ""

    def _length(self, place: Place) -> int:
        known = self._lengths[place.source][place.row]
        if known < 0:
            known = count_tokens(self.mixture.row(place), self.chat, media_sizes=self.media_sizes)
            self._lengths[place.source][place.row] = known
        for key in ("max_tokens", "batch_tokens", "pack_tokens"):
            if 0 < getattr(self, key) < known:  # a name may have to be read
                check_length(known, getattr(self, key), self.mixture.name_of(place), f"loader.{key}")
        return known
