"""The contrastive step: open formulas, the same loss on one process and on two, duplicates, one loop, a real chain."""

import json
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from mm_llama.batch import Batch, Media
from mm_llama.build import compose_config, load_model
from mm_llama.core.digest import digest_tensors
from mm_llama.stage_run import run_stage
from mm_llama.stages.contrastive import (
    Contrastive,
    content_key,
    pairs,
    retrieval,
    sigmoid_loss,
    softmax_loss,
)

J = 6


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(G, seed=0, **alike):
    """Unit vectors of pictures and captions, and keys; `alike` gives (picture, picture) or (caption, caption) pairs."""
    keys = torch.arange(2 * G).view(G, 2)
    for side, (one, other) in alike.items():
        keys[one, {"picture": 0, "caption": 1}[side]] = keys[other, {"picture": 0, "caption": 1}[side]]
    return F.normalize(randn(G, J, seed=seed), dim=1), F.normalize(randn(G, J, seed=seed + 1), dim=1), keys


def open_softmax(pictures, captions, allowed, scale):
    """Term by term: each row among those it may be held against."""
    total = 0.0
    for own in range(len(pictures)):
        for mine, theirs in ((pictures, captions), (captions, pictures)):
            scores = [float(scale * mine[own] @ theirs[j]) for j in range(len(theirs)) if allowed(own, j)]
            total += 0.5 * (math.log(sum(map(math.exp, scores))) - float(scale * mine[own] @ theirs[own]))
    return total


def open_sigmoid(pictures, captions, allowed, scale, bias):
    total = 0.0
    for i in range(len(pictures)):
        for j in range(len(captions)):
            if allowed(i, j):
                z = float(scale * pictures[i] @ captions[j] + bias)
                total += math.log1p(math.exp(-z if i == j else z))
    return total


def assert_near(loss, expected):
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(expected, rel=1e-6)


SCALE, BIAS = torch.tensor([4.0]), torch.tensor([-1.5])
DUPLICATES = {(0, 3), (3, 0), (2, 4), (4, 2)}


@pytest.mark.parametrize("with_duplicates", [False, True])
def test_losses_equal_the_open_formulas(with_duplicates):
    pictures, captions, keys = rows(6, **({"picture": (0, 3), "caption": (2, 4)} if with_duplicates else {}))

    def allowed(i, j):
        return not with_duplicates or (i, j) not in DUPLICATES

    loss, right = softmax_loss(pictures, captions, keys, SCALE)
    assert_near(loss, open_softmax(pictures, captions, allowed, SCALE))
    products = pictures @ captions.T
    expected = sum(
        max((float(products[i, j]), j) for j in range(6) if allowed(i, j))[1] == i for i in range(6)
    )
    assert int(right) == expected
    loss, right = sigmoid_loss(pictures, captions, keys, SCALE, BIAS)
    assert_near(loss, open_sigmoid(pictures, captions, allowed, SCALE, BIAS))
    assert int(right) == expected


def test_a_row_alone_has_nothing_to_choose_from():
    pictures, captions, keys = rows(1)
    assert float(softmax_loss(pictures, captions, keys, SCALE)[0]) == 0
    assert float(sigmoid_loss(pictures, captions, keys, SCALE, BIAS)[0]) > 0


def losses_and_gradients(pictures, captions, keys):
    """Both losses and the gradients of every leaf, by name."""
    found = {}
    for name, loss in (("softmax", softmax_loss), ("sigmoid", sigmoid_loss)):
        leaves = [t.clone().requires_grad_() for t in (pictures, captions, SCALE, BIAS)]
        extra = leaves[3:] if name == "sigmoid" else []
        value, right = loss(leaves[0], leaves[1], keys, leaves[2], *extra)
        value.backward()
        found[name] = [value.detach(), right, *(leaf.grad for leaf in leaves[: 3 + len(extra)])]
    return found


def shared_out(rank, sizes, folder):
    """One rank's part of the batch; what it finds goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(sizes))
    try:
        start = sum(sizes[:rank])
        part = [t[start : start + sizes[rank]] for t in rows(sum(sizes), picture=(0, 3), caption=(2, 4))]
        torch.save(losses_and_gradients(*part), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2)])
def test_two_processes_find_the_loss_and_gradients_of_one(sizes, tmp_path):
    multiprocessing.spawn(shared_out, (sizes, tmp_path), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = losses_and_gradients(*rows(6, picture=(0, 3), caption=(2, 4)))
    for name, (loss, right, pictures, captions, *scalars) in whole.items():
        one, two = (part[name] for part in parts)
        torch.testing.assert_close(one[0] + two[0], loss, rtol=1e-6, atol=1e-6)
        assert one[1] + two[1] == right
        # Rows of a rank get their whole gradient there; what all ranks share is summed over them.
        torch.testing.assert_close(torch.cat([one[2], two[2]]), pictures, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.cat([one[3], two[3]]), captions, rtol=1e-6, atol=1e-6)
        for ours, others, expected in zip(one[4:], two[4:], scalars, strict=True):
            torch.testing.assert_close(ours + others, expected, rtol=1e-6, atol=1e-6)


# --- rows ---


def make_batch(captions, items, shown, kind="image"):
    """Rows `[7, placeholder, caption...]` whose caption is the targets; `shown[row]` lists items."""
    S = 2 + max(map(len, captions))
    tokens, targets = (
        torch.zeros(len(captions), S, dtype=torch.long),
        torch.zeros(len(captions), S, dtype=torch.bool),
    )
    for row, caption in enumerate(captions):
        tokens[row, 0] = 7
        tokens[row, 2 : 2 + len(caption)] = torch.tensor(caption)
        targets[row, 2 : 2 + len(caption)] = True
    placed = [(row, item) for row, row_items in enumerate(shown) for item in row_items]
    media = Media(
        items, torch.tensor([r for r, _ in placed]), torch.ones(len(placed), dtype=torch.long),
        torch.tensor([i for _, i in placed]),
    )  # fmt: skip
    lengths = torch.tensor([2 + len(caption) for caption in captions])
    sources = [f"rows.jsonl:{row + 1}" for row in range(len(captions))]
    return Batch(tokens, lengths, targets, media={kind: media} if placed else {}, sources=sources)


def test_captions_are_the_runs_of_targets_and_rows_know_their_items():
    batch = make_batch([[5, 6, 9], [8]], [randn(3, 4, 4), randn(3, 4, 4, seed=1)], [[1], [0]])
    tokens, lengths, items = pairs(batch, "image", 3)
    assert tokens.tolist() == [[5, 6, 9], [8, 0, 0]]
    assert lengths.tolist() == [3, 1] and items.tolist() == [1, 0]


def two_answers(batch):
    batch.targets_BS[0] = torch.tensor([False, True, False, True, True])


@pytest.mark.parametrize(
    ("shown", "change", "message"),
    [
        ([[0], []], None, r"rows.jsonl:2: .* needs one image and one answer.* this row has 0 and 1"),
        ([[], []], None, r"rows.jsonl:1: .* this row has 0 and 1"),
        ([[0, 0], [0]], None, r"rows.jsonl:1: .* this row has 2 and 1"),
        ([[0], [0]], two_answers, r"rows.jsonl:1: .* this row has 1 and 2"),
        ([[0], [0]], lambda b: b.targets_BS[1].fill_(False), r"rows.jsonl:2: .* this row has 1 and 0"),
        ([[0], [0]], lambda b: setattr(b, "documents_BS", b.tokens_BS), r"leave loader.pack off"),
    ],
)
def test_a_row_that_is_no_pair_is_named(shown, change, message):
    batch = make_batch([[5, 6, 9], [8]], [randn(3, 4, 4)], shown)
    if change is not None:
        change(batch)
    with pytest.raises(ValueError, match=message):
        pairs(batch, "image", 3)


def test_a_caption_that_is_too_long_is_named_and_not_cut():
    batch = make_batch([[5], [5, 6, 9]], [randn(3, 4, 4)], [[0], [0]])
    with pytest.raises(
        ValueError, match=r"rows.jsonl:2: the caption has 3 tokens, .*adapter.max_tokens is 2"
    ):
        pairs(batch, "image", 2)


def test_content_keys_follow_the_content_and_nothing_else():
    values = randn(50, 7)
    assert content_key(values) == content_key(values.clone()) == content_key(values.T.contiguous().T)
    changed = values.clone()
    changed[3, 3] += 1e-6
    swapped = values[[1, 0, *range(2, 50)]]
    tokens = [torch.tensor(row) for row in ([1, 2], [2, 1], [1, 2, 0], [3], [0, 0], [0])]
    keys = [
        int(content_key(t)) for t in (values, changed, swapped, *tokens, values.bfloat16(), values.double())
    ]
    assert len(set(keys)) == len(keys)
    many = {int(content_key(torch.tensor([a, b]))) for a in range(100) for b in range(100)}
    assert len(many) == 10_000


# --- retrieval ---


def test_retrieval_counts_distinct_answers_and_every_right_one():
    answers = torch.eye(4)[[0, 1, 2, 3, 0]]  # rows 0 and 4 have one answer
    queries = torch.tensor([[9.0, 8, 0, 0], [9, 8, 0, 0], [0, 0, 9, 8], [0, 0, 9, 8], [1, 0, 0, 9]])
    asked = torch.tensor([10, 10, 12, 13, 14])  # rows 0 and 1 ask the same
    scores = retrieval(queries, answers, asked, torch.tensor([20, 21, 22, 23, 20]))
    assert scores["candidates"] == 4
    assert scores["1"] == pytest.approx(3 / 5)  # rows 0, 1 (whose answer is also row 0's), 2
    assert scores["5"] == 1
    assert scores["chance_1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4 + 1 / 4) / 5)
    assert scores["chance_5"] == 1


def test_chance_of_five_is_that_of_drawing_without_putting_back():
    unit = torch.eye(20)
    scores = retrieval(unit, unit.roll(1, 0), torch.arange(20), torch.arange(20))
    assert scores["1"] == 0 and scores["chance_1"] == pytest.approx(1 / 20)
    assert scores["chance_5"] == pytest.approx(5 / 20)


# --- the stage ---


@pytest.fixture
def captions_file(tmp_path, monkeypatch):
    """Eight captioned pictures, two of them the same picture and two of them of one caption."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    colours = ["red", "green", "blue", "white", "yellow", "black", "gray", "red"]
    for number, colour in enumerate(colours):
        Image.new("RGB", (40 + 20 * (number % 2), 40), colour).save(tmp_path / f"{colour}.png")
    rows = []
    for number, colour in enumerate(colours):
        content = [{"type": "image", "path": f"{colour}.png"}, {"type": "text", "text": "What?"}]
        answer = {"role": "assistant", "content": f"a {colours[max(1, number)]} square"}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def tiny(file, tmp_path, *overrides):
    source = "{_target_: mm_llama.data.sources.JsonlChat, path: " + str(file) + "}"
    return [
        "core=tiny", "data=jsonl", f"data.train.0.source.path={file}", f"+data.eval=[{source}]", "dtype=float32",
        f"runs={tmp_path / 'runs'}", "stage.num_steps=3", "loader.batch_size=8", *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_stage_runs_in_the_one_loop_counts_rows_and_measures_retrieval(loss, captions_file, tmp_path):
    overrides = tiny(captions_file, tmp_path, f"modality.image.adapter.loss={loss}")
    result = run_stage(compose_config("train", ["stage=image_encoder", *overrides]))
    assert result.exit_code == 0 and result.final["step"] == 3
    assert result.final["eval.image_to_text_candidates"] == 7
    assert 0 <= result.final["eval.text_to_image_1"] <= result.final["eval.text_to_image_5"] <= 1
    table = json.loads((result.run_dir / "summary.json").read_text("utf-8"))["freeze"]
    assert {row["group"]: row["trained"] for row in table} == {
        "core": False, "modality.image.encoder": True, "modality.image.adapter": True
    }  # fmt: skip
    assert next(row for row in table if row["group"] == "core")["unchanged"]


def test_duplicates_of_a_batch_are_not_held_against_each_other(captions_file, tmp_path):
    from mm_llama.build import build, build_model, resolve
    from mm_llama.core.chat import chat_format
    from mm_llama.data.samples import make_sample
    from mm_llama.data.sources import JsonlChat
    from mm_llama.stage_run import MediaReader, batches_of

    config = resolve(compose_config("train", ["stage=image_encoder", *tiny(captions_file, tmp_path)]))
    model, tokenizer, chat = build_model(config)
    assert chat_format(chat.name, tokenizer).name == chat.name
    step = build(config["stage"]["step"])
    source = JsonlChat(captions_file)
    samples = [make_sample(source.row(index), chat) for index in range(8)]
    media = MediaReader(model, config["stage"]["train"])
    (batch,) = batches_of(samples, media)
    pictures, captions, keys = step.vectors(model, batch)
    order = {source: row for row, source in enumerate(batch.sources)}
    first, second, last = (order[samples[index].source] for index in (0, 1, 7))
    same_picture = [(i, j) for i in range(8) for j in range(i) if keys[i, 0] == keys[j, 0]]
    same_caption = [(i, j) for i in range(8) for j in range(i) if keys[i, 1] == keys[j, 1]]
    assert same_picture == [tuple(sorted((first, last), reverse=True))]
    assert same_caption == [tuple(sorted((first, second), reverse=True))]
    output = step(model, batch)
    forbidden = {frozenset(pair) for pair in (*same_picture, *same_caption)}
    adapter = model.modality["image"].adapter
    expected = open_softmax(
        pictures, captions, lambda i, j: frozenset((i, j)) not in forbidden, adapter.scale
    )
    assert_near(output.loss_sum, expected)
    assert output.num_targets == step.count(batch) == 8
    # The captions are told by their words and the pictures by their pixels: row by row, alone.
    for row in range(8):
        (alone,) = batches_of([samples[row]], media)
        ours = [vectors[order[samples[row].source]] for vectors in (pictures, captions)]
        for vector, other in zip(ours, step.vectors(model, alone)[:2], strict=True):
            torch.testing.assert_close(vector, other[0], rtol=1e-4, atol=1e-5)


TILES = ("modality/image=tiles_tiny", "modality.image.encoder.tile_size=48")


def test_the_encoder_goes_on_into_adapter_pretraining(captions_file, tmp_path):
    first = run_stage(compose_config("train", ["stage=image_encoder", *tiny(captions_file, tmp_path)]))
    init = f"stage.init={{image.encoder: {first.run_dir}}}"
    whole = tiny(captions_file, tmp_path, *TILES, init, "stage.train=[modality.image]")
    second = run_stage(compose_config("train", ["stage=image_pretrain", *whole]))
    state = json.loads(next(second.run_dir.glob("checkpoints/*/state.json")).read_text("utf-8"))
    assert [stage["stage"] for stage in state["lineage"]] == ["image_encoder", "image_pretrain"]
    assert second.exit_code == 0 and "eval.answers" in second.final


@pytest.mark.slow
def test_a_frozen_encoder_is_the_same_by_init_and_by_weights(captions_file, tmp_path):
    first = run_stage(compose_config("train", ["stage=image_encoder", *tiny(captions_file, tmp_path)]))
    results = []
    for number, start in enumerate(
        (f"stage.init={{image.encoder: {first.run_dir}}}", f"modality.image.encoder.weights={first.run_dir}")
    ):
        frozen = tiny(captions_file, tmp_path, *TILES, start, f"name=frozen{number}")
        run = run_stage(compose_config("train", ["stage=image_pretrain", *frozen])).run_dir
        checkpoint = next(run.glob("checkpoints/step*"))
        state = json.loads((checkpoint / "state.json").read_text("utf-8"))
        tensors = load_file(checkpoint / "adapter.safetensors")
        results.append((state["encoders"]["image"], state["before"], digest_tensors(tensors)))
        # Attached anywhere later, the run brings the encoder that it was trained on.
        attached, _, _ = load_model("tiny", [run])
        assert attached.modality["image"].encoder.digest == state["encoders"]["image"]
    assert results[0] == results[1]


def test_the_same_command_continues_to_the_same_weights(captions_file, tmp_path):
    whole = tiny(captions_file, tmp_path, "name=whole", "stage.save_every=0", "stage.num_steps=4")
    parts = tiny(captions_file, tmp_path, "name=parts", "stage.save_every=2")
    run_stage(compose_config("train", ["stage=image_encoder", *whole, "optim.schedule=constant"]))
    for steps in (2, 4):
        run_stage(
            compose_config(
                "train",
                ["stage=image_encoder", *parts, f"stage.num_steps={steps}", "optim.schedule=constant"],
            )
        )
    one, two = (
        (tmp_path / f"runs/{name}/checkpoints/step_00000004/adapter.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert one == two


def test_a_step_that_counts_wrongly_is_caught(captions_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Contrastive, "count", lambda self, batch: len(batch.tokens_BS) + 1)
    with pytest.raises(AssertionError):
        run_stage(compose_config("train", ["stage=image_encoder", *tiny(captions_file, tmp_path)]))
