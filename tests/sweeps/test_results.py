"""`mm-llama report` of a sweep: what differs in a table, the best config as a command that runs, comparisons."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_llama.cli import main
from mm_llama.stages.lock import run_lock
from mm_llama.sweeps.compare import Group, verdict
from mm_llama.sweeps.results import Row, columns, find_rows, main_metric, rank
from tests.sweeps.conftest import folders_of, overrides, tensors_of


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    """Two learning rates and two seeds; of the third rate every job fails."""
    argv = overrides(folder, "threads=1", "stage.num_steps=12", "stage.eval_every=4", "name=table", "-m")
    assert main([*argv, "optim.lr=1e-5,3e-3,1e30", "seed=0,1"]) == 1
    return folder / "runs" / "table_sweep"


def summary_of(run: Path) -> dict[str, float]:
    final: dict[str, float] = json.loads((run / "summary.json").read_text())["final"]
    return final


def test_a_table_has_what_differs_and_what_came_of_it(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(sweep)]) == 1
    out = capsys.readouterr().out
    header = [cell.strip() for cell in out.splitlines()[1].strip("┃").split("┃")]
    assert header == ["run", "optim.lr", "seed", "step", "loss", "eval.answers", "minutes", "status"]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    assert [row[-1] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert [row[1] for row in rows[:2]] == ["0.003", "0.003"] and [row[1] for row in rows[4:]] == [
        "1e+30",
        "1e+30",
    ]
    for row in rows[:4]:
        final = summary_of(sweep / row[0])
        assert row[3:6] == ["12/12", f"{final['loss']:.4f}", f"{final['eval.answers']:.4f}"]
    for failed in (path for name, path in folders_of(sweep).items() if "1e30" in name):
        assert re.search(rf"^failed: {re.escape(str(failed))}: stopped before update", out, re.MULTILINE)


def test_the_best_config_is_a_command_that_trains_it_again(
    sweep: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(sweep)])
    out = capsys.readouterr().out
    (best,) = re.findall(r"^best by eval.answers: [\d.]+ ± [\d.]+ \(2 seeds\), (\S+)$", out, re.MULTILINE)
    (line,) = re.findall(r"^mm-llama train .*$", out, re.MULTILINE)
    command = shlex.split(line)[1:]
    assert command[-1] == "name=table_best" and "-m" not in command
    assert main([*command, "threads=1"]) == 0
    again, first = tensors_of(folder / "runs" / "table_best"), tensors_of(Path(best))
    assert all(torch.equal(again[key], first[key]) for key in first)


def test_the_command_of_a_sweep_from_a_file_runs_one_job(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(overrides(folder, f"runs={tmp_path}", "stage.num_steps=2", "sweep=lr", "name=file")) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "file_sweep")]) == 0
    (line,) = re.findall(r"^mm-llama train .*$", capsys.readouterr().out, re.MULTILINE)
    assert main(shlex.split(line)[1:]) == 0
    assert summary_of(tmp_path / "file_best")["step"] == 2 and not (tmp_path / "file_best_sweep").exists()


def test_csv_and_markdown_say_the_same_and_csv_every_digit(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--csv", str(tmp_path / "a.csv"), "--markdown", str(tmp_path / "a.md")]
    assert main(["report", str(sweep), *files]) == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert list(rows[0]) == ["run", "optim.lr", "seed", "step", "num_steps", "loss", "eval.answers", "minutes",
                             "status", "error"]  # fmt: skip
    for row in rows[:4]:
        assert float(row["loss"]) == summary_of(Path(row["run"]))["loss"] and not row["error"]
    assert all("the loss is not finite" in row["error"] and not row["minutes"] for row in rows[4:])
    lines = (tmp_path / "a.md").read_text().splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * 8) + " |"
    assert [Path(row["run"]).name for row in rows] == [
        line.split(" | ")[0].strip("| ") for line in lines[2:8]
    ]
    capsys.readouterr()
    assert main(["report", str(sweep), "--csv", "-"]) == 1
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == rows


def test_broken_and_running_jobs_are_told_apart(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "table_sweep"
    shutil.copytree(sweep, copy)
    lines = (copy / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:-9])
    # Its summary tells that it ended even where the ledger does not.
    assert [row.status for row in find_rows([copy])] == ["finished", "finished"]
    row = find_rows([copy])[1]
    (row.folder / "summary.json").unlink()
    (row,) = (row for row in find_rows([copy]) if row.status != "finished")
    assert (row.status, row.step, row.num_steps) == ("broken", 12, 12)
    assert "killed, or the machine went down" in row.error and row.minutes is None
    with run_lock(row.folder):
        assert [row.status for row in find_rows([copy])] == ["finished", "running"]
    capsys.readouterr()
    assert main(["report", str(copy)]) == 0
    assert "broken" in capsys.readouterr().out


def test_runs_a_folder_of_runs_and_sweeps_in_it_are_found_once(sweep: Path, folder: Path) -> None:
    inside = find_rows([folder / "runs"])
    assert {row.folder for row in find_rows([sweep])} <= {row.folder for row in inside}
    one = find_rows([sweep])[2].folder
    assert len(find_rows([one, sweep, one])) == 6
    (alone,) = find_rows([one])
    assert alone.status == "finished" and alone.metrics == find_rows([sweep])[2].metrics
    assert alone.overrides == find_rows([sweep])[2].overrides


def test_runs_that_were_not_typed_here_differ_in_their_configs() -> None:
    rows = [
        Row(Path(name), "finished", config={"name": name, "threads": 1, "optim": {"lr": rate}, "seed": 3})
        for name, rate in (("a", 1e-3), ("b", 2e-3))
    ]
    assert columns(rows) == ["optim.lr"]


def test_a_metric_of_which_less_is_better_is_ranked_so() -> None:
    rows = [
        Row(Path(str(x)), "finished", summary={"final": {"loss": 9 - x, "eval.wer": x}}) for x in (3, 1, 2)
    ]
    assert main_metric(rows) == "eval.wer"
    assert [row.folder.name for row in rank(rows, "eval.wer")] == ["1", "2", "3"]
    assert [row.folder.name for row in rank(rows, "eval.wer", lowest=False)] == ["3", "2", "1"]
    assert [row.folder.name for row in rank([*rows, Row(Path("x"), "failed")], "loss")] == [
        "3",
        "2",
        "1",
        "x",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/nowhere", "--compare"], r"nowhere does not exist: name folders of runs"),
        (["{folder}/cache", "--compare"], r"cache holds no runs"),
        (
            ["{sweep}", "--metric", "eval.wer"],
            r"--metric eval.wer: no run has it; they have eval.answers, loss",
        ),
        (["{sweep}", "--out", "page.html"], r"--out and --open are for the page of one run"),
    ],
)
def test_what_cannot_be_shown_says_so(
    sweep: Path, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["report", *(text.format(folder=folder, sweep=sweep) for text in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_curves_are_drawn_over_each_other(sweep: Path, tmp_path: Path) -> None:
    assert main(["report", str(sweep), "--plot", str(tmp_path / "new" / "curves.png")]) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]
    with Image.open(tmp_path / "new" / "curves.png", formats=("PNG",)) as picture:
        pixels = picture.convert("RGB")
    counts = {colour: count for count, colour in pixels.getcolors(1 << 24)}
    # The first two colours, one for each rate that finished; the third is nobody's.
    assert counts[31, 119, 180] > 200 and counts[255, 127, 14] > 200 and (44, 160, 44) not in counts


def test_groups_over_seeds_are_compared_with_what_so_few_seeds_can_say(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(sweep), "--compare", "--metric", "loss"]) == 1
    out = capsys.readouterr().out.partition("by config")[2]
    assert re.search(r"optim\.lr=0\.003: [\d.]+ ± [\d.]+ \(2 seeds\)\n  optim\.lr=1e-05: ", out)
    assert re.search(r"configs differ in:\n  optim\.lr: 0\.003, 1e-05\n\n", out)
    losses = {key: [row.metrics["loss"] for row in find_rows([sweep]) if row.value("optim.lr") == key and row.metrics]
              for key in (3e-3, 1e-5)}  # fmt: skip
    mean = sum(losses[1e-5]) / 2 - sum(losses[3e-3]) / 2
    assert f"optim.lr=1e-05: {mean:+.4f} ± " in out
    assert "on 2 common seeds, p = 0.500, which 2 seeds cannot bring below 0.500: 6 or more" in out


def group(values: dict[int, float], **config: object) -> Group:
    rows = {
        str(seed): Row(Path(str(seed)), "finished", summary={"final": {"eval.answers": value}})
        for seed, value in values.items()
    }
    return Group(rows, config)


def test_a_verdict_is_as_sure_as_its_seeds_allow() -> None:
    base = {seed: 0.5 + seed / 100 for seed in range(7)}
    other = group({seed: value + 0.1 for seed, value in base.items()})
    assert re.search(
        r"^\+0\.1000 ± 0\.0000 on 7 common seeds, p = 0\.016 .*interval \+0\.1000 to \+0\.1000$",
        verdict(other, group(base), "eval.answers"),
    )
    assert "on one seed: what another seed would change" in verdict(other, group({3: 0.1}), "eval.answers")
    assert "no seed in common" in verdict(other, group({9: 0.1}), "eval.answers")
    elsewhere = group(base, **{"data.eval_rows": 5})
    assert "measured on other held-out rows" in verdict(other, elsewhere, "eval.answers")
