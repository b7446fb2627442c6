"""Dialogues asked aloud: what the text core itself answers becomes what a speech adapter learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mm_llama.data.recipes import _folder, _split
from mm_llama.data.sources import JsonlChat
from mm_llama.data.spoken import say_all
from mm_llama.data.spoken_dialogue import Answer, answers_to, instructions
from mm_llama.data.spoken_rows import by_hash, dialogue, write_rows
from mm_llama.data.text_to_speech import Hibari


def spoken_dialogues(
    root: str | Path | Sequence[str | Path],
    engine: str | Path,
    out: str | Path,
    core: str = "smollm2_135m",
    split: str = "train",
    num_train: int = 240,
    num_holdout: int = 40,
) -> JsonlChat:
    """Return one split (train, holdout) of what may be asked, asked aloud, with the core's own short answers."""
    folder, wanted = _folder(out, core), num_train + num_holdout
    files = {name: folder / f"{num_train}_{num_holdout}_{name}.jsonl" for name in ("train", "holdout")}
    if not all(path.is_file() for path in files.values()):
        roots = [root] if isinstance(root, str | Path) else list(root)
        asked = by_hash(instructions(roots))[: wanted * 2]
        found = answers_to(asked, folder, core, lambda: answering(core))
        pairs = [(text, found[text]) for text in asked if found[text]][:wanted]
        if len(pairs) < wanted:
            raise ValueError(
                f"{root} hold {len(pairs):,} instructions with a short answer, fewer than num_train + num_holdout = "
                f"{wanted:,}"
            )
        made = say_all([text for text, _ in pairs], folder, lambda: Hibari(engine))
        rows = [
            dialogue(made[text][0], text, answer, language="English", seconds=made[text][1])
            for text, answer in pairs
        ]
        write_rows(
            folder, {files["holdout"].stem: rows[:num_holdout], files["train"].stem: rows[num_holdout:]}
        )
    return JsonlChat(_split(files, split, "spoken dialogues"))


def answering(core: str, max_new_tokens: int = 36) -> Answer:
    """Return what answers texts with a plain core, greedily."""
    from mm_llama.build import load_model
    from mm_llama.core.chat import Message, Text
    from mm_llama.dtypes import choose_dtype
    from mm_llama.generation.engine import generate

    model, tokenizer, chat = load_model(core, (), choose_dtype("auto"))

    def answer(texts: Sequence[str]) -> list[str]:
        prompts = [chat.render([Message("user", (Text(text),))], open_assistant=True) for text in texts]
        rows = generate(model, prompts, max_new_tokens=max_new_tokens, stop=chat.stop, tokenizer=tokenizer)
        return [row.text for row in rows]

    return answer
