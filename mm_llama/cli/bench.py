"""`mm-llama bench NAME ...`: measure speed on this machine, two ways in the same run."""

from __future__ import annotations

import importlib

from mm_llama.core.messages import near

# name -> what it measures; the module is mm_llama.bench.NAME, imported when it is asked for.
BENCHES = {
    "text": "a core against transformers: prompt, first token, decoding, int8, memory, start, the roofline",
    "image": "a released vision layout against transformers: first token, decoding, cache, image towers",
    "train": "a step of an image adapter on a frozen core against transformers: same batch, masks, frozen parts",
    "video": "frames of a long clip read, decoded and encoded, against decoding all of it; memory by length",
    "speech": "sound to the first token in its terms, recordings of all lengths, the cost of the paper's size",
    "voice": "words of the core to first sound in its terms, beside the teacher engine, real-time factor, memory",
    "growth": "time and memory of conversations by their number of pictures, and of batches by that of clips",
    "packing": "training steps with rows as they come, sorted by length, and packed",
}


def main(argv: list[str]) -> int:
    """Run one measurement and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mm-llama bench NAME ...\n")
        for name, what in BENCHES.items():
            print(f"  {name:<10} {what}")
        print("\n`mm-llama bench NAME --help` says more.")
        return 0
    name, *rest = argv
    if name not in BENCHES:
        raise ValueError(
            f"there is no `mm-llama bench {name}`{near(name, tuple(BENCHES))}; there are {', '.join(BENCHES)}"
        )
    return int(importlib.import_module(f"mm_llama.bench.{name}").main(rest))
