"""Chat formats against Meta's reference and the model's own template; messages from dicts, good and bad."""

import base64
import datetime
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem, StopReason, ToolCall
from llama_models.llama3.chat_format import ChatFormat as ReferenceFormat
from llama_models.llama3.tokenizer import Tokenizer as ReferenceTokenizer
from PIL import Image

from mm_llama.core.chat import (
    MediaPart,
    Message,
    Placeholder,
    Text,
    chat_format,
    messages_from_dicts,
    tool_system_prompt,
)
from mm_llama.core.gguf_tokenizer import read_metadata
from mm_llama.core.tokenizer import Tokenizer, load_tokenizer
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

# A busy machine is no failure: nothing here is judged by the clock.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMOLLM2_LACKS = {4, 6, 19, 20, 22, 29, 0xF1, 0xF2}
LLAMA3_IMAGE = 128_256  # what the reference feeds to its own vision model in a placeholder's place
FORMATS = ("llama3", "chatml", "plain")


@pytest.fixture(scope="module")
def llama3(asset_dir: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(asset_dir("llama_models") / "llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="module")
def smollm2_path(asset_dir: Callable[[str], Path]) -> Path:
    (path,) = asset_dir("smollm2_135m").glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path)


def say(role: str, *parts: str | MediaPart, **flags: Any) -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts), **flags)


def photo(name: str = "a.png") -> MediaPart:
    return MediaPart("image", name)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "teal").save(file, "PNG")
    return file.getvalue()


# --- Llama 3 ---------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(
        ["", " ", "\n\nleading", "trailing \n", "<|image|>", "<|eot_id|>x", "What is 12345?", "naïve 🦙"]
    ),
)
parts_with_photos = st.lists(st.one_of(bodies, st.just(photo())), min_size=1, max_size=4).map(tuple)


@st.composite
def llama3_messages(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "user", "assistant", "ipython", "tool"]))
    if role == "assistant":
        call = draw(st.booleans())
        parts = (draw(bodies.filter(bool)),) if call else (draw(bodies),)
        return say(role, *parts, end_of_message=draw(st.booleans()), python_tag=call)
    return say(role, *draw(parts_with_photos))


def as_reference(message: Message) -> Any:
    items = [
        RawTextItem(text=part.text) if isinstance(part, Text) else RawMediaItem(data=png())
        for part in message.parts
    ]
    if message.python_tag:
        (code,) = items
        call = ToolCall(call_id="1", tool_name="code_interpreter", arguments={"code": code.text})
        more = {"content": "", "tool_calls": [call]}
    else:
        more = {"content": items}
    stop = StopReason.end_of_message if message.end_of_message else StopReason.end_of_turn
    role = "tool" if message.role == "ipython" else message.role
    return RawMessage(role=role, stop_reason=stop if role == "assistant" else None, **more)


@settings(PATIENT, max_examples=150)
@given(st.lists(llama3_messages(), max_size=6))
def test_llama3_equals_the_reference(llama3: Tokenizer, messages: list[Message]) -> None:
    expected = ReferenceFormat(ReferenceTokenizer.get_instance()).encode_dialog_prompt(
        [as_reference(message) for message in messages]
    )
    rendered = chat_format("llama3", llama3).render(messages, open_assistant=True)
    places = [place.position for place in rendered.media]
    assert [0 if id == LLAMA3_IMAGE else id for id in expected.tokens] == rendered.tokens
    assert places == [i for i, id in enumerate(expected.tokens) if id == LLAMA3_IMAGE]


def test_llama3_dialog_in_golden_ids(llama3: Tokenizer) -> None:
    rendered = chat_format("llama3", llama3).render(
        [say("user", photo(), "Hello world"), say("assistant", "Hi")], open_assistant=True
    )
    header = [128_006, 78_191, 128_007, 271]
    user = [128_000, 128_006, 882, 128_007, 271, 0, 9_906, 1_917, 128_009]
    assert rendered.tokens == [*user, *header, 13_347, 128_009, *header]
    assert [i for i, target in enumerate(rendered.targets) if target] == [len(user) + 4, len(user) + 5]
    assert rendered.media == [Placeholder("image", 5, "a.png")]


def test_llama3_stops_at_end_of_text_message_and_turn(llama3: Tokenizer) -> None:
    assert chat_format("llama3", llama3).stop == {128_001, 128_008, 128_009}


def test_a_tool_call_is_tag_body_and_eom_all_of_them_targets(llama3: Tokenizer) -> None:
    call = say("assistant", 'brave_search.call(query="x")', python_tag=True, end_of_message=True)
    rendered = chat_format("llama3", llama3).render([call, say("tool", "y")])
    targets = [id for id, target in zip(rendered.tokens, rendered.targets, strict=True) if target]
    assert targets == [128_010, *llama3.encode('brave_search.call(query="x")'), 128_008]
    header = [128_006, *llama3.encode("ipython"), 128_007, 271]
    assert rendered.tokens[-len(header) - 2 :] == [*header, *llama3.encode("y"), 128_009]


def test_tool_system_prompt_is_the_published_one() -> None:
    # The example of the Llama 3.1 prompt format page.
    published = (
        "Environment: ipython\nTools: brave_search, wolfram_alpha\nCutting Knowledge Date: December 2023\n"
        "Today Date: 21 September 2024\n\nYou are a helpful assistant."
    )
    assert tool_system_prompt(today="21 September 2024") == published
    assert tool_system_prompt(today=datetime.date(2024, 9, 21)) == published
    bare = tool_system_prompt("Be brief.", today="1 May 2025", tools=())
    assert bare.split("\n")[:2] == ["Environment: ipython", "Cutting Knowledge Date: December 2023"]
    assert bare.endswith("\n\nBe brief.")


def test_llama3_0_vocabulary_without_eom_is_named_when_needed(asset_dir: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(asset_dir("lenml_llama3_1") / "package/models")
    assert "<|eom_id|>" not in tokenizer.specials
    chat = chat_format("llama3", tokenizer)
    assert chat.stop == {128_001, 128_009}
    assert chat.render([say("assistant", "ok")]).tokens[-1] == 128_009
    with pytest.raises(
        ValueError, match=r"needs the special tokens <\|eom_id\|>, which this tokenizer lacks"
    ):
        chat.render([say("assistant", "ok", end_of_message=True)])


# --- ChatML ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template_oracle(
    smollm2_path: Path, smollm2_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[Message], bool], list[int]]:
    """The template inside the GGUF, rendered to a string and tokenised with its specials switched on."""
    from tokenizers import Tokenizer as Library

    folder = tmp_path_factory.mktemp("smollm2")
    smollm2_tokenizer.save(folder)
    library = Library.from_file(str(folder / "tokenizer.json"))
    template = jinja2.Template(read_metadata(smollm2_path)["tokenizer.chat_template"])

    def ids(messages: list[Message], open_assistant: bool) -> list[int]:
        rows = [{"role": m.role, "content": "".join(part.text for part in m.parts)} for m in messages]
        text = template.render(messages=rows, add_generation_prompt=open_assistant)
        return library.encode(text, add_special_tokens=False).ids

    return ids


def smollm2_text() -> st.SearchStrategy[str]:
    return st.one_of(
        st.text(
            st.characters(codec="utf-8").filter(lambda c: SMOLLM2_LACKS.isdisjoint(c.encode())), max_size=20
        ),
        st.lists(st.sampled_from(["\n", " ", "\t", "5", "12", "word", "'s", "<|", "|>"]), max_size=6).map(
            "".join
        ),
    )


@st.composite
def chatml_messages(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
    texts = draw(st.lists(smollm2_text(), max_size=3))
    if role == "assistant":
        texts = ["".join(texts).lstrip()]  # see the next test for bodies that begin with a space
    return say(role, *texts)


@settings(PATIENT, max_examples=200)
@given(messages=st.lists(chatml_messages(), max_size=5), open_assistant=st.booleans())
def test_chatml_equals_the_template_of_the_checkpoint(
    template_oracle: Any, smollm2_tokenizer: Tokenizer, messages: list[Message], open_assistant: bool
) -> None:
    # The template adds a system prompt of its own unless there is one.
    messages = [say("system", "Answer in one word."), *messages]
    rendered = chat_format("chatml", smollm2_tokenizer).render(messages, open_assistant=open_assistant)
    assert rendered.tokens == template_oracle(messages, open_assistant)


@pytest.mark.parametrize("body", ["  two spaces", "\nnewline", "\n\n\n", " ", ""])
def test_an_assistants_head_is_the_same_before_any_body(body: str, smollm2_tokenizer: Tokenizer) -> None:
    """Else the model would be trained behind another prefix than the one it answers to."""
    chat = chat_format("chatml", smollm2_tokenizer)
    head = chat.render([say("user", "hi")], open_assistant=True).tokens
    rendered = chat.render([say("user", "hi"), say("assistant", body)])
    assert rendered.tokens[: len(head)] == head
    targets = [id for id, target in zip(rendered.tokens, rendered.targets, strict=True) if target]
    assert targets == [*smollm2_tokenizer.encode(body), 2]


def test_chatml_stops_at_its_end_token_and_at_end_of_text(smollm2_tokenizer: Tokenizer) -> None:
    assert chat_format("chatml", smollm2_tokenizer).stop == {0, 2}


# --- every format ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMATS)
def chat(request: pytest.FixtureRequest) -> Any:
    return chat_format(request.param, BytesTokenizer())


def text_between(rendered: Any, start: int, stop: int) -> str:
    return BytesTokenizer().decode(rendered.tokens[start:stop])


def test_photos_stand_where_the_message_has_them(chat: Any) -> None:
    one, two, three = photo("1.png"), photo("2.png"), photo("3.png")
    messages = [
        say("user", one, "before", two, three, "after"),
        say("assistant", "yes"),
        say("user", "then", photo("4.png")),
    ]
    rendered = chat.render(messages, open_assistant=True)
    assert [place.source for place in rendered.media] == ["1.png", "2.png", "3.png", "4.png"]
    first, second, third, fourth = (place.position for place in rendered.media)
    assert third == second + 1
    assert text_between(rendered, first + 1, second) == "before"
    assert text_between(rendered, third + 1, fourth).startswith("after")
    assert text_between(rendered, 0, fourth).endswith("then")
    assert all(rendered.tokens[place.position] == 0 for place in rendered.media)
    assert not any(rendered.targets[place.position] for place in rendered.media)
    assert len(rendered.tokens) == len(rendered.targets)


def test_a_rendered_dialog_begins_with_the_prompt_of_each_answer(chat: Any) -> None:
    messages = [
        say("system", "s"),
        say("user", "a", photo()),
        say("assistant", " b"),
        say("user", "\nc"),
        say("assistant", "d"),
    ]
    whole = chat.render(messages)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = chat.render(messages[:i], open_assistant=True)
            assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
            assert whole.targets[len(prompt.tokens)] and not whole.targets[len(prompt.tokens) - 1]


def test_targets_are_answers_with_their_end_and_only_where_asked(chat: Any) -> None:
    messages = [
        say("user", "q"),
        say("assistant", "first", train=False),
        say("user", "r"),
        say("assistant", "two"),
    ]
    rendered = chat.render(messages)
    targets = [id for id, target in zip(rendered.tokens, rendered.targets, strict=True) if target]
    end = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "plain": "<|end_of_text|>"}[chat.name]
    assert targets == [*b"two", BytesTokenizer().specials[end]]
    assert targets[-1] in chat.stop
    trained = chat.render([*messages[:1], say("assistant", "first"), *messages[2:]])
    assert trained.tokens == rendered.tokens
    assert sum(trained.targets) == sum(rendered.targets) + len("first") + 1
    assert not any(chat.render(messages[:1], open_assistant=True).targets)


@settings(PATIENT, max_examples=60)
@given(st.lists(st.sampled_from(["<|image|>", "a", *BytesTokenizer().specials]), min_size=1, max_size=6))
def test_control_tokens_spelt_by_a_person_change_nothing_but_text(chat: Any, words: list[str]) -> None:
    """Neither a control token nor a photo comes out of text."""
    special = set(BytesTokenizer().specials.values())
    evil = "".join(words)
    roles = ("system", "user", "assistant", "tool")
    rendered = chat.render([say(role, evil) for role in roles], open_assistant=True)
    harmless = chat.render([say(role, "x" * len(evil)) for role in roles], open_assistant=True)
    assert [id for id in rendered.tokens if id in special] == [id for id in harmless.tokens if id in special]
    assert len(rendered.tokens) == len(harmless.tokens)
    assert rendered.media == []
    assert BytesTokenizer().decode(rendered.tokens).count(evil) >= len(roles)


def test_no_system_prompt_is_ever_added(chat: Any) -> None:
    assert "system" not in BytesTokenizer().decode(
        chat.render([say("user", "q")], open_assistant=True).tokens
    )


def test_how_texts_are_cut_into_parts_does_not_show(smollm2_tokenizer: Tokenizer) -> None:
    for name in ("chatml", "plain"):
        chat = chat_format(name, smollm2_tokenizer)
        cut = chat.render([say("user", "un", "believ", "able", photo(), "x", "y")])
        whole = chat.render([say("user", "unbelievable", photo(), "xy")])
        assert cut.tokens == whole.tokens and cut.media == whole.media


def test_plain_is_begin_bodies_end(llama3: Tokenizer, smollm2_tokenizer: Tokenizer) -> None:
    messages = [say("user", photo(), "Caption:"), say("assistant", " a dog")]
    rendered = chat_format("plain", llama3).render(messages, open_assistant=True)
    answer = [*llama3.encode(" a dog"), 128_001]
    assert rendered.tokens == [128_000, 0, *llama3.encode("Caption:"), *answer]
    assert rendered.targets == [False] * (len(rendered.tokens) - len(answer)) + [True] * len(answer)
    # SmolLM2 puts nothing before a text and ends one with <|endoftext|>; its eos ends turns.
    rendered = chat_format("plain", smollm2_tokenizer).render(messages)
    assert rendered.tokens[:2] == [0, smollm2_tokenizer.encode("Caption:")[0]]
    assert rendered.tokens[-1] == 0 and rendered.targets[-1]
    assert chat_format("plain", smollm2_tokenizer).stop == {0, 2}


@pytest.mark.parametrize("flag", ["end_of_message", "python_tag"])
def test_llama3_marks_are_refused_elsewhere(flag: str) -> None:
    for name in ("chatml", "plain"):
        with pytest.raises(
            ValueError, match=f"{flag} exists in the llama3 chat format only.*rendered as {name}"
        ):
            chat_format(name, BytesTokenizer()).render([say("assistant", "x", **{flag: True})])
    with pytest.raises(ValueError, match=f"{flag} belongs to assistant messages, not to role 'user'"):
        say("user", "x", **{flag: True})


def test_unknown_formats_and_tokenizers_that_do_not_fit_are_named(smollm2_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"unknown chat format 'llama-3' \(did you mean 'llama3'\?\)"):
        chat_format("llama-3", smollm2_tokenizer)
    with pytest.raises(
        ValueError, match=r"llama3 needs the special tokens <\|begin_of_text\|>, <\|start_header_id\|>"
    ):
        chat_format("llama3", smollm2_tokenizer)
    with pytest.raises(ValueError, match=r"unknown role 'asistant' \(did you mean 'assistant'\?\)"):
        say("asistant", "x")


# --- messages from dicts ---------------------------------------------------------------------------------


def test_content_is_a_string_or_parts() -> None:
    rows = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "t"}, "u"]},
        {"role": "assistant", "content": "x", "train": False, "end_of_message": True, "python_tag": True},
    ]
    assert messages_from_dicts(rows) == [
        Message("system", (Text("s"),)),
        Message("user", (MediaPart("image", "a.png"), Text("t"), Text("u"))),
        Message("assistant", (Text("x"),), train=False, end_of_message=True, python_tag=True),
    ]
    assert messages_from_dicts([]) == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "bytes": png()},
        {"type": "image", "image": png()},
        {"type": "image", "base64": base64.b64encode(png()).decode()},
        {"type": "image", "url": "data:image/png;base64," + base64.b64encode(png()).decode()},
        {"type": "image_url", "image_url": "DATA:image/png;base64," + base64.b64encode(png()).decode()},
        {
            "type": "image_url",
            "image_url": {
                "url": "data:image/png;charset=x;base64," + base64.b64encode(png()).decode(),
                "detail": "low",
            },
        },
    ],
)
def test_bytes_come_from_every_spelling(part: dict[str, Any]) -> None:
    (message,) = messages_from_dicts([{"role": "user", "content": [part]}])
    assert message.parts == (MediaPart("image", png()),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "path": "dir/a b.png"},
        {"type": "image", "path": Path("dir/a b.png")},
        {"type": "image", "image": "dir/a b.png"},
        {"type": "image", "url": "dir/a b.png"},
        {"type": "image_url", "image_url": {"url": "dir/a b.png"}},
        {"type": "image_url", "image_url": "dir/a b.png"},
    ],
)
def test_paths_come_from_every_spelling(part: dict[str, Any]) -> None:
    (message,) = messages_from_dicts([{"role": "user", "content": [part]}])
    assert message.parts == (MediaPart("image", str(Path("dir/a b.png"))),)


def test_pictures_and_tensors_pass_through() -> None:
    import torch

    picture, tensor = Image.new("RGB", (2, 2)), torch.zeros(3, 2, 2)
    content = [{"type": "image", "image": picture}, {"type": "image", "image": tensor}]
    (message,) = messages_from_dicts([{"role": "user", "content": content}])
    assert [part.source for part in message.parts] == [picture, tensor]


def bad_part(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "fine"}, {"role": "user", "content": ["fine", part]}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("hello", "messages must be a list of messages, not str"),
        ({"role": "user"}, "messages must be a list of messages, not dict"),
        (["hello"], r"messages\[0\] must be an object with role and content, not str"),
        ([{"content": "x"}], r"messages\[0\] lacks the key 'role'"),
        ([{"role": "user"}], r"messages\[0\] lacks the key 'content'"),
        (
            [{"role": "user", "contnet": "x"}],
            r"messages\[0\] has the unknown key 'contnet' \(did you mean 'content'",
        ),
        ([{"role": "assistant", "content": None, "tool_calls": []}], r"unknown key 'tool_calls'"),
        (
            [{"role": "assistant", "content": None}],
            r"messages\[0\]\.content must be a string or a list .*nothing",
        ),
        ([{"role": "usr", "content": "x"}], r"messages\[0\]: unknown role 'usr' \(did you mean 'user'\?\)"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]: unknown role 3"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]: unknown role \['user'\]"),
        (
            [{"role": "assistant", "content": "x", "train": 1}],
            r"messages\[0\]\.train must be true or false, not 1",
        ),
        (
            [{"role": "user", "content": "x", "python_tag": True}],
            r"messages\[0\]: python_tag belongs to assistant",
        ),
        (bad_part(text="x"), r"messages\[1\]\.content\[1\] has no type; types are text, image, image_url"),
        (bad_part(type="imge"), r"content\[1\] has the unknown type 'imge' \(did you mean 'image'\?\)"),
        (bad_part(type=["image"]), r"content\[1\] has the unknown type \['image'\]"),
        (bad_part(type="text"), r"content\[1\]\.text must be a string, not nothing"),
        (bad_part(type="text", text=5), r"content\[1\]\.text must be a string, not int"),
        (bad_part(type="text", txt="x"), r"content\[1\] has the unknown key 'txt'"),
        (bad_part(type="image"), r"content\[1\] has no source; give one of image, path, url, bytes, base64"),
        (bad_part(type="image", path="a", bytes=b"b"), r"has 2 sources \(path, bytes\); give one of"),
        (bad_part(type="image", pth="a"), r"unknown key 'pth' \(did you mean 'path'\?\)"),
        (bad_part(type="image", path=7), r"content\[1\]\.path must be a string, not int"),
        (bad_part(type="image", path=""), r"content\[1\]\.path is empty"),
        (bad_part(type="image", bytes="abc"), r"content\[1\]\.bytes must be bytes, not str"),
        (bad_part(type="image", base64="a b"), r"content\[1\]\.base64 is not base64"),
        (bad_part(type="image", base64="QUJD!"), r"content\[1\]\.base64 is not base64"),
        (bad_part(type="image", base64=5), r"content\[1\]\.base64 is not base64"),
        (bad_part(type="image", image=[1, 2]), r"content\[1\]\.image must be a path, .* not list"),
        (
            bad_part(type="image_url", image_url={"url": "https://example.org/a.png"}),
            r"messages\[1\]\.content\[1\]\.image_url\.url is a https address, which is not fetched; save",
        ),
        (
            bad_part(type="image", path="HTTP://a/b"),
            r"content\[1\]\.path is a http address, which is not fetched",
        ),
        (bad_part(type="image", url="file:///etc/passwd"), r"content\[1\]\.url is a file address"),
        (bad_part(type="image", url="data:image/png,abc"), r"a data URI without base64"),
        (
            bad_part(type="image", url="data:text/html;base64,AA=="),
            r"a data URI of type 'text/html'; expected image/",
        ),
        (bad_part(type="image", url="data:image/png;base64,A"), r"content\[1\]\.url is not base64"),
        (
            bad_part(type="image_url", image_url={"uri": "a"}),
            r"image_url has the unknown key 'uri' \(did you mean",
        ),
        (bad_part(type="image_url", image_url={}), r"image_url\.url must be a string, not nothing"),
    ],
)
def test_errors_name_message_part_and_key(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        messages_from_dicts(rows)
