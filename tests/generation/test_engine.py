"""Generation is exact: cached = uncached = chunked, batched = single, with pictures and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mm_llama.core.cache import KVCache
from mm_llama.core.chat import Placeholder, Rendered
from mm_llama.core.llama import Llama
from mm_llama.generation.compiled import FixedShapeCache, rounded_length
from mm_llama.generation.engine import generate
from mm_llama.generation.prompts import Prompt, make_batch
from mm_llama.generation.sampling import Sampling
from mm_llama.model import MultimodalLlama
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

NEW = 12
TEXTS = ["A short one", "A prompt that is a good deal longer than the first", "x", "Between the two others"]


def text_prompt(text: str) -> list[int]:
    return list(text.encode())


def shown(text: str, pictures: list[Image.Image]) -> tuple[list[int], list[Placeholder]]:
    """Ids and placeholders of a text in which every "#" is the next of the pictures."""
    places = [position for position, letter in enumerate(text) if letter == "#"]
    assert len(places) == len(pictures)
    tokens = [0 if letter == "#" else ord(letter) for letter in text]
    return tokens, [Placeholder("image", p, picture) for p, picture in zip(places, pictures, strict=True)]


@contextmanager
def recorded_logits(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a model really gave while it generated."""
    passes: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _args, out: passes.append(out.detach().clone()))
    try:
        yield passes
    finally:
        handle.remove()


def uncached(model: MultimodalLlama | Llama, prompt: Prompt, num_new: int) -> tuple[list[int], Tensor]:
    """Greedy tokens and the logits they were chosen from, by running the whole row again for each token."""
    batch = make_batch(model, [prompt])
    row = batch.tokens_BS
    chosen: list[int] = []
    logits: list[Tensor] = []
    with torch.inference_mode():
        for _ in range(num_new):
            if isinstance(model, Llama):
                last = model(row)[0, -1]
            else:
                last = model(row, media=model.attach(batch.media))[0, -1]
            logits.append(last)
            chosen.append(int(last.argmax()))
            row = torch.cat((row, torch.tensor([[chosen[-1]]])), dim=1)
    return chosen, torch.stack(logits)


@pytest.fixture(scope="module")
def prompts(pictures: list[Image.Image]) -> dict[str, Prompt]:
    """Rows without, with one and with several pictures: together, apart, at the start, at the very end."""
    one, two, three, four = pictures
    return {
        "text only": text_prompt("No picture at all, only a few words"),
        "image first": shown("#What is it?", [one]),
        "text first": shown("Some words, then # and more", [two]),
        "two turns": shown("first # said; then # at last, why", [two, one]),
        "side by side": shown("a ## b ### c", [one, two, three, four, one]),
        "image last": shown("words and then #", [three]),
    }


def assert_logits_close(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the logits' own scale."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_steps_differ(logits: Tensor) -> None:
    """What is compared moves from step to step by far more than the tolerance."""
    assert (logits[1:] - logits[:-1]).abs().amax(-1).min() > 1e-2 * logits.abs().max()


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_cached_and_chunked_prefill_equal_uncached(core: Llama, text: str, chunk: int) -> None:
    tokens, logits = uncached(core, text_prompt(text), NEW)
    with recorded_logits(core) as passes:
        (found,) = generate(core, [text_prompt(text)], max_new_tokens=NEW, prefill_chunk=chunk)
    assert_steps_differ(logits)
    assert found.tokens == tokens
    prefill = [one for one in passes if one.ndim == 2 and len(one)]
    assert_logits_close(torch.cat([*prefill, *(one[:, 0] for one in passes if one.ndim == 3)]), logits)
    assert len(passes) == NEW - 1 + (1 if not chunk else -(-len(text) // chunk))


@pytest.mark.parametrize("chunk", [0, 1, 5])
@pytest.mark.parametrize(
    "name", ["text only", "image first", "text first", "two turns", "side by side", "image last"]
)
def test_cached_and_chunked_prefill_equal_uncached_with_pictures(
    model: MultimodalLlama, prompts: dict[str, Prompt], name: str, chunk: int
) -> None:
    tokens, logits = uncached(model, prompts[name], NEW)
    with recorded_logits(model) as passes:
        (found,) = generate(model, [prompts[name]], max_new_tokens=NEW, prefill_chunk=chunk)
    assert_steps_differ(logits)
    assert found.tokens == tokens
    prefill = [one for one in passes if one.ndim == 2 and len(one)]
    assert_logits_close(torch.cat([*prefill, *(one[:, 0] for one in passes if one.ndim == 3)]), logits)


def test_pictures_change_what_is_said(
    model: MultimodalLlama, pictures: list[Image.Image], prompts: dict[str, Prompt]
) -> None:
    def say(picture: Image.Image) -> list[int]:
        return generate(model, [shown("#What is it?", [picture])], max_new_tokens=NEW)[0].tokens

    assert say(pictures[0]) != say(pictures[1])
    assert say(pictures[0]) == say(pictures[0])


@pytest.mark.parametrize("chunk", [0, 4])
def test_a_ragged_batch_equals_its_rows_alone(core: Llama, chunk: int) -> None:
    rows = [text_prompt(text) for text in TEXTS]
    together = generate(core, rows, max_new_tokens=NEW, prefill_chunk=chunk)
    for row, found in zip(rows, together, strict=True):
        (alone,) = generate(core, [row], max_new_tokens=NEW)
        assert (found.tokens, found.stop_reason) == (alone.tokens, alone.stop_reason)
        assert found.num_prompt_tokens == len(row)


@pytest.mark.parametrize("chunk", [0, 4])
def test_a_batch_that_mixes_rows_with_and_without_pictures_equals_its_rows_alone(
    model: MultimodalLlama, prompts: dict[str, Prompt], chunk: int
) -> None:
    rows = list(prompts.values())
    with recorded_logits(model) as passes:
        together = generate(model, rows, max_new_tokens=NEW, prefill_chunk=chunk)
    for place, row in enumerate(rows):
        tokens, logits = uncached(model, row, NEW)
        assert together[place].tokens == tokens
        steps = torch.cat([one[place] for one in passes if one.ndim == 3])
        assert_logits_close(steps, logits[1:])


def test_rows_that_finish_early_change_no_other_row(
    model: MultimodalLlama, prompts: dict[str, Prompt]
) -> None:
    rows = list(prompts.values())
    whole = [found.tokens for found in generate(model, rows, max_new_tokens=24)]
    # Tokens that end rows at different steps, so that rows are first masked and then leave the batch.
    candidates = [{row[i], other[k]} for row in whole for other in whole for i in (2, 5) for k in (1, 9)]
    stop = max(candidates, key=lambda stop: len({len(_until(tokens, stop)) for tokens in whole}))
    assert len({len(_until(tokens, stop)) for tokens in whole}) > 2
    found = generate(model, rows, max_new_tokens=24, stop=stop)
    for tokens, row in zip(whole, found, strict=True):
        assert row.tokens == _until(tokens, stop)
        if len(row.tokens) < 24:
            assert (row.stop_reason, row.stop_token) == ("stop", tokens[len(row.tokens)])
        else:
            assert (row.stop_reason, row.stop_token) == ("length", None)


def test_a_batch_shrinks_as_its_rows_finish(core: Llama) -> None:
    rows = [text_prompt(text) for text in TEXTS]
    whole = [found.tokens for found in generate(core, rows, max_new_tokens=NEW)]
    stop = {whole[0][4], whole[2][3], whole[3][3]} - set(whole[1])
    assert len(stop) == 3
    with recorded_logits(core) as passes:
        generate(core, rows, max_new_tokens=NEW, stop=stop)
    sizes = [len(one) for one in passes[1:]]
    assert sizes[0] == 4 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0]] if ends else tokens


def test_a_stop_token_at_once_gives_an_empty_answer(core: Llama) -> None:
    prompt = text_prompt(TEXTS[0])
    (first,) = generate(core, [prompt], max_new_tokens=1)
    (found,) = generate(core, [prompt], max_new_tokens=9, stop=first.tokens, tokenizer=BytesTokenizer())
    assert (found.tokens, found.text, found.stop_reason) == ([], "", "stop")
    assert found.stop_token == first.tokens[0]


def test_media_are_encoded_once_and_shared_by_all_rows(
    model: MultimodalLlama, pictures: list[Image.Image]
) -> None:
    rows = [shown("#a", [pictures[0]]), shown("b #, c #", [pictures[1], pictures[0]])]
    seen: list[int] = []
    encoder = model.modality["image"].encoder
    handle = encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    try:
        generate(model, rows, max_new_tokens=6, prefill_chunk=3)
    finally:
        handle.remove()
    assert seen == [2]


def test_pixels_may_be_given_as_tensors(model: MultimodalLlama, pictures: list[Image.Image]) -> None:
    pixels = model.modality["image"].encoder.preprocess(pictures[2])
    tokens, media = shown("see # there", [pictures[2]])
    ready = [replace(item, source=pixels) for item in media]
    (by_picture,) = generate(model, [(tokens, media)], max_new_tokens=NEW)
    (by_pixels,) = generate(model, [(tokens, ready)], max_new_tokens=NEW)
    assert by_picture.tokens == by_pixels.tokens


def test_a_ready_batch_of_encoded_features_gives_the_same(
    model: MultimodalLlama, prompts: dict[str, Prompt]
) -> None:
    rows = list(prompts.values())
    batch = make_batch(model, rows)
    media = batch.media["image"]
    with torch.inference_mode():
        features = model.modality["image"].encoder(torch.stack(media.items))
    ready = replace(batch, media={"image": replace(media, items=list(features), encoded=True)})
    by_features = [found.tokens for found in generate(model, ready, max_new_tokens=NEW)]
    assert by_features == [found.tokens for found in generate(model, rows, max_new_tokens=NEW)]


def sampled(model: MultimodalLlama | Llama, rows: list[Prompt], sampling: Sampling) -> list[list[int]]:
    return [found.tokens for found in generate(model, rows, max_new_tokens=NEW, sampling=sampling)]


def test_a_seed_repeats_and_another_gives_other_tokens(core: Llama) -> None:
    rows: list[Prompt] = [text_prompt(text) for text in TEXTS]
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=4)
    assert sampled(core, rows, sampling) == sampled(core, rows, sampling)
    assert sampled(core, rows, sampling) != sampled(core, rows, replace(sampling, seed=5))


def test_sampled_rows_of_a_batch_equal_the_same_rows_alone(
    model: MultimodalLlama, prompts: dict[str, Prompt]
) -> None:
    rows = list(prompts.values())
    sampling = Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=2)
    together = sampled(model, rows, sampling)
    for row, prompt in enumerate(rows):
        assert sampled(model, [prompt], replace(sampling, row=row)) == [together[row]]


def test_equal_prompts_in_one_batch_draw_apart(core: Llama) -> None:
    rows: list[Prompt] = [text_prompt(TEXTS[0])] * 4
    assert len({tuple(tokens) for tokens in sampled(core, rows, Sampling(temperature=1.5, seed=1))}) == 4


def test_tokens_are_told_as_they_are_made(core: Llama) -> None:
    told: list[tuple[int, int]] = []
    rows = [text_prompt(text) for text in TEXTS]
    found = generate(core, rows, max_new_tokens=5, on_token=lambda row, token: told.append((row, token)))
    for row, generated in enumerate(found):
        assert [token for told_row, token in told if told_row == row] == generated.tokens
    assert [row for row, _ in told] == [0, 1, 2, 3] * 5


def test_times_are_in_order_and_per_row(core: Llama) -> None:
    rows = [text_prompt(text) for text in TEXTS[:2]]
    first = generate(core, rows, max_new_tokens=NEW)
    stop = {first[0].tokens[1]} - set(first[1].tokens)
    short, long = generate(core, rows, max_new_tokens=NEW, stop=stop)
    for found in (short, long):
        assert 0 < found.seconds.prefill <= found.seconds.first_token <= found.seconds.total
    assert short.seconds.total < long.seconds.total


def test_no_prompts_give_no_answers(core: Llama) -> None:
    assert generate(core, [], max_new_tokens=3) == []


def test_modules_keep_their_mode_and_can_train_afterwards(
    other_model: MultimodalLlama, prompts: dict[str, Prompt]
) -> None:
    adapter = other_model.modality["image"].adapter.requires_grad_(True)
    other_model.train()
    other_model.core.eval()
    before = [module.training for module in other_model.modules()]
    assert len(set(before)) == 2
    inside: list[bool] = []
    generate(
        other_model,
        [prompts["two turns"]],
        max_new_tokens=2,
        on_token=lambda _row, _token: inside.append(adapter.training),
    )
    assert inside == [False, False]
    assert [module.training for module in other_model.modules()] == before
    batch = make_batch(other_model, [prompts["two turns"]])
    other_model(batch.tokens_BS, media=other_model.attach(batch.media)).sum().backward()
    assert all(weight.grad is not None for weight in adapter.parameters())


def test_modules_keep_their_mode_when_a_consumer_fails(other_model: MultimodalLlama) -> None:
    def fail(row: int, token: int) -> None:
        raise RuntimeError("enough")

    other_model.train()
    with pytest.raises(RuntimeError, match="enough"):
        generate(other_model, [[1, 2]], max_new_tokens=4, on_token=fail)
    assert all(module.training for module in other_model.modules())


def test_a_consumer_of_tokens_is_not_put_into_inference_mode(core: Llama) -> None:
    modes: list[bool] = []
    generate(
        core,
        [text_prompt("ab")],
        max_new_tokens=2,
        on_token=lambda _row, _token: modes.append(torch.is_inference_mode_enabled()),
    )
    assert modes == [False, False]


@pytest.mark.parametrize(
    ("tokens", "new", "message"),
    [
        (120, 9, r"the prompt has 120 tokens; with max_new_tokens=9 that is more than .* 128 tokens"),
        (129, 1, r"the prompt has 129 tokens"),
    ],
)
def test_more_than_the_context_is_refused_not_cut(core: Llama, tokens: int, new: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(core, [[1] * tokens], max_new_tokens=new)


def test_the_context_can_be_filled_to_the_last_position(core: Llama) -> None:
    prompt = [7] * 120
    (found,) = generate(core, [prompt], max_new_tokens=8)
    assert found.tokens == uncached(core, prompt, 8)[0]


def test_a_long_row_of_a_batch_is_named(core: Llama) -> None:
    with pytest.raises(ValueError, match="prompt 1 has 127 tokens"):
        generate(core, [[1], [1] * 127], max_new_tokens=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"max_new_tokens": 3, "prefill_chunk": -1}, "prefill_chunk is -1"),
    ],
)
def test_impossible_options_name_the_parameter(core: Llama, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(core, [[1, 2]], **wrong)


def test_one_prompt_in_place_of_a_list_is_refused(core: Llama) -> None:
    for one in ([1, 2, 3], "text", ["text"], Rendered([1], [False])):
        with pytest.raises(ValueError, match="prompts must be a list of rendered chats or of token ids"):
            generate(core, one, max_new_tokens=1)


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_tokens(model: MultimodalLlama, prompts: dict[str, Prompt]) -> None:
    rows = [prompts["two turns"], prompts["image first"], prompts["text only"]]
    whole = generate(model, rows, max_new_tokens=NEW)
    for stops in ((), {whole[0].tokens[5]}):
        plain = generate(model, rows, max_new_tokens=NEW, stop=stops)
        quick = generate(model, rows, max_new_tokens=NEW, stop=stops, compile=True)
        assert [found.tokens for found in quick] == [found.tokens for found in plain]


def test_a_cache_of_fixed_shape_gives_the_same_logits(core: Llama) -> None:
    tokens = torch.randint(0, 265, (2, 20), generator=torch.Generator().manual_seed(0))
    caches = [KVCache(core.config, 2, 20), FixedShapeCache(core.config, 2, 20)]  # filled to the last slot
    with torch.inference_mode():
        for start, end in ((0, 9), *((place, place + 1) for place in range(9, 20))):
            positions = torch.arange(start, end).expand(2, -1)
            plain, fixed = (core(tokens[:, start:end], positions_BS=positions, cache=one) for one in caches)
            assert_logits_close(fixed, plain)
    assert [rounded_length(n, 1000) for n in (1, 256, 257, 999)] == [256, 256, 512, 1000]


def test_a_prompt_without_tokens_is_refused(core: Llama) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(core, [[1], []], max_new_tokens=1)


def test_a_token_outside_the_vocabulary_is_refused(core: Llama) -> None:
    with pytest.raises(
        ValueError, match=r"the prompt holds the token id 265, but the core has 265 \(0 to 264\)"
    ):
        generate(core, [[1, 265]], max_new_tokens=1)


def test_a_picture_without_an_adapter_says_how_to_get_one(core: Llama, pictures: list[Image.Image]) -> None:
    prompt = shown("see #", pictures[:1])
    for blind in (core, MultimodalLlama(core)):
        with pytest.raises(
            ValueError, match=r"no image adapter is attached .*make demo.*stage=image_pretrain"
        ):
            generate(blind, [prompt], max_new_tokens=1)


def test_a_picture_that_cannot_be_read_names_its_prompt(
    model: MultimodalLlama, prompts: dict[str, Prompt]
) -> None:
    broken = ([1, 0, 2], [Placeholder("image", 1, b"\x89PNG nothing")])
    with pytest.raises(ValueError, match="prompt 1: .*PNG picture but is cut short or damaged"):
        generate(model, [prompts["text only"], broken], max_new_tokens=1)


def test_broken_weights_are_reported_not_sampled(other_model: MultimodalLlama) -> None:
    with torch.no_grad():
        other_model.core.norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(other_model, [[1, 2, 3]], max_new_tokens=2)
