"""The byte-level BPE inside a GGUF file, and a reader of GGUF's key-value header."""

import mmap
import struct
from pathlib import Path
from typing import Any

from mm_llama.core.tiktoken_llama3 import SPLIT as LLAMA3
from mm_llama.core.tiktoken_llama3 import split_rule
from mm_llama.core.tokenizer import JsonTokenizer, bpe_document

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}

# tokenizer.ggml.pre -> how text is split before merging
SPLITS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), [split_rule(LLAMA3)]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), [SINGLE_DIGITS, split_rule(GPT2)]),
    "gpt-2": [split_rule(GPT2)],
    "qwen2": [split_rule(QWEN2)],
}
# Vocabularies of tiktoken origin: a word that is a token is taken whole, and text starts with BOS unless
# the file says otherwise.
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def load_gguf_tokenizer(path: str | Path) -> JsonTokenizer:
    """Tokenizer of a GGUF file; `ValueError` names a vocabulary kind or split rule that is not known."""
    fields = read_metadata(path)
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2', the byte-level BPE of "
            "Llama 3 and SmolLM"
        )
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise ValueError(
            f"{path}: tokenizer.ggml.pre is {pre!r}, an unknown split rule; known are {', '.join(SPLITS)}"
        )
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        if key not in fields:
            raise ValueError(f"{path}: the GGUF header lacks {key}, so it carries no tokenizer")
        if not isinstance(fields[key], list) or not all(isinstance(one, str) for one in fields[key]):
            raise ValueError(f"{path}: {key} is no list of texts")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list):
        raise ValueError(f"{path}: tokenizer.ggml.token_type is {types!r}, expected one for each token")
    if len(types) != len(tokens):
        raise ValueError(
            f"{path}: {len(tokens)} tokens but {len(types)} entries in tokenizer.ggml.token_type"
        )
    set_apart = (CONTROL, USER_DEFINED, UNUSED)
    bos = _named(fields, tokens, "bos")
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre in WHOLE_WORDS) and bos is not None
    document = bpe_document(
        {text: id for id, text in enumerate(tokens) if types[id] not in set_apart},
        fields["tokenizer.ggml.merges"],
        # An unused row must stay out of reach of text as a control token does.
        [(text, id, types[id] != USER_DEFINED) for id, text in enumerate(tokens) if types[id] in set_apart],
        SPLITS[pre],
        ignore_merges=pre in WHOLE_WORDS,
        bos_token=bos if adds_bos else None,
    )
    return JsonTokenizer(
        document,
        source=str(path),
        bos_token=bos,
        eos_token=_named(fields, tokens, "eos"),
        adds_bos=adds_bos,
        chat_template=_text(fields.get("tokenizer.chat_template")),
    )


def _named(fields: dict[str, Any], tokens: list[str], name: str) -> str | None:
    id = fields.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[id] if type(id) is int and 0 <= id < len(tokens) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Key-value header of a GGUF file (version 2 or 3) as plain Python values; tensors are not touched.

    The `gguf` package keeps an array object for every string, which takes seconds for a vocabulary; this
    reads the same values in a fraction of one.
    """
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Header(data).read()
        except (struct.error, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f"{path} is not a readable GGUF file (cut short or damaged): {error}") from None


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def read(self) -> dict[str, Any]:
        if self.data[:4] != b"GGUF":
            raise ValueError(f"it starts with {self.data[:4]!r}")
        version = struct.unpack_from("<I", self.data, 4)[0]
        if version not in (2, 3):
            raise ValueError(f"format version {version}; versions 2 and 3 (little-endian) are known")
        num_fields = struct.unpack_from("<Q", self.data, 16)[0]
        self.at = 24
        return {self.string(): self.value(self.number("I")) for _ in range(num_fields)}

    def number(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = struct.unpack_from("<Q", self.data, self.at)[0]
        start = self.at + 8
        self.at = start + length
        if self.at > len(self.data):
            raise ValueError(f"a string of {length} bytes runs past the end of the file")
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        kind, length = self.number("I"), self.number("Q")
        if kind in SCALARS:
            layout = f"<{length}{SCALARS[kind]}"
            values = list(struct.unpack_from(layout, self.data, self.at))
            self.at += struct.calcsize(layout)
            return values
        return [self.value(kind) for _ in range(length)]
