"""The normaliser depends on what it may depend on and on nothing else: context, core states, other texts, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.tts_normalization import Normalizer, Reading

DIM, RULES, CONTEXT = 24, 7, 2


def make(**options: Any) -> Normalizer:
    made = Normalizer(DIM, RULES, width=16, num_heads=2, num_features=50, context=CONTEXT, reach=3, **options)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in made.parameters():
            if weight.ndim == 1:  # norms and biases away from their first values
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def texts(*lengths: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Features of texts, two core positions a token or one, the token in which each ends."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randint(0, 50, (count, 4), generator=generator) for count in lengths]
    owners = [
        torch.tensor([token for token in range(count) for _ in range(1 + token % 2)]) for count in lengths
    ]
    states = [torch.randn(len(part), DIM, generator=generator) for part in owners]
    return features, states, owners


@pytest.mark.parametrize("options", [{}, {"uses_core": False}, {"uses_core": False, "whole": True}])
def test_a_text_alone_is_the_text_among_others(options: dict[str, Any]) -> None:
    normalizer, (features, states, owners) = make(**options), texts(9, 1, 4)
    with torch.inference_mode():
        together = normalizer(features, states, owners)
        for place, found in enumerate(together):
            (alone,) = normalizer([features[place]], [states[place]], [owners[place]])
            assert found.shape == (len(features[place]), RULES) and found.dtype == torch.float32
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_a_rule_depends_on_the_tokens_of_its_context_and_on_none_behind_it() -> None:
    normalizer, (features, states, owners) = make(), texts(9)
    changed = features[0].clone()
    changed[6] = (changed[6] + 1) % 50
    with torch.inference_mode():
        (before,), (after,) = normalizer(features, states, owners), normalizer([changed], states, owners)
    differs = (before != after).any(-1)
    assert not differs[: 6 - CONTEXT].any() and differs[6 - CONTEXT :].all()


def test_a_state_is_seen_from_the_token_on_that_has_it_in_its_context() -> None:
    normalizer, (features, states, owners) = make(), texts(9)
    changed = states[0].clone()
    changed[owners[0] == 5] += 1
    with torch.inference_mode():
        (before,), (after,) = normalizer(features, states, owners), normalizer(features, [changed], owners)
    differs = (before != after).any(-1)
    assert not differs[: 5 - CONTEXT].any() and differs[5 - CONTEXT :].all()


def test_what_streams_is_the_beginning_of_the_whole() -> None:
    """A text that is still being written gets the rules that it will keep, up to its context."""
    normalizer, (features, states, owners) = make(), texts(9)
    with torch.inference_mode():
        (whole,) = normalizer(features, states, owners)
        for count in range(CONTEXT + 1, 9):
            known = owners[0] < count
            (part,) = normalizer([features[0][:count]], [states[0][known]], [owners[0][known]])
            torch.testing.assert_close(
                part[: count - CONTEXT], whole[: count - CONTEXT], rtol=1e-5, atol=1e-6
            )


def test_the_whole_text_is_read_backwards_too() -> None:
    normalizer, (features, _, _) = make(uses_core=False, whole=True), texts(9)
    changed = features[0].clone()
    changed[8] = (changed[8] + 1) % 50
    with torch.inference_mode():
        (before,), (after,) = normalizer(features), normalizer([changed])
    assert (before != after).any(-1).all()


def test_words_are_hidden_in_training_alone() -> None:
    normalizer, (features, states, owners) = make(dropout=0.0, num_spelling=4, hide=0.5), texts(9)
    with torch.inference_mode():
        (kept,) = normalizer(features, states, owners)
        normalizer.train()
        torch.manual_seed(0)
        (hidden,) = normalizer(features, states, owners)
    assert not torch.equal(kept, hidden)


def test_every_parameter_learns() -> None:
    normalizer, (features, states, owners) = make().train(), texts(9, 4)
    torch.cat(normalizer(features, states, owners)).square().sum().backward()
    assert [name for name, weight in normalizer.named_parameters() if weight.grad is None] == []


def test_what_cannot_be_is_refused() -> None:
    features, states, owners = texts(3)
    with pytest.raises(ValueError, match="looks at the core"):
        make()(features)
    with pytest.raises(ValueError, match=r"int64\[tokens, features\], but these are \[0, 4\]"):
        make()([features[0][:0]], states, owners)
    with pytest.raises(ValueError, match="does not give 3 heads"):
        Normalizer(DIM, RULES, width=16, num_heads=3)
    with pytest.raises(ValueError, match="context=-1 is not below 0"):
        Normalizer(DIM, RULES, context=-1)


@pytest.mark.parametrize("options", [{}, {"uses_core": False}, {"memory": 2}])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_a_text_in_pieces_is_read_as_the_whole(options: dict[str, Any], step: int) -> None:
    normalizer, (features, states, owners) = make(**options), texts(9)
    kept, parts = Reading(), []
    with torch.inference_mode():
        (whole,) = normalizer(features, states, owners)
        for first in range(0, 9, step):
            here = (owners[0] >= first) & (owners[0] < first + step)
            given = features[0][first : first + step], states[0][here], owners[0][here].tolist()
            parts.append(normalizer.more(kept, *given, last=first + step >= 9))
    assert step == 20 or len(parts[0]) == max(0, step - CONTEXT)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    if options.get("memory"):
        assert len(kept.owners) < 9  # what is far behind is not kept


def test_memory_is_how_far_behind_a_state_is_seen() -> None:
    normalizer, (features, states, owners) = make(memory=2), texts(9)
    changed = states[0].clone()
    changed[owners[0] == 3] += 1
    with torch.inference_mode():
        (before,), (after,) = normalizer(features, states, owners), normalizer(features, [changed], owners)
    differs = (before != after).any(-1)
    assert differs[3 - CONTEXT : 6].all() and not differs[6:].any()


def test_what_cannot_be_read_in_pieces_is_refused() -> None:
    features, states, _ = texts(3)
    with pytest.raises(ValueError, match="from both its ends"):
        make(uses_core=False, whole=True).more(Reading(), features[0])
    with pytest.raises(ValueError, match="looks at the core"):
        make().more(Reading(), features[0], states[0], [0])
