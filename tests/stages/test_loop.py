"""The loop: cut steps equal whole ones, continued runs equal unbroken ones, broken stages save nothing."""

import io
import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from mm_llama.batch import Batch, Media
from mm_llama.stages.checkpoint_files import newest_checkpoint, read_state
from mm_llama.stages.freeze import FrozenChanged, freeze
from mm_llama.stages.loop import train
from mm_llama.stages.metrics import read_metrics
from mm_llama.stages.optim import NonFinite
from mm_llama.stages.steps import StepOutput, next_token

ADAPTER = ["modality.image.adapter"]


@pytest.fixture
def run(tiny_model, tiny_loader, tmp_path):
    """`run(folder, ...)`: a short quiet run of a fresh tiny model in a folder of its own."""

    def start(folder="image", model=None, loader=None, **settings):
        settings = {"train": ADAPTER, "num_steps": 6, "warmup_steps": 2, "save_every": 2} | settings
        settings = {"tensorboard": False, "stream": io.StringIO()} | settings
        model = tiny_model() if model is None else model
        loader = tiny_loader() if loader is None else loader
        return train(model, loader, run_dir=tmp_path / folder, **settings)

    return start


def weights(folder):
    return load_file(newest_checkpoint(folder) / "adapter.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def exact_record(record):
    """A record without what depends on the clock and the machine."""
    return {key: value for key, value in record.items() if not key.endswith(("_s", "wait", "seconds", "_mb"))}


# --- one step is one step, however it is cut ---


def join(batches):
    """One big batch of several: rows padded to one length, items and rows renumbered."""
    widest = max(batch.tokens_BS.shape[1] for batch in batches)

    def pad(tensor):
        return torch.nn.functional.pad(tensor, (0, widest - tensor.shape[1]))

    items, rows, positions, shown, offset = [], [], [], [], 0
    for batch in batches:
        for media in batch.media.values():
            rows.append(media.rows_M + offset)
            positions.append(media.positions_M)
            shown.append(media.items_M + len(items))
            items += media.items
        offset += len(batch.tokens_BS)
    return Batch(
        torch.cat([pad(batch.tokens_BS) for batch in batches]),
        torch.cat([batch.lengths_B for batch in batches]),
        torch.cat([pad(batch.targets_BS) for batch in batches]),
        media={"image": Media(items, torch.cat(rows), torch.cat(positions), torch.cat(shown))},
        sources=[source for batch in batches for source in batch.sources],
    )


class Fixed:
    """An endless loader of the same few batches, which keeps its place."""

    def __init__(self, batches):
        self.batches, self.index = batches, 0

    def __iter__(self):
        while True:
            self.index += 1
            yield self.batches[(self.index - 1) % len(self.batches)]

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


def test_accumulated_micro_batches_equal_the_big_batch(run, tiny_batch, tmp_path):
    # Very unequal numbers of targets: a mean of means would be off.
    parts = [tiny_batch(1, rows=1), tiny_batch(2, rows=6), tiny_batch(3, rows=2)]
    counts = [int(batch.targets_BS.sum()) for batch in parts]
    assert max(counts) > 3 * min(counts)
    # A large eps keeps the update smooth in the gradient, so that rounding stays rounding.
    settings = {"num_steps": 3, "lr": 1e-2, "eps": 1e-2, "clip_norm": 0.1, "warmup_steps": 0}
    run("cut", loader=Fixed(parts), accumulate=3, **settings)
    run("whole", loader=Fixed([join(parts)]), **settings)
    cut, whole = read_metrics(tmp_path / "cut/metrics.jsonl"), read_metrics(tmp_path / "whole/metrics.jsonl")
    for one, other in zip(cut, whole, strict=True):
        assert one["targets"] == other["targets"] == sum(counts)
        for key in ("loss", "grad_norm", "accuracy"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
    for name, tensor in weights(tmp_path / "cut").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "whole")[name], rtol=1e-4, atol=2e-6)


def test_gradients_of_micro_batches_are_those_of_the_big_batch(tiny_model, tiny_batch):
    from mm_llama.stages.loop import forward_backward

    parts = [tiny_batch(1, rows=1), tiny_batch(2, rows=6), tiny_batch(3, rows=2)]

    def gradients(batches):
        model = tiny_model()
        freeze(model, ADAPTER)
        forward_backward(model, next_token, batches)
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    whole = gradients([join(parts)])
    for name, gradient in gradients(parts).items():
        torch.testing.assert_close(
            gradient, whole[name], rtol=1e-4, atol=1e-6 * float(whole[name].abs().max())
        )


def test_rows_without_media_count_in_the_loss_and_need_no_gradient(run, tiny_batch, tmp_path):
    text, shown = tiny_batch(1, media=False), tiny_batch(2)
    run(loader=Fixed([text, shown]), accumulate=2, num_steps=2)
    record = read_metrics(tmp_path / "image/metrics.jsonl")[0]
    assert record["samples"] == 8
    assert record["targets"] == int(text.targets_BS.sum() + shown.targets_BS.sum())


def test_the_metrics_of_a_step_are_means_over_its_targets(run, tiny_batch):
    def step(model, batch):
        output = next_token(model, batch)
        return StepOutput(output.loss_sum, output.num_targets, {"count": float(output.num_targets)})

    parts = [tiny_batch(1, rows=1), tiny_batch(2, rows=6)]
    first, second = (int(batch.targets_BS.sum()) for batch in parts)
    summary = run(loader=Fixed(parts), step=step, num_steps=2, accumulate=2)
    assert summary.final["count"] == pytest.approx((first**2 + second**2) / (first + second))


# --- continuing ---


@pytest.mark.parametrize("train_what", [ADAPTER, ["modality.image"]])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_and_continued_run_equals_an_unbroken_one(run, tmp_path, stop_after, train_what):
    # With the encoder training, its dropout draws from the global generator and its statistics move.
    settings = {"train": train_what, "accumulate": 2, "num_steps": 6}
    whole = run("whole", **settings)
    part = run("parts", stop_after=stop_after, **settings)
    assert (part.step, part.finished) == (stop_after, False)
    torch.rand(7), torch.manual_seed(99)  # another process starts elsewhere
    parts = run("parts", **settings)
    assert parts.finished and parts.step == 6
    unbroken, continued = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [exact_record(record) for record in continued] == [exact_record(record) for record in unbroken]
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert exact_record(parts.final) == exact_record(whole.final)


def test_a_crash_goes_on_from_the_last_checkpoint_and_no_step_appears_twice(run, tiny_loader, tmp_path):
    run("whole")
    with pytest.raises(OSError, match="the disk went away"):
        run("crashed", loader=tiny_loader(fail_at=5))
    assert [record["step"] for record in read_metrics(tmp_path / "crashed/metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert newest_checkpoint(tmp_path / "crashed").name == "step_00000004"
    with open(tmp_path / "crashed/metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # the crash cut a line short
    run("crashed")
    whole, crashed = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "crashed"))
    assert [exact_record(record) for record in crashed] == [exact_record(record) for record in whole]
    assert same(weights(tmp_path / "crashed"), weights(tmp_path / "whole"))


def test_a_damaged_newest_checkpoint_costs_steps_and_not_the_run(run, tmp_path):
    run("whole")
    run("damaged", stop_after=5)
    (tmp_path / "damaged/checkpoints/step_00000005/state.json").write_text("{")
    run("damaged")
    assert same(weights(tmp_path / "damaged"), weights(tmp_path / "whole"))
    assert [record["step"] for record in read_metrics(tmp_path / "damaged/metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_the_same_command_after_the_end_changes_nothing(run, tmp_path):
    first = run()
    files = {
        path: path.read_bytes()
        for path in (tmp_path / "image").rglob("*.*[ln]")
        if path.name != "summary.json"
    }
    again = run()
    assert again.step == 6 and again.finished and again.final == first.final
    assert 0.5 * first.minutes < again.minutes
    assert {path: path.read_bytes() for path in files} == files
    assert all(row.after is not None for row in again.table.rows)


def test_a_finished_run_can_be_given_more_steps(run, tmp_path):
    config = {"stage": {"num_steps": 4}, "optim": {"lr": 1e-3}}
    run(num_steps=4, config=config)
    assert run(num_steps=6, config=config | {"stage": {"num_steps": 6}}).step == 6
    assert [record["step"] for record in read_metrics(tmp_path / "image/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_another_config_in_the_same_folder_is_refused_by_key(run):
    run(config={"optim": {"lr": 1e-3}, "stage": {"num_steps": 6}, "betas": (0.9, 0.98)}, num_steps=2)
    with pytest.raises(
        ValueError, match=r"begun with another config: optim\.lr=0\.002 \(was 0\.001\); continue"
    ):
        run(config={"optim": {"lr": 2e-3}, "stage": {"num_steps": 9}, "betas": [0.9, 0.98]})


def test_a_group_that_holds_nothing_is_one_that_was_not_there(run):
    config = {"modality": {"image": {"width": 8}}, "stage": {"num_steps": 4}}
    run(config=config, num_steps=2)
    assert run(config=config | {"modality": {"image": {"width": 8}, "voice": {}}}, num_steps=4).step == 4
    with pytest.raises(ValueError, match=r"begun with another config: modality\.voice\.width=8 \(was None\)"):
        run(config=config | {"modality": {"image": {"width": 8}, "voice": {"width": 8}}}, num_steps=6)


def test_resume_must_and_never(run):
    with pytest.raises(ValueError, match=r"stage\.resume=must, but .*image holds no valid checkpoint"):
        run(resume="must")
    run(resume="never", stop_after=2)
    with pytest.raises(ValueError, match=r"stage\.resume=never, but .*image holds step_00000002"):
        run(resume="never")
    assert run(resume="must").finished


def test_an_explicit_resume_goes_on_from_another_run(run, tmp_path):
    run("whole")
    run("first", stop_after=3)
    run("second", resume=str(tmp_path / "first"))
    assert same(weights(tmp_path / "second"), weights(tmp_path / "whole"))
    assert [record["step"] for record in read_metrics(tmp_path / "second/metrics.jsonl")] == [4, 5, 6]
    assert newest_checkpoint(tmp_path / "first").name == "step_00000003"
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        run("third", resume=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_finishes_the_step_saves_and_leaves_with_75(run, tmp_path, name):
    run("whole")
    calls = []

    def step(model, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), getattr(signal, name))
        return next_token(model, batch)

    handler = signal.getsignal(getattr(signal, name))
    stream = io.StringIO()
    with pytest.raises(SystemExit) as left:
        run("told", step=step, stream=stream)
    assert left.value.code == 75
    assert signal.getsignal(getattr(signal, name)) is handler
    assert f"{name}: saved after step 3 of 6; the same command continues" in stream.getvalue()
    assert json.loads((tmp_path / "told/summary.json").read_text())["finished"] is False
    run("told")
    assert same(weights(tmp_path / "told"), weights(tmp_path / "whole"))


# --- stages build on stages ---


def test_init_loads_earlier_adapters_and_keeps_their_lineage(run, tiny_model, tmp_path):
    run("first")
    before = weights(tmp_path / "first")
    model = tiny_model(seed=0, gate=0.1)
    summary = run(
        "second", model=model, init={"image": tmp_path / "first"}, lr=1e-6, name="image_sft", num_steps=2
    )
    for name, tensor in weights(tmp_path / "second").items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-3)
    stages = [entry["stage"] for entry in read_state(summary.checkpoint)["lineage"]]
    assert stages == ["stage", "image_sft"]
    again = run("second", init={"image": tmp_path / "first"}, lr=1e-6, name="image_sft", num_steps=3)
    assert [entry["stage"] for entry in read_state(again.checkpoint)["lineage"]] == stages


def test_init_of_the_wrong_kind_is_refused(run, tmp_path):
    run("first", num_steps=2)
    with pytest.raises(ValueError, match=r"stage\.init\.video=.*first holds \['modality\.image\.adapter'\]"):
        run("second", init={"video": tmp_path / "first"})


def test_a_run_continues_beside_a_frozen_part_that_init_brings(run, tmp_path):
    blocks, projection = ["modality.image.adapter.blocks"], ["modality.image.adapter.projection"]
    run("first", train=blocks)
    settings = {"train": projection, "init": {"image": tmp_path / "first"}}
    run("whole", **settings)
    run("parts", stop_after=3, **settings)
    run("parts", **settings)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    with pytest.raises(
        ValueError, match=r"was made with other frozen tensors: modality\.image\.adapter\.blocks\.0"
    ):
        run("whole", train=projection, num_steps=8)  # without init, the blocks are fresh ones


# --- what may not happen ---


def tampering(target, at):
    """A step that writes to a tensor it must not touch."""
    calls = []

    def step(model, batch):
        calls.append(batch)
        if len(calls) == at:
            model.get_parameter(target).data.flatten()[0] += 1
        return next_token(model, batch)

    return step


def test_a_stage_that_changes_the_core_fails_and_saves_nothing_more(run, tmp_path):
    with pytest.raises(
        FrozenChanged, match=r"1 frozen tensors changed.*core\.layers\.3\.feed_forward\.up\.weight"
    ):
        run(step=tampering("core.layers.3.feed_forward.up.weight", at=4))
    assert newest_checkpoint(tmp_path / "image").name == "step_00000002"
    assert not (tmp_path / "image/summary.json").exists()


def test_a_stage_that_leaves_a_declared_tensor_untouched_fails(run, tiny_loader, tmp_path):
    # Without media nothing reaches the adapter at all.
    with pytest.raises(FrozenChanged, match=r"30 of 30 trainable tensors did not change"):
        run(loader=tiny_loader(media=False), save_every=0)
    assert newest_checkpoint(tmp_path / "image") is None


def test_from_closed_gates_everything_moves_within_two_steps_and_one_step_passes(run, tiny_model):
    run("one", model=tiny_model(gate=0.0), num_steps=1)
    run("two", model=tiny_model(gate=0.0), num_steps=2)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(run, tiny_batch, tmp_path):
    bad = tiny_batch(3)
    for item in bad.media["image"].items:
        item[0, 0, 0] = math.inf
    loader = Fixed([tiny_batch(1), tiny_batch(2), tiny_batch(4), tiny_batch(5), tiny_batch(6), bad])
    with pytest.raises(
        NonFinite,
        match=r"stopped before update 3: the loss is not finite in a batch with rows3\.jsonl:1.*step_00000002",
    ):
        run(loader=loader, accumulate=2)
    assert newest_checkpoint(tmp_path / "image").name == "step_00000002"
    assert [record["step"] for record in read_metrics(tmp_path / "image/metrics.jsonl")] == [1, 2]


def test_a_gradient_that_is_not_finite_stops_before_the_update(run, tmp_path):
    calls = []

    def step(model, batch):
        calls.append(batch)
        output = next_token(model, batch)
        gate = model.modality["image"].adapter.blocks[0].attention_gate
        if len(calls) == 3:  # the value is zero and its slope is infinite
            output.loss_sum = output.loss_sum + (gate - gate.detach()).abs().sqrt().sum()
        return output

    with pytest.raises(
        NonFinite, match=r"before update 3: the gradient norm is nan .*rows3\.jsonl:1.*step_00000002"
    ):
        run(step=step)
    assert newest_checkpoint(tmp_path / "image").name == "step_00000002"


def test_a_step_without_targets_is_an_error(run, tiny_batch):
    batch = tiny_batch(1)
    batch.targets_BS[:] = False
    with pytest.raises(ValueError, match=r"no row of this step has targets: rows1\.jsonl:1, rows1\.jsonl:2"):
        run(loader=Fixed([batch]))


def test_data_that_end_are_an_error(run, tiny_batch):
    class Ending(Fixed):
        def __iter__(self):
            return iter(self.batches)

    with pytest.raises(ValueError, match=r"the data ended after step 1"):
        run(loader=Ending([tiny_batch(1)]))


@pytest.mark.parametrize("key", ["num_steps", "accumulate"])
def test_counts_below_one_are_errors(run, key):
    with pytest.raises(ValueError, match=r"stage\.num_steps and stage\.accumulate must be at least 1"):
        run(**{key: 0})


# --- evaluation and modes ---


def test_evaluation_runs_on_time_in_eval_mode_and_disturbs_nothing(run, tmp_path):
    train_what = ["modality.image"]  # dropout draws from the global generator
    modes = []

    def evaluate(model):
        modes.append((model.modality["image"].encoder.dropout.training, torch.is_grad_enabled()))
        return {"score": torch.rand(()).item()}

    run("plain", train=train_what)
    run("evaluated", train=train_what, eval_fn=evaluate, eval_every=4)
    assert modes == [(False, False), (False, False)]
    records = read_metrics(tmp_path / "evaluated/metrics.jsonl")
    assert [record["step"] for record in records if "eval.score" in record] == [4, 6]
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "evaluated"))


def test_frozen_modules_are_in_eval_during_steps_and_trained_ones_in_train(run):
    seen = set()

    def step(model, batch):
        image = model.modality["image"]
        seen.add((model.core.training, image.encoder.norm.training, image.adapter.training))
        return next_token(model, batch)

    run(step=step, eval_fn=lambda model: {"x": 0.0}, eval_every=1)
    assert seen == {(False, False, True)}


def test_bfloat16_compute_keeps_float32_masters(run, tiny_model, tmp_path):
    summary = run(model=tiny_model(dtype=torch.bfloat16), lr=1e-4)
    assert {tensor.dtype for tensor in weights(tmp_path / "image").values()} == {torch.float32}
    core = next(row for row in summary.table.rows if row.group == "core")
    assert core.dtype == "bfloat16" and core.before == core.after


def test_training_lowers_the_loss(run, tiny_batch, tmp_path):
    run(loader=Fixed([tiny_batch(1)]), num_steps=60, lr=2e-2, schedule="constant", save_every=0)
    records = read_metrics(tmp_path / "image/metrics.jsonl")
    # The tiny core's logits are at most about 0.6 in size, so its loss cannot fall by more.
    assert records[-1]["loss"] < records[0]["loss"] - 0.3
    assert records[-1]["accuracy"] > records[0]["accuracy"] + 0.5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_real_loader_goes_on_exactly_where_the_checkpoint_stood(run, tiny_model, tmp_path, num_workers):
    from mm_llama.core.chat import chat_format
    from mm_llama.data.loader import Loader
    from mm_llama.data.mix import Mixture
    from mm_llama.data.sources import ChatRows
    from mm_llama.testing.bytes_tokenizer import BytesTokenizer

    tokenizer = BytesTokenizer()

    def turns(index):
        question = {"role": "user", "content": [{"type": "text", "text": "?" * (index % 5 + 1)}]}
        return [question, {"role": "assistant", "content": "ab" * (index % 3 + 1)}]

    rows = ChatRows([turns(index) for index in range(11)], name="rows")

    def loader(workers):
        mixture = Mixture([rows], seed=4)
        return Loader(
            mixture, chat_format("llama3", tokenizer), batch_size=3, bucket_batches=2, num_workers=workers
        )

    settings = {"train": ["core.layers.3"], "accumulate": 2, "num_steps": 5}  # past the end of an epoch
    vocab_size = tokenizer.vocab_size
    run("whole", model=tiny_model(vocab_size=vocab_size), loader=loader(0), **settings)
    run(
        "parts", model=tiny_model(vocab_size=vocab_size), loader=loader(num_workers), stop_after=2, **settings
    )
    run("parts", model=tiny_model(vocab_size=vocab_size), loader=loader(num_workers), **settings)
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [exact_record(record) for record in parts] == [exact_record(record) for record in whole]
    assert whole[-1]["epoch"] > 0
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_change_is_judged_from_where_the_run_began(run, tiny_model):
    began = run(stop_after=2).table.rows[-1]
    continued = run(model=tiny_model(gate=0.3)).table.rows[-1]
    assert continued.trained and continued.before == began.before != continued.after
