"""A smaller vocabulary inside a tokenizer's: its first tokens, of which every other is made.

Byte-level vocabularies are built by merging, commonest first, so the first few thousand tokens are the common words and
all bytes; what is rare is spelled with them. A readout that is trained on little has then seen every piece.
"""

from __future__ import annotations

from collections.abc import Iterable

from mm_llama.core.tokenizer import Tokenizer


class Pieces:
    """Token ids below `size`; `split` puts any tokens into them, the longest pieces first, with the same text."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        if not 0 < size <= tokenizer.vocab_size:
            raise ValueError(f"{size} pieces are not a part of a vocabulary of {tokenizer.vocab_size}")
        self.size = size
        self.tokenizer = tokenizer
        self._ids: dict[bytes, int] = {}
        for id in range(size):
            # Specials stand for no bytes; of equal ones the first is the tokenizer's own choice.
            if spelled := tokenizer.token_bytes(id):
                self._ids.setdefault(spelled, id)
        self._longest = max(map(len, self._ids), default=0)
        self._known: dict[int, tuple[int, ...]] = {}

    def split(self, tokens: Iterable[int]) -> list[int]:
        """Return the pieces of tokens. Raises ValueError for a byte that no piece spells."""
        return [piece for token in tokens for piece in self._of(token)]

    def _of(self, token: int) -> tuple[int, ...]:
        if token < self.size:
            return (token,)
        if token not in self._known:
            left, found = self.tokenizer.token_bytes(token), []
            while left:
                for length in range(min(len(left), self._longest), 0, -1):
                    if left[:length] in self._ids:
                        found.append(self._ids[left[:length]])
                        left = left[length:]
                        break
                else:
                    raise ValueError(f"the first {self.size} tokens do not spell the byte {left[0]:#04x}")
            self._known[token] = tuple(found)
        return self._known[token]


class Letters:
    """What `Pieces` is for a readout over letters (`adapters.letters`): places in a string of lower-case letters."""

    def __init__(self, tokenizer: Tokenizer, letters: str) -> None:
        self.tokenizer, self.letters = tokenizer, letters

    def split(self, tokens: Iterable[int]) -> list[int]:
        """Return the letters that tokens spell, lower-cased; other characters are left out."""
        said = self.tokenizer.decode(list(tokens)).lower().strip()
        return [place for place in map(self.letters.find, said) if place >= 0]


def respelled(pieces: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """Return what pieces spell in the core's own tokens, as an answer begins: without a space before it.

    A rare word in pieces is repeated less surely than in its own tokens.
    """
    return tokenizer.encode(tokenizer.decode(list(pieces)).strip())
