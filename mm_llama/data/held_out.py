"""The rows that a stage is measured on, chosen and read once; what cannot be read is counted, as in training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mm_llama.core.chat import ChatFormat
from mm_llama.data.causes import cause_of
from mm_llama.data.collate import LoadMedia, load_item
from mm_llama.data.media import KEYS
from mm_llama.data.samples import Sample, make_sample
from mm_llama.data.sources import Source, evenly

_SHOWN = 20


def held_out_samples(
    sources: Sequence[Source],
    chat: ChatFormat,
    load_media: LoadMedia,
    *,
    limit: int = 0,
    on_error: str = "error",
    max_skipped: int = 0,
) -> tuple[list[Sample], int]:
    """Return `limit` samples (0: all) at an even stride, the same every time, and how many rows were left out of them.

    With `on_error` "skip", rows that cannot be read are left out and named on stderr; more than `max_skipped`, or all,
    are a ValueError.
    """
    rows = [(source, index) for source in sources for index in range(len(source))]
    samples: list[Sample] = []
    skipped: list[str] = []
    for source, index in (rows[place] for place in evenly(len(rows), limit)):
        try:
            sample = make_sample(source.row(index), chat, media_keys=KEYS)
            if on_error == "skip":  # else the evaluation itself says what cannot be read
                for ref in sample.media:
                    load_item(ref, load_media, sample.source)
        except (ValueError, OSError) as error:
            if on_error == "error":
                raise
            skipped.append(f"{cause_of(error)}: {error}")
            continue
        samples.append(sample)
    if len(skipped) > max_skipped or (skipped and not samples):
        raise ValueError(
            f"{len(skipped)} held-out rows cannot be used, and loader.max_skipped={max_skipped} of "
            f"{len(skipped) + len(samples)}; the first: {skipped[0]}"
        )
    if skipped:
        shown = "".join(f"\n  {line}" for line in skipped[:_SHOWN])
        print(f"skipped {len(skipped)} held-out rows, none of them replaced:{shown}", file=sys.stderr)
    return samples, len(skipped)
