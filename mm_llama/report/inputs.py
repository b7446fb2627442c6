"""Reading a run folder: what is there, what is missing and what that leaves out of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the page loses without each file, in the words of the page.
WHAT = {
    "demo.json": "the command, the phases with their times, versions and photos",
    "metrics.jsonl": "the loss and accuracy curves",
    "summary.json": "the totals of the training stage",
    "freeze.json": "the table of frozen and trained tensors with their digests",
    "vqa.json": "accuracy, intervals and baselines",
    "vqa_answers.jsonl": "held-out pictures with question, answer and truth",
    "clips_answers.jsonl": "frames of held-out clips with question, answer and truth",
    "speech_answers.jsonl": "recordings with what was said and heard",
    "proof.json": "the proof that text is unchanged",
}


# `mm_llama.data.video.open_clip`, or what is called and answers like it: a page can be made without decoders.
OpenClip = Callable[..., Any]
OpenSound = Callable[..., Any]  # mm_llama.data.sound.open_sound


@dataclass
class Stage:
    """One training stage: its folder's metrics, summary and freeze table, empty where missing."""

    name: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    freeze: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Inputs:
    """Everything a page is made from, and the plain sentences about what was not found."""

    run_dir: Path
    demo: dict[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    vqa: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    captions: dict[str, Any] = field(default_factory=dict)
    clips: dict[str, Any] = field(default_factory=dict)
    clip_answers: list[dict[str, Any]] = field(default_factory=list)
    speech: dict[str, Any] = field(default_factory=dict)
    speech_answers: list[dict[str, Any]] = field(default_factory=list)
    voice: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # file as named on the page -> what the page lacks
    notes: list[str] = field(default_factory=list)
    open_clip: OpenClip | None = None
    open_sound: OpenSound | None = None

    def locate(self, name: str) -> Path:
        """Path of a file; demo.json may have put it elsewhere, relative to the run folder."""
        return self.run_dir / str(_mapping(self.demo.get("files")).get(name, name))


def read_inputs(
    run_dir: Path, open_clip: OpenClip | None = None, open_sound: OpenSound | None = None
) -> Inputs:
    """Read a run folder as described in `mm_llama.report.page`.

    FileNotFoundError when the folder does not exist; ValueError naming file and line for one that is no JSON.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(
            f"there is no run folder {run_dir}; give the folder that a run left, such as runs/demo"
        )
    inputs = Inputs(run_dir, open_clip=open_clip, open_sound=open_sound)
    inputs.demo = _read_object(inputs, run_dir / "demo.json", "demo.json")
    for number, row in enumerate(_stages(inputs)):
        folder = run_dir / str(row.get("dir", "."))
        shown = "" if row.get("dir", ".") == "." else f"{row['dir']}/"
        stage = Stage(name=str(row.get("name") or number + 1))
        stage.metrics = _read_lines(inputs, folder / "metrics.jsonl", f"{shown}metrics.jsonl")
        stage.summary = _read_object(inputs, folder / "summary.json", f"{shown}summary.json")
        stage.freeze = _freeze_rows(inputs, stage, folder / "freeze.json", f"{shown}freeze.json")
        inputs.stages.append(stage)
    inputs.vqa = _read_object(inputs, inputs.locate("vqa.json"), "vqa.json")
    inputs.answers = _read_lines(inputs, inputs.locate("vqa_answers.jsonl"), "vqa_answers.jsonl")
    inputs.proof = _read_object(inputs, inputs.locate("proof.json"), "proof.json")
    captions = inputs.locate("captions.json")
    if captions.is_file():  # a run may have no captions at all, so their absence is no gap
        inputs.captions = _read_object(inputs, captions, "captions.json")
    if inputs.locate("clips.json").is_file():  # nor clips
        inputs.clips = _read_object(inputs, inputs.locate("clips.json"), "clips.json")
        inputs.clip_answers = _read_lines(inputs, inputs.locate("clips_answers.jsonl"), "clips_answers.jsonl")
    if inputs.locate("speech.json").is_file():  # nor recordings
        inputs.speech = _read_object(inputs, inputs.locate("speech.json"), "speech.json")
        inputs.speech_answers = _read_lines(
            inputs, inputs.locate("speech_answers.jsonl"), "speech_answers.jsonl"
        )
    if inputs.locate("voice.json").is_file():  # nor a voice
        inputs.voice = _read_object(inputs, inputs.locate("voice.json"), "voice.json")
    return inputs


def _stages(inputs: Inputs) -> list[Mapping[str, Any]]:
    rows = inputs.demo.get("stages") or [{"dir": "."}]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{inputs.run_dir / 'demo.json'}: 'stages' must be a list of objects with 'name' and 'dir'"
        )
    return rows


def _read_object(inputs: Inputs, path: Path, name: str) -> dict[str, Any]:
    value = _read_json(inputs, path, name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value or {}


def _freeze_rows(inputs: Inputs, stage: Stage, path: Path, name: str) -> list[dict[str, Any]]:
    """The stage's freeze table: in its summary, or in a file of its own."""
    if not path.is_file() and isinstance(stage.summary.get("freeze"), list):
        return [row for row in stage.summary["freeze"] if isinstance(row, dict)]
    return _read_rows(inputs, path, name)


def _read_rows(inputs: Inputs, path: Path, name: str) -> list[dict[str, Any]]:
    value = _read_json(inputs, path, name)
    rows = value.get("rows") if isinstance(value, dict) else value
    if rows is not None and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{path}: expected a JSON list of objects, alone or under 'rows'")
    return rows or []


def _read_json(inputs: Inputs, path: Path, name: str) -> Any:
    if not path.is_file():
        inputs.missing[name] = WHAT.get(Path(name).name, "a part of the page")
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}); delete it to make a page without it, or repeat its step"
        ) from None


def _read_lines(inputs: Inputs, path: Path, name: str) -> list[dict[str, Any]]:
    if not path.is_file():
        inputs.missing[name] = WHAT.get(Path(name).name, "a part of the page")
        return []
    lines = path.read_text("utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a run that was cut off may leave half a line
                inputs.notes.append(f"The last line of {name} is incomplete and was left out.")
                break
            raise ValueError(f"{path}:{number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
