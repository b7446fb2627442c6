"""The prosody model sees what it may see: features before, phones ahead, chunks of the core that have been opened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.tts_prosody import DELAYS, NUM, ProsodyModel, delayed, undelayed

DIM, PHONES, AHEAD, CHUNK = 12, 9, 2, 3


def make(**options: Any) -> ProsodyModel:
    sizes = {
        "width": 12,
        "num_heads": 3,
        "hidden": 16,
        "num_layers": 2,
        "reach": 4,
        "num_styles": 2,
    } | options
    made = ProsodyModel(PHONES, DIM, phones_ahead=AHEAD, chunk=CHUNK, **sizes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in made.parameters():
            if weight.ndim == 1:  # norms and biases away from their first values
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def texts(*lengths: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Phones, features, states of a core token for each two phones, and the token of each phone."""
    generator = torch.Generator().manual_seed(0)
    phones = [torch.randint(0, PHONES, (count,), generator=generator) for count in lengths]
    known = [torch.randn(count, NUM, generator=generator) for count in lengths]
    for one in known:
        one[:, 2] = (one[:, 2] > 0).float()
    states = [torch.randn(-(-count // 2), DIM, generator=generator) for count in lengths]
    return phones, known, states, [torch.arange(count) // 2 for count in lengths]


@pytest.mark.parametrize("uses_core", [True, False])
def test_an_utterance_alone_is_the_utterance_among_others(uses_core: bool) -> None:
    model, (phones, known, states, owners) = make(uses_core=uses_core), texts(11, 1, 6)
    with torch.inference_mode():
        together = model(phones, known, states, owners), model.predict(phones, states, owners)
        for place in range(3):
            one = [phones[place]], [known[place]], [states[place]], [owners[place]]
            assert together[0][place].shape == (len(phones[place]), NUM)
            torch.testing.assert_close(together[0][place], model(*one)[0], rtol=1e-5, atol=1e-5)
            alone = model.predict(one[0], one[2], one[3])[0]
            torch.testing.assert_close(together[1][place], alone, rtol=1e-4, atol=1e-4)


def test_what_is_predicted_is_what_follows_from_what_was_predicted() -> None:
    model, (phones, _, states, owners) = make(), texts(11, 5)
    with torch.inference_mode():
        predicted = model.predict(phones, states, owners)
        again = model(phones, predicted, states, owners)
    for one, other in zip(predicted, again, strict=True):
        torch.testing.assert_close(one[:, (0, 1, 3)], other[:, (0, 1, 3)], rtol=1e-4, atol=1e-4)
        assert torch.equal(one[:, 2], (other[:, 2] > 0).float())


def changed_steps(model: ProsodyModel, given: Any, other: Any) -> list[list[bool]]:
    """Of each phone and feature: whether it differs between two calls."""
    with torch.inference_mode():
        (before,), (after,) = model(*given), model(*other)
    return [[bool(one) for one in row] for row in (before - after).abs() > 1e-7]


def test_a_feature_is_told_of_those_before_it_and_of_no_other() -> None:
    model, (phones, known, states, owners) = make(), texts(11)
    for place in range(NUM):
        new = known[0].clone()
        new[5, place] += 1
        differs = changed_steps(model, (phones, known, states, owners), (phones, [new], states, owners))
        # It is known from the step after its own, which is later than its phone by its delay.
        step = 5 + DELAYS[place] + 1
        for phone, row in enumerate(differs):
            assert row == [phone + delay >= step for delay in DELAYS], (place, phone)


def test_phones_are_seen_as_far_ahead_as_stated() -> None:
    model, (phones, known, states, owners) = make(), texts(11)
    new = phones[0].clone()
    new[8] = (new[8] + 1) % PHONES
    differs = changed_steps(model, (phones, known, states, owners), ([new], known, states, owners))
    for phone, row in enumerate(differs):
        assert row == [phone + delay >= 8 - AHEAD for delay in DELAYS], phone


def test_a_chunk_of_the_core_enters_with_its_first_phone() -> None:
    model, (phones, known, states, owners) = make(), texts(16)
    new = states[0].clone()
    new[5] += 1  # of the chunk of tokens 3, 4 and 5, which begins with token 3: phone 6
    differs = changed_steps(model, (phones, known, states, owners), (phones, known, [new], owners))
    for phone, row in enumerate(differs):
        assert row == [phone + delay >= 6 for delay in DELAYS], phone


def test_delays_are_undone() -> None:
    values = torch.arange(5 * NUM, dtype=torch.float32).view(5, NUM)
    assert torch.equal(undelayed(delayed(values)), values)
    assert delayed(values)[:, 3].tolist() == [0, 0, 3, 7, 11, 15, 19]


def test_styles_differ_and_every_parameter_learns() -> None:
    model, (phones, known, states, owners) = make(), texts(7, 7)
    one, other = model([phones[0]] * 2, [known[0]] * 2, [states[0]] * 2, [owners[0]] * 2, [0, 1])
    assert not torch.equal(one, other)
    model.train()
    torch.cat(model(phones, known, states, owners, [0, 1])).square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_style_is_told_by_name_or_number_and_another_is_learned_from_the_first() -> None:
    model = make(style_names=["taught", "recorded"])
    assert [model.style_of(one) for one in ("recorded", "taught", 1, "0")] == [1, 0, 1, 0]
    for wrong in ("loud", 2, -1):
        with pytest.raises(ValueError, match="this voice has 2, numbered from 0: taught, recorded"):
            model.style_of(wrong)
    one = make(num_styles=1).style.weight.detach()
    fitted = model.fit_tensor("style.weight", one)
    assert fitted.shape == model.style.weight.shape and torch.equal(fitted[1:], one)
    with pytest.raises(ValueError, match="are not num_styles=2 names"):
        make(style_names=["taught"])


def test_what_cannot_be_is_refused() -> None:
    phones, known, _, _ = texts(3)
    with pytest.raises(ValueError, match="looks at the core: give the states"):
        make()(phones, known)
    with pytest.raises(ValueError, match="chunk=0"):
        ProsodyModel(PHONES, DIM, chunk=0)
    with pytest.raises(ValueError, match="does not give 5 heads"):
        make(num_heads=5)


@pytest.mark.parametrize("uses_core", [True, False])
@pytest.mark.parametrize("count", [1, 2, 11])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_phones_in_pieces_are_timed_as_the_whole(uses_core: bool, count: int, step: int) -> None:
    model, (phones, _, states, owners) = make(uses_core=uses_core), texts(count)
    with torch.inference_mode():
        (whole,) = model.predict(phones, states, owners, [1])
        parts, kept, told = [], model.start(style=1), 0
        for first in range(0, count, step):
            last = first + step >= count
            # A state comes with the first phone of its token.
            until = len(states[0]) if last else int(owners[0][first + step - 1]) + 1
            given = states[0][told:until], owners[0][first : first + step]
            parts.append(model.more(kept, phones[0][first : first + step], *given, last=last))
            told = until
    assert sum(map(len, parts)) == count and (count < 11 or step == 20 or len(parts[-1]) < count)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_states_are_needed_where_the_core_is_looked_at() -> None:
    model, (phones, _, _, _) = make(), texts(11)
    with pytest.raises(ValueError, match="looks at the core"):
        model.more(model.start(), phones[0])
