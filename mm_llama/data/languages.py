"""The 34 languages of the speech stages, and the system prompts that name them (paper section 8.1, word for word)."""

from __future__ import annotations

from mm_llama.core.messages import near

# Name -> ISO 639-1 code.
LANGUAGES = {
    "Arabic": "ar",
    "Bengali": "bn",
    "Chinese": "zh",
    "Czech": "cs",
    "Dutch": "nl",
    "English": "en",
    "Finnish": "fi",
    "French": "fr",
    "German": "de",
    "Greek": "el",
    "Gujarati": "gu",
    "Hindi": "hi",
    "Hungarian": "hu",
    "Indonesian": "id",
    "Italian": "it",
    "Japanese": "ja",
    "Kannada": "kn",
    "Korean": "ko",
    "Malayalam": "ml",
    "Marathi": "mr",
    "Persian": "fa",
    "Polish": "pl",
    "Portuguese": "pt",
    "Romanian": "ro",
    "Russian": "ru",
    "Spanish": "es",
    "Swahili": "sw",
    "Swedish": "sv",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Turkish": "tr",
    "Urdu": "ur",
    "Vietnamese": "vi",
}
# Written without spaces between words, or with others than words: errors are counted by character.
CHARACTER_SCORED = frozenset(("Chinese", "Japanese", "Korean", "Thai"))


def language_named(text: str) -> str:
    """Return a language's name, given in any case or as its ISO 639-1 code. Raises ValueError for any other."""
    wanted = text.strip().casefold()
    for name, code in LANGUAGES.items():
        if wanted in (name.casefold(), code):
            return name
    raise ValueError(
        f"{text!r} is not one of the 34 languages{near(text.strip().title(), LANGUAGES)}; they are "
        f"{', '.join(LANGUAGES)}"
    )


def repeat_prompt(language: str) -> str:
    """Return the system prompt of recognition."""
    return f"Repeat after me in {language_named(language)}:"


def translate_prompt(language: str) -> str:
    """Return the system prompt of translation into a language."""
    return f"Translate the following sentence into {language_named(language)}:"
