"""The measurements of `mm-llama bench text`: a core in its forms beside transformers' Llama, and the roof."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_llama.bench.measure import interleaved, peak_of_child, times_faster
from mm_llama.bench.roofline import flops_of, gemm_flops, read_bandwidth
from mm_llama.bench.text_pair import (
    Ours,
    Theirs,
    bytes_per_step,
    perplexity,
    same_in_transformers,
    text_flops,
)
from mm_llama.model import MultimodalLlama

SHORT = 32  # prompt tokens of "first token" and of a fresh process
# Ratios that the project asks for, by case and side.
ASKED: dict[tuple[str, str], float] = {
    ("decoding, batch 1", "ours"): 1.4,
    ("decoding, batch 1", "int8"): 3.0,
    ("decoding, batch 8", "ours"): 1.4,
}


class Comparison:
    """All sides, their prompts, and what is measured of them.

    Sides: `ours` is the plain core as `load` holds it, `attached` the same core with an image adapter on it, `int8`
    the core rounded (in bfloat16 alone), `theirs` transformers' Llama. Weights are those of `model`, which is used up.
    """

    def __init__(
        self,
        model: MultimodalLlama,
        tokens_BS: Tensor,
        *,
        prompt_tokens: int,
        new_tokens: int,
        repeats: int,
        attention: str = "sdpa",
    ) -> None:
        self.tokens_BS, self.new_tokens, self.repeats = tokens_BS, new_tokens, repeats
        self.prompt_tokens = prompt_tokens
        self.config, self.device = model.core.config, model.device
        self.theirs = Theirs(same_in_transformers(model.core, attention))
        counted = flops_of(lambda: Ours(model.core).prefill(self._prompt(1, prompt_tokens)))
        self.flops = {
            "formula": text_flops(self.config, 1, prompt_tokens, 1),
            "ours": counted,
            "theirs": flops_of(lambda: self.theirs.prefill(self._prompt(1, prompt_tokens))),
        }
        self.sides: dict[str, Ours] = {"ours": Ours(model.core), "attached": Ours(model)}
        if model.dtype == torch.bfloat16:
            rounded = copy.deepcopy(model.core)
            rounded.hold("int8")
            self.sides["int8"] = Ours(rounded)
        model.hold("auto")

    def equality(self, tolerance: float) -> list[dict[str, Any]]:
        """Compare logits at every position, and the tokens that both choose: what `ours` wrote, read by the other.

        A token counts as the same when the peer finds no other likelier by more than the tolerance, of its logits'
        scale; how many are the very same is told beside it. int8 is compared but need not agree.
        """
        found = []
        with torch.inference_mode():
            for batch in (1, len(self.tokens_BS)):
                prompt = self._prompt(batch, SHORT)
                wanted = self.theirs.logits(prompt)
                scale = wanted.abs().max()
                first_B1, state = self.theirs.prefill(prompt)
                chosen = torch.cat((first_B1, self.theirs.decode(first_B1, state, self.new_tokens - 1)), 1)
                for side, ours in self.sides.items():
                    first_B1, state = ours.prefill(prompt, self.new_tokens)
                    made = torch.cat((first_B1, ours.decode(first_B1, state, self.new_tokens - 1)), 1)
                    behind = self.theirs.logits(torch.cat((prompt, made), 1))[:, SHORT - 1 : -1]
                    lost = behind.amax(-1) - behind.gather(-1, made[..., None])[..., 0]
                    values = {
                        "logits": float((ours.logits(prompt) - wanted).abs().max() / scale),
                        "tokens": float(lost.max() / behind.abs().max()),
                    }
                    found.append(
                        {
                            "case": f"batch {batch}",
                            "side": side,
                            **values,
                            "same_tokens": float((made == chosen).float().mean()),
                            "tolerance": None if side == "int8" else tolerance,
                            "ok": side == "int8" or max(values.values()) <= tolerance,
                        }
                    )
        return found

    def times(self) -> list[dict[str, Any]]:
        """Time reading prompts, decoding, and whole answers."""
        long, short = self._prompt(1, self.prompt_tokens), self._prompt(1, SHORT)
        entries = [
            self._timed(f"prefill, {self.prompt_tokens} tokens", self._prefills(long), self.prompt_tokens),
            self._timed(f"first token, {SHORT} tokens", self._prefills(short)),
            *(self._decoding(batch) for batch in (1, len(self.tokens_BS))),
            self._timed(
                f"an answer of {self.new_tokens} tokens",
                {
                    side: lambda one=one: one.answer(short, self.new_tokens)  # type: ignore[misc]
                    for side, one in {**self.sides, "theirs": self.theirs}.items()
                },
                self.new_tokens,
            ),
        ]
        return entries

    def quality(self, documents: list[list[int]]) -> dict[str, Any]:
        """Return the perplexity of documents by the core as it is, and rounded."""
        found = {
            side: perplexity(one.core, documents) for side, one in self.sides.items() if side != "attached"
        }
        return {"tokens": sum(map(len, documents)), "perplexity": found}

    def roofline(self, times: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
        """Measure what the machine can do at best, and write into each timing what share of it was reached."""
        flops = gemm_flops(dtype, device=self.device)
        found: dict[str, Any] = {"gemm_flops": flops, "read_bytes_per_s": {}}
        for entry in times:
            for side in (*self.sides, "theirs"):
                if "bytes" in entry.get(side, {}):
                    num_bytes = entry[side]["bytes"]
                    rates = found["read_bytes_per_s"]
                    if num_bytes not in rates:
                        rates[num_bytes] = read_bandwidth(num_bytes, device=self.device)
                    entry[side]["share"] = num_bytes / entry[side]["step_s"] / rates[num_bytes]
                elif entry["case"].startswith("prefill"):
                    entry[side]["share"] = self.flops["formula"] / entry[side]["wall_s"] / flops
        return found

    def fresh(self, folder: Path, dtype: str, threads: int, starts: int) -> list[dict[str, Any]]:
        """Start processes in turns that import, load the folder and answer: seconds to the first token, peak memory."""
        prompt = ",".join(map(str, self.tokens_BS[0, :SHORT].tolist()))
        options = [str(folder), "--dtype", dtype, "--device", str(self.device), "--threads", str(threads)]
        options += ["--prompt", prompt, "--new-tokens", str(self.new_tokens)]
        sides = [side for side in ("ours", "int8") if side in self.sides] + ["transformers"]
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number in range(starts if starts == 1 else starts + 1):
            for side in sides if number % 2 == 0 else sides[::-1]:
                print(f"a fresh process, {side} ...", file=sys.stderr)
                done = peak_of_child("mm_llama.bench.startup", [side, *options])
                if number or starts == 1:  # the first of several rounds fills the file cache
                    runs[side].append(done)
        start: dict[str, Any] = {"case": "start to first token, fresh process"}
        memory: dict[str, Any] = {"case": "peak memory of it"}
        for side in reversed(sides):
            key = "theirs" if side == "transformers" else side
            middle = sorted(runs[side], key=lambda one: one["wall_s"])[starts // 2]
            start[key] = {name: value for name, value in middle.items() if name.endswith("_s")}
            memory[key] = {"peak_bytes": sorted(one["peak_bytes"] for one in runs[side])[starts // 2]}
            if key != "theirs":
                start[key]["times"] = start["theirs"]["wall_s"] / start[key]["wall_s"]
                memory[key]["times"] = memory["theirs"]["peak_bytes"] / memory[key]["peak_bytes"]
        return [start, memory]

    def _prompt(self, batch: int, length: int) -> Tensor:
        return self.tokens_BS[:batch, :length].to(self.device)

    def _prefills(self, prompt: Tensor) -> dict[str, Callable[[], Any]]:
        calls: dict[str, Callable[[], Any]] = {
            side: lambda one=one: one.prefill(prompt)  # type: ignore[misc]
            for side, one in self.sides.items()
        }
        return calls | {"theirs": lambda: self.theirs.prefill(prompt)}

    def _decoding(self, batch: int) -> dict[str, Any]:
        count, prompt = self.new_tokens, self._prompt(batch, SHORT)
        calls: dict[str, Callable[[], Any]] = {}
        with torch.inference_mode():
            for side, one in self.sides.items():
                first_B1, state = one.prefill(prompt, count)
                calls[side] = lambda one=one, first=first_B1, state=state: one.decode(first, state, count)  # type: ignore[misc]
            first_B1, state = self.theirs.prefill(prompt)
            # Their cache grows with every token, so each round gets a copy, made outside the clock.
            copies = [self.theirs.copied(state) for _ in range(self.repeats + 1)]
        calls["theirs"] = lambda: self.theirs.decode(first_B1, copies.pop(), count)
        entry = self._timed(f"decoding, batch {batch}", calls, batch * count)
        core = self.sides["ours"].core
        for side in calls:
            form = "int8" if side == "int8" else ""
            entry[side]["step_s"] = entry[side]["wall_s"] / count
            entry[side]["bytes"] = bytes_per_step(core, batch, SHORT + count // 2, form)
        return entry

    def _timed(self, case: str, calls: Mapping[str, Callable[[], Any]], tokens: int = 0) -> dict[str, Any]:
        print(f"{case} ...", file=sys.stderr)
        with torch.inference_mode():
            timings = interleaved({side: self._finished(call) for side, call in calls.items()}, self.repeats)
        entry: dict[str, Any] = {"case": case}
        for side, timing in timings.items():
            entry[side] = timing.record()
            if tokens:
                entry[side]["tokens_per_s"] = tokens / entry[side]["wall_s"]
            if side != "theirs":
                faster = times_faster(timing, timings["theirs"])
                entry[side]["times"], entry[side]["times_cpu"] = faster["wall"], faster["cpu"]
                entry[side]["asked"] = ASKED.get((case, side))
        # What attaching costs is a ratio of its own: within each round, against the plain core.
        entry["attached"]["of_plain"] = times_faster(timings["attached"], timings["ours"])["wall"]
        return entry

    def _finished(self, call: Callable[[], Any]) -> Callable[[], Any]:
        if self.device.type != "cuda":
            return call

        def waited() -> None:
            call()
            torch.cuda.synchronize()

        return waited
