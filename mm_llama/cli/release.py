"""`mm-llama release RUN... OUT`: what runs trained, small and ready to be shared, with a card."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from mm_llama.cli.parser import Parser

EXAMPLES = """examples:
  mm-llama release runs/tts_prosody runs/tts_acoustic runs/tts_vocoder my_voice
  mm-llama say "Good morning." --adapter my_voice/tts_prosody ... -o out.wav
"""
DTYPES = ("float16", "bfloat16", "float32")


def main(argv: list[str]) -> int:
    """Write the folder and say what is in it; exit code 0."""
    parser = Parser(
        prog="mm-llama release",
        description="Write what runs trained, without what only training needs; it is loaded as runs are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs, or their checkpoints")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: name a new folder")
    from mm_llama.dtypes import DTYPES as TORCH
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state
    from mm_llama.stages.release import release

    found = [find_checkpoint(run) for run in options.runs]
    states = [read_state(path) for path in found]
    names = ["_".join(sorted({prefix.split(".")[1] for prefix in state["train"]})) for state in states]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two of the runs trained {min(twice)}; release one of a kind")
    partial = options.out.with_name(f".{options.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a call that was cut off left
    facts: list[dict[str, Any]] = []
    try:
        for path, state, name in zip(found, states, names, strict=True):
            manifest = release(path, partial / name, TORCH[options.dtype])
            facts.append(
                {"stage": state["stage"], "folder": str(options.out / name)} | _facts(path, manifest)
            )
        (partial / "README.md").write_text(card(facts, options.dtype), "utf-8")
        partial.replace(options.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        for one in facts:
            print(f"{one['folder']}: {one['bytes'] / 1e6:.1f} MB, adapter {one['adapter'][:12]}")
    return 0


def _facts(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    from mm_llama.stages.checkpoint_files import read_state

    state, file = read_state(path), manifest["files"]["adapter.safetensors"]
    return {
        "bytes": file["bytes"],
        "adapter": file["sha256"],
        "core": state["core"],
        "steps": state["step"],
        "seed": state["seed"],
        "minutes": round(state.get("minutes") or 0.0, 1),
        "trained": manifest["lineage"][-1]["adapter"],
        "stages": [entry["stage"] for entry in manifest["lineage"]],
        "config_hash": state["config_hash"],
    }


def card(facts: list[dict[str, Any]], dtype: str) -> str:
    """Return the model card: what made each part, and what it is."""
    lines = [
        "# Parts trained with mm_llama",
        "",
        f"Weights in {dtype}, loaded as runs are (`--adapter FOLDER`). `config.yaml` of each is all that it was made "
        "with; the commands below, with that config, give it again on a machine of the same kind.",
        "",
        "| stage | MB | steps | seed | minutes | SHA-256 of the weights | of those in float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in facts:
        cells = one["stage"], f"{one['bytes'] / 1e6:.1f}", one["steps"], one["seed"], one["minutes"]
        lines.append("| " + " | ".join(map(str, cells)) + f" | `{one['adapter']}` | `{one['trained']}` |")
    # Each part's stages in their order: the later ones begin where the earlier left their runs.
    commands = [
        shlex.join(["mm-llama", "train", f"stage={stage}", f"seed={one['seed']}"])
        for one in facts
        for stage in one["stages"]
    ]
    lines += ["", "```bash", *dict.fromkeys(commands), "```"]
    cores = sorted({one["core"] for one in facts})
    return "\n".join([*lines, "", f"Trained beside the core `{', '.join(cores)}`.", ""])
