"""`mm-llama ask`: answers about pictures and to text, and for every mistake one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_llama.cli import main

QUESTION = "Which colour?"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(folder: Path) -> None:
    """Every kind of file that a person may try, good and bad."""
    picture = Image.effect_noise((64, 48), 90).convert("RGB")
    picture.save(folder / "good.png")
    picture.save(folder / "good.jpg")
    picture.save(folder / "scan.tiff")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:900])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("Some words\n")
    (folder / "really_text.png").write_text("Some words\n")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7\n" + bytes(64))
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(64))
    (folder / "disguised.png").write_bytes(b"\0\0\0\x20ftypisom" + bytes(64))
    (folder / "sound.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(64))
    (folder / "song.mp3").write_bytes(b"ID3\x04" + bytes(64))
    (folder / "photos").mkdir()
    shutil.copy(folder / "good.png", folder / "photos" / "inside.png")
    (folder / "nothing").mkdir()


MISTAKES = {
    "nothing given": ([], "there is no question; for example: mm-llama ask photo.jpg"),
    "empty question": ([""], "the question is empty"),
    "blank question": (["good.png", "  "], "the question is empty"),
    "only a file": (["good.png"], "good.png is a file, so the question is missing: it comes last, in quotes"),
    "only files": (["good.png", "good.jpg"], "good.jpg is a file, so the question is missing"),
    "question first": (["What is it?", "good.png"], "good.png is a file, so the question is missing"),
    "only a file that is not there": (
        ["gone.png"],
        "there is no file gone.png, and the question is missing",
    ),
    "a folder for a question": (["good.png", "photos"], "photos is a folder: give files one by one"),
    "a missing file": (["gone.png", QUESTION], "there is no file gone.png"),
    "question without quotes": (
        ["good.png", "What", "is", "this"],
        'there is no file What (put the question in quotes: "What is this?")',
    ),
    "a folder": (["photos", QUESTION], "photos is a folder; give one picture, for example photos/inside.png"),
    "a folder without pictures": (
        ["nothing", QUESTION],
        "nothing is a folder; give one picture; it",
    ),
    "a broken picture": (["cut.jpg", QUESTION], "cut.jpg is cut short or damaged"),
    "an empty file": (["empty.png", QUESTION], "empty.png is empty; expected a JPEG, PNG, WEBP or GIF"),
    "a text file": (["notes.txt", QUESTION], "notes.txt holds text; expected a JPEG, PNG, WEBP or GIF"),
    "text named like a picture": (["really_text.png", QUESTION], "really_text.png holds text; expected"),
    "a document": (["paper.pdf", QUESTION], "paper.pdf holds PDF; expected a JPEG, PNG, WEBP or GIF"),
    "an unknown picture format": (["scan.tiff", QUESTION], "scan.tiff holds TIFF; expected a JPEG, PNG"),
    "a broken clip": (["clip.mp4", QUESTION], "clip.mp4 is cut short or damaged: its header does not parse"),
    "a broken clip named like a picture": (
        ["disguised.png", QUESTION],
        "disguised.png is cut short or damaged: its header does not parse",
    ),
    "a recording": (
        ["sound.wav", QUESTION],
        "there is no trained speech adapter to hear sound.wav with (runs/demo/speech does not exist here)",
    ),
    "a song": (["song.mp3", QUESTION], "there is no trained speech adapter to hear song.mp3"),
    "a question asked aloud": (["sound.wav"], "there is no trained speech adapter to hear sound.wav"),
    "an address": (
        ["https://example.org/a.png", QUESTION],
        "example.org/a.png is an address; download",
    ),
    "the second of two files": (["good.png", "cut.jpg", QUESTION], "cut.jpg is cut short or damaged"),
    "no trained adapter": (
        ["good.png", QUESTION],
        "there is no trained image adapter to see good.png with (runs/demo/image does not exist here): train "
        "one with `make demo` (minutes) or `mm-llama train stage=image_pretrain ...`, or name a finished run",
    ),
    "an adapter that is not there": (["--adapter", "runs/x", "Hi"], "--adapter runs/x does not exist: name"),
    "an adapter that is a file": (["--adapter", "good.png", "Hi"], "--adapter good.png is a file: name the"),
    "an unknown option": (["--loud", "Hi"], "unrecognized arguments: --loud; `mm-llama ask --help` shows"),
    "a shortened option": (["--temp", "1", "Hi"], "unrecognized arguments: --temp"),
    "a word for a number": (["--seed", "one", "Hi"], "argument --seed: invalid int value: 'one'"),
    "a search of nothing heard": (["--beam", "4", "Hi"], "--beam 4 searches what a recording says, and no"),
    "a search among fewer than none": (["--beam", "-1", "Hi"], "--beam is -1, expected a number of readings"),
    "no new tokens": (["--max-new-tokens", "0", "Hi"], "--max-new-tokens is 0, expected at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_two(folder: Path, capsys: Captured, name: str) -> None:
    arguments, message = MISTAKES[name]
    write_files(folder)
    assert main(["ask", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_mistakes_are_found_without_torch(folder: Path) -> None:
    write_files(folder)
    code = (
        "import json, sys\n"
        "from mm_llama.cli import main\n"
        "codes = [main(['ask', *words]) for words in json.loads(sys.argv[1])]\n"
        "print(sorted(set(codes)), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([words for words, _ in MISTAKES.values()])],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[2] False\n", done.stderr


LATER_MISTAKES = {
    "temperature": (["--temperature", "-1"], "temperature is -1.0, expected a finite number of at least 0"),
    "top_p": (["--top-p", "0"], "top_p is 0.0, expected a number above 0"),
    "top_k": (["--top-k", "-5"], "top_k is -5, expected a whole number of at least 0"),
    "dtype": (["--dtype", "int8"], "dtype is 'int8', expected one of auto, float32, bfloat16, float16"),
    "threads": (["--threads", "0"], "threads is 0, expected at least 1"),
    "core": (["--core", "tinny"], "core 'tinny' is neither a known name ("),
    "numbers only": (["--core", "llama3_8b"], "core=llama3_8b is numbers only: set core.source"),
    "context": (
        ["--core", "tiny", "--max-new-tokens", "2040"],
        "the core's context of 2048 tokens",
    ),
}


@pytest.mark.parametrize("name", LATER_MISTAKES)
def test_impossible_options_get_one_line_too(folder: Path, capsys: Captured, name: str) -> None:
    options, message = LATER_MISTAKES[name]
    assert main(["ask", *options, "Hi"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and message in printed.err


def test_an_adapter_folder_without_a_checkpoint_is_refused(folder: Path, capsys: Captured) -> None:
    (folder / "runs").mkdir()
    assert main(["ask", "--core", "tiny", "--adapter", "runs", "Hi"]) == 2
    assert "error: runs holds no valid checkpoint" in capsys.readouterr().err


def ask(tiny_run: Path, *words: str | Path) -> int:
    return main(["ask", "--core", "tiny", "--adapter", str(tiny_run), "--dtype", "float32", *map(str, words)])


@pytest.mark.parametrize("colour", ["red", "blue"])
@pytest.mark.parametrize("options", [[], ["--no-stream"], ["--dtype", "bfloat16"]])
def test_the_answer_is_about_the_picture(
    folder: Path,
    capsys: Captured,
    tiny_run: Path,
    coloured: Callable[[str], Path],
    colour: str,
    options: list[str],
) -> None:
    assert ask(tiny_run, *options, coloured(colour), QUESTION) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{colour}\n", "")


def test_options_may_stand_anywhere(
    folder: Path, capsys: Captured, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    picture = str(coloured("blue"))
    words = [picture, "--core", "tiny", "--no-stream", QUESTION, "--adapter", str(tiny_run)]
    assert main(["ask", *words]) == 0
    assert capsys.readouterr().out == "blue\n"


def test_json_is_one_object_with_the_answer_and_its_times(
    folder: Path, capsys: Captured, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    picture = str(coloured("red"))
    assert ask(tiny_run, "--json", picture, QUESTION) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n") == 1
    found = json.loads(printed.out)
    seconds = found.pop("seconds")
    assert found == {
        "question": QUESTION,
        "files": [picture],
        "answer": "red",
        "tokens": 3,
        "prompt_tokens": found["prompt_tokens"],
        "stop_reason": "stop",
        "core": "tiny",
        "adapters": [str(tiny_run)],
    }
    assert found["prompt_tokens"] > len(QUESTION)
    assert set(seconds) == {"load", "prefill", "first_token", "total"}
    assert 0 < seconds["load"] <= seconds["first_token"] <= seconds["total"]
    assert seconds["prefill"] <= seconds["total"] - seconds["load"]


def test_several_pictures_are_taken_and_their_order_matters(
    folder: Path, capsys: Captured, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    def tokens(*colours: str) -> tuple[str, int]:
        pictures = [coloured(colour) for colour in colours]
        assert ask(tiny_run, "--json", "--max-new-tokens", "12", *pictures, QUESTION) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["files"] == [str(picture) for picture in pictures]
        return found["answer"], found["prompt_tokens"]

    assert tokens("red", "blue")[1] == tokens("red")[1] + 1
    assert tokens("red", "blue", "blue")[1] == tokens("red")[1] + 2


def test_the_demo_adapter_is_found_for_pictures_and_left_out_for_text(
    folder: Path, capsys: Captured, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    shutil.copytree(tiny_run, folder / "runs" / "demo" / "image")
    assert main(["ask", "--core", "tiny", "--json", str(coloured("blue")), QUESTION]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["adapters"]) == ("blue", [os.path.join("runs", "demo", "image")])
    assert main(["ask", "--core", "tiny", "--json", "--max-new-tokens", "3", QUESTION]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["adapters"], found["files"], found["stop_reason"]) == ([], [], "length")


def test_text_is_answered_the_same_with_and_without_an_adapter(
    folder: Path, capsys: Captured, tiny_run: Path
) -> None:
    options = ["--max-new-tokens", "20", "--temperature", "1", "--seed", "3", "--dtype", "float32"]
    assert main(["ask", "--core", "tiny", *options, "Hello?"]) == 0
    plain = capsys.readouterr().out
    assert ask(tiny_run, *options, "Hello?") == 0
    assert capsys.readouterr().out == plain
    assert len(plain) > 5


def test_a_cut_answer_is_said_to_be_cut(
    folder: Path, capsys: Captured, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    assert ask(tiny_run, "--max-new-tokens", "2", coloured("red"), QUESTION) == 0
    printed = capsys.readouterr()
    assert printed.out == "re\n"
    assert printed.err == "note: the answer was cut after 2 tokens; --max-new-tokens allows more\n"


def test_seeds_and_sampling_options_reach_the_model(folder: Path, capsys: Captured) -> None:
    def answer(*options: str) -> str:
        assert main(["ask", "--core", "tiny", "--max-new-tokens", "12", *options, "Hi"]) == 0
        return capsys.readouterr().out

    warm = ["--temperature", "1.5"]
    assert answer(*warm, "--seed", "1") == answer(*warm, "--seed", "1") != answer(*warm, "--seed", "2")
    assert answer(*warm, "--top-k", "1") == answer() == answer(*warm, "--top-p", "0.000001")
    assert answer("--system", "Be brief.") != answer()


def test_threads_are_set(folder: Path, capsys: Captured) -> None:
    before = torch.get_num_threads()
    try:
        assert main(["ask", "--core", "tiny", "--max-new-tokens", "1", "--threads", "3", "Hi"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_question_longer_than_a_file_name_is_a_question(folder: Path, capsys: Captured) -> None:
    assert main(["ask", "--core", "tiny", "--max-new-tokens", "1", "why " * 300]) == 0


def test_a_question_with_a_dash_follows_two_dashes(folder: Path, capsys: Captured) -> None:
    assert main(["ask", "--core", "tiny", "--max-new-tokens", "1", "--", "-5 or 5?"]) == 0


def test_help_names_the_options_and_examples(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as left:
        main(["ask", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--adapter RUN" in shown and 'mm-llama ask photo.jpg "What is in this picture?"' in shown


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [os.fspath(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=300
    )


SCRIPT = Path(sys.executable).parent / "mm-llama"
MODULE = (sys.executable, "-m", "mm_llama")


@pytest.mark.slow
def test_the_module_and_the_console_script_are_the_same(
    tmp_path: Path, tiny_run: Path, coloured: Callable[[str], Path]
) -> None:
    words = ["ask", "--core", "tiny", "--adapter", str(tiny_run), str(coloured("red")), QUESTION]
    for arguments, code, out in ((words, 0, "red\n"), (["ask", "gone.png", "Hi"], 2, "")):
        script, module = run(SCRIPT, *arguments, folder=tmp_path), run(*MODULE, *arguments, folder=tmp_path)
        assert (script.returncode, script.stdout) == (code, out), script.stderr
        assert (script.returncode, script.stdout, script.stderr) == (
            module.returncode,
            module.stdout,
            module.stderr,
        )


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m mm_llama ask --core tiny --max-new-tokens 400 Hi | head -c 1 | wc -c"
    done = run("/bin/bash", "-c", f"set -o pipefail; {command}", folder=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1", "")


@pytest.mark.slow
def test_the_default_core_knows_the_capital_of_france(tmp_path: Path, smollm2: object) -> None:
    done = run(*MODULE, "ask", "--json", "What is the capital of France?", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Paris" in found["answer"]
    assert (found["stop_reason"], found["core"]) == ("stop", "smollm2_135m")
