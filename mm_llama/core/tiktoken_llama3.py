"""The tiktoken form of the Llama 3 tokenizer, as in Meta's checkpoints: a file of ranks, the rest by rule."""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mm_llama.core.tokenizer import JsonTokenizer, bpe_document, byte_alphabet, utf8

NUM_RANKS = 128_000
NUM_SPECIALS = 256
# tiktoken's regex engine and merge loop degrade on huge inputs, so long texts are cut before they reach it.
MAX_CHARS = 400_000
MAX_RUN = 25_000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)


def llama3_specials() -> dict[str, int]:
    """The 256 special tokens of Llama 3.1 and later in Meta's numbering: 128000 to 128255."""
    num_reserved = NUM_SPECIALS - len(NAMED_SPECIALS)
    names = [*NAMED_SPECIALS, *(f"<|reserved_special_token_{2 + i}|>" for i in range(num_reserved))]
    return {name: NUM_RANKS + i for i, name in enumerate(names)}


def load_tiktoken_llama3(path: str | Path) -> "TiktokenLlama3":
    """Tokenizer of a `tokenizer.model` with exactly 128,000 lines of base64 token and rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise ValueError(
                f"{path}:{number}: expected a base64 token and its rank, found {line[:40]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(NUM_RANKS)):
        raise ValueError(
            f"{path} holds {len(ranks):,} distinct tokens; a Llama 3 tokenizer.model has exactly "
            f"{NUM_RANKS:,}, ranked 0 to {NUM_RANKS - 1:,}. Is the file cut short or of another model?"
        )
    return TiktokenLlama3(ranks)


class TiktokenLlama3:
    """Llama 3 tokenizer over byte-pair ranks."""

    bos_token: str | None = "<|begin_of_text|>"
    eos_token: str | None = "<|end_of_text|>"
    adds_bos = True
    chat_template: str | None = None

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        import tiktoken

        self.specials: Mapping[str, int] = llama3_specials()
        self.vocab_size = len(ranks) + len(self.specials)
        self._ranks = dict(ranks)
        self._bytes = sorted(self._ranks, key=self._ranks.__getitem__) + [b""] * len(self.specials)
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=SPLIT, mergeable_ranks=self._ranks, special_tokens=dict(self.specials)
        )

    def encode(self, text: str) -> list[int]:
        utf8(text)
        return [id for piece in pieces(text) for id in self._encoding.encode_ordinary(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[id]

    def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
        document = bpe_document(
            {_spelling(token): rank for token, rank in self._ranks.items()},
            recover_merges(self._ranks),
            [(text, id, True) for text, id in self.specials.items()],
            [split_rule(SPLIT)],
            ignore_merges=True,
            bos_token=self.bos_token,
        )
        tokenizer = JsonTokenizer(
            document, source="tokenizer.model", bos_token=self.bos_token, eos_token=self.eos_token
        )
        tokenizer.save(folder, chat_template=chat_template or self.chat_template)


def pieces(text: str) -> Iterator[str]:
    """Consecutive slices of `text`, none above 400,000 characters or with a run above 25,000.

    A run is of whitespace only or of anything else only.
    """
    for start in range(0, len(text), MAX_CHARS):
        chunk = text[start : start + MAX_CHARS]
        cut, run, was_space = 0, 0, None
        for i, character in enumerate(chunk):
            is_space = character.isspace()
            run = run + 1 if is_space == was_space else 1
            was_space = is_space
            if run > MAX_RUN:
                yield chunk[cut:i]
                cut, run = i, 1
        yield chunk[cut:]


def recover_merges(ranks: Mapping[bytes, int]) -> list[str]:
    """Merge list that gives the ids of `ranks` when whole words are looked up first.

    Every split of a token into two tokens counts as a way to reach it; the token's rank orders them, then the
    ranks of the halves.
    """
    merges = []
    for token, rank in ranks.items():
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [(rank, ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
    merges.sort()
    return [f"{_spelling(a)} {_spelling(b)}" for _, _, _, a, b in merges]


def split_rule(pattern: str) -> dict[str, object]:
    """Pre-tokenizer entry of a `tokenizer.json` that isolates each match of `pattern`."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _spelling(token: bytes) -> str:
    alphabet = byte_alphabet()
    return "".join([alphabet[byte] for byte in token])
