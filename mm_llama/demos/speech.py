"""The speech part of the demo: two short stages, what was heard, and questions about pictures asked aloud."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_llama.demos.demo import Demo

# In order; each goes on from those before it.
STAGES = {
    "speech_readout": "demo_speech_readout",
    "speech": "demo_speech",
}
NAMES = {
    "speech_readout": "recordings, features, speech, first stage: tokens in sound",
    "speech": "speech, second stage: repeating through the core",
    "listen": "recordings put to it",
    "aloud": "questions about pictures asked aloud",
}
ALOUD = 600  # questions about pictures that are asked both in writing and aloud
BEAM = 32  # readings among which the readout and the core search what was asked


def voices(say: Callable[[str], None]) -> str:
    """Return the data that the stages learn from: with recorded prompts where their packages can be had."""
    from mm_llama.assets import asset

    try:
        for name in ("asterisk_prompts", "asterisk_texts"):
            asset(name)
    except (OSError, ValueError) as error:
        say(f"no recorded prompts, so the engine's sentences alone are learned from ({error})")
        return "spoken_engine"
    return "spoken"


def train(demo: Demo, data: str, overrides: list[str]) -> list[Path]:
    """Train the stages, or find them trained; return their runs."""
    overrides = [f"data={data}", *overrides]
    readout = demo.train("speech_readout", STAGES["speech_readout"], overrides)
    init = f"stage.init.speech={readout}"
    return [readout, demo.train("speech", STAGES["speech"], [init, *overrides], after=readout)]


def listen(demo: Demo, run: Path, data: str, say: Callable[[str], None]) -> None:
    """Put held-out recordings to the adapter: prompts of the speaker it knows, and sentences of the engine."""
    if demo._done("listen", run):
        return
    from rich.console import Console

    from mm_llama.cli.eval_speech import in_pieces, source_of
    from mm_llama.demos.demo import _load, _write
    from mm_llama.eval.speech import evaluate_speech, read_asked
    from mm_llama.stage_run import prepared

    say("listening to held-out recordings")
    began = time.perf_counter()
    model, tokenizer, chat = _load(run)
    results: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    count = 0
    sets = [("Sentences spoken by an engine, held out", "spoken_sentences", "holdout")]
    if data == "spoken":
        sets.insert(0, ("Telephone prompts, held out", "asterisk", "test"))
    for name, recipe, split in sets:
        source = source_of(recipe, split)
        load_media, encoded = prepared(model, source)
        result = evaluate_speech(
            model,
            tokenizer,
            chat,
            read_asked(source),
            load_media=load_media,
            encoded=encoded,
            in_pieces=in_pieces(model, tokenizer, chat),
        )
        Console(stderr=True).print(result.table())
        results.append({"name": name, **result.to_json()})
        count += len(result.asked)
        records = records or result.records()  # recorded voices where there are any
    known = (
        json.loads((demo.out / "speech.json").read_text("utf-8"))
        if (demo.out / "speech.json").is_file()
        else {}
    )
    _write(demo.out / "speech.json", known | {"results": results})
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (demo.out / "speech_answers.jsonl").write_text(lines, "utf-8")
    demo._keep("listen", run, time.perf_counter() - began, f"{count} recordings")


def ask_aloud(demo: Demo, image: Path, speech: Path, limit: int, say: Callable[[str], None]) -> None:
    """Ask questions about pictures in writing and aloud, of the two adapters that were trained apart."""
    number = min(limit, ALOUD) if limit else ALOUD
    option = f"{number} questions, {BEAM} readings"
    if demo._done("aloud", speech, option):
        return
    from mm_llama.build import load_model
    from mm_llama.cli.eval_rows import SPOKEN, source_of
    from mm_llama.demos.demo import _write
    from mm_llama.dtypes import choose_dtype
    from mm_llama.eval.vqa import evaluate_vqa, read_questions
    from mm_llama.generation.beam import BeamSearch, listen_by
    from mm_llama.stage_run import prepared

    say("asking about pictures aloud: the image and the speech adapter meet for the first time")
    began = time.perf_counter()
    model, tokenizer, chat = load_model("smollm2_135m", [image, speech], choose_dtype("auto"))
    listen_by(BeamSearch(BEAM), model, tokenizer)
    found: dict[str, Any] = {"beam": BEAM}
    for side, data in {"typed": "easy_vqa", "spoken": SPOKEN}.items():
        source = source_of(data, [image, speech], "test")
        load_media, encoded = prepared(model, source)
        result = evaluate_vqa(
            model,
            tokenizer,
            chat,
            read_questions(source, limit=number),
            load_media=load_media,
            encoded=encoded,
            sides=(),
        )
        found[side] = result.accuracy("model").score
        found["total"] = len(result.questions)
        say(f"{side}: {100 * found[side]:.1f} % of {found['total']} questions right")
    known = (
        json.loads((demo.out / "speech.json").read_text("utf-8"))
        if (demo.out / "speech.json").is_file()
        else {}
    )
    _write(demo.out / "speech.json", known | {"aloud": found})
    demo._keep("aloud", speech, time.perf_counter() - began, f"{found['total']} questions, twice", option)


def score(path: Path) -> str:
    """Return what was heard, in words for the last lines of the demo; "" where nothing was."""
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for result in known.get("results") or []:
        for task in result["tasks"]:
            if task["task"] == "recognition":
                rate = task["sides"]["model"]["rate"]
                return f", {100 * rate:.1f} % of the words of held-out recordings wrong"
    return ""


def an_example(out: Path) -> str:
    """Return the path of a held-out recording that was heard right."""
    answers = out / "speech_answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()] if answers.is_file() else []
    right = [row["audio"] for row in rows if not row["errors"]]
    return str(right[0]) if right else "RECORDING"
