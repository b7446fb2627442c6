"""Rows put into words: question templates, options, text read in a picture, places as numbers (paper section 7.1).

Each is a source over another, for conf: `_target_: mm_llama.data.formats.Formatted` with `source:` beside it, and they
nest. What a row says depends on (seed, index) alone, so a resumed run meets the same words; the digest covers every
option. Errors begin with the row's own file:line and name the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mm_llama.core.messages import MediaPart, Message, Text, near
from mm_llama.data.places import Box, boxes_of
from mm_llama.data.sources import Row, Source

# Ways to ask, by task; the first of each is the paper's (section 7.7) where it gives one.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{question}",),
    "short_answer": (
        "Answer the question using a single word or phrase. {question}",
        "{question} Answer with a single word or a short phrase.",
        "Give a brief answer, one word if possible. {question}",
        "{question} Keep the answer as short as you can.",
    ),
    "multiple_choice": (
        "Select the correct answer from the following options: {question}. "
        "Answer with the correct option letter and nothing else.",
        "{question} Choose one option and reply with its letter only.",
        "Which option is correct? {question} Give the letter alone.",
    ),
    "caption": (
        "Describe the picture.",
        "What does this picture show?",
        "Write a caption for the picture.",
        "Say in a few words what can be seen here.",
    ),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Wrapped:
    """A source over a source: as many rows, under the same names."""

    def __init__(self, source: Source, **options: Any) -> None:
        self.source = source
        said = json.dumps([type(self).__name__, options, source.digest], sort_keys=True)
        self.digest = f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"
        self.blocks: list[int] | None = getattr(source, "blocks", None)
        self.read_ahead: Callable[[Sequence[int]], None] | None = getattr(source, "read_ahead", None)

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        """Return "file:line" of a row."""
        return self.source.name_of(index)


class Formatted(Wrapped):
    """Questions in several wordings.

    `task` is `plain`, `short_answer`, `multiple_choice` or `caption`; `templates` replaces its wordings. Except for
    captions each holds {question}: the row's `extra.question`, or else what the user says. `multiple_choice` puts
    lettered options behind it and makes the letter the answer: they are the row's `extra.options`, or the answer among
    `num_choices` drawn from `choices` and shuffled.
    """

    def __init__(
        self,
        source: Source,
        task: str = "short_answer",
        templates: Sequence[str] = (),
        choices: Sequence[str] = (),
        num_choices: int = 4,
        seed: int = 0,
    ) -> None:
        if task not in TEMPLATES:
            raise ValueError(
                f"no task {task!r}{near(task, TEMPLATES)} (task); tasks are {', '.join(TEMPLATES)}"
            )
        self.task, self.seed = task, seed
        self.templates = tuple(templates) or TEMPLATES[task]
        for template in self.templates:
            if task != "caption" and "{question}" not in template:
                raise ValueError(f"a template must contain '{{question}}', not {template!r} (templates)")
        self.choices, self.num_choices = list(choices), num_choices
        if choices and (
            task != "multiple_choice" or not 2 <= num_choices <= min(len(set(choices)), len(LETTERS))
        ):
            raise ValueError(
                f"choices belong to task=multiple_choice, with num_choices from 2 to their number, at most "
                f"{len(LETTERS)}; got task={task}, {len(set(choices))} choices, num_choices={num_choices}"
            )
        super().__init__(
            source,
            task=task,
            templates=self.templates,
            choices=self.choices,
            num_choices=num_choices,
            seed=seed,
        )

    def row(self, index: int) -> Row:
        """Return row `index` in one of the wordings. Raises ValueError naming file, line and key."""
        row = self.source.row(index)
        template = self.templates[drawn(self.seed, index, "template") % len(self.templates)]
        asked = [number for number, message in enumerate(row.messages) if message.role == "user"]
        if not asked:
            raise ValueError(f"{row.source}: no user message to put into words")
        alone = len(asked) == 1
        if self.task in ("caption", "multiple_choice") and not alone:
            raise ValueError(
                f"{row.source}: {self.task} takes rows with one user message, this one has {len(asked)}"
            )
        messages, extra = list(row.messages), dict(row.extra)
        for number in asked:
            text = _question(row, messages[number], alone) if self.task != "caption" else ""
            if self.task == "multiple_choice":
                text, messages, extra = self._with_options(row, index, text, messages)
            messages[number] = with_text(messages[number], template.replace("{question}", text))
        return replace(row, messages=tuple(messages), extra=extra | {"template": template})

    def _with_options(
        self, row: Row, index: int, question: str, messages: list[Message]
    ) -> tuple[str, list[Message], dict[str, Any]]:
        (place,) = _answers(row, messages)
        answer = text_of(messages[place])
        options = row.extra.get("options")
        if options is None and self.choices:
            others = shuffled(
                [choice for choice in self.choices if choice != answer], self.seed, index, "choices"
            )
            options = shuffled([answer, *others[: self.num_choices - 1]], self.seed, index, "order")
        if (
            not isinstance(options, list)
            or not 2 <= len(options) <= len(LETTERS)
            or not all(isinstance(option, str) and option for option in options)
            or len(set(options)) < len(options)
        ):
            raise ValueError(
                f"{row.source}: extra.options must be a list of 2 to {len(LETTERS)} different texts, not {options!r}; "
                "or give choices to draw them from"
            )
        if answer not in options:
            raise ValueError(f"{row.source}: the answer {answer!r} is not among extra.options {options}")
        lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        messages[place] = with_text(messages[place], LETTERS[options.index(answer)])
        return (
            f"{question}\n{lettered}",
            messages,
            dict(row.extra) | {"options": options, "answer_text": answer},
        )


class WithOcr(Wrapped):
    """Captions followed by the text that was read in the picture: `extra.ocr`, a text or a list of texts.

    It goes behind the last answer, after `joiner`; rows without it stay as they are.
    """

    def __init__(self, source: Source, joiner: str = " Text in the picture: ", key: str = "ocr") -> None:
        self.joiner, self.key = joiner, key
        super().__init__(source, joiner=joiner, key=key)

    def row(self, index: int) -> Row:
        """Return row `index`. Raises ValueError, naming file and line, for OCR that is no text."""
        row = self.source.row(index)
        read = row.extra.get(self.key)
        texts = [] if read is None else [read] if isinstance(read, str) else read
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{row.source}: extra.{self.key} must be a text or a list of texts, not {read!r}"
            )
        joined = " ".join(text.strip() for text in texts if text.strip())
        if not joined:
            return row
        messages = list(row.messages)
        place = _answers(row, messages)[-1]
        messages[place] = with_text(messages[place], text_of(messages[place]) + self.joiner + joined)
        return replace(row, messages=tuple(messages))


class Grounded(Wrapped):
    """Places as normalised numbers, asked both ways: where a thing is, and what is at a place.

    A row's `extra.boxes` list {label, box: [xmin, ymin, xmax, ymax], size: [width, height] for pixels} of its one
    picture. The row becomes a conversation about `turns` labels (0: all of them), each asked about in one direction
    (`where`, `what`, or `both`: either), so that no answer stands in an earlier question. A label with several boxes
    has them all for an answer; what is asked back is one.
    """

    def __init__(
        self,
        source: Source,
        direction: str = "both",
        turns: int = 1,
        decimals: int = 3,
        where: Sequence[str] = (
            "Where is the {label}?",
            "Give the place of the {label}.",
            "Find the {label}.",
        ),
        what: Sequence[str] = ("What is at {box}?", "What can be seen at {box}?", "Name what is at {box}."),
        form: str = "[{xmin}, {ymin}, {xmax}, {ymax}]",
        joiner: str = " and ",
        seed: int = 0,
    ) -> None:
        if direction not in ("where", "what", "both"):
            raise ValueError(f"direction must be where, what or both, not {direction!r}")
        if turns < 0 or not 1 <= decimals <= 6:
            raise ValueError(f"turns must not be negative and decimals 1 to 6, got {turns} and {decimals}")
        for key, templates, field in (("where", where, "{label}"), ("what", what, "{box}")):
            if not templates or any(field not in template for template in templates):
                raise ValueError(f"every template of {key} must contain '{field}', got {list(templates)}")
        if any(f"{{{side}}}" not in form for side in ("xmin", "ymin", "xmax", "ymax")):
            raise ValueError(f"form must contain {{xmin}}, {{ymin}}, {{xmax}} and {{ymax}}, not {form!r}")
        self.direction, self.turns, self.decimals = direction, turns, decimals
        self.where, self.what, self.form, self.joiner, self.seed = (
            tuple(where),
            tuple(what),
            form,
            joiner,
            seed,
        )
        options = {key: value for key, value in vars(self).items() if key != "source"}
        super().__init__(source, **options)

    def row(self, index: int) -> Row:
        """Return row `index` as questions about places. Raises ValueError naming file, line and key."""
        row = self.source.row(index)
        pictures = [part for message in row.messages for part in message.parts if isinstance(part, MediaPart)]
        if len(pictures) != 1 or pictures[0].kind != "image":
            raise ValueError(
                f"{row.source}: places need a row with one picture, this one has {len(pictures)} media"
            )
        by_label: dict[str, list[Box]] = {}
        for box in boxes_of(row):
            by_label.setdefault(box.label, []).append(box)
        labels = shuffled(list(by_label), self.seed, index, "labels")[: self.turns or None]
        messages: list[Message] = []
        for number, label in enumerate(labels):
            question, answer = self._turn(label, by_label[label], index, number)
            shown: tuple[Text | MediaPart, ...] = () if messages else (pictures[0],)
            messages += [Message("user", (*shown, Text(question))), Message("assistant", (Text(answer),))]
        return replace(row, messages=tuple(messages))

    def _turn(self, label: str, boxes: list[Box], index: int, number: int) -> tuple[str, str]:
        def draw(what: str, of: int) -> int:
            return drawn(self.seed, index, f"{what} {number}") % of

        places = [self.text(box) for box in boxes]
        if self.direction == "where" or (self.direction == "both" and draw("direction", 2)):
            return self.where[draw("words", len(self.where))].replace("{label}", label), self.joiner.join(
                places
            )
        place = places[draw("box", len(places))]
        return self.what[draw("words", len(self.what))].replace("{box}", place), label

    def text(self, box: Box) -> str:
        """Return a place in words: its four sides as shares of the picture."""
        said = self.form
        for side in ("xmin", "ymin", "xmax", "ymax"):
            said = said.replace(f"{{{side}}}", f"{getattr(box, side):.{self.decimals}f}")
        return said


class Part(Wrapped):
    """A seeded part of a source's rows: `share` of them, in their order. A larger share holds a smaller one."""

    def __init__(self, source: Source, share: float = 1.0, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie above 0 and not above 1, got {share}")
        number = max(1, round(share * len(source)))
        order = sorted(range(len(source)), key=lambda index: drawn(seed, index, "part"))
        self.rows = sorted(order[:number])
        super().__init__(source, share=share, seed=seed)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """Return a row of the part."""
        return self.source.row(self.rows[index])

    def name_of(self, index: int) -> str:
        """Return "file:line" of a row of the part."""
        return self.source.name_of(self.rows[index])


def drawn(seed: int, index: int, what: str) -> int:
    """Return a whole number that depends on its arguments alone, evenly spread below 2**64."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}:{what}".encode()).digest()[:8], "big")


def shuffled(items: list[Any], seed: int, index: int, what: str) -> list[Any]:
    """Return the items in an order that depends on the arguments alone."""
    keyed = [(drawn(seed, index, f"{what} {place}"), place) for place in range(len(items))]
    return [items[place] for _, place in sorted(keyed)]


def text_of(message: Message) -> str:
    """Return the texts of a message, joined."""
    return "".join(part.text for part in message.parts if isinstance(part, Text))


def with_text(message: Message, text: str) -> Message:
    """Return the message with its media and, behind them, this text in place of its own."""
    media = tuple(part for part in message.parts if isinstance(part, MediaPart))
    return replace(message, parts=(*media, Text(text)))


def _question(row: Row, message: Message, alone: bool) -> str:
    own = row.extra.get("question") if alone else None
    if own is not None and not isinstance(own, str):
        raise ValueError(f"{row.source}: extra.question must be a text, not {own!r}")
    question = (own or text_of(message)).strip()
    if not question:
        raise ValueError(f"{row.source}: there is no question: neither extra.question nor a text of the user")
    return question


def _answers(row: Row, messages: Sequence[Message]) -> list[int]:
    places = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not places:
        raise ValueError(f"{row.source}: no assistant message holds an answer")
    return places
