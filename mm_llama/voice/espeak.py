"""Phones of other languages, by the program espeak-ng where it is installed: said with this voice, so with an accent.

The program is GPL and stands alone: it is run, never linked. Its IPA is written in the alphabet of the voice, sounds
that English lacks as the nearest it has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from functools import lru_cache

from mm_llama.voice.phones import ALPHABET, spoken

PROGRAM = "espeak-ng"
_MARKS = ";:,.!?—…"
# Two signs that are one phone of the voice stand before the single ones.
_PAIRS = {
    "eɪ": "A", "aɪ": "I", "oʊ": "O", "əʊ": "O", "aʊ": "W", "ɔɪ": "Y", "ɔø": "Y", "ɔʏ": "Y", "dʒ": "ʤ", "tʃ": "ʧ",
    "ts": "ts", "pf": "pf", "ɛɪ": "A",
}  # fmt: skip
_SINGLE = {
    "ʁ": "ɹ", "ʀ": "ɹ", "ø": "ɜ", "œ": "ɜ", "ʏ": "ɪ", "ç": "h", "χ": "h", "ħ": "h", "ɦ": "h", "ɲ": "nj", "ʎ": "lj",
    "β": "v", "ɣ": "ɡ", "ʝ": "j", "ɨ": "ᵻ", "ɯ": "ʊ", "ɤ": "ʌ", "ʑ": "ʒ", "ʐ": "ʒ", "ʂ": "ʃ", "ɭ": "l", "ɽ": "ɹ",
    "ɻ": "ɹ", "ɳ": "n", "ʈ": "t", "ɖ": "d", "ɟ": "ʤ", "ʋ": "v", "ɥ": "w", "ɵ": "ʊ", "ʉ": "u", "ɘ": "ə", "ɞ": "ɜ",
    "ʕ": "", "ɴ": "n", "ɰ": "w", "ɱ": "m", "ʔ": "t", "g": "ɡ",
}  # fmt: skip


class Espeak:
    """A language of espeak-ng. Raises ValueError, saying what to install or to type, without it or its language."""

    def __init__(self, language: str) -> None:
        if shutil.which(PROGRAM) is None:
            raise ValueError(
                f"texts of other languages are read by the program {PROGRAM}, which is not installed "
                "(Debian and Ubuntu: apt-get install espeak-ng; macOS: brew install espeak-ng)"
            )
        known = languages()
        if language not in known:
            raise ValueError(f"{PROGRAM} knows no language {language!r}; it knows {', '.join(known)}")
        self.language = language

    def phones(self, text: str) -> str:
        """Return the phones of a text, words apart, marks kept."""
        return " ".join(found for word in text.split() if (found := self._word(word)))

    def _word(self, word: str) -> str:
        core = word.strip(_MARKS + "\"'()“”‘’«»¿¡-–")
        marks = "".join(one for one in word[word.rfind(core) + len(core) :] if one in _MARKS) if core else ""
        return (alphabet(_ipa(self.language, core)) if core else "") + spoken(marks)


@lru_cache(maxsize=4096)
def _ipa(language: str, word: str) -> str:
    done = subprocess.run(
        [PROGRAM, "-q", "--ipa", "-v", language, "--", word],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return " ".join(done.stdout.split())


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Return the names of the languages that the program knows."""
    done = subprocess.run([PROGRAM, "--voices"], capture_output=True, text=True, check=True, timeout=30)
    return tuple(sorted({line.split()[1] for line in done.stdout.splitlines()[1:] if len(line.split()) > 1}))


def alphabet(ipa: str) -> str:
    """Return IPA in the alphabet of the voice: a nasal vowel has "n" behind it, what is unknown is not said."""
    ipa = re.sub(r"\([a-z-]+\)", "", ipa)  # "(en)": a word of another language follows
    found, place = "", 0
    decomposed = unicodedata.normalize("NFD", ipa).replace("c\u0327", "ç")
    while place < len(decomposed):
        pair, one = decomposed[place : place + 2], decomposed[place]
        if pair in _PAIRS:
            found, place = found + _PAIRS[pair], place + 2
            continue
        if one == "\u0303":  # nasal
            found += "n"
        elif one in _SINGLE:
            found += _SINGLE[one]
        elif one in ALPHABET:
            found += one
        place += 1
    return spoken(found).strip()
