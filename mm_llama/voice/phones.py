"""The phones of the voice: characters of misaki's alphabet for English, numbered once for all."""

from __future__ import annotations

SILENCE = 0  # before and behind an utterance, and nowhere else
# In the order of their numbers, from 1 on; new ones are added at the end.
ALPHABET = (
    ' ;:,.!?—…"()“”'
    "AIOQSTWYabcdefhijklmnopqrstuvwxyz"
    "ᵊᵻæɑɐɒɔɕðəɚɛɜɡɪŋɹɾʃʊʌʒʔʤʧθɫɬˈˌː"
)  # fmt: skip
_NUMBERS = {character: number for number, character in enumerate(ALPHABET, start=1)}
NUM_PHONES = len(ALPHABET) + 1


def numbers(phones: str) -> list[int]:
    """Return the numbers of phones, silence before and behind. Raises ValueError for one that is no phone."""
    if unknown := sorted(set(phones) - set(ALPHABET)):
        raise ValueError(f"{unknown[0]!r} (of {phones!r}) is no phone; phones are {ALPHABET}")
    return [SILENCE, *(_NUMBERS[character] for character in phones), SILENCE]


# What few or no sentences of English have is said as what is nearest to it.
_NEAREST = {
    ";": ",", ":": ",", "—": ",", "…": ".", "(": "", ")": "", "“": "", "”": "", '"': "", "ː": "", "ɚ": "əɹ", "ɾ": "T",
    "a": "ɑ", "e": "A", "o": "O", "r": "ɹ", "x": "h", "ʔ": "t", "ɒ": "ɔ", "Q": "O", "y": "i", "c": "k", "q": "k",
    "ɫ": "l", "ɬ": "l", "ɕ": "ʃ", "S": "s",
}  # fmt: skip
_TABLE = str.maketrans(_NEAREST)


def spoken(phones: str) -> str:
    """Return phones with those that a voice of English has not learned as the nearest that it has."""
    return phones.translate(_TABLE)
