"""Checkpoints that somebody else wrote: whatever their files say, an error of ours, soon and in little memory."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mm_llama.core.documents import parse_json, read_json
from mm_llama.core.gguf import open_gguf
from mm_llama.core.gguf_tokenizer import load_gguf_tokenizer, read_metadata
from mm_llama.core.tensor_file import load_tensors
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.core.weights import load_core, open_checkpoint
from mm_llama.released.detect import is_vision
from mm_llama.testing.bytes_tokenizer import BytesTokenizer
from tests.core.conftest import to_meta, write_meta
from tests.hostile import little_memory, mutated, variants

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.timeout(240)]
OURS = (ValueError, OSError)


def outcomes(tries: Any, attempt: Callable[[Any], Any], said: str) -> dict[str, int]:
    """Count what became of each try; anything but a result or an error of ours that says `said` fails the test."""
    found = {"read": 0, "refused": 0}
    with little_memory():
        for what, given in tries:
            try:
                attempt(given)
            except OURS as error:
                found["refused"] += 1
                assert said in str(error) and len(str(error)) < 2000, (what, str(error)[:500])
            except Exception as error:
                raise AssertionError(f"{what}: {error!r:.500}") from error
            else:
                found["read"] += 1
    return found


# --- JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ('{"a": 1', r"f\.json:1: not JSON"),
        (b"\xff{}", "not UTF-8 text"),
        ("[1]", "expected a JSON object, found list"),
        ("", r"f\.json:1: not JSON"),
    ],
)  # fmt: skip
def test_json_that_no_reader_survives_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    (tmp_path / "config.json").write_bytes(path.read_bytes())
    assert not is_vision(tmp_path)


def test_a_json_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "f.json", "wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(ValueError, match="68,719,476,736 bytes, more than a JSON file of a model has"):
        read_json(tmp_path / "f.json")
    assert parse_json("[1.5]", "x") == [1.5]


# --- Hugging Face and Meta folders


def test_every_value_of_a_config_may_be_anything(hf_folder: Path) -> None:
    path = hf_folder / "config.json"
    config = json.loads(path.read_text())

    def attempt(changed: Any) -> None:
        path.write_text(json.dumps(changed))
        open_checkpoint(hf_folder)

    found = outcomes(variants(config), attempt, str(hf_folder))
    assert found["refused"] > 200 and found["read"] > 100


def test_every_value_of_an_index_may_be_anything(hf_folder: Path) -> None:
    path = hf_folder / "model.safetensors.index.json"
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}

    def attempt(changed: Any) -> None:
        path.write_text(json.dumps(changed))
        open_checkpoint(hf_folder)

    assert outcomes(variants(index), attempt, str(hf_folder))["refused"] > 20


def test_every_value_of_metas_params_may_be_anything(
    transformers_llama: Callable[..., Any], tmp_path: Path
) -> None:
    params, state = to_meta(transformers_llama())
    folder = write_meta(tmp_path / "meta", params, state)

    def attempt(changed: Any) -> None:
        (folder / "params.json").write_text(json.dumps(changed))
        open_checkpoint(folder)

    assert outcomes(variants(params), attempt, str(folder))["refused"] > 100


def test_metas_pickles_hold_tensors_or_are_refused(
    transformers_llama: Callable[..., Any], tmp_path: Path
) -> None:
    params, state = to_meta(transformers_llama())
    folder = write_meta(tmp_path / "meta", params, {name: state[name] for name in list(state)[:3]})
    path = folder / "consolidated.00.pth"
    whole = path.read_bytes()

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        open_checkpoint(folder)

    tries = ((str(number), mutated(whole, 3, number)) for number in range(150))
    assert outcomes(tries, attempt, "")["refused"] == 150

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"tok_embeddings.weight": Evil()}, path)
    with pytest.raises(ValueError, match="not a file of plain tensors that can be opened safely"):
        open_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


# --- safetensors


def header(entries: Any, size: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header and 64 bytes behind it."""
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(64)


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changes}


LYING: dict[str, bytes] = {
    "huge header": header(one(), size=1 << 62),
    "header past the end": header(one(), size=1000),
    "header of 100 MB": struct.pack("<Q", 200_000_000) + b"{" * 1000,
    "past the end": header(one(shape=[1000], data_offsets=[0, 4000])),
    "backwards": header(one(data_offsets=[64, 0])),
    "negative": header(one(data_offsets=[-64, 0])),
    "overlapping": header(one() | {"b": one()["a"]}),
    "a hole": header(one(shape=[8], data_offsets=[32, 64])),
    "too small": header(one(data_offsets=[0, 32])),
    "overflowing shape": header(one(shape=[1 << 32, 1 << 32])),
    "negative shape": header(one(shape=[-16])),
    "unknown dtype": header(one(dtype="PICKLE")),
    "deep": header(b"[" * 100_000),
    "no JSON": header(b"\xff" * 50),
    "empty": b"",
    "pickle": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("data", LYING.values(), ids=list(LYING))
def test_a_safetensors_header_that_lies_is_refused_by_name(
    tmp_path: Path, hf_folder: Path, data: bytes
) -> None:
    path = hf_folder / "model.safetensors"
    path.write_bytes(data)
    with little_memory():
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_tensors(path)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            open_checkpoint(hf_folder)


def test_safetensors_with_changed_bytes_load_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4, 4), "b": torch.ones(3, dtype=torch.int64)}, path, {"format": "pt"})
    whole = path.read_bytes()

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        load_tensors(path)

    found = outcomes(((str(n), mutated(whole, 1, n)) for n in range(500)), attempt, "m.safetensors")
    assert found["refused"] > 100 and found["read"] > 20


# --- GGUF


@pytest.fixture
def gguf_file(transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path) -> Path:
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [chr(0x100 + n) for n in range(260)],
        "tokenizer.ggml.token_type": [1] * 260,
        "tokenizer.ggml.merges": ["\u0100 \u0101"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    return as_gguf(tmp_path / "m.gguf", transformers_llama(), **fields)


def test_gguf_counts_are_held_against_the_file(gguf_file: Path, tmp_path: Path) -> None:
    """A list of 2^60 numbers is ten bytes to its writer."""
    whole = gguf_file.read_bytes()
    counts = {
        "tensors": (8, "<Q"), "fields": (16, "<Q"),
        "a name": (24, "<Q"), "tokens": (whole.index(b"tokenizer.ggml.tokens") + 21 + 8, "<Q"),
        "numbers": (whole.index(b"tokenizer.ggml.token_type") + 25 + 8, "<Q"),
    }  # fmt: skip
    for what, (place, layout) in counts.items():
        for count in (1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            changed = bytearray(whole)
            struct.pack_into(layout, changed, place, count)
            path = tmp_path / "lies.gguf"
            path.write_bytes(changed)
            with little_memory(), pytest.raises(ValueError, match=r"lies\.gguf"):
                open_gguf(path)
            if what != "tensors":
                with pytest.raises(ValueError, match=r"lies\.gguf is not a readable GGUF file"):
                    read_metadata(path)


def test_gguf_with_changed_bytes_loads_or_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    names = whole.index(b"token_embd.weight")

    def attempt(data: bytes) -> None:
        path = tmp_path / "changed.gguf"
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            load_gguf_tokenizer(path)
        open_gguf(path)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    tries = ((str(number), mutated(whole, 2, number, names + 2000)) for number in range(150))
    assert outcomes(tries, attempt, "")["refused"] > 50


# --- tokenizers


def test_every_value_of_a_tokenizer_may_be_anything(tmp_path: Path) -> None:
    BytesTokenizer().save(tmp_path)
    path, beside = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    document, config = json.loads(path.read_text()), json.loads(beside.read_text())
    document["model"]["vocab"] = dict(list(document["model"]["vocab"].items()))

    def attempt(changed: Any) -> None:
        path.write_text(json.dumps(changed))
        load_tokenizer(path).encode("any text, \u00e9 and \U0001f600")

    found = outcomes(variants(document), attempt, "")
    assert found["refused"] > 300 and found["read"] > 100
    path.write_text(json.dumps(document))

    def attempt_config(changed: Any) -> None:
        beside.write_text(json.dumps(changed))
        load_tokenizer(path)

    outcomes(variants(config), attempt_config, "")


@pytest.mark.parametrize("id", [2**40, -1, 1 << 24, 1.5, "7", None, True])
def test_an_id_of_a_tokenizer_makes_no_table_of_holes(tmp_path: Path, id: Any) -> None:
    BytesTokenizer().save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["added_tokens"][0]["id"] = id
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with little_memory(), pytest.raises(ValueError, match="has the id .*; expected text and 0 to 1,"):
        load_tokenizer(tmp_path)


def test_a_chat_template_is_text(hf_folder: Path) -> None:
    """What a template says is never run: only the markers in it are looked at."""
    BytesTokenizer().save(hf_folder)
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}<|im_start|>"
    (hf_folder / "chat_template.jinja").write_text(evil)
    loaded = load_core(hf_folder)
    assert loaded.chat == "chatml" and loaded.tokenizer is not None
    assert loaded.tokenizer.chat_template == evil
