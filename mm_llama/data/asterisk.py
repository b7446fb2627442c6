"""The voice prompts of the Asterisk telephone exchange, with their texts: one speaker, CC-BY-SA-3.0.

Debian packages `asterisk-core-sounds-en-wav` (recordings, 8 kHz), `asterisk-core-sounds-en-g722` (the same, 16 kHz) and
`asterisk-core-sounds-en` (texts). No text stands on both sides of a split.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from mm_llama.data.folders import make_folder
from mm_llama.data.sound import Sound, open_sound
from mm_llama.data.spoken_rows import SPLITS, plain, recognition, split_texts, write_flac, write_rows

NUM_TEST, NUM_HOLDOUT = 40, 30
TEST_WORDS = 3  # a test prompt has at least so many
SECONDS = (0.3, 29.0)  # tones and slips of the tape are shorter; Whisper reaches 30
LETTERS_A_SECOND = 30  # nobody speaks faster: the text is not of this recording
VERSION = 2
FORMS = (".wav", ".g722")  # 8 kHz and 16 kHz


@dataclass(frozen=True)
class Prompt:
    """One recording and its text."""

    name: str
    sound: Path
    text: str


def read_prompts(sounds: str | Path, texts: str | Path) -> list[Prompt]:
    """Return the prompts that are speech, by name: those whose text is words, not a tone's or a noise's description.

    Raises FileNotFoundError when either folder does not hold its package.
    """
    listed = next(Path(texts).rglob("core-sounds-en.txt*"), None)
    files = {path.stem: path for path in sorted(Path(sounds).rglob("*")) if path.suffix in FORMS}
    if listed is None or not files:
        raise FileNotFoundError(
            f"{texts if listed is None else sounds} holds no Asterisk prompts; mm-llama assets fetch asterisk_texts "
            "asterisk_prompts"
        )
    data = listed.read_bytes()
    lines = (gzip.decompress(data) if listed.suffix == ".gz" else data).decode("utf-8").splitlines()
    found = []
    for line in lines:
        name, colon, text = line.partition(":")
        stem = name.strip().rpartition("/")[2]
        words = bool(colon and not line.startswith(";") and plain(text))
        if words and stem in files and not set("[]()<>") & set(text):
            found.append(Prompt(name.strip(), files[stem], " ".join(text.split())))
    return sorted(found, key=lambda prompt: prompt.name)


def write_jsonl(sounds: str | Path, texts: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write recordings and train, holdout and test rows under `out_dir`; `extra` holds id, text and seconds."""

    def fill(folder: Path) -> None:
        kept = [
            (prompt, sound)
            for prompt in read_prompts(sounds, texts)
            if fits(prompt.text, sound := open_sound(prompt.sound))
        ]
        split = split_texts(
            [plain(prompt.text) for prompt, _ in kept],
            NUM_TEST,
            NUM_HOLDOUT,
            lambda text: len(text.split()) >= TEST_WORDS,
        )
        rows: dict[str, list[dict[str, object]]] = {name: [] for name in SPLITS}
        for prompt, sound in kept:
            path = f"clips/{prompt.name.replace('/', '_')}.flac"
            seconds = round(write_flac(folder / path, sound), 3)
            name = split[plain(prompt.text)]
            rows[name].append(recognition(path, prompt.text, id=prompt.name, seconds=seconds))
        write_rows(folder, rows)

    folder = make_folder(out_dir, "asterisk", {"version": VERSION}, fill)
    return {name: folder / f"{name}.jsonl" for name in SPLITS}


def fits(text: str, sound: Sound) -> bool:
    """Say whether a recording is neither silent nor too short or too long for its text."""
    whole = SECONDS[0] <= sound.seconds <= SECONDS[1] and not sound.silent
    return whole and len(text) <= LETTERS_A_SECOND * sound.seconds
