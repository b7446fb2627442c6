"""The next-token step: targets from the position before, sums that add up, logits only where needed."""

import pytest
import torch
from torch.nn import functional as F

from mm_llama.batch import Batch
from mm_llama.stages.freeze import freeze
from mm_llama.stages.steps import count_targets, cross_entropy, next_token


def test_loss_and_accuracy_equal_those_of_all_logits(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch(1)
    output = next_token(model, batch)
    logits = model(batch.tokens_BS, media=model.attach(batch.media))
    loss, hits = 0.0, 0
    for row, position in batch.targets_BS.nonzero().tolist():
        predicted, label = logits[row, position - 1], batch.tokens_BS[row, position]
        loss += F.cross_entropy(predicted, label).item()
        hits += int(predicted.argmax() == label)
    assert output.num_targets == count_targets(batch) == int(batch.targets_BS.sum())
    assert output.loss_sum.dtype == torch.float32
    assert output.loss_sum.item() == pytest.approx(loss, rel=1e-5)
    assert output.metrics == {"accuracy": hits / output.num_targets}


def test_accuracy_counts_a_model_that_is_right(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch(1)
    logits = model(batch.tokens_BS, media=model.attach(batch.media))
    row, position = batch.targets_BS.nonzero()[-1].tolist()  # nothing after it sees the new token
    batch.targets_BS[:] = False
    batch.targets_BS[row, position] = True
    batch.tokens_BS[row, position] = logits[row, position - 1].argmax()
    assert next_token(model, batch).metrics == {"accuracy": 1.0}


def test_logits_are_made_at_target_positions_only(tiny_model, tiny_batch, monkeypatch):
    model, batch = tiny_model(), tiny_batch(1)
    seen = []
    project = model.core.logits
    monkeypatch.setattr(model.core, "logits", lambda hidden: seen.append(hidden.shape) or project(hidden))
    next_token(model, batch)
    assert seen == [(count_targets(batch), 32)]


@pytest.mark.parametrize("targets_a_chunk", [1, 3, 1000])
def test_chunked_loss_and_gradients_equal_the_whole(tiny_model, targets_a_chunk, monkeypatch):
    core = tiny_model().core
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(10, 32, generator=generator)
    labels = torch.randint(0, 67, (10,), generator=generator)
    labels[[0, 4, 5, 9]] = core.logits(states).argmax(-1)[[0, 4, 5, 9]]

    def run(logits_bytes):
        leaf = states.clone().requires_grad_()
        loss, correct = cross_entropy(core, leaf, labels, logits_bytes=logits_bytes)
        loss.backward()
        return loss.detach(), correct, leaf.grad

    whole = run(10**9)
    seen = []
    project = core.logits
    monkeypatch.setattr(core, "logits", lambda hidden: seen.append(len(hidden)) or project(hidden))
    parts = run(targets_a_chunk * 4 * 67)
    assert max(seen) == min(targets_a_chunk, 10)
    assert parts[1] == whole[1] >= 4
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-6, atol=1e-9)


def test_gradients_reach_what_trains_and_nothing_else(tiny_model, tiny_batch):
    model, batch = tiny_model(), tiny_batch(1)
    freeze(model, ["modality.image.adapter"])
    next_token(model, batch).loss_sum.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {
        name for name, _ in model.named_parameters() if name.startswith("modality.image.adapter.")
    }


def test_a_constant_placeholder_stops_the_backward_pass_at_the_lowest_block(tiny_model, tiny_batch):
    model, batch = tiny_model(train_placeholder=False), tiny_batch(1)
    freeze(model, ["modality.image.adapter"])
    entered = {}
    for index, layer in enumerate(model.core.layers):
        layer.register_forward_pre_hook(
            lambda _, args, index=index: entered.update({index: args[0].requires_grad})
        )
    next_token(model, batch)
    assert entered == {0: False, 1: True, 2: True, 3: True}  # blocks stand before layers 1 and 3


def row(tokens, targets, **more):
    return Batch(
        torch.tensor([tokens]),
        torch.tensor([len(tokens)]),
        torch.tensor([targets]),
        sources=["chat.jsonl:7"],
        **more,
    )


def test_a_target_that_nothing_precedes_is_an_error(tiny_model):
    with pytest.raises(ValueError, match=r"chat\.jsonl:7: its first token is a target"):
        next_token(tiny_model(), row([5, 6, 7], [True, False, True]))


def test_a_target_in_the_padding_is_an_error(tiny_model):
    batch = row([5, 6, 7, 0], [False, True, True, True])
    batch.lengths_B[0] = 3
    with pytest.raises(ValueError, match=r"chat\.jsonl:7: a target lies in the padding"):
        next_token(tiny_model(), batch)


def test_a_target_that_opens_a_packed_document_is_an_error(tiny_model):
    documents = torch.tensor([[0, 0, 1, 1]])
    batch = row([5, 6, 7, 8], [False, True, True, True], documents_BS=documents)
    batch.sources.append("chat.jsonl:8")
    with pytest.raises(ValueError, match=r"chat\.jsonl:8: the first token of a packed document is a target"):
        next_token(tiny_model(), batch)
    next_token(tiny_model(), row([5, 6, 7, 8], [False, True, False, True], documents_BS=documents))


def test_a_placeholder_cannot_be_a_target(tiny_model, tiny_batch):
    batch = tiny_batch(1)
    media = batch.media["image"]
    shown, position = int(media.rows_M[-1]), int(media.positions_M[-1])
    assert position > 0
    batch.targets_BS[shown, position] = True
    with pytest.raises(ValueError, match=rf"rows1\.jsonl:{shown + 1}: a placeholder of image is a target"):
        next_token(tiny_model(), batch)


def test_a_batch_without_targets_is_an_error(tiny_model, tiny_batch):
    batch = tiny_batch(1)
    batch.targets_BS = None
    with pytest.raises(ValueError, match=r"needs targets, but this batch has none"):
        next_token(tiny_model(), batch)
