"""The contrastive adapter: unit vectors that padding, neighbours and (when causal) later words do not change."""

import math

import pytest
import torch
from torch.nn import functional as F

from adapters.contrastive import ContrastiveAdapter

SIZES = {"encoder_dim": 12, "dim": 20, "joint_dim": 10, "pool_heads": 3}
TEXT = {"text_width": 16, "text_layers": 2, "text_heads": 4, "text_ffn_dim": 24, "max_tokens": 9}


def make(**options):
    adapter = ContrastiveAdapter(**(SIZES | TEXT | options)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif name == "pool.query":
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapter.requires_grad_(False)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [True, False])
def test_captions_are_unit_vectors_that_padding_and_neighbours_do_not_change(causal):
    adapter, lengths = make(causal=causal), torch.tensor([7, 3, 1])
    embeddings = randn(3, 7, 20)
    vectors = adapter.captions(embeddings, lengths)
    assert vectors.shape == (3, 10) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    for row, length in enumerate(lengths.tolist()):
        alone = adapter.captions(embeddings[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(vectors[row], alone[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(vectors[0], vectors[1])


def test_causal_reading_sees_what_came_and_the_other_sees_all():
    changed = randn(1, 6, 20)
    for causal, seen in ((True, {4, 5}), (False, {0, 1, 2, 3, 4, 5})):
        text = make(causal=causal).text
        before = text(randn(1, 6, 20), torch.tensor([6]))
        changed[0, 4] = randn(20, seed=8)
        after = text(changed, torch.tensor([6]))
        assert set((before != after).any(-1)[0].nonzero().flatten().tolist()) == seen


def test_the_order_of_words_matters():
    adapter, embeddings = make(), randn(1, 5, 20)
    swapped = embeddings[:, [1, 0, 2, 3, 4]]
    lengths = torch.tensor([5])
    assert not torch.allclose(
        adapter.captions(embeddings, lengths), adapter.captions(swapped, lengths), atol=1e-3
    )


def test_attention_pool_equals_the_open_formula():
    adapter, features = make(), randn(4, 6, 12)
    q, k, v = adapter.pool.query, features @ adapter.pool.k.weight.T, features @ adapter.pool.v.weight.T
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(k[..., part] @ q[part] / 2, dim=1)
        heads.append((weights[..., None] * v[..., part]).sum(1))
    pooled = torch.cat(heads, dim=1) @ adapter.picture_projection.weight.T
    torch.testing.assert_close(adapter.pictures(features), F.normalize(pooled, dim=1), rtol=1e-5, atol=1e-6)


def test_mean_pool_equals_the_open_formula():
    adapter, features = make(pool="mean"), randn(4, 6, 12)
    pooled = features.mean(1) @ adapter.picture_projection.weight.T
    torch.testing.assert_close(adapter.pictures(features), F.normalize(pooled, dim=1), rtol=1e-5, atol=1e-6)


def test_scale_and_bias_begin_where_their_losses_begin_and_the_scale_is_bounded():
    softmax, sigmoid = make(), make(loss="sigmoid")
    assert float(softmax.scale) == pytest.approx(1 / 0.07) and softmax.bias is None
    assert float(sigmoid.scale) == pytest.approx(10) and float(sigmoid.bias) == -10
    softmax.log_scale.fill_(math.log(1000))
    assert float(softmax.scale) == pytest.approx(100)


def test_every_parameter_reaches_the_vectors():
    for options in ({}, {"loss": "sigmoid", "pool": "mean", "causal": False}):
        adapter = make(**options).requires_grad_(True)
        vectors = (
            adapter.pictures(randn(3, 5, 12)) @ adapter.captions(randn(3, 4, 20), torch.tensor([4, 2, 3])).T
        )
        logits = adapter.scale * vectors + (adapter.bias if adapter.bias is not None else 0)
        (logits * randn(3, 3, seed=5)).sum().backward()
        still = [
            name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-7
        ]
        assert still == []


def test_the_same_seed_draws_the_same_adapter():
    one, two, other = (ContrastiveAdapter(**SIZES, **TEXT, seed=seed) for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same) and not torch.equal(one.text_projection.weight, other.text_projection.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, r"modality.image.adapter.loss must be softmax or sigmoid, not 'hinge'"),
        ({"pool": "max"}, r"modality.image.adapter.pool must be attention or mean, not 'max'"),
        ({"pool_heads": 5}, r"width 12 are not divisible by modality.image.adapter.pool_heads=5"),
        ({"text_heads": 5}, r"text_width is 16, which text_heads=5 does not divide"),
    ],
)
def test_a_wrong_setting_names_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_inputs_say_what_was_expected():
    with pytest.raises(
        ValueError, match=r"features of width 12 \(modality.image.encoder\), but these have 11"
    ):
        make().pictures(randn(1, 2, 11))
    with pytest.raises(
        ValueError, match=r"a caption has 10 tokens, but modality.image.adapter.max_tokens is 9"
    ):
        make().captions(randn(1, 10, 20), torch.tensor([10]))


def test_it_says_that_it_joins_nothing_to_the_core():
    with pytest.raises(ValueError, match=r"holds no adapter for the core: train one .*stage=image_pretrain"):
        make().project(randn(1, 2, 12))
