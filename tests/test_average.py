"""Averages of a real small sweep: exact means, ranked as told, refused where not alike, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mm_llama import average
from mm_llama.average import Candidate, find_runs, prefix_averages, rank, read_candidate, write_average
from mm_llama.build import compose_config, load_model
from mm_llama.cli import main
from mm_llama.stage_run import run_stage
from mm_llama.stages.checkpoint_files import find_checkpoint, read_state, validate, write_checkpoint

RATES = ("2e-3", "1e-6", "3e-3")
SWEEP = "image_sft_sweep"


def overrides(folder: Path, *more: str) -> list[str]:
    rows = folder / "colours.jsonl"
    return [
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={rows}",
        f"data.eval=[{{_target_:mm_llama.data.sources.JsonlChat,path:{rows}}}]",
        f"runs={folder / 'runs'}",
        "dtype=float32",
        "threads=1",
        "stage.num_steps=20",
        "optim.warmup_steps=5",
        "optim.gate_lr_multiple=10.0",
        "loader.batch_size=4",
        *more,
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with pictures in two colours, and the runs of a sweep: two that learn to tell them, one too slow."""
    folder = tmp_path_factory.mktemp("average")
    rows = []
    for number, (name, colour) in enumerate([("red", (220, 20, 20)), ("blue", (20, 20, 220))] * 2):
        Image.new("RGB", (40 + number, 40), colour).save(folder / f"{number}.png")
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "Which colour?"}]
        rows.append([{"role": "user", "content": content}, {"role": "assistant", "content": name}])
    (folder / "colours.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LLAMA_CACHE", str(folder / "cache"))
        command = ["train", "stage=image_sft", *overrides(folder), "-m", f"optim.lr={','.join(RATES)}"]
        assert main(command) == 0
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def other_core(folder: Path) -> Path:
    """A run like those of the sweep, on a core of another seed."""
    cfg = compose_config("train", ["stage=image_sft", *overrides(folder, "core.seed=5", "name=other_core")])
    return run_stage(cfg).run_dir


@pytest.fixture
def jobs(folder: Path) -> list[Path]:
    """The jobs of the sweep in the order of RATES."""
    sweep = folder / "runs" / SWEEP
    return [next(sweep.glob(f"lr-{float(rate):g}_*")) for rate in RATES]


def tensors_of(run: Path) -> dict[str, Tensor]:
    return load_file(find_checkpoint(run) / "adapter.safetensors")


def changed(
    run: Path, to: Path, state: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> Path:
    """A copy of a run whose checkpoint says something else, validly."""
    shutil.copytree(run, to)
    one = read_candidate(run)
    shutil.rmtree(to / "checkpoints")
    own = {key: value for key, value in one.state.items() if key not in ("format", "lineage")}
    lineage = {"lineage": one.state["lineage"][:-1]}
    write_checkpoint(to, one.tensors(), {}, own | lineage | (state or {}), dict(one.config) | (config or {}))
    return to


def test_the_average_of_one_run_is_the_run_to_the_bit(jobs: list[Path], tmp_path: Path) -> None:
    assert main(["average", str(jobs[2]), "--out", str(tmp_path / "one")]) == 0
    one, same = tensors_of(tmp_path / "one"), tensors_of(jobs[2])
    assert one.keys() == same.keys() and len(one) > 30
    assert all(torch.equal(one[name], same[name]) and one[name].dtype == same[name].dtype for name in same)


def test_the_average_is_the_float64_mean_of_every_tensor(jobs: list[Path], tmp_path: Path) -> None:
    assert main(["average", *map(str, jobs), "--out", str(tmp_path / "all")]) == 0
    parts = [tensors_of(job) for job in jobs]
    for name, tensor in tensors_of(tmp_path / "all").items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0).float()
        torch.testing.assert_close(tensor, mean, rtol=1e-7, atol=1e-12)
        assert tensor.dtype == torch.float32
    assert any(not torch.equal(parts[0][name], parts[1][name]) for name in parts[0])


def test_counters_are_those_of_the_best_and_wide_tensors_are_not_summed_in_place() -> None:
    class Fixed(Candidate):
        def tensors(self) -> dict[str, Tensor]:
            return dict(self.metrics)

    def run(name: str, value: float, count: int) -> Candidate:
        state = {"core": "c", "train": ["a"], "encoders": {}}
        tensors = {"wide": torch.full((2,), value, dtype=torch.float64), "count": torch.tensor(count)}
        return Fixed(Path(name), Path(name), state, {}, tensors)

    best = run("a", 1.0, 7)
    first, second = prefix_averages([best, run("b", 2.0, 9)])
    assert (
        torch.equal(first["wide"], torch.ones(2, dtype=torch.float64))
        and first["wide"] is best.metrics["wide"]
    )
    assert torch.equal(second["wide"], torch.full((2,), 1.5, dtype=torch.float64))
    assert int(second["count"]) == 7


def test_a_sweep_is_ranked_and_its_table_says_what_differed(
    folder: Path, jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "average",
        str(folder / "runs" / SWEEP),
        "--out",
        str(tmp_path / "two"),
        "--top",
        "2",
        "--json",
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    answers = [json.loads((job / "summary.json").read_text())["final"]["eval.answers"] for job in jobs]
    assert answers == [1.0, 0.0, 1.0]
    assert [Path(row["run"]) for row in found["ranking"]] == [jobs[0], jobs[2], jobs[1]]
    assert [row["eval.answers"] for row in found["ranking"]] == [1.0, 1.0, 0.0]
    assert [row["settings"] for row in found["ranking"]] == [
        {"optim.lr": 0.002},
        {"optim.lr": 0.003},
        {"optim.lr": 1e-06},
    ]
    assert [row["averaged"] for row in found["ranking"]] == [True, True, False]
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["finished"] and summary["ranking"] == found["ranking"]
    assert main(["average", *map(str, jobs), "--out", str(tmp_path / "table")]) == 0
    out = capsys.readouterr().out
    assert "runs by eval.answers" in out and "optim.lr=0.003" in out


def test_metrics_of_which_less_is_better_are_ranked_so_unless_told(jobs: list[Path]) -> None:
    runs = [read_candidate(job) for job in jobs]
    losses = [one.metrics["loss"] for one in runs]
    assert len(set(losses)) == len(losses)
    rising = sorted(losses)
    assert [one.metrics["loss"] for one in rank(runs, "loss")] == rising
    assert [one.metrics["loss"] for one in rank(runs, "loss", lowest=False)] == rising[::-1]
    assert [one.metrics["eval.answers"] for one in rank(runs, "eval.answers", lowest=True)] == [0.0, 1.0, 1.0]
    assert average.is_less_better("eval.wer") and not average.is_less_better("eval.answers")


def test_a_metric_that_a_run_lacks_is_named_with_those_it_has(jobs: list[Path]) -> None:
    with pytest.raises(
        ValueError,
        match=r"sweep/lr-0.002_\w+: the metric 'eval\.vqa' is missing; this run has .*eval\.answers, ",
    ):
        rank([read_candidate(jobs[0])], "eval.vqa")
    broken = read_candidate(jobs[1])
    nothing = Candidate(broken.run, broken.checkpoint, broken.state, broken.config, {"loss": None})
    with pytest.raises(
        ValueError, match=r"sweep/lr-1e-06_\w+: the metric 'loss' holds no number; this run has none"
    ):
        rank([nothing], "loss")


def test_runs_measured_on_other_rows_are_not_ranked_together(jobs: list[Path], tmp_path: Path) -> None:
    config = dict(read_candidate(jobs[1]).config)
    fewer = changed(jobs[1], tmp_path / "fewer", config={"data": config["data"] | {"eval_rows": 2}})
    with pytest.raises(
        ValueError,
        match=r"sweep/lr-0.002_\w+ and .*fewer cannot be ranked by eval\.answers: data\.eval \(eval_rows\) is 0",
    ):
        rank([read_candidate(jobs[0]), read_candidate(fewer)], "eval.answers")
    assert rank([read_candidate(jobs[0]), read_candidate(fewer)], "loss")


def test_unfinished_jobs_of_a_sweep_are_left_out_aloud_and_refused_by_name(
    jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for number, job in enumerate((jobs[0], jobs[1], jobs[2])):
        shutil.copytree(job, sweep / str(number))
    (sweep / "1" / "summary.json").unlink()
    stopped = json.loads((sweep / "2" / "summary.json").read_text()) | {"finished": False, "step": 7}
    (sweep / "2" / "summary.json").write_text(json.dumps(stopped))
    (sweep / "3" / "hydra").mkdir(parents=True)  # failed before its first step
    runs, left_out = find_runs([sweep])
    assert runs == [sweep / "0"]
    assert [text.removeprefix(f"{sweep}/") for text in left_out] == [
        "1 has no summary.json: it did not finish",
        "2 stopped after step 7 of 20",
        "3 has no summary.json: it did not finish",
    ]
    assert main(["average", str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "left out: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["left_out"]) == 3
    with pytest.raises(ValueError, match=r"2 stopped after step 7 of 20"):
        read_candidate(sweep / "2")
    with pytest.raises(ValueError, match=r"no finished run to average: .*1 has no summary"):
        shutil.rmtree(sweep / "0")
        find_runs([sweep])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}", "{0}"], r"sweep/lr-0.002_\w+ is given twice"),
        (["{sweep}", "{1}"], r"sweep/lr-1e-06_\w+ is given twice"),
        (["{missing}"], r"missing does not exist: name folders of finished runs"),
        (["{cache}"], r"cache holds no runs"),
        (["{0}", "--top", "2"], r"--top 2: there are only 1 runs"),
        (["{0}", "--top", "some"], r"--top is 'some', expected a number from 1 on, all, or auto"),
        (["{0}", "--top", "0"], r"--top is '0'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: Sequence[str],
    message: str,
    folder: Path,
    jobs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    places = {"sweep": folder / "runs" / SWEEP, "missing": folder / "missing", "cache": folder / "cache"}
    filled = [argument.format(*jobs, **places) for argument in arguments]
    assert main(["average", *filled, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_runs_on_another_core_are_refused_with_both_named(
    jobs: list[Path], other_core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", str(jobs[0]), str(other_core), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    digests = [read_state(find_checkpoint(run))["core"] for run in (jobs[0], other_core)]
    assert "cannot be averaged: the core is" in error and all(digest in error for digest in digests)
    assert str(jobs[0]) in error and str(other_core) in error
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_not_alike_are_refused_by_what_differs(jobs: list[Path], tmp_path: Path) -> None:
    one = read_candidate(jobs[0])
    modality = json.loads(json.dumps(one.config["modality"]))
    modality["image"]["adapter"]["branch_scale"] = 8.0  # the same shapes, another function
    frozen = next(name for name in one.state["before"] if name.startswith("modality.image.encoder"))
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"state": {"train": ["modality.image"]}},
            r"stage\.train is \['modality\.image\.adapter'\] in one and \['mod",
        ),
        ({"state": {"encoders": {"image": "sha256:0"}}}, r"the frozen encoder \(image\) is 'sha256:"),
        (
            {"config": {"modality": modality}},
            r"modality \(image\.adapter\.branch_scale\) is .* in one and 8\.0",
        ),
        (
            {"state": {"before": dict(one.state["before"]) | {frozen: "sha256:1"}}},
            r"a frozen tensor .* 'sha256:1' in",
        ),
    ]
    for number, (change, message) in enumerate(cases):
        other = read_candidate(changed(jobs[1], tmp_path / str(number), **change))
        with pytest.raises(
            ValueError, match=rf"sweep/lr-0.002_\w+ and .*{number} cannot be averaged: " + message
        ):
            list(prefix_averages([one, other]))
    own = one.tensors()
    name = next(iter(own))
    with pytest.raises(
        ValueError, match=rf"{name} is \(\(.*float32'\) in one and \(\(.*bfloat16'\) in the other"
    ):
        average.check_alike(one, read_candidate(jobs[1]), own, own | {name: own[name].bfloat16()})
    seeds = json.loads(json.dumps(one.config["modality"]))
    seeds["image"]["adapter"]["seed"] = 3  # where it began is another matter
    assert len(
        list(
            prefix_averages(
                [one, read_candidate(changed(jobs[1], tmp_path / "s", config={"modality": seeds}))]
            )
        )
    )


def test_runs_that_began_elsewhere_are_averaged_with_a_note(
    jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        name: "sha256:2" if "adapter" in name else d
        for name, d in read_candidate(jobs[1]).state["before"].items()
    }
    other = changed(jobs[1], tmp_path / "other", state={"before": before})
    assert main(["average", str(jobs[0]), str(jobs[2]), "--out", str(tmp_path / "alike")]) == 0
    assert "did not start" not in capsys.readouterr().err
    assert main(["average", str(jobs[0]), str(other), "--out", str(tmp_path / "unlike")]) == 0
    assert "did not start from the same tensors" in capsys.readouterr().err


def test_values_that_are_not_finite_are_refused_and_nothing_is_left(jobs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    one = read_candidate(jobs[0])
    tensors = one.tensors()
    name = list(tensors)[3]
    tensors[name].flatten()[0] = float("nan")
    with pytest.raises(ValueError, match=rf"the average is not finite in {name}; nothing is written"):
        write_average(tmp_path / "out" / "run", [one], tensors, metric="loss")
    broken = tmp_path / "broken"
    shutil.copytree(jobs[0], broken)
    shutil.rmtree(broken / "checkpoints")
    state = {key: value for key, value in one.state.items() if key != "format"}
    write_checkpoint(broken, tensors, {}, state, one.config)
    with pytest.raises(
        ValueError, match=rf"step_00000020: values are not finite in {name}; leave this run out"
    ):
        list(prefix_averages([one, read_candidate(broken)]))
    assert main(["average", str(broken), "--out", str(tmp_path / "out" / "run")]) == 2
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_that_cannot_be_finished_leaves_nothing(jobs: list[Path], tmp_path: Path) -> None:
    one = read_candidate(jobs[0])
    unwritable = Candidate(one.run, one.checkpoint, one.state, {"config": object()}, one.metrics)
    with pytest.raises(Exception, match="object"):
        write_average(tmp_path / "run", [unwritable], one.tensors(), metric="loss")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(
    jobs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in jobs[1].rglob("*"))
    assert main(["average", str(jobs[0]), "--out", str(jobs[1])]) == 2
    assert "exists already: choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in jobs[1].rglob("*")) == before
    one = read_candidate(jobs[0])
    with pytest.raises(ValueError, match="exists already"):
        write_average(jobs[1], [one], one.tensors(), metric="loss")


def test_the_average_is_a_run_that_answers_and_is_started_from(
    folder: Path, jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "average"
    assert main(["average", str(jobs[0]), str(jobs[2]), "--out", str(out)]) == 0
    checkpoint = find_checkpoint(out)
    validate(checkpoint)
    parents = [read_candidate(job).adapter for job in (jobs[0], jobs[2])]
    lineage = read_state(checkpoint)["lineage"]
    assert [entry["adapter"] for entry in lineage[:-1]] == parents == lineage[-1]["average_of"]
    capsys.readouterr()
    asked = ["ask", "--core", "tiny", "--adapter", str(out), "--dtype", "float32", "--max-new-tokens", "5"]
    for picture, colour in (("0.png", "red"), ("1.png", "blue")):
        assert main([*asked, str(folder / picture), "Which colour?"]) == 0
        assert capsys.readouterr().out.strip() == colour
    more = overrides(folder, f"stage.init.image={out}", "stage.num_steps=2", "optim.lr=1e-4", "name=next")
    result = run_stage(compose_config("train", ["stage=image_sft", *more]))
    after = read_state(find_checkpoint(result.run_dir))["lineage"]
    assert after[:-1] == lineage and result.final["eval.answers"] == 1.0


def test_an_average_is_not_continued(folder: Path, jobs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "average"
    assert main(["average", str(jobs[0]), "--out", str(out)]) == 0
    message = r"step_00000020 is an average of runs: it has no optimizer state, .* from the average with stage\.init"
    cfg = compose_config("train", ["stage=image_sft", *overrides(folder, "optim.lr=3e-3")])
    with pytest.raises(ValueError, match=message):
        run_stage(cfg, run_dir=out)
    cfg = compose_config(
        "train", ["stage=image_sft", *overrides(folder, f"stage.resume={out}", "name=resumed")]
    )
    with pytest.raises(ValueError, match=message):
        run_stage(cfg)


def test_top_auto_takes_the_number_whose_average_evaluates_best(
    folder: Path, jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["average", *map(str, jobs), "--top", "auto", "--json"]
    assert main([*command, "--out", str(tmp_path / "answers")]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = {row["top"]: row["eval.answers"] for row in found["averages"]}
    assert list(measured) == [1, 2, 3] and measured[1] == found["ranking"][0]["eval.answers"] == 1.0
    best = max(measured, key=lambda number: (measured[number], -number))
    assert found["top"] == best
    summary = json.loads((tmp_path / "answers/summary.json").read_text())
    assert summary["final"] == {"eval.answers": measured[best]}
    # From the worst up the best number is another one.
    assert main([*command, "--lowest", "--out", str(tmp_path / "worst"), "--metric", "accuracy"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = {row["top"]: row["eval.answers"] for row in found["averages"]}
    assert measured[1] == 0.0 < max(measured.values())
    assert found["top"] == max(measured, key=lambda number: (measured[number], -number)) > 1


def test_an_evaluation_needs_rows_that_were_held_out(
    jobs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dict(read_candidate(jobs[0]).config["data"]) | {"eval": []}
    bare = changed(jobs[0], tmp_path / "bare", config={"data": data})
    assert main(["average", str(bare), "--out", str(tmp_path / "out"), "--metric", "loss", "--eval"]) == 2
    assert "image_sft has no held-out data to evaluate on: set data.eval" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_of_a_run_counts_with_the_record_of_its_step(folder: Path, jobs: list[Path]) -> None:
    checkpoint = find_checkpoint(jobs[0])
    one = read_candidate(checkpoint)
    assert one.metrics["step"] == 20 and one.metrics["loss"] == read_candidate(jobs[0]).metrics["loss"]
    assert find_runs([checkpoint]) == ([checkpoint], [])


def test_the_average_of_a_trained_adapter_attaches_to_a_model(jobs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "average"
    assert main(["average", str(jobs[0]), str(jobs[2]), "--out", str(out)]) == 0
    model, _, _ = load_model("tiny", [out])
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors_of(out).items() if name in own)
