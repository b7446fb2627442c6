"""Other languages are read by a program where it is installed, in phones that the voice has; else it says so."""

from __future__ import annotations

import shutil

import pytest

from mm_llama.voice import espeak
from mm_llama.voice.espeak import Espeak, alphabet
from mm_llama.voice.phones import ALPHABET, numbers, spoken

needs_program = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs the program espeak-ng")


@needs_program
@pytest.mark.parametrize("language", ["de", "fr-fr", "es", "it", "pl", "ru"])
def test_a_text_is_phones_of_the_voice_word_by_word(language: str) -> None:
    text = {"ru": "Привет, мир!"}.get(language, "Tag, ami!")
    found = Espeak(language).phones(text)
    assert len(found.split(" ")) == 2 and found.endswith("!") and "," in found
    numbers(found)
    assert spoken(found) == found


@needs_program
def test_a_language_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="knows no language 'xx'; it knows .*de.*fr"):
        Espeak("xx")


def test_without_the_program_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "PROGRAM", "no-such-program")
    with pytest.raises(
        ValueError, match="no-such-program, which is not installed .*apt-get install espeak-ng"
    ):
        Espeak("de")


def test_sounds_are_the_nearest_of_the_voice() -> None:
    assert alphabet("ɡˈuːtən tˈɑːk") == "ɡˈutən tˈɑk"
    assert alphabet("bɔ̃ʒˈuʁ") == "bɔnʒˈuɹ" and alphabet("ɪç (en)hˈaʊs") == "ɪh hˈWs"
    assert set(alphabet("ɣʎøœyɲʔʕäx⁴")) <= set(ALPHABET)
    # What a voice of English has seldom heard, it says as what it knows.
    assert spoken("pˈipᵊl — (ˈɔl): “jˈɛs”…") == "pˈipᵊl , ˈɔl, jˈɛs."
