"""The 34 languages and the paper's prompts."""

import pytest

from mm_llama.data.languages import (
    CHARACTER_SCORED,
    LANGUAGES,
    language_named,
    repeat_prompt,
    translate_prompt,
)


def test_there_are_34_with_codes_of_their_own() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) == 34
    assert set(LANGUAGES) >= CHARACTER_SCORED


def test_prompts_are_the_papers() -> None:
    assert repeat_prompt("English") == "Repeat after me in English:"
    assert translate_prompt("fr") == "Translate the following sentence into French:"


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_goes_by_name_and_code(name: str) -> None:
    assert language_named(name.lower()) == language_named(LANGUAGES[name].upper()) == name


def test_an_unknown_one_is_named_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="'Germn' is not one of the 34.*did you mean 'German'.*Vietnamese"):
        language_named("Germn")
    with pytest.raises(ValueError, match="'Klingon' is not one of the 34"):
        repeat_prompt("Klingon")
