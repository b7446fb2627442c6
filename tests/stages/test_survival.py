"""What a run survives: signals anywhere, batches that are not finite, a full disk, a second process in its folder."""

import io
import math
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mm_llama.cli import main
from mm_llama.data.features import FeatureCache
from mm_llama.data.samples import MediaRef
from mm_llama.stages.checkpoint_files import find_checkpoint, newest_checkpoint, read_state
from mm_llama.stages.lock import Locked, run_lock
from mm_llama.stages.loop import train
from mm_llama.stages.metrics import read_metrics
from mm_llama.stages.optim import NonFinite
from mm_llama.stages.preemption import Stopped, stop_signals
from mm_llama.stages.spikes import Spikes
from mm_llama.stages.steps import StepOutput, next_token

ADAPTER = ["modality.image.adapter"]


@pytest.fixture
def run(tiny_model, tiny_loader, tmp_path):
    """`run(folder, ...)`: a short quiet run of a fresh tiny model in a folder of its own."""

    def start(folder="image", model=None, loader=None, **settings):
        settings = {"train": ADAPTER, "num_steps": 6, "warmup_steps": 2, "save_every": 2} | settings
        settings = {"tensorboard": False, "stream": io.StringIO()} | settings
        return train(
            tiny_model() if model is None else model,
            tiny_loader() if loader is None else loader,
            run_dir=tmp_path / folder,
            **settings,
        )

    return start


@pytest.fixture
def outcome(tmp_path):
    """`outcome(folder)`: final tensors, and the records without what a clock says."""

    def of(folder):
        records = [
            {
                key: value
                for key, value in record.items()
                if not key.endswith(("_s", "wait", "seconds", "_mb"))
            }
            for record in read_metrics(tmp_path / folder / "metrics.jsonl")
        ]
        return load_file(newest_checkpoint(tmp_path / folder) / "adapter.safetensors"), records

    return of


def assert_same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys() and all(torch.equal(one[0][key], other[0][key]) for key in one[0])


# --- signals ---


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_in_an_evaluation_leaves_it_to_the_next_time(run, outcome, tmp_path, name):
    def evaluate(model, told=None):
        if told is not None:
            os.kill(os.getpid(), told)
            raise AssertionError("the evaluation went on")
        return {"score": float(next(model.modality["image"].adapter.parameters()).detach().sum())}

    settings = {"eval_every": 2, "save_every": 0}
    run("whole", eval_fn=evaluate, **settings)
    handler = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped) as left:
        run("told", eval_fn=lambda model: evaluate(model, getattr(signal, name)), **settings)
    assert left.value.code == 75 and left.value.told
    assert signal.getsignal(getattr(signal, name)) is handler
    assert [record["step"] for record in read_metrics(tmp_path / "told/metrics.jsonl")] == [1]
    assert read_state(newest_checkpoint(tmp_path / "told"))["pending"]["step"] == 2
    run("told", eval_fn=evaluate, **settings)
    assert_same(outcome("told"), outcome("whole"))


def test_a_signal_in_a_step_leaves_the_evaluation_after_it(run, outcome):
    def step(model, batch):
        if batch.sources[0].startswith("rows4."):
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token(model, batch)

    seen = []

    def evaluate(model):
        seen.append(model)
        return {"score": 1.0}

    run("whole", eval_fn=evaluate, eval_every=4)
    seen.clear()
    with pytest.raises(Stopped):
        run("told", step=step, eval_fn=evaluate, eval_every=4)
    assert not seen
    run("told", eval_fn=evaluate, eval_every=4)
    assert len(seen) == 2
    assert_same(outcome("told"), outcome("whole"))


def test_a_second_signal_leaves_at_once():
    script = (
        "import os, signal, time\n"
        "from mm_llama.stages.preemption import stop_signals\n"
        "with stop_signals() as stop, stop.hold():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.received == 'SIGTERM'\n"
        "    print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted\n"), done.stderr


def test_a_signal_while_features_are_made_keeps_those_that_are_there(tmp_path):
    def refs():
        return [MediaRef("image", 0, f"{number}.png", f"key{number}") for number in range(6)]

    loaded = []

    def load(ref):
        if len(loaded) == 4 and ref.key == "key4":
            os.kill(os.getpid(), signal.SIGUSR1)
        loaded.append(ref.key)
        return torch.full((3, 4, 4), float(ref.key[-1]))

    def encode(media):
        return media.mean(dim=(2, 3))[:, None]

    cache = FeatureCache(tmp_path, "encoder", "preprocess", dtype="float32")
    with stop_signals(), pytest.raises(Stopped, match="SIGUSR1: stopped; the same command continues"):
        cache.build(refs(), load, encode, batch_size=2)
    again = FeatureCache(tmp_path, "encoder", "preprocess", dtype="float32")
    assert len(again) == 2  # the batch that was encoded; of the next one nothing was
    assert again.build(refs(), load, encode, batch_size=2) == 4
    assert loaded == [f"key{number}" for number in (0, 1, 2, 3, 2, 3, 4, 5)]
    assert [float(again.get(f"key{number}").mean()) for number in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_command_that_is_told_to_stop_says_so_and_exits_with_75(monkeypatch, capsys):
    from mm_llama.cli import data

    monkeypatch.setattr(data, "main", lambda argv: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        main(["data", "stats"])
    assert left.value.code == 75
    assert capsys.readouterr().err == "SIGTERM: stopped; the same command continues\n"


# --- what is not finite ---


class Spoilt:
    """The seeded batches, with a picture that is not finite in some of them."""

    def __init__(self, loader, spoilt):
        self.loader, self.spoilt = loader, spoilt

    def __iter__(self):
        for batch in self.loader:
            if self.loader.index in self.spoilt:
                for item in batch.media["image"].items:
                    item[0, 0, 0] = math.nan
            yield batch

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


def test_updates_that_are_not_finite_are_left_out_within_the_budget(run, outcome, tiny_loader, tmp_path):
    # The encoder trains too: its running statistics are moved by the forward pass that fails.
    settings = {"train": ["modality.image"], "max_nonfinite": 2, "num_steps": 7}
    stream = io.StringIO()
    run("whole", loader=Spoilt(tiny_loader(), {3, 5}), stream=stream, **settings)
    tensors, records = outcome("whole")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert [record["step"] for record in records] == list(range(1, 8))
    assert [record["step"] for record in records if record["loss"] is None] == [3, 5]
    assert "rows3.jsonl:1" in records[2]["rows"] and "not finite" in records[2]["left_out"]
    assert "update 5 left out, 2 of at most stage.max_nonfinite=2" in stream.getvalue()
    # The count of those left out is carried on: a third ends the run, whatever process meets it.
    run("parts", loader=Spoilt(tiny_loader(), {3, 5, 6}), stop_after=4, **settings)
    with pytest.raises(NonFinite, match=r"stopped before update 6: .*rows6\.jsonl:1"):
        run("parts", loader=Spoilt(tiny_loader(), {3, 5, 6}), **settings)
    run("parts", loader=Spoilt(tiny_loader(), {3, 5}), **settings)
    assert_same(outcome("parts"), outcome("whole"))


def test_the_state_before_a_step_that_is_not_finite_is_kept_apart(run, tiny_loader, tmp_path):
    with pytest.raises(NonFinite, match=r"the state before it is kept: add replay=4 to the command"):
        run(loader=Spoilt(tiny_loader(), {4}), save_every=2)
    kept = read_state(newest_checkpoint(tmp_path / "image/failed"))
    assert kept["step"] == 3 and kept["data"]["index"] == 3 and "not finite" in kept["failed"]
    assert newest_checkpoint(tmp_path / "image").name == "step_00000002"


def test_a_leap_of_the_loss_is_told_with_its_rows(run, tiny_batch, tmp_path):
    def step(model, batch):
        output = next_token(model, batch)
        factor = 40.0 if batch.sources[0].startswith("rows20.") else 1.0
        return StepOutput(output.loss_sum * factor, output.num_targets)

    stream = io.StringIO()
    run(step=step, num_steps=24, lr=1e-6, save_every=0, stream=stream, stop_after=22)
    records = read_metrics(tmp_path / "image/metrics.jsonl")
    assert [record["step"] for record in records if "spike" in record] == [20]
    assert "rows20.jsonl:1" in records[19]["rows"] and 20 < records[19]["spike"] < 80
    assert "loss spike at step 20" in stream.getvalue()


def test_spikes_are_held_beside_the_losses_before_them_also_when_a_run_continues():
    losses = [2.0 + 0.01 * (number % 7) for number in range(40)]
    whole = Spikes(10.0)
    assert not any(whole.meet(loss) for loss in losses)
    assert whole.meet(6.0) == pytest.approx(6.0 / 2.03)
    assert Spikes(10.0, losses).meet(6.0) == pytest.approx(6.0 / 2.03)
    assert not Spikes(0.0, losses).meet(6.0) and not Spikes(10.0, losses[:8]).meet(6.0)
    assert not Spikes(10.0, losses).meet(3.0)  # many deviations, but less than twice the median
    with pytest.raises(ValueError, match=r"stage\.spike=-1"):
        Spikes(-1)


# --- checkpoints ---


def test_the_best_checkpoint_outlives_the_newest(run, outcome, tmp_path):
    scores = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.2, 10: 0.9}

    def evaluate(model):
        done = len(read_metrics(tmp_path / folder / "metrics.jsonl")) + 1
        return {"score": scores[done]}

    settings = {"num_steps": 10, "eval_every": 2, "save_every": 3, "keep_last": 1, "eval_fn": evaluate}
    for best, expected in (("eval.score", "step_00000004"), ("-eval.score", "step_00000002")):
        folder = "up" if best[0] == "e" else "down"
        run(folder, keep_best=1, best=best, stop_after=7, **settings)
        run(folder, keep_best=1, best=best, **settings)  # what was best is known to the next process
        names = sorted(path.name for path in (tmp_path / folder / "checkpoints").glob("step_*"))
        assert names == [expected, "step_00000010"]
        assert find_checkpoint(tmp_path / folder / "checkpoints/best").name == expected
        assert find_checkpoint(tmp_path / folder).name == "step_00000010"


def test_best_by_a_figure_that_is_not_there_is_an_error(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"stage\.keep_best=1 and stage\.best='': .* such as stage\.keep_best=1"
    ):
        run(keep_best=1)
    with pytest.raises(
        ValueError, match=r"stage\.best=eval\.loss: the evaluation has no such figure; it has eval\.score"
    ):
        run(keep_best=1, best="eval.loss", eval_fn=lambda model: {"score": 1.0}, eval_every=1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best").write_text("../../elsewhere\n")
    with pytest.raises(
        ValueError, match=r"best names '\.\./\.\./elsewhere', expected a checkpoint beside it"
    ):
        find_checkpoint(tmp_path / "checkpoints/best")


def test_a_full_disk_costs_the_new_checkpoint_alone(run, outcome, tmp_path):
    run("whole")
    run("full", stop_after=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, hard)
    )  # the system then refuses to write more to a file
    try:
        with pytest.raises(
            OSError, match=r"the checkpoint of step 4 cannot be written to .*checkpoints before it are"
        ):
            run("full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = tmp_path / "full/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000002"]
    run("full")
    assert_same(outcome("full"), outcome("whole"))


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image/checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=r"the checkpoint of step 2 cannot be written to .*image/checkpoints: "):
        run()


def test_a_checkpoint_of_another_stage_is_refused(run):
    run("image", name="image_pretrain", stop_after=3)
    with pytest.raises(
        ValueError, match=r"is of the stage image_pretrain, but this is image_sft: .*as stage\.init"
    ):
        run("image", name="image_sft")


# --- one writer ---


def test_a_second_process_in_a_run_folder_is_refused_and_a_dead_one_is_not(run, tmp_path):
    folder = tmp_path / "image"
    script = (
        "import sys, time\n"
        "from mm_llama.stages.lock import run_lock\n"
        "with run_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=rf"image is being written by process {other.pid} on .* since 20"):
            run()
        assert not (folder / "metrics.jsonl").exists()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert run().finished  # the lock went with the process, although nothing was cleaned up


def test_the_lock_is_held_once_within_a_process(tmp_path):
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "a"), run_lock(tmp_path / "b"):
        assert (tmp_path / "a/.lock.json").exists()
    assert not (tmp_path / "a/.lock.json").exists()
