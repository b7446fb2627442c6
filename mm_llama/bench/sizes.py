"""The released 11B vision model, scaled down to what two cores can run."""

from __future__ import annotations

from typing import Any

# The 11B's proportions: head widths 128 and 80, four queries to a key head, feed-forwards 3.5 and 4 times as wide, a
# block before every fourth layer, an output head that is 6% of the weights, tiles of 448 as the 11B base model has.
SCALED: dict[str, dict[str, Any]] = {
    "small": {
        "core": {"dim": 512, "num_layers": 8, "num_heads": 4, "ffn_dim": 1792, "vocab_size": 4096},
        "layers": (3, 7),
        "tower": {"width": 320, "num_layers": 8, "num_heads": 4, "ffn_dim": 1280, "taps": [1, 3, 5, 7]},
    },
    # The default core's shape with blocks in its upper layers, where the default adapter has them.
    "smollm2": {
        "core": {
            "dim": 576,
            "num_layers": 30,
            "num_heads": 9,
            "num_kv_heads": 3,
            "ffn_dim": 1536,
            "vocab_size": 49152,
        },
        "layers": (18, 20, 22, 24, 26, 28),
        "tower": {"width": 320, "num_layers": 8, "num_heads": 4, "ffn_dim": 1280, "taps": [1, 3, 5, 7]},
    },
    "tiny": {
        "core": {"dim": 64, "num_layers": 4, "num_heads": 4, "ffn_dim": 96, "vocab_size": 96},
        "layers": (1, 3),
        "tower": {
            "width": 32,
            "num_layers": 3,
            "num_heads": 2,
            "ffn_dim": 64,
            "taps": [1, 2],
            "tile_size": 56,
        },
    },
}
SIZES = tuple(SCALED)
