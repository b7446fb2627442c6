"""Chat formats: messages to token ids, with the targets of the loss and the places of the media.

Control tokens come from the structure of the messages and are put in by id. Text is encoded with specials
disabled, so what a person types is never more than text. A medium is one placeholder position with token id
0; its embedding comes from the adapter, by position.
"""

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mm_llama.core.messages import MediaPart, Message, Text, messages_from_dicts, near
from mm_llama.core.tokenizer import Tokenizer

__all__ = [
    "ChatFormat",
    "MediaPart",
    "Message",
    "Placeholder",
    "Rendered",
    "Text",
    "chat_format",
    "messages_from_dicts",
    "tool_system_prompt",
]

PLACEHOLDER_ID = 0
END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class Placeholder:
    """A medium of a rendered dialog and its position among the tokens."""

    kind: str
    position: int
    source: Any
    transcript: str = ""  # of a recording, where it is known


@dataclass
class Rendered:
    """A dialog as token ids; `targets[i]` says that `tokens[i]` is to be predicted, `media` is in order."""

    tokens: list[int] = field(default_factory=list)
    targets: list[bool] = field(default_factory=list)
    media: list[Placeholder] = field(default_factory=list)

    def add(self, ids: Iterable[int], target: bool = False) -> None:
        """Append tokens, all of them targets or none."""
        before = len(self.tokens)
        self.tokens.extend(ids)
        self.targets.extend([target] * (len(self.tokens) - before))

    def place(self, part: MediaPart) -> None:
        """Append the placeholder of a medium; it is never a target."""
        self.media.append(Placeholder(part.kind, len(self.tokens), part.source, part.transcript))
        self.add([PLACEHOLDER_ID])


class ChatFormat(Protocol):
    """A way to lay out messages as tokens; generation ends at any id of `stop`."""

    name: str
    stop: frozenset[int]
    tokenizer: Tokenizer

    def render(self, messages: Sequence[Message], *, open_assistant: bool = False) -> Rendered:
        """Tokens of `messages`, followed by the head of an assistant message when `open_assistant` is set."""
        ...


def chat_format(name: str, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format `llama3`, `chatml` or `plain` over a tokenizer that has its control tokens."""
    formats: dict[str, Callable[[Tokenizer], ChatFormat]] = {
        "llama3": Llama3Chat,
        "chatml": ChatMLChat,
        "plain": PlainChat,
    }
    if name not in formats:
        raise ValueError(
            f"unknown chat format {name!r}{near(name, formats)}; formats are {', '.join(formats)}"
        )
    return formats[name](tokenizer)


class Llama3Chat:
    """Llama 3 headers: each message is header, blank line, body, `<|eot_id|>` or `<|eom_id|>`.

    Header, blank line and every part of the body are encoded on their own and bodies are not stripped, as in
    Meta's reference. `tool` is written as `ipython`.
    """

    name = "llama3"

    def __init__(self, tokenizer: Tokenizer) -> None:
        need = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        self.bos, self.start, self.end, self.eot = _require(tokenizer, need, self.name)
        self.tokenizer = tokenizer
        self.blank_line = tokenizer.encode("\n\n")
        ends = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
        self.stop = _present(tokenizer, ends)

    def render(self, messages: Sequence[Message], *, open_assistant: bool = False) -> Rendered:
        row = Rendered()
        row.add([self.bos])
        for message in messages:
            self._header(row, message.role)
            target = _is_target(message)
            if message.python_tag:
                row.add(self._special("<|python_tag|>"), target)
            for part in message.parts:
                if isinstance(part, Text):
                    row.add(self.tokenizer.encode(part.text), target)
                else:
                    row.place(part)
            row.add(self._special("<|eom_id|>") if message.end_of_message else [self.eot], target)
        if open_assistant:
            self._header(row, "assistant")
        return row

    def _header(self, row: Rendered, role: str) -> None:
        name = "ipython" if role == "tool" else role
        row.add([self.start, *self.tokenizer.encode(name), self.end, *self.blank_line])

    def _special(self, text: str) -> list[int]:
        return list(_require(self.tokenizer, (text,), "this llama3 message"))


class ChatMLChat:
    """ChatML: `<|im_start|>`, role, newline, body, `<|im_end|>`, newline; `ipython` is written as `tool`.

    Head and body are encoded together, as a template rendered to a string is. Only an assistant's head stands
    alone: the model answers right after it, so a body that begins with a space must not merge into it.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.start, self.end = _require(tokenizer, ("<|im_start|>", "<|im_end|>"), self.name)
        self.tokenizer = tokenizer
        self.stop = frozenset({self.end}) | _present(tokenizer, END_OF_TEXT)

    def render(self, messages: Sequence[Message], *, open_assistant: bool = False) -> Rendered:
        row = Rendered()
        newline = self.tokenizer.encode("\n")
        for message in messages:
            _refuse_llama3_marks(message, self.name)
            target = _is_target(message)
            head = ("tool" if message.role == "ipython" else message.role) + "\n"
            row.add([self.start])
            if message.role == "assistant":
                row.add(self.tokenizer.encode(head))
                head = ""
            _add_body(row, self.tokenizer, (Text(head), *message.parts), target)
            row.add([self.end], target)
            row.add(newline)
        if open_assistant:
            row.add([self.start, *self.tokenizer.encode("assistant\n")])
        return row


class PlainChat:
    """No markup, for base models: begin-of-text if the model has one, bodies, end-of-text after answers."""

    name = "plain"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos = (
            [tokenizer.specials[tokenizer.bos_token]] if tokenizer.adds_bos and tokenizer.bos_token else []
        )
        ends = [*(t for t in END_OF_TEXT if t in tokenizer.specials), *filter(None, [tokenizer.eos_token])]
        self.end = [tokenizer.specials[text] for text in ends[:1]]
        self.stop = _present(tokenizer, ends)

    def render(self, messages: Sequence[Message], *, open_assistant: bool = False) -> Rendered:
        row = Rendered()
        row.add(self.bos)
        for message in messages:
            _refuse_llama3_marks(message, self.name)
            target = _is_target(message)
            _add_body(row, self.tokenizer, message.parts, target)
            if message.role == "assistant":
                row.add(self.end, target)
        return row


def tool_system_prompt(
    text: str = "You are a helpful assistant.",
    *,
    today: datetime.date | str,
    cutting_knowledge: str = "December 2023",
    tools: Sequence[str] = ("brave_search", "wolfram_alpha"),
) -> str:
    """System prompt that switches on Llama 3.1's code interpreter and the named built-in tools.

    `Environment: ipython` alone enables the interpreter, so `tools` may be empty.
    """
    if isinstance(today, datetime.date):
        today = f"{today.day:02d} {today:%B %Y}"
    lines = ["Environment: ipython"]
    if tools:
        lines.append(f"Tools: {', '.join(tools)}")
    lines += [f"Cutting Knowledge Date: {cutting_knowledge}", f"Today Date: {today}", "", text]
    return "\n".join(lines)


def _is_target(message: Message) -> bool:
    return message.role == "assistant" and message.train


def _add_body(row: Rendered, tokenizer: Tokenizer, parts: Sequence[Text | MediaPart], target: bool) -> None:
    """Texts that follow each other are one text: how a caller cut them must not show in the tokens."""
    text = ""
    for part in parts:
        if isinstance(part, Text):
            text += part.text
            continue
        row.add(tokenizer.encode(text), target)
        row.place(part)
        text = ""
    row.add(tokenizer.encode(text), target)


def _refuse_llama3_marks(message: Message, name: str) -> None:
    for flag in ("end_of_message", "python_tag"):
        if getattr(message, flag):
            raise ValueError(
                f"{flag} exists in the llama3 chat format only; this message is rendered as {name}"
            )


def _require(tokenizer: Tokenizer, names: Sequence[str], what: str) -> tuple[int, ...]:
    lacking = [name for name in names if name not in tokenizer.specials]
    if lacking:
        raise ValueError(
            f"{what} needs the special tokens {', '.join(lacking)}, which this tokenizer lacks; "
            "choose the chat format that the model was trained with (llama3, chatml or plain)"
        )
    return tuple(tokenizer.specials[name] for name in names)


def _present(tokenizer: Tokenizer, names: Iterable[str]) -> frozenset[int]:
    return frozenset(tokenizer.specials[name] for name in names if name in tokenizer.specials)
