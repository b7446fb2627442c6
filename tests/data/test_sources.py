"""JSONL chats: rows by index, and an error with file and line for everything that can be wrong with one."""

import base64
import io
import json
import random

import pytest
from PIL import Image

from mm_llama.core.chat import MediaPart, Text
from mm_llama.data.sources import ChatRows, JsonlChat, evenly, validate

ANSWER = {"role": "assistant", "content": "yes"}
QUESTION = {"role": "user", "content": "?"}


def test_rows_are_read_by_index_in_any_order(chat_file, row):
    source = JsonlChat(chat_file([row(f"answer {i} é") for i in range(50)]))
    order = list(range(50))
    random.Random(0).shuffle(order)
    assert len(source) == 50
    for index in order:
        assert source.row(index).messages[1].parts == (Text(f"answer {index} é"),)
        assert source.row(index).source == f"{source.path}:{index + 1}"


def test_rows_are_chosen_at_even_strides():
    assert list(evenly(10, 3)) == [0, 3, 6] and list(evenly(3, 2)) == [0, 1]
    assert list(evenly(3, 0)) == list(evenly(3, 3)) == list(evenly(3, 9)) == [0, 1, 2] and not len(
        evenly(0, 4)
    )


def test_blank_lines_are_no_rows_but_count_as_lines(chat_file, row):
    path = chat_file(["", json.dumps(row("one")), "   ", json.dumps(row("two"))])
    source = JsonlChat(path)
    assert [source.row(i).source for i in range(len(source))] == [f"{path}:2", f"{path}:4"]


def test_a_last_line_without_newline_and_windows_newlines_are_read(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps(row("one")) + "\r\n" + json.dumps(row("two"))).encode())
    source = JsonlChat(path)
    assert [source.row(i).messages[1].parts[0].text for i in range(2)] == ["one", "two"]


def test_pictures_are_found_relative_to_the_file(chat_file, picture, row, tmp_path, monkeypatch):
    picture("images/a.png", 7)
    monkeypatch.chdir("/")
    source = JsonlChat(chat_file([row("yes", "images/a.png")]))
    assert source.row(0).messages[0].parts == (
        MediaPart("image", str(tmp_path / "images" / "a.png")),
        Text("?"),
    )


def test_openai_parts_give_the_same_row_and_data_addresses_become_bytes(chat_file, picture, row, tmp_path):
    picture("a.png", 7)
    content = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}]
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "PNG")
    address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    inline = [{"type": "image_url", "image_url": {"url": address}}]
    source = JsonlChat(
        chat_file(
            [
                row("yes", "a.png"),
                {"messages": [{"role": "user", "content": content}, ANSWER]},
                {"messages": [{"role": "user", "content": inline}, ANSWER]},
            ]
        )
    )
    assert source.row(0).messages[0] == source.row(1).messages[0]
    assert source.row(2).messages[0].parts == (MediaPart("image", data.getvalue()),)


def test_id_and_extra_are_carried_along(chat_file, row):
    source = JsonlChat(
        chat_file([row("yes") | {"id": "q7", "extra": {"type": "shape", "n": [1]}}, row("no")])
    )
    assert source.row(0).extra == {"type": "shape", "n": [1], "id": "q7"}
    assert source.row(1).extra == {}


def test_the_digest_follows_the_contents(chat_file, row):
    first = JsonlChat(chat_file([row("yes")], "a.jsonl"))
    same = JsonlChat(chat_file([row("yes")], "b.jsonl"))
    other = JsonlChat(chat_file([row("no")], "c.jsonl"))
    assert first.digest == same.digest != other.digest


BAD = [
    ("not json", "not JSON: Expecting value (column 1)"),
    ('{"messages": [', "not JSON"),
    ("[1]", "a line must be an object with 'messages', not list"),
    ('{"message": []}', "unknown key 'message' (did you mean 'messages'?); a row has messages, id, extra"),
    ('{"id": 1}', "the key 'messages' is missing"),
    ('{"messages": [], "messages": []}', "the key 'messages' occurs twice"),
    ('{"messages": []}', "'messages' must be a list of at least one message"),
    ('{"messages": {}}', "'messages' must be a list of at least one message"),
    ({"messages": [QUESTION, ANSWER], "extra": 3}, "'extra' must be an object, not int"),
    ('{"messages": [], "extra": {"x": NaN}}', "NaN is not JSON"),
    ({"messages": [QUESTION]}, "no assistant message"),
    (
        {"messages": [QUESTION, {"role": "assistant", "content": " \n"}]},
        "messages[1]: the assistant's answer is empty",
    ),
    (
        {"messages": [QUESTION, {"role": "assistant", "content": []}]},
        "messages[1]: the assistant's answer is empty",
    ),
    ({"messages": [QUESTION, ANSWER | {"train": False}]}, "every assistant message has 'train' off"),
    ({"messages": [QUESTION | {"name": "x"}, ANSWER]}, "messages[0] has the unknown key 'name'"),
    ({"messages": [QUESTION | {"role": "usr"}, ANSWER]}, "unknown role 'usr' (did you mean 'user'?)"),
    (
        {"messages": [{"role": "user", "content": [{"type": "imge", "path": "a.png"}]}, ANSWER]},
        "messages[0].content[0] has the unknown type 'imge' (did you mean 'image'?)",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}, ANSWER]},
        "messages[0]: image file {folder}/gone.png does not exist",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "url": "https://x.org/a.png"}]},
                ANSWER,
            ]
        },
        "https address, which is not fetched",
    ),
    (
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "image", "path": "a.png"}, "x"]}]},
        "messages[1]: an assistant message can hold text only",
    ),
]


@pytest.mark.parametrize(("line", "what"), BAD, ids=[what[:40] for _, what in BAD])
def test_a_bad_line_is_named_with_file_and_line(line, what, chat_file, picture, row, tmp_path):
    picture("a.png", 7)
    path = chat_file([row("fine"), line, row("fine", "a.png")])
    (problem,) = validate(path)
    assert problem.source == f"{path}:2"
    assert what.replace("{folder}", str(tmp_path)) in problem.what
    assert not problem.what.startswith(str(path))
    with pytest.raises(ValueError) as error:
        JsonlChat(path).row(1)
    assert str(error.value) == str(problem)


def test_bytes_that_are_not_text_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"messages": "\xff"}\n')
    (problem,) = validate(path)
    assert problem.what == "not UTF-8 text (byte 14 of the line)"


def test_json_nested_without_end_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 200_000 + "\n")
    (problem,) = validate(path)
    assert problem.what == "JSON nested too deeply"


def test_a_missing_file_and_a_file_without_rows_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data file .*gone\.jsonl does not exist"):
        JsonlChat(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file holds no rows"):
        JsonlChat(tmp_path / "empty.jsonl")


def test_rows_in_memory_are_checked_like_lines(picture, tmp_path):
    picture("a.png", 7)
    image = {"role": "user", "content": [{"type": "image", "path": "a.png"}]}
    rows = ChatRows([[image, ANSWER], [QUESTION, ANSWER]], name="probe", folder=tmp_path)
    assert len(rows) == 2
    assert rows.row(0).source == rows.name_of(0) == "probe:1"
    assert rows.row(0).messages[0].parts == (MediaPart("image", str(tmp_path / "a.png")),)
    with pytest.raises(ValueError, match="probe:2: no assistant message"):
        ChatRows([[QUESTION, ANSWER], [QUESTION]], name="probe")
    with pytest.raises(ValueError, match="probe: there are no rows"):
        ChatRows([], name="probe")


def test_the_real_questions_are_valid(asset_dir, tmp_path):
    from mm_llama.data.easy_vqa import write_jsonl

    paths = write_jsonl(asset_dir("easy_vqa"), tmp_path / "easy_vqa")
    assert list(validate(paths["holdout"])) == []
