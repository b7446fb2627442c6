"""`mm-llama data`: what it prints, its exit codes, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mm_llama.cli import main

QUESTION = {"role": "user", "content": "?"}


@pytest.fixture
def good(chat_file, picture, row) -> Path:
    names = [picture("a.png", 1), picture("b.png", 2)]
    rows = [row("yes", names[0]), row("no", *names), row("yes")]
    return chat_file([entry | {"extra": {"type": "yesno"}} for entry in rows], "good.jsonl")


@pytest.fixture
def bad(chat_file, row) -> Path:
    return chat_file([row("fine"), "nonsense", {"messages": [QUESTION]}, row("x" * 200)], "bad.jsonl")


def test_valid_files_pass_and_are_counted_on_stderr(good, capsys):
    assert main(["data", "validate", str(good), str(good)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{good}: 3 rows, all good\n" * 2


def test_every_bad_row_is_a_line_with_file_and_number(good, bad, capsys):
    assert main(["data", "validate", str(good), str(bad)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{bad}:2: not JSON: Expecting value (column 1)",
        f"{bad}:3: no assistant message, so nothing to learn from this row",
    ]
    assert err.endswith("1 bad_json, 1 empty_answer\n")
    assert f"{bad}: 4 rows, 2 bad" in err


def test_rows_longer_than_the_limit_are_bad_when_tokens_are_counted(bad, capsys):
    assert main(["data", "validate", str(bad), "--core", "tiny", "--max-tokens", "100"]) == 1
    assert f"{bad}:4: the row has" in capsys.readouterr().out


def test_the_context_of_the_core_is_the_limit_by_default(chat_file, row, capsys):
    path = chat_file([row("x" * 2100)])
    assert main(["data", "validate", str(path)]) == 0
    assert main(["data", "validate", str(path), "--core", "tiny"]) == 1
    assert "the limit is 2048" in capsys.readouterr().out


def test_problems_are_capped_with_a_count(chat_file, capsys):
    path = chat_file(["nonsense"] * 61)
    assert main(["data", "validate", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 51
    assert lines[-1] == "... and 11 more"
    assert main(["data", "validate", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["num_problems"] == 61 and len(report["problems"]) == 50 and report["ok"] is False


def test_damaged_pictures_are_found_in_every_row_that_shows_them_but_not_when_told_not_to_look(
    good, tmp_path, capsys
):
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    assert main(["data", "validate", str(good), "--no-decode"]) == 0
    assert main(["data", "validate", str(good), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [problem["source"] for problem in report["problems"]] == [f"{good}:1", f"{good}:2"]
    assert all("a.png" in problem["what"] for problem in report["problems"])
    assert report["causes"] == {"bad_image": 2}


def test_a_file_without_rows_is_a_problem_and_a_missing_file_an_error(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["data", "validate", str(tmp_path / "empty.jsonl")]) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'empty.jsonl'}: the file holds no rows\n"
    assert main(["data", "validate", str(tmp_path / "gone.jsonl")]) == 2
    gone = f"error: data file {tmp_path / 'gone.jsonl'} does not exist: name one "
    assert capsys.readouterr().err == gone + "(data.train.0.source.path=FILE, or --data FILE)\n"


def test_stats_count_what_is_in_a_file(good, capsys):
    assert main(["data", "stats", str(good), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 3
    assert report["messages"] == {"assistant": 3, "user": 3}
    assert report["media"] == {"image": 3} and report["distinct_media"] == 2
    assert report["rows_by_num_media"] == {"0": 1, "1": 1, "2": 1}
    assert report["length_unit"] == "characters"
    assert report["length"] == {"min": 3, "median": 4, "p95": 4, "max": 4, "sum": 11}
    assert report["commonest_answers"] == {"yes": 2, "no": 1}
    assert report["extra"] == {"type": 3}
    assert report["image_width"] == {"min": 3, "median": 3, "p95": 3, "max": 3, "sum": 6}
    assert report["bad"] == {}
    assert main(["data", "stats", str(good), "--core", "tiny"]) == 0
    assert "length unit        tokens" in capsys.readouterr().out


def test_inspect_says_what_data_is_and_prints_rows_with_their_pictures_tokens_and_extras(
    good, tmp_path, capsys
):
    assert main(["data", "inspect", str(good), "--n", "1", "--line", "2", "--core", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "format     JSONL chats" in out and "rows       3" in out
    assert f"\n{good}:2  (" in out
    assert f"[image {tmp_path / 'a.png'}] [image {tmp_path / 'b.png'}] ?" in out
    assert "3 targets" in out and '"type": "yesno"' in out
    assert main(["data", "inspect", str(good), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["shown"]
    assert [entry["source"][-1] for entry in shown] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["inspect", "FILE", "--line", "9"], "has 3 lines; --line 9 is past its end"),
        (["inspect", "FILE", "--n", "0"], "--n and --line count from 1"),
        (["validate", "FILE", "--max-tokens", "9"], "--max-tokens needs --tokenizer PATH or --core NAME"),
        (["validate", "FILE", "--chat", "plain"], "--chat needs --tokenizer PATH or --core NAME"),
        (
            ["validate", "FILE", "--core", "smolm2_135m"],
            "unknown core 'smolm2_135m' (did you mean 'smollm2_135m'?)",
        ),
        (
            ["validate", "FILE", "--core", "llama3_1_8b"],
            "core llama3_1_8b is numbers only: give --tokenizer PATH",
        ),
        (["validate", "FILE", "--tokenizer", "FILE"], "--tokenizer needs the chat format too: --chat"),
    ],
)
def test_wrong_use_is_one_error_line_and_exit_code_2(arguments, what, good, capsys):
    assert main(["data", *(str(good) if word == "FILE" else word for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert what in err


def test_make_writes_the_splits_of_easy_vqa(asset_dir, tmp_path, capsys):
    root = asset_dir("easy_vqa")
    command = ["data", "make", "easy_vqa", "--root", str(root), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert {split: entry["rows"] for split, entry in made.items()} == {
        "train": 34779,
        "holdout": 3796,
        "test": 9673,
    }
    assert main([*command, "--holdout", "10"]) == 2
    assert "delete it or choose another folder" in capsys.readouterr().err


def test_make_writes_the_splits_of_tuxpaint(tmp_path):
    for stem, caption in (("animals/frog", "A frog."), ("food/pear", "A pear."), ("town/shop", "A shop.")):
        path = tmp_path / "root" / f"{stem}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (2, 2), (len(stem), 0, 0)).save(path)
        path.with_suffix(".txt").write_text(caption + "\n")
    command = ["data", "make", "tuxpaint", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert main([*command, "--exclude", "town", "--prompt", ""]) == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.jsonl"))
    assert files == ["holdout.jsonl", "test.jsonl", "train.jsonl"]
    rows = [json.loads(line) for name in files for line in (tmp_path / "out" / name).read_text().splitlines()]
    assert sorted(row["extra"]["stem"] for row in rows) == ["animals/frog", "food/pear"]


def test_validation_needs_no_torch(good):
    code = (
        "import sys; from mm_llama.cli import main; "
        "code = main(['data', 'validate', sys.argv[1], '--core', 'tiny']); "
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(good)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, f"{good}: 3 rows, all good\n")
