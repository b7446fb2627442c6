"""`make demo`: pictures, clips and recordings train adapters onto the frozen default core; a page says what came of it.

Phases: data, features and training of the image adapter, of the video adapter beside it, of the speech adapter
(`mm-llama train` runs), test questions about pictures and clips, recordings to be written down, questions asked aloud,
the proof that text is unchanged, photos and real clips for show, the report. Each phase keeps its result in the run
folder and is reused by the next call while the adapter is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from mm_llama.core.identity import write_text
from mm_llama.demos import speech, voice
from mm_llama.demos.stage_folders import adapter_id, make_way, put_back, recipe_digest
from mm_llama.malloc import keep_freed_memory

# Pictures that the adapter was not made for: a shapes-and-colours adapter answers them as best it can, shown unedited.
PHOTOS = ("astronaut", "coffee", "chelsea")
STAGES = {"shapes": "demo_image_shapes", "present": "demo_image_present", "image": "demo_image"}
# A real film clip that a package carries (asset, file, what is to be seen, question, truth).
REAL_CLIPS = (
    (
        "gradio_photos",
        "gradio/media_assets/videos/muted_b.mp4",
        "the earth at night turns before a black sky",
        "Which way did the earth turn: left or right?",
        "right",
    ),
)
PHOTO_QUESTIONS = ("what color is the shape?", "is there a circle?")


def main(argv: list[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m mm_llama.demos.demo", description=__doc__)
    parser.add_argument("--out", default="runs/demo", help="folder of the run (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=0, help="test questions to ask (default: all 9,673)")
    parser.add_argument(
        "--mmlu", type=int, default=570, help="MMLU questions of the proof (default: %(default)s)"
    )
    parser.add_argument(
        "--full", action="store_true", help="train every part of the voice, in half an hour more"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the training stage")
    args = parser.parse_args(argv)
    command = "make demo" if argv is None and len(sys.argv) == 1 else "python -m mm_llama.demos.demo"
    try:
        _run(args, command)
    except (ValueError, OSError, HydraException) as error:
        if os.environ.get("MM_LLAMA_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace, command: str) -> None:
    keep_freed_memory()
    out = Path(args.out)
    from mm_llama.dtypes import choose_dtype, dtype_name

    demo = Demo(out)
    dtype = dtype_name(choose_dtype("auto"))
    _say(f"computing in {dtype}; what is done is kept if you stop, and the same command goes on")
    runs: list[Path] = []
    for name, experiment in STAGES.items():
        before = runs[-1] if runs else None
        init = [f"stage.init.image={before}"] if before else []
        runs.append(demo.train(name, experiment, [*init, *args.overrides], after=before))
    run = runs[-1]
    video = demo.train("video", "demo_video", [f"stage.init.image={run}", *args.overrides], after=run)
    data = speech.voices(_say)
    heard = speech.train(demo, data, args.overrides)
    demo.vqa(run, args.questions)
    demo.clips(video, args.questions)
    speech.listen(demo, heard[-1], data, _say)
    speech.ask_aloud(demo, run, heard[-1], args.questions, _say)
    trained, spoken = voice.train(demo, args.full, args.overrides)
    voice.speak(demo, run, heard[-1], spoken, _say)
    demo.proof([run, video, heard[-1]], args.mmlu)
    demo.photos(run)
    demo.real_clips(video)
    page = demo.report([*runs, video, *heard, *trained], command)
    demo.farewell(run, video, heard[-1], page)


class Demo:
    """The phases of one demo folder; `phases` keeps how long each took when it really ran."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.started = datetime.now(UTC)
        self.state: dict[str, Any] = _read(out / "phases.json")

    def train(self, name: str, experiment: str, overrides: list[str], after: Path | None = None) -> Path:
        """Train one stage, or continue, or find it trained; return its run folder.

        A stage is found trained, or goes on, for one recipe and what the stage before it came to. A run of another
        recipe, or after another adapter, is moved aside, not lost.
        """
        from mm_llama.build import compose_config, resolve
        from mm_llama.stage_run import run_stage

        cfg = compose_config(
            "train", [f"experiment={experiment}", f"runs={self.out}", f"name={name}", *overrides]
        )
        config, folder = resolve(cfg), self.out / name
        option = ":".join([experiment, recipe_digest(config), *([adapter_id(after)] if after else [])])
        if self._done(name, folder, option):
            return folder
        aside = make_way(folder, config, after, _say)
        kind = name if name in ("video", *voice.FULL) else "speech" if name in speech.STAGES else "image"
        _say(f"stage {name}: training the {kind} adapter on the frozen core")
        began = time.perf_counter()
        try:
            result = run_stage(cfg)
        except BaseException:
            put_back(folder, aside)
            raise
        seconds, known = time.perf_counter() - began, self.state.get(name, {})
        if known.get("adapter") == adapter_id(folder):  # it was trained already, and nothing was done
            self._keep(name, folder, known["seconds"], known["detail"], option)
        else:
            self._keep(name, folder, seconds, f"{result.minutes:.1f} min of it in the loop", option)
        return folder

    def vqa(self, run: Path, limit: int) -> None:
        """Ask every test question with the picture, without it and with a wrong one."""
        if self._done("vqa", run, limit):
            return
        from rich.console import Console

        from mm_llama.data import recipes
        from mm_llama.eval.vqa import evaluate_vqa, read_questions
        from mm_llama.stage_run import MediaReader

        _say("asking the test questions (with the picture, without it, with a wrong one)")
        began = time.perf_counter()
        model, tokenizer, chat = _load(run)
        root, folder = _easy_vqa()
        test = recipes.easy_vqa(root, folder, "test")
        media = MediaReader(model)
        media.prepare([test])
        result = evaluate_vqa(
            model,
            tokenizer,
            chat,
            read_questions(test, limit=limit),
            load_media=media.load_media,
            encoded=media.encoded,
            train=read_questions(recipes.easy_vqa(root, folder, "train")),
        )
        result.write(self.out / "vqa.json", self.out / "vqa_answers.jsonl")
        Console(stderr=True).print(result.table())
        self._keep(
            "vqa", run, time.perf_counter() - began, f"{len(result.questions)} questions, three times", limit
        )

    def clips(self, run: Path, limit: int) -> None:
        """Ask the test questions about clips: with the clip, with another, with one frame, with the middle frame."""
        if self._done("clips", run, limit):
            return
        from rich.console import Console

        from mm_llama.clip_rows import clip_sources
        from mm_llama.eval.clips import confusion, evaluate_clips
        from mm_llama.stage_run import prepared

        _say("asking the test questions about clips, and the image adapter alone about the middle frame")
        began = time.perf_counter()
        model, tokenizer, chat = _load(run)
        clips, middle, train = clip_sources("motion", "test", [run])
        result = evaluate_clips(
            model,
            tokenizer,
            chat,
            clips,
            partial(prepared, model),
            middle_frames=middle,
            train=train,
            limit=limit,
        )
        found = result.to_json() | {"confusion": {kind: confusion(result, kind) for kind in result.types}}
        result.write(self.out / "clips.json", self.out / "clips_answers.jsonl")
        _write(self.out / "clips.json", found)
        Console(stderr=True).print(result.table())
        detail = f"{len(result.questions)} questions, on four sides, features included"
        self._keep("clips", run, time.perf_counter() - began, detail, limit)

    def proof(self, runs: list[Path], num_mmlu: int) -> None:
        """Compare the core with and without the adapters: digests, logits, MMLU likelihoods."""
        if self._done("proof", runs[-1], num_mmlu):
            return
        from mm_llama.proof import prove_text_unchanged

        _say("proving that the text model is unchanged (digests, logits, MMLU)")
        began = time.perf_counter()
        proof = prove_text_unchanged(runs, num_mmlu=num_mmlu, say=_say)
        _write(self.out / "proof.json", proof)
        self._keep(
            "proof", runs[-1], time.perf_counter() - began, f"{num_mmlu} MMLU questions, twice", num_mmlu
        )

    def photos(self, run: Path) -> None:
        """Put two questions to photos that have nothing to do with the training pictures."""
        if self._done("photos", run):
            return
        from mm_llama.assets import asset
        from mm_llama.assistant import load

        _say("questions about photos, for show")
        began = time.perf_counter()
        assistant = load("smollm2_135m", [run])
        shown = []
        files = {file.stem: file for file in sorted(asset("scikit_image_photos").rglob("*.*g"))}
        for name in [name for name in PHOTOS if name in files]:
            turns = []
            for question in PHOTO_QUESTIONS:
                parts = [{"type": "image", "image": str(files[name])}, {"type": "text", "text": question}]
                answer = assistant.chat([{"role": "user", "content": parts}], max_new_tokens=16)
                turns.append({"question": question, "answer": answer})
            shown.append({"image": str(files[name]), "name": name, "source": "scikit-image", "turns": turns})
        _write(self.out / "photos.json", shown)
        self._keep("photos", run, time.perf_counter() - began, f"{len(shown)} photos")

    def real_clips(self, run: Path) -> None:
        """Put a question to real clips; the answer is shown right or wrong."""
        if self._done("real_clips", run):
            return
        from mm_llama.assets import asset
        from mm_llama.assistant import load

        began = time.perf_counter()
        assistant = load("smollm2_135m", [run])
        shown = []
        for package, name, shows, question, truth in REAL_CLIPS:
            path = str(asset(package) / name)
            content = [{"type": "video", "path": path}, {"type": "text", "text": question}]
            answer = assistant.chat([{"role": "user", "content": content}], max_new_tokens=16)
            turns = [{"question": question, "answer": answer, "truth": truth}]
            shown.append({"path": path, "name": Path(path).name, "shows": shows, "turns": turns})
        _write(self.out / "real_clips.json", shown)
        self._keep("real_clips", run, time.perf_counter() - began, f"{len(shown)} clips")

    def report(self, runs: list[Path], command: str) -> Path:
        """Write demo.json and the page."""
        from mm_llama.data.sound import open_sound
        from mm_llama.data.video import open_clip
        from mm_llama.report.page import write_report
        from mm_llama.stages.checkpoint_files import find_checkpoint

        summaries = [_read(run / "summary.json") for run in runs]
        summary, config = summaries[2], find_checkpoint(runs[2]) / "config.yaml"
        names = {
            "shapes": "data, features, first stage: shapes and colours",
            "present": "second stage: presence",
            "image": "third stage: all questions",
            "video": "clips, features, video stage",
            "vqa": "test questions about pictures",
            "clips": "test questions about clips",
            "proof": "proof that text is unchanged",
            "photos": "photos",
            "real_clips": "real clips",
            **speech.NAMES,
            **voice.NAMES,
        }
        demo = {
            "title": "Eyes, ears and a voice for a frozen text model",
            "lead": "Adapters, trained in minutes on a CPU, let a text-only model answer about pictures, clips and "
            "recordings, and say what it answers, and leave every bit of the text model as it was.",
            "name": "image",
            "command": command,
            "started": self.started.isoformat(timespec="seconds"),
            "seed": summary.get("seed", 0),
            "core": "SmolLM2-135M-Instruct (frozen)",
            "data": "easy-VQA: 4,000 training and 1,000 test pictures of one coloured shape each; motion: 960 "
            "training and 200 test clips of one OpenMoji picture that moves over a photograph; telephone prompts "
            "(Asterisk) and sentences spoken by an engine (hibari)",
            "stages": [{"name": run.name, "dir": os.path.relpath(run, self.out)} for run in runs],
            "phases": [
                {"name": names[key], "seconds": phase["seconds"], "detail": phase["detail"]}
                for key, phase in self.state.items()
                if key in names
            ],
            "training_seconds": 60 * sum(part.get("minutes", 0.0) for part in summaries),
            "config": config.read_text("utf-8"),
            "versions": summary.get("versions", {}),
            "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
            "photos": _read_list(self.out / "photos.json"),
            "clips": _read_list(self.out / "real_clips.json"),
            "notes": [
                "The photos are for show: the adapter was trained on drawn shapes alone, so its answers about "
                "photos say little.",
            ],
        }
        (self.out / "demo.json").write_text(json.dumps(demo, indent=2) + "\n", "utf-8")
        return write_report(self.out, self.out / "report.html", open_clip=open_clip, open_sound=open_sound)

    def farewell(self, run: Path, video: Path, heard: Path, page: Path) -> None:
        """Say what came out and what to type next."""
        pictures = _score(self.out / "vqa.json", "test questions about pictures")
        moving = _score(self.out / "clips.json", "test questions about clips")
        print(f"\nadapter  {run}{pictures}")
        print(f"adapter  {video}{moving}")
        print(f"adapter  {heard}{speech.score(self.out / 'speech.json')}")
        print(f"voice    {self.out / 'voice'}{voice.score(self.out)}")
        print(f"report   {page}")
        for name, word, question in (
            ("vqa", "PICTURE", "what color is the shape?"),
            ("clips", "CLIP", "Which way does it move?"),
        ):
            answers = self.out / f"{name}_answers.jsonl"
            first = (
                json.loads(answers.open(encoding="utf-8").readline())["image"] if answers.is_file() else ""
            )
            file = os.path.normpath(self.out / first) if first else word
            print(f'ask      .venv/bin/mm-llama ask {file} "{question}"')
        print("say      .venv/bin/mm-llama say 'Dr. Smith paid $12.50 on 3/4.' -o out.wav")
        print(f"hear     .venv/bin/mm-llama transcribe {speech.an_example(self.out)}")

    def _done(self, phase: str, run: Path, option: int | str = 0) -> bool:
        known = self.state.get(phase, {})
        if known.get("option", option) != option or not known or not run.is_dir():
            return False
        same = known.get("adapter") == adapter_id(run)
        if same:
            _say(f"{phase}: reused, the adapter is the same")
        return bool(same)

    def _keep(self, phase: str, run: Path, seconds: float, detail: str, option: int | str = 0) -> None:
        self.state[phase] = {
            "adapter": adapter_id(run),
            "option": option,
            "seconds": round(seconds, 1),
            "detail": detail,
        }
        write_text(self.out / "phases.json", json.dumps(self.state, indent=2) + "\n")


def _load(run: Path) -> tuple[Any, Any, Any]:
    from mm_llama.build import load_model
    from mm_llama.dtypes import choose_dtype

    return load_model("smollm2_135m", [run], choose_dtype("auto"))


def _easy_vqa() -> tuple[Path, Path]:
    from mm_llama.assets import asset
    from mm_llama.paths import cache_dir

    return asset("easy_vqa"), cache_dir() / "data" / "easy_vqa"


def _score(path: Path, what: str) -> str:
    overall = _read(path).get("overall", {}).get("model", {})
    value = overall.get("accuracy", overall.get("value"))
    return f", {100 * value:.1f} % of the {what} right" if isinstance(value, float) else ""


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and what it tells is found anew") from None
    return value if isinstance(value, dict) else {}


def _read_list(path: Path) -> list[Mapping[str, Any]]:
    value = json.loads(path.read_text("utf-8")) if path.is_file() else []
    return value if isinstance(value, list) else []


def _say(text: str) -> None:
    print(f"[demo] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
