"""The page: `write_report(run_dir, out)` turns the files of a run into one HTML file that needs nothing else.

Input contract. Everything lies in the run folder; `demo.json` may name other places. Any part may be missing:
the page then says which, where it would have stood and once more in its last section.

`demo.json`, every key optional:
    title, name, lead (one sentence under the title), command, started (ISO time), seed, core, data: strings
    stages: [{name, dir}]; without it, one stage in the run folder itself
    phases: [{name, seconds, detail}]; training_seconds: number
    config: text or object; versions: {name: version}; machine: {cores: 2, ...}
    photos: [{image, name, source, license, turns: [{question, answer}]}]
    notes: sentences for the last section; files: {"vqa.json": another path, ...}
`metrics.jsonl`, per stage: a line per step: step, loss, accuracy, eval.answers or eval.accuracy, eval.loss
`summary.json`, per stage: minutes; freeze: the rows of `FreezeTable.to_json` (or `freeze.json` holds them)
`vqa.json`, `vqa_answers.jsonl`: as `mm_llama.eval.vqa` writes them; picture paths relative to the run folder.
`clips.json`, `clips_answers.jsonl`: as `mm-llama eval clips` writes them; `clips` of demo.json: real clips,
[{path, name, shows, turns: [{question, answer, truth}]}]. Absent where a run has no clips.
`speech.json`, `speech_answers.jsonl`: as `mm-llama eval speech` writes them, or several under `results`, each with a
`name`; `aloud`: {total, spoken, typed, beam}, questions about pictures asked aloud. Absent where a run heard nothing.
`voice.json`: as `mm_llama.demos.voice` writes it: utterances with their sound, words and pitch in time, and what was
heard of them. Absent where nothing was said.
`captions.json`: as `mm_llama.eval.pairs` writes it; its absence is no gap, for not every run has captions.
`proof.json`: as `mm_llama.proof` returns it.

The page carries a content security policy that allows no request and no script.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from mm_llama.report import evidence, results
from mm_llama.report.clips import clips
from mm_llama.report.headline import eyebrow, headline
from mm_llama.report.inputs import Inputs, OpenClip, OpenSound, read_inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.pictures import held_out_pictures, photos_for_show
from mm_llama.report.speech import speech
from mm_llama.report.voice import voice

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
Section = tuple[str, str, str, Callable[[Inputs], Iterator[Markup]], str]

# id, name in the contents, heading, what fills it, and the file it cannot do without.
SECTIONS: tuple[Section, ...] = (
    ("curves", "Learning", "How it learned", results.curves, "metrics.jsonl"),
    ("types", "Question types", "Accuracy by question type", results.types, "vqa.json"),
    ("pictures", "Pictures", "Held-out pictures", held_out_pictures, "vqa_answers.jsonl"),
    ("clips", "Clips", "What moves", clips, ""),
    ("speech", "Speech", "What was heard", speech, ""),
    ("voice", "Voice", "What was said", voice, ""),
    ("photos", "Photos", "Photos, for show", photos_for_show, ""),
    ("freeze", "Freeze table", "What was frozen, what changed", evidence.freeze, "freeze.json"),
    ("proof", "Proof", "Text is unchanged", evidence.proof, "proof.json"),
    ("times", "Times", "Where the time went", evidence.times, "demo.json"),
    ("made", "Making", "How it was made", evidence.made, "demo.json"),
    ("not-shown", "Not shown", "What is not shown", evidence.not_shown, ""),
)


def write_report(
    run_dir: str | Path,
    out: str | Path,
    *,
    open_clip: OpenClip | None = None,
    open_sound: OpenSound | None = None,
) -> Path:
    """Write the page about a run to `out` and return its path; the file appears whole or not at all.

    `open_clip` is `mm_llama.data.video.open_clip`, without which the page says that no clip was opened; `open_sound` is
    `mm_llama.data.sound.open_sound`, without which recordings have no waveform.
    FileNotFoundError when the run folder does not exist, ValueError when one of its files is broken.
    """
    out = Path(out)
    text = build_page(read_inputs(Path(run_dir), open_clip, open_sound))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, out)
    return out


def build_page(inputs: Inputs) -> str:
    """Return the whole HTML document of a run."""
    title = str(inputs.demo.get("title") or "Eyes for a frozen text model")
    lead = str(inputs.demo.get("lead") or "")
    # In order: the last section lists every gap that those before it met.
    sections = [_section(inputs, section) for section in SECTIONS]
    links = [
        element("li", element("a", name, href=f"#{key}"))
        for key, name in [("figures", "Figures"), *[section[:2] for section in SECTIONS]]
    ]
    body = [
        element("a", "Skip to the figures", href="#figures", class_="skip"),
        element(
            "div",
            element(
                "header",
                element("p", eyebrow(inputs), class_="eyebrow"),
                element("h1", title),
                element("p", lead, class_="lead") if lead else None,
            ),
            element("nav", element("ul", *links), aria_label="Sections"),
            element(
                "main",
                element(
                    "section",
                    element("h2", "Figures", class_="visually-hidden"),
                    *headline(inputs),
                    id="figures",
                ),
                *sections,
            ),
            element(
                "footer", "Made by mm_llama. This file holds everything it shows: no script, no request."
            ),
            class_="page",
        ),
    ]
    style = Markup((files("mm_llama.report") / "style.css").read_text("utf-8"))
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    ]
    return f"<!doctype html>\n{element('html', element('head', *head), element('body', *body), lang='en')}\n"


def _section(inputs: Inputs, section: Section) -> Markup:
    """Render one section; a missing input is named in its place."""
    key, _, heading, fill, needs = section
    absent = [name for name in inputs.missing if needs and Path(name).name == needs]
    found = bool(needs) and len(absent) < (
        len(inputs.stages) if needs in ("metrics.jsonl", "freeze.json") else 1
    )
    parts: list[Markup] = []
    for name in absent:
        parts.append(
            element(
                "p",
                "Missing: ",
                element("code", name),
                f" was not found in the run folder, so {inputs.missing[name]} cannot be shown.",
                class_="missing",
            )
        )
    if found or not needs:
        parts += fill(inputs)
    return element("section", element("h2", heading), *parts, id=key)
