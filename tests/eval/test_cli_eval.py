"""`mm-llama eval` and `proof` end to end: a tiny adapter is really trained, then measured and proven."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama.cli import main
from mm_llama.eval.journal import Journal, keeping, recall
from mm_llama.eval.statistics import Accuracy
from mm_llama.paths import cache_dir


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features and data of these tests stay out of the user's cache; one thread suits tiny matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LLAMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions about four plain pictures."""
    folder = tmp_path_factory.mktemp("questions")
    colours = ("red", "blue", "green", "white")
    rows = []
    for number, colour in enumerate(colours):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        for kind, question, answer in (
            ("color", "what color is it?", colour),
            ("yesno", "is it red?", "yes" if colour == "red" else "no"),
            ("yesno", "is it blue?", "yes" if colour == "blue" else "no"),
        ):
            content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            extra = {"question": question, "type": kind}
            rows.append(json.dumps({"messages": messages, "extra": extra}))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def adapter(own_cache: None, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an adapter that took two training steps on the tiny core."""
    from mm_llama.build import compose_config
    from mm_llama.stage_run import run_stage

    runs = tmp_path_factory.mktemp("runs")
    overrides = ["stage=image_sft", "core=tiny", "modality/image=tiny", "data=jsonl", "dtype=float32"]
    overrides += [f"data.train.0.source.path={questions}", f"runs={runs}", "name=tiny", "threads=1"]
    overrides += ["stage.num_steps=2", "stage.eval_every=0", "stage.save_every=0", "loader.batch_size=4"]
    return run_stage(compose_config("train", overrides)).run_dir


def test_vqa_verb_measures_every_side_and_writes_its_files(
    adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vqa.json"
    command = ["eval", "vqa", "--adapter", str(adapter), "--core", "tiny", "--data", str(questions)]
    assert main([*command, "--train", str(questions), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(out.read_text())
    assert printed == written
    assert printed["num_questions"] == 12 and printed["num_pictures"] == 4
    # Commonest: "no" to both yes/no questions (three of four each), "blue" among four equally common colours.
    assert printed["overall"]["majority_by_question"] == Accuracy(7, 12).to_json()
    assert set(printed["overall"]) == {
        "model",
        "majority_by_question",
        "majority_by_type",
        "no_picture",
        "wrong_picture",
    }
    records = [json.loads(line) for line in (tmp_path / "vqa_answers.jsonl").read_text().splitlines()]
    assert sum(record["correct"] for record in records) == printed["overall"]["model"]["correct"]


@pytest.mark.parametrize("batches", [1, 7])
def test_an_evaluation_that_is_told_to_stop_goes_on_from_there(
    adapter: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    batches: int,
) -> None:
    command = ["eval", "vqa", "--adapter", str(adapter), "--core", "tiny", "--data", str(questions)]
    command += ["--batch-size", "2", "--limit", "11"]
    whole, told = tmp_path / "whole.json", tmp_path / "told.json"
    assert main([*command, "--out", str(whole)]) == 0
    made: list[str] = []
    told_once: list[bool] = []
    recall = Journal.recall

    def stopped(self: Journal, key: str, make: Callable[[], Any]) -> Any:
        if len(made) == batches and not told_once:
            told_once.append(True)  # the next process is left in peace
            os.kill(os.getpid(), signal.SIGTERM)

        def counted() -> Any:
            made.append(key)
            return make()

        return recall(self, key, counted)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "recall", stopped)
        with pytest.raises(SystemExit) as left:
            main([*command, "--out", str(told)])
        assert left.value.code == 75 and not told.exists()
        capsys.readouterr()
        assert main([*command, "--out", str(told)]) == 0
        assert "going on with what an earlier run of this command found" in capsys.readouterr().err
    assert len(made) == len(set(made)) > batches  # nothing was answered twice
    one, other = (json.loads(path.read_text()) for path in (whole, told))
    assert one["overall"] == other["overall"] and one.keys() == other.keys()
    assert (tmp_path / "told_answers.jsonl").read_bytes() == (tmp_path / "whole_answers.jsonl").read_bytes()
    assert not list((cache_dir() / "answers").iterdir())


def test_a_journal_takes_no_harm_from_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyError), keeping(path) as journal:
        assert recall("a", lambda: [1.5]) == [1.5]
        raise KeyError("crash")
    with path.open("a") as file:
        file.write('{"key": "b", "val')
    for _ in range(2):
        with pytest.raises(KeyError), keeping(path) as journal:
            assert recall("a", lambda: [2.5]) == [1.5]
            assert recall("c", lambda: "new") == "new"
            raise KeyError("crash")
        assert len(journal) in (1, 2)
    with keeping(path) as journal:
        assert len(journal) == 2 and recall("c", lambda: "other") == "new"
    assert not path.exists() and recall("c", lambda: "other") == "other"


def test_vqa_verb_by_likelihood_answers_from_the_candidates(
    adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    command = ["eval", "vqa", "--adapter", str(adapter), "--core", "tiny", "--data", str(questions)]
    options = ["--method", "likelihood", "--no-baselines", "--limit", "6", "--answers", str(answers)]
    assert main([*command, *options]) == 0
    assert "6 questions in" in capsys.readouterr().out
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(records) == 6
    assert {record["answer"] for record in records} <= {"red", "blue", "green", "white", "yes", "no"}
    assert "no_picture" not in records[0]


def test_captions_verb_prints_captions_and_pairs(
    adapter: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()][::3]
    data = questions.parent / "captions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "captions.json"
    command = ["eval", "captions", "--adapter", str(adapter), "--core", "tiny", "--data", str(data)]
    assert main([*command, "--wrong", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "truth    green" in printed and "of 12 pairs" in printed
    found = json.loads(out.read_text())
    assert found["num_captions"] == 4 and found["pairs"]["total"] == 12
    assert {"log_p_right", "log_p_wrong", "generated"} <= set(found["captions"][0])


def test_proof_verb_proves_and_exits_with_zero(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "proof.json"
    assert main(["proof", "--adapter", str(adapter), "--core", "tiny", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "text unchanged: yes, bit for bit" in printed
    proof = json.loads(out.read_text())
    assert proof["identical"] is True and proof["dtype"] == "float32"
    assert proof["core"]["recorded"] == proof["core"]["checkpoint"] != ""
    assert proof["core"]["num_tensors_known_before_training"] > 50
    assert proof["core"]["changed_since_training"] == []
    assert proof["adapters"][0]["step"] == 2
    assert proof["control"]["max_delta"] > 0
    assert len(proof["cases"]) == 9


def test_report_of_these_files_shows_their_figures(adapter: Path, questions: Path, tmp_path: Path) -> None:
    """What stages, evaluation and proof write is what the page reads."""
    from mm_llama.report import write_report

    main(
        [
            *["eval", "vqa", "--adapter", str(adapter), "--core", "tiny", "--data", str(questions), "--json"],
            *["--out", str(adapter / "vqa.json")],
        ]
    )
    main(["proof", "--adapter", str(adapter), "--core", "tiny", "--out", str(adapter / "proof.json")])
    page = write_report(adapter, tmp_path / "report.html").read_text("utf-8")
    assert "bit for bit" in page
    assert "Loss at the answer tokens" in page
    assert "✓ changed, as meant" in page and "✓ unchanged" in page
    assert page.count("<li") > 12 and "picture file not found" not in page
    assert "demo.json was not found" in page.replace("<code>", "").replace("</code>", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "vqa"], "eval vqa needs an adapter"),
        (["eval", "captions"], "eval captions needs an adapter"),
        (["eval", "vqa", "--adapter", "nowhere"], "there is no adapter run at nowhere"),
        (["eval", "mmlu", "--limit", "-3"], "--limit is -3"),
        (["proof", "--adapter", "nowhere"], "nowhere does not exist"),
        (["proof", "--adapter", "x", "--mmlu", "-1"], "--mmlu is -1"),
        (["report", "nowhere"], "there is no run folder nowhere"),
    ],
)
def test_mistakes_end_in_one_error_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1


def test_mmlu_with_a_tokenizer_that_splits_letters_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "items.jsonl"
    item = {"question": "q", "options": "A. x\nB. y\nC. z\nD. w", "answer": "B. y"}
    path.write_text(json.dumps(item) + "\n")
    assert main(["eval", "mmlu", "--core", "tiny", "--data", str(path)]) == 2
    assert "splits ' A' into 2 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "recipe", "options"),
    [
        ("easy_vqa", "easy_vqa", {}),
        ("easy_vqa_part", "easy_vqa", {}),
        (
            "easy_vqa_short",
            "easy_vqa",
            {"template": "Answer the question using a single word or phrase. {question}"},
        ),
        ("easy_vqa_choice", "easy_vqa", {}),
        ("easy_vqa_short", "tuxpaint", {}),
        ("tuxpaint", "tuxpaint", {}),
    ],
)
def test_a_run_is_asked_in_the_first_of_the_wordings_it_was_trained_with(
    data: str, recipe: str, options: dict[str, str], adapter: Path, tmp_path: Path
) -> None:
    from mm_llama.build import compose_config, resolve
    from mm_llama.cli.eval_rows import _trained_with
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state, write_checkpoint

    config = resolve(compose_config("train", ["stage=none", f"data={data}"]))
    state = {key: value for key, value in read_state(find_checkpoint(adapter)).items() if key != "format"}
    write_checkpoint(tmp_path, {"a": torch.zeros(1)}, {}, state, config)
    assert _trained_with([tmp_path], recipe) == options
