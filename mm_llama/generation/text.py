"""Token ids -> text as they arrive: a character is given out when its last byte is there, never in halves."""

import codecs
from collections.abc import Iterable

from mm_llama.core.tokenizer import Tokenizer


class TextPieces:
    """Turns tokens into text pieces whose concatenation is the text of all tokens.

    Bytes that are not UTF-8 become U+FFFD, as when a whole text is decoded. Special tokens give nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; often none in the middle of a character of several bytes."""
        return self.push_bytes(self._tokenizer.token_bytes(token))

    def push_bytes(self, data: bytes) -> str:
        """The characters that the bytes of one more token complete."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for a character cut short, else nothing."""
        return self._decoder.decode(b"", True)


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of all tokens: the concatenated pieces."""
    pieces = TextPieces(tokenizer)
    return "".join([*map(pieces.push, tokens), pieces.finish()])
