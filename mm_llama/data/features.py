"""Features of a frozen encoder, computed once and read back from memory-mapped files in every later epoch.

Media of one shape have features of one shape, and lie side by side; recordings are as long as they are, and lie one
behind the other in one long table, with where each ends beside it.

Shapes: n media, N tokens a medium, T frames of a recording, E encoder width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm_llama.data.samples import MediaRef

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FORMAT = "mm_llama features 1"


class FeatureCache:
    """Features by content key, for one encoder (digest of its weights), one preprocessing and one dtype.

    Another of the three is another folder under `folder`, so a stale feature is never read. Shards are
    safetensors files, each written whole under a temporary name first; an interrupted `build` goes on where
    it stopped. Any number of processes may read and build at once: none sees a part of a shard, and at worst two encode
    the same medium. When a shard was last opened is its time of modification, which `mm-llama data cache` goes by.
    """

    def __init__(
        self, folder: str | Path, encoder_digest: str, preprocess_id: str, *, dtype: str = "bfloat16"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features are kept as {' or '.join(DTYPES)}, not {dtype!r}")
        self.identity = {
            "format": FORMAT,
            "encoder": encoder_digest,
            "preprocess": preprocess_id,
            "dtype": dtype,
        }
        self.dtype = DTYPES[dtype]
        name = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder) / name
        self._shards: list[Sequence[Tensor] | Tensor] = []
        self._rows: dict[str, tuple[int, int]] = {}  # content key -> shard, row of it
        self.failed: dict[str, str] = {}  # content key -> why `build` could not read the medium
        self._mapped: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have built since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._mapped and path.is_file():
                self._map(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def get(self, key: str) -> Tensor:
        """Features [N, E] (of a recording [T, E]) of a content key, a view of the mapped file: not to be written to."""
        try:
            shard, row = self._rows[key]
        except KeyError:
            built = f"no cached features for {key} in {self.folder}: build the cache over this data first"
            raise KeyError(self.failed.get(key, built)) from None
        return self._shards[shard][row]

    def __call__(self, ref: MediaRef) -> Tensor:
        """Features of a medium, as `load_media` wants them; list the kind in `encoded`."""
        return self.get(ref.key)

    def build(
        self,
        refs: Iterable[MediaRef],
        load: Callable[[MediaRef], Tensor],
        encode: Callable[[Any], Tensor | Sequence[Tensor]],
        *,
        batch_size: int = 32,
        shard_bytes: int = 128_000_000,
        on_error: str = "error",
        ragged: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Encode what is not cached yet and give the number of new media.

        `load(ref)` gives pixels [3, h, w]; `encode` maps [n, 3, h, w] to features [n, N, E]; pixels of
        different sizes are encoded apart. With `ragged`, `encode` maps a list of tensors [A, ...] of any lengths to
        as many features [T, E], and media of like length are encoded together. `progress(done, all)` is called after
        each batch. A medium that
        cannot be read raises, or with `on_error="skip"` is noted in `failed`, so that the rows that show it
        fail one by one. Raises ValueError when the encoder gives values that are not finite.
        """
        if on_error not in ("error", "skip"):
            raise ValueError(f"on_error must be 'error' or 'skip', not {on_error!r}")
        self.refresh()
        missing = {ref.key: ref for ref in refs if ref.key not in self._rows}
        keys: list[str] = []
        parts: list[Tensor] = []
        size = done = 0
        readable = self._read(missing.values(), load, on_error == "skip")
        batches = _like_size(readable, batch_size) if ragged else _same_size(readable, batch_size)
        try:
            for batch in batches:
                items = [item for _, item in batch]
                with torch.inference_mode():
                    made = encode(items if ragged else torch.stack(items))
                    features = [item.to("cpu", self.dtype) for item in made]
                least = 2 if ragged else 3
                if len(features) != len(batch) or any(item.ndim + 1 - ragged < least for item in features):
                    raise ValueError(
                        f"the encoder gave features of shapes {[list(item.shape) for item in features[:3]]} "
                        f"for {len(batch)} media, not [n, N, E] ([n, F, N, E] of clips, n of [T, E] of recordings)"
                    )
                for (ref, _), item in zip(batch, features, strict=True):
                    if not item.isfinite().all():
                        raise ValueError(
                            f"the encoder gave values that are not finite for {ref.kind} {ref.source}"
                        )
                kind = features[0].shape[ragged:]
                if parts and (size >= shard_bytes or parts[-1].shape[ragged:] != kind):
                    self._write(keys, parts, ragged)
                    keys, parts, size = [], [], 0
                keys += [ref.key for ref, _ in batch]
                parts += features
                size += sum(item.nbytes for item in features)
                done += len(batch)
                if progress is not None:
                    progress(done, len(missing))
        except BaseException:
            # A signal, or a medium that cannot be read: what is encoded so far is not encoded again.
            if parts:
                self._write(keys[: len(parts)], parts, ragged)
            raise
        if parts:
            self._write(keys, parts, ragged)
        return done

    def _read(
        self, refs: Iterable[MediaRef], load: Callable[[MediaRef], Tensor], skip: bool
    ) -> Iterator[tuple[MediaRef, Tensor]]:
        for ref in refs:
            try:
                pixels = load(ref)
            except (ValueError, OSError) as error:
                if not skip:
                    raise
                self.failed[ref.key] = str(error)
                continue
            yield ref, pixels

    def _write(self, keys: list[str], parts: list[Tensor], ragged: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Named by what it holds: two processes that build the same shard put the same file in place.
        name = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        metadata = {**self.identity, "keys": json.dumps(keys)}
        try:
            held = {"features": torch.cat(parts) if ragged else torch.stack(parts)}
            if ragged:
                held["ends"] = torch.tensor([len(part) for part in parts]).cumsum(0)
            save_file(held, partial, metadata=metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.folder / f"{name}.safetensors")
        except (SafetensorError, OSError) as error:
            raise OSError(f"cannot write cached features under {self.folder}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        self._map(self.folder / f"{name}.safetensors")

    def _map(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                features = file.get_tensor("features")
                ends = file.get_tensor("ends").tolist() if "ends" in file.keys() else None  # noqa: SIM118
        except FileNotFoundError:  # pruned between the listing and now: to be built again
            return
        except SafetensorError as error:
            raise ValueError(
                f"cached features {path} cannot be read ({error}); delete the file and build again"
            ) from None
        found = {name: metadata.get(name) for name in self.identity}
        keys = json.loads(metadata.get("keys", "[]"))
        if ends is not None and (ends[-1:] or [0])[0] == len(features):
            features = [features[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if found != self.identity or len(keys) != len(features):
            raise ValueError(
                f"cached features {path} are for {found}, expected {self.identity}; "
                "delete the file and build again"
            )
        with contextlib.suppress(OSError):  # of another user, or on a disk that cannot be written to
            os.utime(path)
        self._mapped.add(path.name)
        self._rows.update({key: (len(self._shards), row) for row, key in enumerate(keys)})
        self._shards.append(features)


def _like_size(
    media: Iterable[tuple[MediaRef, Tensor]], batch_size: int, window: int = 16
) -> Iterator[list[tuple[MediaRef, Tensor]]]:
    """Batches of loaded media of like length: `window` batches at a time are put in order of length."""
    media = iter(media)
    while held := sorted(islice(media, window * batch_size), key=lambda one: (len(one[1]), one[0].key)):
        yield from (held[start : start + batch_size] for start in range(0, len(held), batch_size))


def _same_size(
    media: Iterable[tuple[MediaRef, Tensor]], batch_size: int
) -> Iterator[list[tuple[MediaRef, Tensor]]]:
    """Batches of loaded media in their order, each of one size."""
    batch: list[tuple[MediaRef, Tensor]] = []
    for ref, pixels in media:
        if batch and (len(batch) == batch_size or batch[-1][1].shape != pixels.shape):
            yield batch
            batch = []
        batch.append((ref, pixels))
    if batch:
        yield batch
