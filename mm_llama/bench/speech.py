"""`mm-llama bench speech`: sound to the first token in its terms, real-time factor, lengths, the paper's size.

Encoding is timed beside transformers' Whisper on the same weights and recordings, padded to 30 s as it asks for. The
paper's Conformer and adapter are timed by one layer each, forward and backward, and multiplied.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm_llama.bench.measure import (
    interleaved,
    machine_facts,
    megabytes,
    positive,
    show_table,
    times_faster,
    write_facts,
)
from mm_llama.cli.parser import Parser

SECONDS = (1.5, 3.0, 6.0, 12.0)  # of the recordings of a ragged batch
# transformers' names in a layer of Whisper's encoder, and ours.
_PEERS_NAMES = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "final_layer_norm": "feed_forward_norm",
    "fc1": "up",
    "fc2": "down",
}
TERMS = ("features", "encoder", "adapter", "prefill", "first token")


def main(argv: list[str]) -> int:
    """Time everything; print tables, write numbers if asked."""
    args = _parser().parse_args(argv)
    positive("--repeats", args.repeats)
    import torch

    if args.threads:
        torch.set_num_threads(positive("--threads", args.threads))
    found: dict[str, Any] = {
        "bench": "speech",
        "command": " ".join(["mm-llama bench speech", *argv]),
        "repeats": args.repeats,
        "machine": machine_facts(),
    }
    found["latency"] = latency(args.adapter, args.recording, args.repeats)
    found["ragged"] = ragged(args.repeats)
    found["paper"] = paper_size(args.paper_seconds, max(1, args.repeats // 2), args.small)
    write_facts(args.json, found)
    _show(found)
    return 0


def latency(adapter: str | None, recording: str | None, repeats: int) -> dict[str, Any]:
    """Return seconds of each term from samples to the first token, medians, and the real-time factor of all of them."""
    import torch

    from mm_llama.assistant import load
    from mm_llama.build import build_modalities, compose_config, resolve
    from mm_llama.core.cache import KVCache
    from mm_llama.core.chat import MediaPart, Message, Text
    from mm_llama.data.languages import repeat_prompt
    from mm_llama.data.sound import RATE, open_sound
    from mm_llama.generation.prompts import make_batch

    assistant = load("smollm2_135m", [adapter] if adapter else [])
    model = assistant.model
    if not adapter:
        parts = resolve(compose_config("train", ["modality/speech=whisper_tiny_en", "stage=none"]))[
            "modality"
        ]
        made = build_modalities({"speech": parts["speech"]}, model.core.config)["speech"]
        model.modality["speech"] = made.to(model.dtype).requires_grad_(False).eval()
    modality = model.modality["speech"]
    sound = open_sound(recording) if recording else None
    samples = speechlike(6.0) if sound is None else sound.samples
    chat = assistant.chat_format
    messages = [
        Message("system", (Text(repeat_prompt("English")),)),
        Message("user", (MediaPart("speech", (samples, RATE)),)),
    ]
    taken: dict[str, list[float]] = {term: [] for term in TERMS}
    with torch.inference_mode():
        for number in range(repeats + 1):
            clock = [time.perf_counter()]
            batch = make_batch(model, [chat.render(messages, open_assistant=True)])
            clock.append(time.perf_counter())
            features = modality.encode(batch.media["speech"], model.dtype)
            clock.append(time.perf_counter())
            embeddings = modality.adapter(features, model.core.embedding.weight)
            longer, state = model.prepare(batch, {"speech": embeddings})
            clock.append(time.perf_counter())
            B, S = longer.tokens_BS.shape
            cache = KVCache(model.core.config, B, S + 8, model.dtype, model.device)
            positions = torch.arange(S).expand(B, -1)
            at = torch.zeros(B, S, dtype=torch.bool)
            at[:, -1] = True
            logits = model(longer.tokens_BS, positions_BS=positions, cache=cache, media=state, at=at)
            clock.append(time.perf_counter())
            token = logits.argmax(-1)
            model(token[:, None], positions_BS=torch.full((B, 1), S), cache=cache, media=state)
            clock.append(time.perf_counter())
            if number:  # the first round warms up
                for term, began, ended in zip(TERMS, clock, clock[1:], strict=False):
                    taken[term].append(ended - began)
    medians = {term: statistics.median(values) for term, values in taken.items()}
    seconds = len(samples) / RATE
    return {
        "seconds_of_sound": seconds,
        "terms_s": medians,
        "positions": int(S),
        "to_first_token_s": sum(medians[term] for term in TERMS[:-1]),
        "real_time_factor": sum(medians.values()) / seconds,
    }


def ragged(repeats: int) -> dict[str, Any]:
    """Time Whisper's encoder on recordings of several lengths, as long as they are, beside transformers' 30 s each."""
    import torch

    from mm_llama.build import build, compose_config

    config = compose_config("train", ["modality/speech=whisper_tiny_en", "stage=none"])
    encoder = build(config.modality.speech.encoder).eval()
    recordings = [speechlike(seconds) for seconds in SECONDS]
    mels = [encoder.preprocess(one) for one in recordings]
    lengths = torch.tensor([len(one) for one in mels])
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    silence = [torch.nn.functional.pad(one, (0, 30 * 16_000 - len(one))) for one in recordings]
    whole = torch.stack([encoder.preprocess(one) for one in silence])
    contestants: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [encoder(one[None]) for one in mels],
        "one batch": lambda: encoder(padded, lengths),
    }
    peer = _peer(encoder)
    if peer is not None:
        contestants["transformers, 30 s each"] = lambda: peer(whole.transpose(1, 2))
    with torch.inference_mode():
        timings = interleaved(contestants, repeats)
    found: dict[str, Any] = {name: timing.record() for name, timing in timings.items()}
    real = int(lengths.sum())
    result: dict[str, Any] = {
        "seconds": list(SECONDS),
        "timings": found,
        "wasted_frames": 1 - real / (len(mels) * int(lengths.max())),
        "wasted_frames_at_30_s": 1 - real / (len(mels) * 3000),
    }
    if peer is not None:
        result["faster"] = times_faster(timings["one by one"], timings["transformers, 30 s each"])
    return result


def _peer(encoder: Any) -> Any:
    """Return transformers' encoder with the same weights; None without transformers."""
    try:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as Peer
    except ImportError:
        return None
    config = WhisperConfig(
        d_model=encoder.dim,
        encoder_layers=len(encoder.layers),
        encoder_attention_heads=encoder.layers[0].num_heads,
        encoder_ffn_dim=4 * encoder.dim,
        num_mel_bins=encoder.num_mels,
    )
    config._attn_implementation = "sdpa"
    peer: Any = Peer(config).eval()
    own = encoder.state_dict()
    state = {"embed_positions.weight": own["positions"]}
    state |= {name: own[name] for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")}
    state |= {"layer_norm.weight": own["norm.weight"], "layer_norm.bias": own["norm.bias"]}
    for number in range(len(encoder.layers)):
        for theirs, ours in _PEERS_NAMES.items():
            for part in ("weight", "bias"):
                if f"layers.{number}.{ours}.{part}" in own:
                    state[f"layers.{number}.{theirs}.{part}"] = own[f"layers.{number}.{ours}.{part}"]
    peer.load_state_dict(state)
    return lambda mels: peer(mels).last_hidden_state


def paper_size(seconds: float, repeats: int, small: bool) -> dict[str, Any]:
    """Time a Conformer of one layer and the adapter at the paper's sizes on `seconds` of sound, forward and backward.

    `small` uses sizes that a test can wait for.
    """
    import torch

    from mm_llama.build import build

    width, heads, ffn, layers = (64, 2, 128, 2) if small else (1536, 24, 4096, 24)
    T = max(2, int(seconds * 25))
    sizes = {"width": width, "num_heads": heads, "ffn_width": ffn}
    encoder = build({"_target_": "encoders.speech_conformer.Conformer", **sizes, "num_layers": 1})
    stacked = torch.randn(1, T, 320)
    x = torch.randn(T, width, requires_grad=True)
    core_width = 4 * width if small else 4096
    adapter = build(
        {
            "_target_": "adapters.speech.SpeechAdapter",
            "encoder_dim": width,
            "dim": core_width,
            **sizes,
            "width": 2 * width,
        }
    )
    table = torch.zeros(8, core_width)

    def layer() -> None:
        encoder.frames(stacked).sum().backward()
        encoder.zero_grad(set_to_none=True)

    def join() -> None:
        adapter([x], table)[0].sum().backward()
        adapter.zero_grad(set_to_none=True)

    timings = interleaved({"layer": layer, "adapter": join}, repeats)
    one, joined = (timings[name].record()["wall_s"] for name in ("layer", "adapter"))
    count = [sum(p.numel() for p in part.parameters()) for part in (encoder.layers[0], adapter)]
    # What a backward pass needs of a layer, beside its weights: what autograd saves, counted by its hooks.
    saved = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[0] += tensor.nbytes
        return tensor

    weights = sum(p.nbytes for p in encoder.layers[0].parameters())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder.frames(stacked)
    return {
        "seconds_of_sound": seconds,
        "layers": layers,
        "layer_s": one,
        "adapter_s": joined,
        "layer_parameters": count[0],
        "adapter_parameters": count[1],
        "layer_saved_bytes": max(0, saved[0] - weights),
        "per_second_of_sound_s": (layers * one + joined) / seconds,
        "all_saved_bytes": layers * max(0, saved[0] - weights),
    }


def speechlike(seconds: float) -> Any:
    """Return noise with the rhythm of syllables, float32[T] at 16 kHz: what is timed depends on lengths alone."""
    import torch

    T = int(seconds * 16_000)
    generator = torch.Generator().manual_seed(0)
    rhythm = 0.5 + 0.5 * torch.sin(torch.arange(T) * (2 * torch.pi * 4 / 16_000))
    return 0.1 * rhythm * torch.randn(T, generator=generator)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mm-llama bench speech", description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", metavar="RUN", help="a speech run (default: one with random weights)")
    parser.add_argument("--recording", metavar="FILE", help="for the terms (default: six seconds of noise)")
    parser.add_argument("--paper-seconds", type=float, default=10.0, help="of sound (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small sizes in place of the paper's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    return parser


def _show(found: dict[str, Any]) -> None:
    said = found["latency"]
    rows = [[term, f"{1000 * seconds:.1f} ms"] for term, seconds in said["terms_s"].items()]
    show_table(
        f"{said['seconds_of_sound']:.1f} s of sound to the first token, {said['positions']} positions",
        ("term", "median"),
        rows,
    )
    print(
        f"to the first token {1000 * said['to_first_token_s']:.0f} ms; real-time factor of all "
        f"{said['real_time_factor']:.3f}"
    )
    lengths = found["ragged"]
    show_table(
        f"recordings of {', '.join(f'{seconds:g}' for seconds in lengths['seconds'])} s encoded (Whisper tiny.en)",
        ("", "median"),
        [[name, f"{1000 * timing['wall_s']:.0f} ms"] for name, timing in lengths["timings"].items()],
    )
    print(
        f"frames that are padding: none one by one, {100 * lengths['wasted_frames']:.0f} % in one batch, "
        f"{100 * lengths['wasted_frames_at_30_s']:.0f} % at 30 s each"
    )
    if "faster" in lengths:
        print(f"{lengths['faster']['wall']:.1f} times faster than transformers on the same weights")
    size = found["paper"]
    print(
        f"the paper's size, forward and backward: {size['per_second_of_sound_s']:.2f} s per second of sound "
        f"({size['layers']} layers of {1000 * size['layer_s']:.0f} ms and the adapter's "
        f"{1000 * size['adapter_s']:.0f} ms on {size['seconds_of_sound']:g} s; "
        f"{megabytes(size['all_saved_bytes'])} kept for the backward pass)"
    )
