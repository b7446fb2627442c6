"""A tokenizer without a vocabulary file: a token for each byte, then the chat formats' control tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mm_llama.core.tokenizer import JsonTokenizer, bpe_document, byte_alphabet, utf8

SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|im_end|>",
)


class BytesTokenizer:
    """Byte `b` is token `b`; the nine specials follow at 256."""

    bos_token: str | None = "<|begin_of_text|>"
    eos_token: str | None = "<|end_of_text|>"
    adds_bos = True
    chat_template: str | None = None

    def __init__(self) -> None:
        self.specials: Mapping[str, int] = {name: 256 + i for i, name in enumerate(SPECIALS)}
        self.vocab_size = 256 + len(SPECIALS)

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return bytes([id]) if id < 256 else b""

    def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
        document = bpe_document(
            {character: byte for byte, character in enumerate(byte_alphabet())},
            [],
            [(name, id, True) for name, id in self.specials.items()],
            [],
            ignore_merges=False,
            bos_token=self.bos_token,
        )
        tokenizer = JsonTokenizer(
            document, source="bytes", bos_token=self.bos_token, eos_token=self.eos_token
        )
        tokenizer.save(folder, chat_template=chat_template)
