"""A voice to learn from recordings: telephone prompts of one speaker, aligned with their texts, phone by phone.

Phones of a text are the engine's, as of a taught voice; when each is said an aligner finds that was trained on the
teacher (`stage=tts_aligner`), how high by `voice.pitch`. Rows are as those of `voice_rows`; `extra` holds `fit`, the
mean log-probability of the best path, which is low where the text is not what was said.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mm_llama.data.asterisk import NUM_HOLDOUT, NUM_TEST, TEST_WORDS, Prompt, fits, read_prompts
from mm_llama.data.folders import make_folder
from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sound import Sound, open_sound
from mm_llama.data.spoken_rows import SPLITS, plain, split_texts, write_flac, write_rows
from mm_llama.data.text_to_speech import Hibari
from mm_llama.data.voice_rows import VoiceRows
from mm_llama.targets import check_run_parts
from mm_llama.voice.aligning import align
from mm_llama.voice.phones import numbers, spoken
from mm_llama.voice.pitch import pitch

VERSION = 1
RATE, HOP = 24_000, 300  # of the voice; frames of 12.5 ms
MARKS = ".,!?"
# Below it the recording says something else, such as the prompts of silence, whose texts are their seconds; of 479
# prompts that leaves out one of twenty, words of half a second among them.
LEAST_FIT = -2.7


def recorded_voice(
    root: str | Path,
    texts: str | Path,
    engine: str | Path,
    aligner: str | Path,
    out: str | Path,
    split: str = "train",
    limit: int = 0,
    least_fit: float = LEAST_FIT,
    style: str = "",
) -> VoiceRows:
    """Return one split (train, holdout, test) of the Asterisk prompts below `root`, aligned by a run of `tts_aligner`.

    `style` is the name of it for a model that has several. `limit` prompts of them alone, 0 for all; what fits
    its text less than `least_fit` is left out. No text stands on both sides of a split. Raises ValueError for
    another split, where the run is missing or holds no aligner, and where it finds too few texts in their
    recordings; FileNotFoundError without the prompts.
    """
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state

    if not Path(aligner).is_dir():
        raise ValueError(
            f"there is no aligner at {aligner} (data.*.aligner): mm-llama train stage=tts_aligner, then name its run"
        )
    digest = read_state(find_checkpoint(aligner))["lineage"][-1]["adapter"]
    names = [Path(one).name for one in (root, texts, engine)]
    made = {"version": VERSION, "aligner": digest, "of": names, "limit": limit, "least_fit": least_fit}
    folder = _folder(out, repr(made))
    path = _split({name: folder / f"{name}.jsonl" for name in SPLITS}, split, "a recorded voice")
    if not path.is_file():
        prompts = read_prompts(root, texts)
        tools = Hibari(engine), load_aligner(aligner)
        make_folder(
            folder,
            "recorded_voice",
            made,
            lambda part: _fill(part, prompts[: limit or None], *tools, least_fit),
        )
    return VoiceRows(path, style)


def load_aligner(run: str | Path) -> Any:
    """Return the aligner that a run of `stage=tts_aligner` trained. Raises ValueError where it holds none."""
    from mm_llama.build import build
    from mm_llama.core.tensor_file import load_tensors
    from mm_llama.stages.checkpoint_files import FILES, find_checkpoint, read_run_config

    part = (read_run_config(run).get("modality") or {}).get("tts_aligner")
    if not part:
        raise ValueError(f"{run} holds no aligner: name a run of mm-llama train stage=tts_aligner")
    check_run_parts(part, f"{run}: modality.tts_aligner")
    adapter = build(part["adapter"])
    prefix = "modality.tts_aligner.adapter."
    tensors = load_tensors(find_checkpoint(run) / FILES[0])
    adapter.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )
    return adapter.requires_grad_(False).eval()


def _fill(folder: Path, prompts: list[Prompt], engine: Hibari, aligner: Any, least_fit: float) -> None:
    kept = [
        (prompt, sound)
        for prompt in prompts
        if fits(prompt.text, sound := open_sound(prompt.sound, rate=aligner.rate))
        and not any(map(str.isdigit, prompt.text))  # they were read in a way that no text tells
    ]
    split = split_texts(
        [plain(prompt.text) for prompt, _ in kept],
        min(NUM_TEST, len(kept) // 5),
        min(NUM_HOLDOUT, len(kept) // 5),
        lambda text: len(text.split()) >= TEST_WORDS,
    )
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in SPLITS}
    dropped, told = 0, time.monotonic()
    for number, (prompt, sound) in enumerate(kept, start=1):
        row = _aligned(folder, prompt, sound, engine.phones, aligner, least_fit)
        if row is None:
            dropped += 1
        else:
            rows[split[plain(prompt.text)]].append(row)
        if number == len(kept) or time.monotonic() - told > 5:
            told = time.monotonic()
            print(f"aligned {number:,}/{len(kept):,}, {dropped:,} said something else", file=sys.stderr)
    if empty := [name for name, found in rows.items() if not found]:
        raise ValueError(
            f"{dropped:,} of {len(kept):,} prompts fit their texts less than least_fit={least_fit}, and none is left "
            f"for {empty[0]}: train the aligner longer, or give a lower least_fit or a higher limit"
        )
    write_rows(folder, rows)


def _aligned(
    folder: Path,
    prompt: Prompt,
    sound: Sound,
    phones_of: Callable[[str], str],
    aligner: Any,
    least_fit: float,
) -> dict[str, object] | None:
    phones = spoken(phones_of(prompt.text)).strip()
    if not phones:
        return None
    phones += "" if phones[-1] in MARKS else MARKS[0]  # every sentence of a voice ends with a mark
    with torch.inference_mode():
        (logs_FN,) = aligner([aligner.features(sound.samples)])
    wide = open_sound((sound.samples, sound.rate), rate=RATE)
    count = min(len(logs_FN), len(wide.samples) // HOP)
    phones_P = torch.tensor(numbers(phones))
    try:
        frames_P, fit = align(logs_FN[:count], phones_P)
    except ValueError:
        return None  # more phones than frames
    if fit < least_fit:
        return None
    f0 = pitch(sound.samples, sound.rate, aligner.hop)[:count].round().int().tolist()
    name = f"clips/{prompt.name.replace('/', '_')}.flac"
    seconds = write_flac(folder / name, Sound(wide.samples[: count * HOP], RATE), RATE)
    labels = {"phones": phones, "frames": frames_P.tolist(), "f0": f0, "audio": name}
    return {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": prompt.text}],
        "extra": {"labels": labels, "seconds": round(seconds, 3), "id": prompt.name, "fit": round(fit, 3)},
    }
