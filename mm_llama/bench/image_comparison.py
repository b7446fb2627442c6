"""The measurements of `mm-llama bench image`: two vision models with the same weights, their inputs, what differs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mm_llama.bench.measure import interleaved, times_faster
from mm_llama.bench.roofline import flops_of, gemm_flops, read_bandwidth
from mm_llama.bench.vision_pair import Ours, Theirs
from mm_llama.build import build
from mm_llama.generation.engine import generate

PICTURES = {"one tile": (1, 1), "four tiles": (2, 2)}


class Comparison:
    """The two models, their inputs, and what is measured of them; every picture comes first and text behind it."""

    def __init__(
        self, ours: Ours, theirs: Theirs, text_tokens: int, new_tokens: int, repeats: int, seed: int
    ) -> None:
        self.ours, self.theirs, self.repeats = ours, theirs, repeats
        self.encoder: Any = ours.model.modality["image"].encoder
        generator = torch.Generator().manual_seed(seed)
        vocab, side = ours.model.core.config.vocab_size, self.encoder.tile_size
        self.tokens_BS = torch.randint(0, vocab, (1, text_tokens + 1), generator=generator)
        self.new_N = torch.randint(0, vocab, (new_tokens,), generator=generator)
        self.tiles = {
            name: torch.randn(*tiling, 3, side, side, generator=generator)
            for name, tiling in PICTURES.items()
        }
        self.batches = {name: ours.batch(self.tokens_BS, tiles) for name, tiles in self.tiles.items()}
        self.inputs = {name: theirs.inputs(self.tokens_BS, tiles) for name, tiles in self.tiles.items()}

    def differences(self, tolerance: float) -> list[dict[str, Any]]:
        """Compare logits at every position of the prompt, and behind every token decoded after it."""
        found = []
        with torch.inference_mode():
            for name in PICTURES:
                ours, state = self.ours.prefill(self.batches[name], len(self.new_N), every=True)
                theirs, their_state = self.theirs.prefill(self.inputs[name], every=True)
                pairs = {
                    f"prompt, {name}": (ours, theirs),
                    f"decoding, {name}": (
                        self.ours.decode(state, self.new_N),
                        self.theirs.decode(their_state, self.new_N),
                    ),
                }
                for case, (got, wanted) in pairs.items():
                    value = _difference(got, wanted)
                    found.append(
                        {"case": case, "difference": value, "tolerance": tolerance, "ok": value <= tolerance}
                    )
        return found

    def cache_bytes(self) -> list[dict[str, Any]]:
        """Return how many bytes the keys and values of one picture take."""
        found = []
        with torch.inference_mode():
            for name in PICTURES:
                ours = self.ours.cache_bytes(self.ours.prefill(self.batches[name])[1])
                theirs = self.theirs.cache_bytes(self.theirs.prefill(self.inputs[name])[1])
                found.append({"case": name, "ours": ours, "theirs": theirs, "share": ours / theirs})
        return found

    def first_token(self) -> list[dict[str, Any]]:
        """Time from pixels and tokens to the logits of the first new token."""
        return [
            self._timed(
                f"first token, {name}",
                lambda name=name: self.ours.prefill(self.batches[name]),  # type: ignore[misc]
                lambda name=name: self.theirs.prefill(self.inputs[name]),  # type: ignore[misc]
                asked=1.2 if name == "one tile" else None,
            )
            for name in PICTURES
        ]

    def decoding(self) -> list[dict[str, Any]]:
        """Time the new tokens alone, one by one, the picture in view."""
        found = []
        for name in PICTURES:
            with torch.inference_mode():
                state = self.ours.prefill(self.batches[name], len(self.new_N))[1]
                theirs = self.theirs.prefill(self.inputs[name])[1]
                # Their cache grows with every token, so each round gets a copy, made outside the clock.
                copies = [self.theirs.copied(theirs) for _ in range(self.repeats + 1)]
            entry = self._timed(
                f"decoding, {name}",
                lambda state=state: self.ours.decode(state, self.new_N),  # type: ignore[misc]
                lambda copies=copies: self.theirs.decode(copies.pop(), self.new_N),  # type: ignore[misc]
                asked=1.2,
            )
            for side in ("ours", "theirs"):
                entry[side]["tokens_per_s"] = len(self.new_N) / entry[side]["wall_s"]
            entry["bytes_per_token"] = self._bytes_per_token(state)
            found.append(entry)
        return found

    def answers(self) -> list[dict[str, Any]]:
        """Time a whole greedy answer by the call that each library offers for it."""

        config = self.theirs.peer.generation_config
        config.pad_token_id, config.eos_token_id = 0, None
        count = len(self.new_N)
        return [
            self._timed(
                f"answer of {count} tokens, {name}",
                lambda name=name: generate(self.ours.model, self.batches[name], max_new_tokens=count),  # type: ignore[misc]
                lambda name=name: self.theirs.peer.generate(  # type: ignore[misc]
                    **self.inputs[name],
                    attention_mask=torch.ones_like(self.tokens_BS),
                    do_sample=False,
                    max_new_tokens=count,
                ),
            )
            for name in PICTURES
        ]

    def towers(self, seed: int) -> list[dict[str, Any]]:
        """Time the image towers alone on a picture of one tile: the released one, and our own of the same size."""
        name = "one tile"
        tiles = self.tiles[name].to(self.ours.model.dtype)[None]
        own = _own_tower(self.encoder, seed).to(tiles.dtype).eval()
        return [
            self._timed(
                f"{which} tower, {name}",
                lambda tower=tower: tower(tiles),  # type: ignore[misc]
                lambda: self.theirs.tower(self.inputs[name]),
                asked=asked,
            )
            for which, tower, asked in (("released", self.encoder, None), ("own", own, 3.0))
        ]

    def early_skip(self) -> dict[str, Any]:
        """Leave the absent tiles out before the tower (`drop_absent`): how much faster, how far off."""
        batch = self.batches["one tile"]

        def skipping() -> Tensor:
            self.encoder.drop_absent = True
            try:
                return self.ours.prefill(batch, every=True)[0]
            finally:
                self.encoder.drop_absent = False

        with torch.inference_mode():
            exact, skipped = self.ours.prefill(batch, every=True)[0], skipping()
        entry = self._timed("early skip, one tile", skipping, lambda: self.ours.prefill(batch, every=True))
        return entry | {
            "difference": _difference(skipped, exact),
            "same_best_token": float((skipped.argmax(-1) == exact.argmax(-1)).float().mean()),
        }

    def roofline(self, times: list[dict[str, Any]]) -> dict[str, Any]:
        """Measure what the machine can do at best, and write into each timing what share of it was reached."""

        flops = gemm_flops(self.ours.model.dtype)
        found: dict[str, Any] = {"gemm_flops": flops, "read_bytes_per_s": {}}
        for entry in times:
            if "bytes_per_token" in entry:
                rate = read_bandwidth(entry["bytes_per_token"])
                found["read_bytes_per_s"][entry["case"]] = rate
                entry["bound_tokens_per_s"] = rate / entry["bytes_per_token"]
                for side in ("ours", "theirs"):
                    entry[side]["share"] = entry[side]["tokens_per_s"] / entry["bound_tokens_per_s"]
            elif "flops" in entry["ours"]:
                for side in ("ours", "theirs"):
                    entry[side]["share"] = entry[side]["flops"] / entry[side]["wall_s"] / flops
        return found

    def _timed(
        self,
        case: str,
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
        asked: float | None = None,
    ) -> dict[str, Any]:

        print(f"{case} ...", file=sys.stderr)
        with torch.inference_mode():
            timings = interleaved({"ours": ours, "theirs": theirs}, self.repeats)
        entry: dict[str, Any] = {
            "case": case,
            "ours": timings["ours"].record(),
            "theirs": timings["theirs"].record(),
            "times_faster": times_faster(timings["ours"], timings["theirs"]),
            "asked": asked,
        }
        if case.startswith(("first token", "released tower", "own tower")):
            entry["ours"]["flops"], entry["theirs"]["flops"] = flops_of(ours), flops_of(theirs)
        return entry

    def _bytes_per_token(self, state: Any) -> int:
        """Return the bytes of weights, and of keys and values, that decoding one token has to read."""
        model = self.ours.model
        adapter: Any = model.modality["image"].adapter
        read: list[Tensor] = [*model.core.layers.parameters(), *model.core.norm.parameters()]
        read += [(model.core.embedding if model.core.head is None else model.core.head).weight]
        # A picture's keys and values were made once, by weights that decoding does not read.
        read += [
            weight
            for name, weight in adapter.blocks.named_parameters()
            if not name.endswith(("attention.k.weight", "attention.v.weight", "k_norm.weight"))
        ]
        cache, _, num_slots = state
        used = 2 * cache.keys.nbytes * (num_slots + len(self.new_N) // 2) // cache.length
        return sum(weight.nbytes for weight in read) + self.ours.cache_bytes(state) + used


def _difference(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.float()
    return float((got.float() - wanted).abs().max() / wanted.abs().max())


def _own_tower(released: Any, seed: int) -> nn.Module:
    """Return our own tower with the numbers of a released one."""
    tower: nn.Module = build(
        {
            "_target_": "encoders.image_vit.TileViT",
            "tile_size": released.tile_size,
            "patch_size": released.patch_size,
            "width": released.width,
            "num_layers": len(released.layers),
            "num_heads": released.num_heads,
            "mlp_width": released.ffn_dim,
            "class_token": True,
            "layers": list(released.taps),
            "max_tiles": released.max_tiles,
            "num_global_layers": len(released.global_layers),
            "seed": seed,
        }
    )
    return tower.requires_grad_(False)
