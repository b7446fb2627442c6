"""Frozen by default, by exact prefixes, and checked by digests."""

import io
import json

import pytest
import torch
from torch import nn

from mm_llama.stages.freeze import FrozenChanged, freeze, set_train_mode, under, verify


def names_that_train(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_exactly_the_parameters_under_the_prefixes_train(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter.blocks.1", "modality.image.adapter.placeholder"])
    wanted = {
        name
        for name, _ in model.named_parameters()
        if name.startswith("modality.image.adapter.blocks.1.") or name == "modality.image.adapter.placeholder"
    }
    assert len(wanted) == 14
    assert names_that_train(model) == wanted == set(table.trainable)


def test_a_later_freeze_forgets_the_earlier_one(tiny_model, tiny_batch):
    model = tiny_model()
    freeze(model, ["core"])
    model.core.embedding.weight.grad = torch.ones_like(model.core.embedding.weight)
    freeze(model, ["modality.image.adapter.projection"])
    assert names_that_train(model) == {
        f"modality.image.adapter.projection.{own}" for own in ("weight", "bias")
    }
    assert model.core.embedding.weight.grad is None


def test_a_prefix_is_whole_words():
    assert under("modality.image.adapter.x", ["modality.image"])
    assert under("modality.image", ["modality.image"])
    assert not under("modality.image2.adapter.x", ["modality.image"])
    assert not under("modality", ["modality.image"])


def test_a_sibling_with_a_longer_name_stays_frozen(tiny_model):
    model = tiny_model()
    model.modality["image2"] = nn.ModuleDict({"adapter": nn.Linear(3, 3)})
    freeze(model, ["modality.image"])
    assert not any(name.startswith("modality.image2.") for name in names_that_train(model))


@pytest.mark.parametrize(
    ("prefix", "near"),
    [
        ("modality.image.adaptor", r"did you mean modality\.image\.adapter"),
        ("modality.image.adapter.block", r"did you mean .*modality\.image\.adapter\.blocks"),
        ("vision", r"there are core, modality\.image\.adapter, modality\.image\.encoder"),
    ],
)
def test_a_prefix_that_matches_nothing_is_an_error_with_near_matches(tiny_model, prefix, near):
    with pytest.raises(ValueError, match=rf"stage\.train prefix '{prefix}' matches no parameter: {near}"):
        freeze(tiny_model(), ["modality.image.adapter", prefix])


@pytest.mark.parametrize("train", [[], "modality.image"])
def test_training_nothing_is_an_error(tiny_model, train):
    with pytest.raises(ValueError, match=r"stage\.train must list at least one prefix"):
        freeze(tiny_model(), train)


def test_frozen_modules_stay_in_eval_and_trained_ones_train(tiny_model):
    model = tiny_model()
    image = model.modality["image"]
    table = freeze(model, ["modality.image.adapter"])
    assert image.adapter.training and image.adapter.blocks[0].attention.q.training
    assert not any(module.training for module in (model.core, image.encoder, image.encoder.norm))
    model.train()
    set_train_mode(model, table)
    assert not image.encoder.dropout.training and image.adapter.projection.training
    assert not any(module.training for module in model.core.modules())


def test_a_module_trains_when_only_one_of_its_own_parameters_does(tiny_model):
    model = tiny_model()
    freeze(model, ["modality.image.encoder.norm.weight"])
    assert model.modality["image"].encoder.norm.training
    assert not model.modality["image"].encoder.dropout.training


def move(parameter):
    with torch.no_grad():
        parameter.flatten()[0] += 1e-3


def test_verify_accepts_a_stage_that_kept_its_declaration(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter"])
    for parameter in model.modality["image"].adapter.parameters():
        move(parameter)
    verify(model, table)
    after = {row["group"]: row["unchanged"] for row in table.to_json()}
    assert after == {"core": True, "modality.image.encoder": True, "modality.image.adapter": False}
    json.dumps(table.to_json())


def test_one_changed_number_of_a_frozen_tensor_is_named(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter"])
    for parameter in model.modality["image"].adapter.parameters():
        move(parameter)
    model.core.layers[2].attention.k.weight.data[1, 2] *= 1.0001  # behind autograd's back
    with pytest.raises(
        FrozenChanged, match=r"1 frozen tensors changed.*core\.layers\.2\.attention\.k\.weight"
    ):
        verify(model, table)
    assert next(row for row in table.to_json() if row["group"] == "core")["unchanged"] is False


def test_batch_statistics_of_a_frozen_encoder_are_frozen_too(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter"])
    model.train()  # what a careless caller does
    model.modality["image"].encoder(torch.randn(2, 3, 8, 8))
    with pytest.raises(
        FrozenChanged, match=r"encoder\.norm\.running_mean.*buffers of a module in train mode"
    ):
        verify(model, table, require_change=False)


def test_a_trainable_tensor_that_did_not_change_is_named(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter"])
    for name, parameter in model.modality["image"].adapter.named_parameters():
        if name != "blocks.1.attention.q_norm.weight":
            move(parameter)
    with pytest.raises(
        FrozenChanged, match=r"1 of 30 trainable tensors did not change: .*blocks\.1\.attention\.q_norm"
    ):
        verify(model, table)
    verify(model, table, require_change=False)


def test_a_half_trained_group_shows_both_halves(tiny_model):
    model = tiny_model()
    table = freeze(model, ["modality.image.adapter.projection"])
    rows = [(row.group, row.trained, row.num_tensors) for row in table.rows]
    assert ("modality.image.adapter", True, 2) in rows
    assert ("modality.image.adapter", False, 28) in rows
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.num_parameters for row in table.rows) == total


def test_the_table_prints_as_text_and_through_rich(tiny_model):
    from rich.console import Console

    table = freeze(tiny_model(), ["modality.image.adapter"])
    text = str(table)
    assert [line.split()[0] for line in text.splitlines()] == [
        "group",
        "core",
        "modality.image.encoder",
        "modality.image.adapter",
    ]
    shown = io.StringIO()
    Console(width=140, file=shown).print(table)
    assert "modality.image.encoder" in shown.getvalue()
