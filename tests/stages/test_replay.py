"""One step made again: equal to the bit where nothing is wrong, and a verdict where something is."""

import io
import json
import math

import pytest
import torch

from mm_llama.batch import Batch, Media
from mm_llama.stages.loop import train
from mm_llama.stages.metrics import read_metrics
from mm_llama.stages.optim import NonFinite
from mm_llama.stages.replay import replay
from mm_llama.stages.steps import StepOutput, next_token

ADAPTER = ["modality.image"]  # with dropout, so that random states count


@pytest.fixture
def settings(tmp_path):
    return {
        "train": ADAPTER,
        "num_steps": 8,
        "warmup_steps": 2,
        "save_every": 3,
        "accumulate": 2,
        "tensorboard": False,
        "stream": io.StringIO(),
    }


class Changed:
    """The seeded batches, some of them changed by `how(batch)`."""

    def __init__(self, loader, which, how):
        self.loader, self.which, self.how = loader, which, how

    def __iter__(self):
        for batch in self.loader:
            if self.loader.index in self.which:
                self.how(batch)
            yield batch

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


def spoil(batch):
    media = batch.media["image"]
    media.items[int(media.items_M[0])][0, 0, 0] = math.nan


@pytest.mark.parametrize("number", [1, 3, 4, 8])
def test_a_step_made_again_is_equal_to_the_bit(tiny_model, tiny_loader, settings, tmp_path, number):
    train(tiny_model(), tiny_loader(), run_dir=tmp_path / "run", keep_last=0, **settings)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found = replay(
        tiny_model(), tiny_loader(), next_token, number, run_dir=tmp_path / "run", say=str, **settings
    )
    record = read_metrics(tmp_path / "run/metrics.jsonl")[number - 1]
    assert (found.again.loss, found.again.grad_norm) == (record["loss"], record["grad_norm"])
    assert found.sound and found.verdict == "finite, equal to the bit"
    sources = [row["source"] for row in found.rows]
    assert sorted(sources) == sorted(f"rows{2 * number - i}.jsonl:{j}" for i in (0, 1) for j in (1, 2, 3, 4))
    written = json.loads((tmp_path / f"run/replay_{number}.json").read_text("utf-8"))
    assert written["again"]["loss"] == record["loss"]
    assert {path: path.read_bytes() for path in before} == before  # the run is only read


def test_every_attempt_draws_what_the_step_drew(tiny_model, tiny_loader, settings, tmp_path):
    drawn = []

    def step(model, batch):
        drawn.append(float(torch.rand(())))
        output = next_token(model, batch)
        return StepOutput(output.loss_sum * (1 + drawn[-1]), output.num_targets)

    frozen = settings | {"train": ["modality.image.adapter"]}  # without dropout, so that only the step draws
    train(tiny_model(), tiny_loader(), step, run_dir=tmp_path / "run", keep_last=0, **frozen)
    first, second = drawn[6:8]  # of the fourth step's two micro-batches
    drawn.clear()
    replay(tiny_model(), tiny_loader(), step, 4, run_dir=tmp_path / "run", say=str, **frozen)
    assert drawn == [first, second, *[first] * 8, first, second]  # the step, its rows, the next batch


def test_rows_by_themselves_make_up_the_batch(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch(2)
    whole = next_token(model, batch)
    parts = [next_token(model, batch.alone(row)) for row in range(len(batch.tokens_BS))]
    assert sum(part.num_targets for part in parts) == whole.num_targets
    total = float(sum(part.loss_sum.detach() for part in parts))
    assert total == pytest.approx(float(whole.loss_sum.detach()), rel=1e-5)


def test_a_row_of_packed_ones_keeps_its_documents():
    documents = torch.tensor([[0, 0, 1, -1], [2, 2, 2, 3]])
    media = Media(
        [torch.ones(3, 4, 4), torch.zeros(3, 4, 4)],
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        torch.tensor([1, 0]),
    )
    batch = Batch(
        torch.arange(8).view(2, 4),
        torch.tensor([3, 4]),
        torch.ones(2, 4, dtype=torch.bool),
        documents,
        {"image": media},
        ["a", "b", "c", "d"],
        [{"n": number} for number in range(4)],
    )
    first, second = batch.alone(0), batch.alone(1)
    assert (
        first.sources == ["a", "b"] and second.sources == ["c", "d"] and second.labels == [{"n": 2}, {"n": 3}]
    )
    assert first.documents_BS.tolist() == [[0, 0, 1]] and second.documents_BS.tolist() == [[0, 0, 0, 1]]
    assert (
        float(first.media["image"].items[0].sum()) == 0 and float(second.media["image"].items[0].sum()) == 48
    )
    assert second.media["image"].positions_M.tolist() == [1] and second.media["image"].rows_M.tolist() == [0]


def test_media_that_are_not_finite_are_named(tiny_model, tiny_loader, settings, tmp_path):
    def loader():
        return Changed(tiny_loader(), {10}, spoil)

    with pytest.raises(NonFinite, match="replay=5"):
        train(tiny_model(), loader(), run_dir=tmp_path / "run", **settings)
    found = replay(tiny_model(), loader(), next_token, 5, run_dir=tmp_path / "run", say=str, **settings)
    assert not found.sound
    assert found.verdict.startswith("data: media with values that are not finite in rows10.jsonl:")
    assert found.first_nonfinite.startswith("modality.image.encoder.patches")
    assert found.rows[0]["error"] and not found.rows[-1]["error"]
    assert found.other_rows is not None and not found.other_rows.error


def test_values_too_large_for_the_dtype_are_a_matter_of_numbers(tiny_model, tiny_loader, settings, tmp_path):
    def large(batch):
        for item in batch.media["image"].items:
            item *= 1e5

    def model():
        model = tiny_model()
        model.modality["image"].encoder.half()
        model.core.half()
        return model

    def step(model, batch):
        return next_token(model, batch.to(model.device, model.dtype))

    frozen = settings | {"train": ["modality.image.adapter"]}

    def loader():
        return Changed(tiny_loader(), {10}, large)

    with pytest.raises(NonFinite):
        train(model(), loader(), step, run_dir=tmp_path / "run", **frozen)
    found = replay(model(), loader(), step, 5, run_dir=tmp_path / "run", say=str, **frozen)
    assert found.verdict.startswith("numeric: the same rows are finite in float32"), str(found)


def test_weights_that_have_diverged_are_not_blamed_on_rows(tiny_model, tiny_loader, settings, tmp_path):
    def step(model, batch):
        # Beyond a size of the weights the loss overflows, whatever the rows are.
        output = next_token(model, batch)
        size = sum(one.detach().abs().sum() for one in model.modality["image"].adapter.parameters())
        return StepOutput(output.loss_sum * (math.inf if size > limit else 1.0), output.num_targets)

    limit = math.inf
    fast = settings | {"lr": 0.5, "clip_norm": 0.0}
    train(tiny_model(), tiny_loader(), step, run_dir=tmp_path / "free", **fast)
    sizes = [float(sum(one.abs().sum() for one in tiny_model().modality["image"].adapter.parameters()))]
    limit = 3 * sizes[0]
    with pytest.raises(NonFinite, match=r"stopped before update (\d)") as stopped:
        train(tiny_model(), tiny_loader(), step, run_dir=tmp_path / "run", **fast)
    number = int(str(stopped.value).split("update ")[1][0])
    assert number > 1
    found = replay(tiny_model(), tiny_loader(), step, number, run_dir=tmp_path / "run", say=str, **fast)
    assert found.verdict.startswith("numeric: other rows fail in this state too"), str(found)


def test_a_step_the_run_has_not_come_to_is_an_error(tiny_model, tiny_loader, settings, tmp_path):
    train(tiny_model(), tiny_loader(), run_dir=tmp_path / "run", stop_after=4, **settings)
    for number, words in (
        (7, r"has not come to this step"),
        (9, r"steps of this run are 1 to stage\.num_steps=8"),
    ):
        with pytest.raises(ValueError, match=rf"replay={number}: .*{words}"):
            replay(
                tiny_model(), tiny_loader(), next_token, number, run_dir=tmp_path / "run", say=str, **settings
            )


def test_the_command_makes_a_step_again(tmp_path, capsys):
    from mm_llama.cli import main

    rows = tmp_path / "rows.jsonl"
    turns = [
        [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes"}]
        for number in range(9)
    ]
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns), "utf-8")
    command = [
        "train",
        "stage=image_sft",
        "core=tiny",
        "modality/image=none",
        "data=jsonl",
        "stage.num_steps=5",
    ]
    command += [
        f"data.train.0.source.path={rows}",
        f"runs={tmp_path}",
        "stage.train=[core.layers.1]",
        "threads=1",
    ]
    command += ["dtype=float32", "loader.batch_size=2", "stage.save_every=2", "name=text"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "replay=4"]) == 0
    printed = capsys.readouterr().out
    assert "step 4: finite, equal to the bit" in printed and "rows.jsonl:" in printed
    assert main([*command, "replay=6"]) == 2
    assert "replay=6: steps of this run are 1 to stage.num_steps=5" in capsys.readouterr().err
