"""`from mm_llama import load`: a model to talk to, with pictures in every form that people have them in."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mm_llama import load
from mm_llama.assistant import Assistant
from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import export_hf
from mm_llama.core.llama import Llama
from mm_llama.dtypes import choose_dtype

QUESTION = "Which colour?"


@pytest.fixture(scope="module")
def assistant(tiny_run: Path) -> Assistant:
    return load("tiny", adapters=[tiny_run], dtype="float32")


def about(**picture: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **picture}, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_a_picture_may_be_a_path_bytes_an_address_of_data_or_a_picture(
    assistant: Assistant, coloured: Callable[[str], Path], colour: str
) -> None:
    path = coloured(colour)
    data = path.read_bytes()
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    forms: list[dict[str, Any]] = [
        {"path": str(path)},
        {"path": path},
        {"bytes": data},
        {"image": Image.open(path, formats=("PNG",))},
        {"url": address},
    ]
    answers = [assistant.chat(about(**form)) for form in forms]
    assert answers == [colour] * len(forms)
    openai = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": QUESTION}]
    assert assistant.chat([{"role": "user", "content": openai}]) == colour


def test_a_string_is_a_users_message(assistant: Assistant) -> None:
    said = assistant.chat("Hello?", max_new_tokens=8)
    assert said == assistant.chat([{"role": "user", "content": "Hello?"}], max_new_tokens=8)
    assert said


def test_a_streamed_answer_is_the_whole_answer(assistant: Assistant, coloured: Callable[[str], Path]) -> None:
    pieces = assistant.chat(about(path=coloured("blue")), stream=True)
    assert list(pieces) == ["b", "l", "u", "e"]
    assert (pieces.result.text, pieces.result.stop_reason) == ("blue", "stop")


def test_a_conversation_of_several_turns_and_pictures_is_answered(
    assistant: Assistant, coloured: Callable[[str], Path]
) -> None:
    turns = about(path=coloured("red"))
    turns += [{"role": "assistant", "content": "red"}, *about(path=coloured("blue"))]
    found = assistant.chat(turns, stream=True, max_new_tokens=6).result
    assert found.tokens
    other = [*turns[:2], *about(path=coloured("red"))]
    assert assistant.chat(other, stream=True).result.num_prompt_tokens == found.num_prompt_tokens


def test_sampling_options_reach_the_model(assistant: Assistant) -> None:
    def say(**options: Any) -> str:
        return assistant.chat("Hello?", max_new_tokens=12, **options)

    assert say(temperature=1.5, seed=1) == say(temperature=1.5, seed=1) != say(temperature=1.5, seed=2)
    assert say(temperature=1.5, top_k=1) == say(temperature=1.5, top_p=1e-6) == say()


def test_a_system_message_is_the_one_given_and_no_other(assistant: Assistant) -> None:
    by_option = assistant.chat("Hi", system="Be brief.", max_new_tokens=9, stream=True).result
    rows = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    by_message = assistant.chat(rows, max_new_tokens=9, stream=True).result
    assert by_option.tokens == by_message.tokens
    without = assistant.chat("Hi", max_new_tokens=9, stream=True).result
    # <|begin_of_text|>, header and blank line of the user, the word, <|eot_id|>, the assistant's header.
    assert without.num_prompt_tokens == 1 + 3 + len("user\n\n") + 2 + 2 + len("assistant\n\n")
    with pytest.raises(ValueError, match="messages begin with a system message too; drop one"):
        assistant.chat(rows, system="Be long.")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages"),
        ([{"role": "assistant", "content": "I am."}], "the last message is the assistant's own"),
        ({"role": "user", "content": "Hi"}, "messages must be a list of messages"),
        ([{"role": "user", "content": [{"type": "smell", "path": "x"}]}], "unknown type 'smell'"),
        ([{"role": "user", "content": [{"type": "audio", "path": "x.wav"}]}], "no recording at x.wav"),
        ([{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}], "gone.png"),
        ([{"role": "user", "content": [{"type": "image", "bytes": b"text"}]}], "holds text; expected a JPEG"),
    ],
)
def test_messages_that_cannot_be_answered_say_why(assistant: Assistant, messages: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        assistant.chat(messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 2}, "top_p is 2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 4000}, "more than the core's context of 2048 tokens"),
    ],
)
def test_impossible_options_name_themselves(
    assistant: Assistant, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assistant.chat("Hi", **options)


def test_a_picture_without_an_adapter_says_how_to_get_one(coloured: Callable[[str], Path]) -> None:
    blind = load("tiny", dtype="float32")
    with pytest.raises(ValueError, match=r"no image adapter is attached .*make demo.*adapters=\["):
        blind.chat(about(path=coloured("red")))


def test_text_has_the_same_logits_with_an_adapter_attached(assistant: Assistant) -> None:
    plain = load("tiny", dtype="float32")
    tokens = torch.tensor([assistant.tokenizer.encode("No picture here")])
    with torch.inference_mode():
        assert torch.equal(assistant.model(tokens), plain.model(tokens))


@pytest.fixture(scope="module")
def other_core(assistant: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core of the same numbers and other weights, as a Hugging Face folder."""
    core = Llama(assistant.model.core.config)
    core.init_weights(seed=7)
    folder = tmp_path_factory.mktemp("other") / "core"
    export_hf(core, assistant.tokenizer, folder)
    return folder


def test_a_core_may_be_a_checkpoints_path(other_core: Path, assistant: Assistant) -> None:
    other = load(other_core, dtype="float32")
    assert other.model.core.config == assistant.model.core.config
    assert other.model.core.digest == digest_tensors(other.model.core.state_dict())
    assert other.chat("Hi", max_new_tokens=4)


def test_an_adapter_of_another_core_is_refused_with_both_digests(
    other_core: Path, tiny_run: Path, assistant: Assistant
) -> None:
    mine, theirs = assistant.model.core.digest, load(other_core).model.core.digest
    with pytest.raises(ValueError, match=f"trained on the core {mine}, but this core is {theirs}"):
        load(other_core, adapters=[tiny_run])


def test_two_adapters_of_one_kind_are_refused(tiny_run: Path) -> None:
    with pytest.raises(ValueError, match="a second image adapter"):
        load("tiny", adapters=[tiny_run, tiny_run])


def test_one_adapter_needs_no_list(tiny_run: Path, coloured: Callable[[str], Path]) -> None:
    for run in (tiny_run, str(tiny_run)):
        assert load("tiny", adapters=run).chat(about(path=coloured("red"))) == "red"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": ["runs/gone"]}, "there is no adapter run at runs/gone"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
        ({"device": "gpu"}, "device is 'gpu', expected cpu, cuda or cuda:N"),
        pytest.param(
            {"device": "cuda"},
            "device is 'cuda', but torch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
        ({"dtype": "float8"}, "dtype is 'float8', expected one of auto, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_loaded_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load("tiny", **options)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "auto"])
def test_the_dtype_is_the_models(name: str) -> None:
    assert load("tiny", dtype=name).model.dtype == choose_dtype(name)
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


def test_load_is_the_function_whatever_was_imported_before() -> None:
    code = (
        "import sys, mm_llama, mm_llama.assistant\n"
        "assert 'torch' not in sys.modules\n"
        "from mm_llama import load\n"
        "print(callable(load), load is mm_llama.load is mm_llama.assistant.load, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True False\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_core_knows_the_capital_of_france(smollm2: object, dtype: str) -> None:
    pieces = load(dtype=dtype).chat("What is the capital of France?", stream=True)
    assert "Paris" in "".join(pieces)
    assert pieces.result.stop_reason == "stop"
