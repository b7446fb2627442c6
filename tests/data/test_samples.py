"""Samples: targets are the answers, media stand where their placeholders do, too long is never cut."""

import os

import pytest

from mm_llama.core.chat import chat_format
from mm_llama.data.samples import TooLongError, count_tokens, distinct_media, make_sample
from mm_llama.data.sources import ChatRows, JsonlChat


def decode(chat, ids):
    return chat.tokenizer.decode(ids)


def test_targets_are_the_answers_and_their_end_tokens(chat):
    rows = ChatRows(
        [
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "first"},
                {"role": "user", "content": "two"},
                {"role": "assistant", "content": "hidden", "train": False},
                {"role": "user", "content": "three"},
                {"role": "assistant", "content": "second"},
            ]
        ]
    )
    sample = make_sample(rows.row(0), chat)
    targets = [token for token, target in zip(sample.tokens, sample.targets, strict=True) if target]
    end = chat.end
    assert targets == [*chat.tokenizer.encode("first"), end, *chat.tokenizer.encode("second"), end]
    assert sample.num_tokens == len(sample.tokens) == count_tokens(rows.row(0), chat)


def test_media_stand_at_their_placeholders_in_order(chat, chat_file, picture, row, tmp_path):
    picture("a.png", 1), picture("b.png", 2)
    sample = make_sample(JsonlChat(chat_file([row("yes", "a.png", "b.png", question="ab?")])).row(0), chat)
    assert [ref.source for ref in sample.media] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    first, second = (ref.position for ref in sample.media)
    assert second == first + 1
    assert sample.tokens[first] == sample.tokens[second] == 0
    assert decode(chat, sample.tokens[second + 1 :]).startswith("ab?")
    assert not sample.targets[first] and not sample.targets[second]
    assert sample.source.endswith("rows.jsonl:1")


def test_equal_files_share_a_key_and_different_ones_do_not(chat, chat_file, picture, row):
    picture("a.png", 1), picture("sub/same.png", 1), picture("b.png", 2)
    sample = make_sample(JsonlChat(chat_file([row("yes", "a.png", "sub/same.png", "b.png")])).row(0), chat)
    keys = [ref.key for ref in sample.media]
    assert keys[0] == keys[1] != keys[2]


def test_a_file_that_changes_gets_another_key(chat, chat_file, picture, row, tmp_path):
    picture("a.png", 1)
    source = JsonlChat(chat_file([row("yes", "a.png")]))
    before = make_sample(source.row(0), chat).media[0].key
    assert make_sample(source.row(0), chat).media[0].key == before
    picture("a.png", 2)
    os.utime(tmp_path / "a.png", ns=(0, 1))
    assert make_sample(source.row(0), chat).media[0].key != before


def test_a_row_that_is_too_long_is_an_error_with_source_and_both_lengths(chat, chat_file, row):
    source = JsonlChat(chat_file([row("x" * 30)]))
    length = count_tokens(source.row(0), chat)
    assert make_sample(source.row(0), chat, max_tokens=length).num_tokens == length
    with pytest.raises(
        TooLongError, match=rf"rows\.jsonl:1: the row has {length} tokens and the limit is {length - 1}"
    ):
        make_sample(source.row(0), chat, max_tokens=length - 1)
    with pytest.raises(TooLongError, match=f"{length} tokens and the limit is 5"):
        count_tokens(source.row(0), chat, max_tokens=5)


def test_a_kind_of_media_without_reader_is_named(chat, chat_file, picture, row):
    picture("a.png", 1)
    row = JsonlChat(chat_file([row("yes", "a.png")])).row(0)
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: no reader for image media here; this run reads text"
    ):
        make_sample(row, chat, media_keys={})
    assert make_sample(row, chat, media_keys={"image": lambda source: "k"}).media[0].key == "k"


def test_a_picture_that_vanishes_is_named_with_its_row(chat, chat_file, picture, row, tmp_path):
    picture("a.png", 1)
    row = JsonlChat(chat_file([row("yes", "a.png")])).row(0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: image: .*a\.png"):
        make_sample(row, chat)


def test_what_the_chat_format_refuses_is_named_with_its_row(chat):
    call = {"role": "assistant", "content": "f()", "python_tag": True}
    rows = ChatRows([[{"role": "user", "content": "?"}, call]])
    with pytest.raises(ValueError, match="rows:1: python_tag exists in the llama3 chat format only"):
        make_sample(rows.row(0), chat)


def test_captions_in_plain_form_are_the_text_alone(chat, chat_file, picture):
    picture("a.png", 1)
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "path": "a.png"}]},
                {"role": "assistant", "content": "a frog"},
            ]
        }
    ]
    plain = chat_format("plain", chat.tokenizer)
    sample = make_sample(JsonlChat(chat_file(rows)).row(0), plain)
    bos, eos = (chat.tokenizer.specials[name] for name in ("<|begin_of_text|>", "<|end_of_text|>"))
    assert sample.tokens == [bos, 0, *chat.tokenizer.encode("a frog"), eos]
    assert sample.targets == [False, False] + [True] * 7


def test_the_distinct_media_of_sources_are_those_of_their_samples(chat, chat_file, picture, row):
    names = [picture("a.png", 1), picture("same.png", 1), picture("b.png", 2), picture("c.png", 3)]
    first = JsonlChat(chat_file([row("yes", *names[:3]), row("yes"), row("no", names[2])], "first.jsonl"))
    second = JsonlChat(chat_file([row("yes", names[0], names[3])], "second.jsonl"))
    refs = distinct_media([first, second])
    samples = [make_sample(source.row(i), chat) for source in (first, second) for i in range(len(source))]
    assert [ref.key for ref in refs] == list(dict.fromkeys(ref.key for s in samples for ref in s.media))
    assert len(refs) == 3


def test_distinct_media_name_the_row_that_cannot_be_read_or_leave_it_out(chat_file, picture, row, tmp_path):
    good, empty = picture("a.png", 1), picture("empty.png", 2)
    (tmp_path / "empty.png").write_bytes(b"")
    source = JsonlChat(chat_file([row("yes", good), "nonsense", row("yes", empty), row("yes", good)]))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        distinct_media([source])
    refs = distinct_media([source], skip_errors=True)
    assert [ref.source for ref in refs] == [str(tmp_path / "a.png")]
