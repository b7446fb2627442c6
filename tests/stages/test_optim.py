"""Groups, schedules as pure functions of the step, and no update on anything that is not finite."""

import math

import pytest
import torch
from torch import nn

from mm_llama.stages.freeze import freeze
from mm_llama.stages.optim import NonFinite, adamw, clip_gradients, schedule_factor, set_lr


def trained(model, *prefixes):
    freeze(model, prefixes)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_trained_parameter_is_in_one_group_and_no_other_is(tiny_model):
    parameters = trained(tiny_model(num_positions=4), "modality.image.adapter")
    optimizer = adamw(
        parameters, lr=1e-3, weight_decay=0.1, gate_lr_multiple=10, no_decay=["adapter.positions"]
    )
    groups = {group["group"]: group for group in optimizer.param_groups}
    assert sorted(name for group in groups.values() for name in group["names"]) == sorted(parameters)
    for group in groups.values():
        assert [parameters[name] is p for name, p in zip(group["names"], group["params"], strict=True)]
    gates = [name for name in parameters if name.endswith("_gate")]
    assert len(gates) == 4 and groups["gates"]["names"] == gates
    assert groups["gates"]["base_lr"] == pytest.approx(1e-2) and groups["gates"]["weight_decay"] == 0
    assert groups["decayed"]["weight_decay"] == 0.1 and groups["not_decayed"]["weight_decay"] == 0
    assert all(parameters[name].ndim == 2 for name in groups["decayed"]["names"])
    assert "modality.image.adapter.positions" in groups["not_decayed"]["names"]
    # The feed-forward's gate projection is a matrix like any other, not a gate.
    assert "modality.image.adapter.blocks.0.feed_forward.gate.weight" in groups["decayed"]["names"]


def test_a_listed_gate_joins_the_gates(tiny_model):
    parameters = trained(tiny_model(), "modality.image.adapter")
    optimizer = adamw(parameters, gates=["projection.bias"])
    groups = {group["group"]: group["names"] for group in optimizer.param_groups}
    assert "modality.image.adapter.projection.bias" in groups["gates"]


@pytest.mark.parametrize("key", ["gates", "no_decay"])
def test_a_listed_name_that_is_no_parameter_is_an_error(tiny_model, key):
    parameters = trained(tiny_model(), "modality.image.adapter")
    with pytest.raises(ValueError, match=rf"optim\.{key} lists 'placeholdr', .*near: .*placeholder"):
        adamw(parameters, **{key: ["placeholdr"]})


def test_masters_must_be_float32(tiny_model):
    model = tiny_model()
    model.modality["image"].adapter.to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"modality\.image\.adapter\.placeholder is to be trained but is bfloat16"
    ):
        adamw(trained(model, "modality.image.adapter"))


def test_decay_pulls_matrices_and_leaves_gates_and_norms(tiny_model):
    parameters = trained(tiny_model(), "modality.image.adapter")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = adamw(parameters, lr=0.1, weight_decay=0.5)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        kept = 1.0 if parameter.ndim == 1 else 0.95
        torch.testing.assert_close(parameter.detach(), kept * before[name])


def test_set_lr_scales_each_group_from_its_own_rate(tiny_model):
    optimizer = adamw(trained(tiny_model(), "modality.image.adapter"), lr=2e-3, gate_lr_multiple=5)
    assert set_lr(optimizer, 0.25) == pytest.approx(5e-4)
    assert set_lr(optimizer, 0.5) == pytest.approx(1e-3)  # not compounded
    rates = {group["group"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"decayed": 1e-3, "not_decayed": 1e-3, "gates": 5e-3})


def test_cosine_schedule_against_its_formula():
    factor = schedule_factor("cosine", warmup_steps=4, final_fraction=0.1)
    assert [factor(step, 20) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4, 20) == 1.0
    assert factor(12, 20) == pytest.approx(0.55)
    assert factor(16, 20) == pytest.approx(0.1 + 0.45 * (1 + math.cos(0.75 * math.pi)))
    assert factor(20, 20) == pytest.approx(0.1)


def test_linear_and_constant_schedules():
    linear = schedule_factor("linear", warmup_steps=0, final_fraction=0.5)
    assert [linear(step, 4) for step in range(5)] == pytest.approx([1, 0.875, 0.75, 0.625, 0.5])
    constant = schedule_factor("constant", warmup_steps=1)
    assert [constant(step, 4) for step in range(4)] == [0.5, 1, 1, 1]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_no_step_is_spent_at_a_rate_of_zero(kind):
    for warmup, num_steps in [(0, 1), (3, 3), (5, 4), (2, 50)]:
        factor = schedule_factor(kind, warmup_steps=warmup)
        assert all(0 < factor(step, num_steps) <= 1 for step in range(num_steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosin"}, r"optim\.schedule must be cosine, linear or constant, not 'cosin'"),
        ({"final_fraction": 1.5}, r"optim\.final_fraction must lie in \[0, 1\], not 1\.5"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps must not be negative, got -1"),
    ],
)
def test_schedule_settings_that_make_no_sense_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        schedule_factor(**settings)


def gradients(*values):
    parameters = {f"p{i}": nn.Parameter(torch.zeros(len(value))) for i, value in enumerate(values)}
    for parameter, value in zip(parameters.values(), values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


def test_clipping_is_by_the_global_norm():
    parameters = gradients([3.0, 0.0], [0.0, 4.0])
    parameters["unused"] = nn.Parameter(torch.zeros(1))
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameters["p0"].grad, torch.tensor([0.6, 0.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(parameters["p1"].grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)


def test_gradients_below_the_limit_are_left_to_the_bit():
    parameters = gradients([0.3, 0.1])
    assert clip_gradients(parameters, 1.0) == pytest.approx(math.sqrt(0.1))
    assert torch.equal(parameters["p0"].grad, torch.tensor([0.3, 0.1]))
    parameters = gradients([30.0, 10.0])
    clip_gradients(parameters, 0)  # 0: measure only
    assert torch.equal(parameters["p0"].grad, torch.tensor([30.0, 10.0]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_name_and_left_alone(value):
    parameters = gradients([3.0, 4.0], [1.0, value])
    with pytest.raises(NonFinite, match=r"the gradient norm is (nan|inf) \(from p1\)"):
        clip_gradients(parameters, 1.0)
    assert torch.equal(parameters["p0"].grad, torch.tensor([3.0, 4.0]))
