"""Text to token ids and back, for the byte-level BPE vocabularies of the Llama family.

Three forms are read: `tokenizer.json`, the tiktoken `tokenizer.model` of Meta's releases and the vocabulary
inside a GGUF file. Whatever the form, `encode` knows no special token: control ids come from message
structure (`mm_llama.core.chat`) and never from the characters of a text.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from mm_llama.core.documents import read_json

GGUF_MAGIC = b"GGUF"
# Some published files forget to mark their control tokens as special; their spelling gives them away.
CONTROL_SPELLING = re.compile(r"<\|[^|\s]+\|>")


class Tokenizer(Protocol):
    """What the rest of the project may ask of a tokenizer."""

    vocab_size: int  # rows of the embedding table it was made for: base tokens and specials
    specials: Mapping[str, int]
    bos_token: str | None
    eos_token: str | None
    adds_bos: bool  # plain text of this model starts with `bos_token`
    chat_template: str | None  # Jinja text that came with the checkpoint; kept for export, never run

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, none of them special; `ValueError` for text that has no exact encoding."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` with specials left out; incomplete UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, id: int) -> bytes:
        """UTF-8 bytes that one token stands for, `b""` for a special."""
        ...

    def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
        ...


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Tokenizer of a checkpoint folder or of one file: `tokenizer.json`, `tokenizer.model` or GGUF."""
    path = Path(path)
    if path.is_dir():
        path = _tokenizer_file(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no tokenizer at {path}: expected a checkpoint folder, tokenizer.json, tokenizer.model or a "
            ".gguf file"
        )
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(GGUF_MAGIC):
        from mm_llama.core.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    if start.lstrip().startswith(b"{"):
        return load_json_tokenizer(path)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the tokenizer itself: run `git lfs pull` in its folder"
        )
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", start):
        from mm_llama.core.tiktoken_llama3 import load_tiktoken_llama3

        return load_tiktoken_llama3(path)
    raise ValueError(
        f"{path} is no tokenizer of a known form (it starts with {start[:16]!r}): expected tokenizer.json, a "
        "tiktoken tokenizer.model of base64 lines, or GGUF; SentencePiece models of Llama 2 are not supported"
    )


def _tokenizer_file(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1:
        return gguf[0]
    if gguf:
        raise ValueError(
            f"{folder} holds {len(gguf)} GGUF files, name one: {', '.join(p.name for p in gguf)}"
        )
    seen = sorted(p.name for p in folder.iterdir())
    shown = ", ".join(seen[:20]) + (f" and {len(seen) - 20} more" if len(seen) > 20 else "") or "nothing"
    raise FileNotFoundError(f"no tokenizer.json, tokenizer.model or .gguf file in {folder}; it holds {shown}")


def load_json_tokenizer(path: str | Path) -> "JsonTokenizer":
    """Tokenizer of one `tokenizer.json`, with the `tokenizer_config.json` beside it when there is one."""
    path = Path(path)
    document = read_json(path)
    config_path = path.parent / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    template = config.get("chat_template")
    template_path = path.parent / "chat_template.jinja"
    if template_path.is_file():
        template = template_path.read_text(encoding="utf-8")
    return JsonTokenizer(
        document,
        source=str(path),
        bos_token=_token_name(config.get("bos_token")) or _first_special(document.get("post_processor")),
        eos_token=_token_name(config.get("eos_token")),
        adds_bos=config.get("add_bos_token"),
        chat_template=template if isinstance(template, str) else None,
    )


class JsonTokenizer:
    """Byte-level BPE described by a document in the `tokenizer.json` layout.

    `adds_bos=None` reads from the document's post-processor whether plain text starts with a special token.
    """

    def __init__(
        self,
        document: dict[str, Any],
        *,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        adds_bos: bool | None = None,
        chat_template: str | None = None,
    ) -> None:
        import tokenizers

        _check_kind(document, source)
        _check_ids(document, source)
        added = {entry["content"]: entry for entry in document.get("added_tokens") or []}
        vocab = document["model"]["vocab"]
        self.specials: Mapping[str, int] = {
            text: entry["id"]
            for text, entry in added.items()
            if entry.get("special") or CONTROL_SPELLING.fullmatch(text)
        }
        for key, token in (("bos_token", bos_token), ("eos_token", eos_token)):
            if token is not None and token not in self.specials:
                raise ValueError(f"{key} {token!r} is not among the special tokens of {source}")
        self.bos_token, self.eos_token, self.chat_template = bos_token, eos_token, chat_template
        starts_with = _first_special(document.get("post_processor"))
        self.adds_bos = bos_token is not None and (starts_with == bos_token if adds_bos is None else adds_bos)
        self._bytes = _byte_table(vocab, added, self.specials)
        self.vocab_size = len(self._bytes)
        known = set(b"".join(self._bytes[id] for text, id in vocab.items() if len(text) == 1))
        self._missing = frozenset(range(256)) - known
        self._document = document
        try:
            self._encoder = tokenizers.Tokenizer.from_str(
                json.dumps(_without_specials(document, self.specials))
            )
        except BaseException as error:
            # The library raises bare Exception for every malformed document, and what is no Exception where it panics.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"{source} is not a usable tokenizer.json: {error}") from error

    def encode(self, text: str) -> list[int]:
        data = utf8(text)
        if self._missing and not self._missing.isdisjoint(data):
            _refuse_missing(text, self._missing)
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[id]

    def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": chat_template or self.chat_template,
            "clean_up_tokenization_spaces": False,
        }
        contents = {
            "tokenizer.json": json.dumps(self._document, ensure_ascii=False),
            "tokenizer_config.json": json.dumps({k: v for k, v in config.items() if v is not None}, indent=2),
        }
        _write_files(Path(folder), contents)


def bpe_document(
    vocab: Mapping[str, int],
    merges: Sequence[str],
    added: Sequence[tuple[str, int, bool]],
    pre_tokenizers: Sequence[Mapping[str, Any]],
    *,
    ignore_merges: bool,
    bos_token: str | None = None,
) -> dict[str, Any]:
    """A `tokenizer.json` document from its parts.

    `merges` are pairs written "left right"; `added` is (text, id, special); `bos_token` is given when it goes
    before every text.
    """
    ids = {text: id for text, id, _ in added}
    if list(ids.values()) != list(range(len(vocab), len(vocab) + len(ids))):
        vocab = {**vocab, **ids}  # readers number added tokens on from the vocabulary unless it holds them
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    post_processor: dict[str, Any] = byte_level
    if bos_token is not None:
        first = {"SpecialToken": {"id": bos_token, "type_id": 0}}
        sequence = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        post_processor = {
            "type": "TemplateProcessing",
            "single": [first, sequence[0]],
            "pair": [first, *sequence],
            "special_tokens": {bos_token: {"id": bos_token, "ids": [ids[bos_token]], "tokens": [bos_token]}},
        }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": text, **flags, "special": special} for text, id, special in added
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*pre_tokenizers, byte_level]},
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocab),
            "merges": list(merges),
        },
    }


@cache
def byte_alphabet() -> tuple[str, ...]:
    """Printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def utf8(text: str) -> bytes:
    """UTF-8 of `text`; a lone surrogate is a `ValueError` that says where it stands."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds a lone surrogate {text[error.start]!r} at character {error.start}, which is no "
            "Unicode text; decode the source with errors='replace' or remove it"
        ) from None


def _refuse_missing(text: str, missing: frozenset[int]) -> None:
    for position, character in enumerate(text):
        bad = missing.intersection(character.encode("utf-8"))
        if bad:
            raise ValueError(
                f"this vocabulary has no token for {character!r} (byte 0x{min(bad):02x}, character "
                f"{position} of the text) and would drop it; remove or replace the character"
            )


def _check_kind(document: Mapping[str, Any], source: str) -> None:
    model = document.get("model")
    model = model if isinstance(model, Mapping) else {}
    kind = model.get("type", "BPE")
    if kind != "BPE" or "merges" not in model or not isinstance(model.get("vocab"), Mapping):
        raise ValueError(
            f"{source} holds a tokenizer of type {kind!r}; expected a byte-level BPE with vocab and merges"
        )
    if "ByteLevel" not in json.dumps(document.get("decoder")):
        raise ValueError(
            f"{source} holds a BPE that is not byte-level (decoder {document.get('decoder')!r}), as "
            "SentencePiece conversions of Llama 2 are; expected the form of Llama 3, SmolLM or GPT-2"
        )


def _check_ids(document: Mapping[str, Any], source: str) -> None:
    """Raise ValueError for tokens or ids of other kinds, and for ids that would make a table of nothing but holes."""
    added, model = document.get("added_tokens") or [], document["model"]
    pairs: list[tuple[Any, Any]] = list(model["vocab"].items())
    if isinstance(added, list) and all(isinstance(entry, Mapping) for entry in added):
        pairs += [(entry.get("content"), entry.get("id")) for entry in added]
    else:
        pairs.append((None, None))
    most = 2 * len(pairs) + 1_000_000
    for text, id in pairs:
        if not isinstance(text, str) or type(id) is not int or not 0 <= id < most:
            raise ValueError(
                f"{source}: the token {text!r:.60} has the id {id!r:.60}; expected text and 0 to {most:,}"
            )
    merges = model["merges"]
    if not isinstance(merges, list) or not all(
        isinstance(one, str)
        or (isinstance(one, list) and len(one) == 2 and all(isinstance(p, str) for p in one))
        for one in merges
    ):
        raise ValueError(f"{source}: its merges are no list of pairs")


def _byte_table(
    vocab: Mapping[str, int], added: Mapping[str, Mapping[str, Any]], specials: Mapping[str, int]
) -> list[bytes]:
    table = [b""] * (1 + max([*vocab.values(), *(entry["id"] for entry in added.values())]))
    byte_of = {character: bytes([byte]) for byte, character in enumerate(byte_alphabet())}
    for text, id in vocab.items():
        try:
            table[id] = b"".join([byte_of[character] for character in text])
        except KeyError:  # spelt outside the alphabet: the token is its own text
            table[id] = text.encode("utf-8")
    for text, entry in added.items():
        table[entry["id"]] = b"" if text in specials else text.encode("utf-8")
    return table


def _without_specials(document: Mapping[str, Any], specials: Mapping[str, int]) -> dict[str, Any]:
    """The document for encoding: what it does not hold, no text can produce.

    Truncation, padding and dropout go too: each would change a text without a word.
    """
    model = dict(document["model"], dropout=None)
    if not specials.keys().isdisjoint(model["vocab"]):
        model["vocab"] = {text: id for text, id in model["vocab"].items() if text not in specials}
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [p for p in pairs if specials.keys().isdisjoint((*p, "".join(p)))]
        if model.get("unk_token") in specials:
            model["unk_token"] = None
    plain = [entry for entry in document.get("added_tokens") or [] if entry["content"] not in specials]
    if plain:  # ids of added tokens follow from their order unless the vocabulary holds them
        model["vocab"] = {**model["vocab"], **{entry["content"]: entry["id"] for entry in plain}}
    changes = {
        "model": model,
        "added_tokens": plain,
        "truncation": None,
        "padding": None,
        "post_processor": None,
    }
    return {**document, **changes}


def _first_special(processor: Mapping[str, Any] | None) -> str | None:
    """Special token that a post-processor puts before a text."""
    if not isinstance(processor, Mapping):
        return None
    inner = processor.get("processors")
    for part in [processor, *(inner if isinstance(inner, list) else [])]:
        template = part.get("single") if isinstance(part, Mapping) else None
        first = template[0] if isinstance(template, list) and template else None
        if isinstance(first, Mapping) and isinstance(first.get("SpecialToken"), Mapping):
            return str(first["SpecialToken"].get("id"))
    return None


def _token_name(value: Any) -> str | None:
    name = value.get("content") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def _write_files(folder: Path, contents: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {folder / name: folder / f"{name}.tmp" for name in contents}
    try:
        for path, text in zip(temporary.values(), contents.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        for final, path in temporary.items():
            os.replace(path, final)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
