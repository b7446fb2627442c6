"""Records that are no chats yet: media with a caption, a label, a transcript, or a question and its answer.

What folders, tables and plain tar shards hold, in the words of a chat row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mm_llama.core.messages import MEDIA_TYPES, PART_KINDS, MediaPart, Message, Text
from mm_llama.data.causes import RowError
from mm_llama.data.languages import repeat_prompt
from mm_llama.data.sources import Find, Row, make_row

KIND_OF_ENDING = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif"), "image"),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"), "video"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".g722"), "speech"),
}
PROMPTS = {"image": "Describe the picture.", "video": "Describe the clip."}
QUESTIONS = ("question", "prompt", "instruction")
ANSWERS = ("answer", "caption", "text", "transcription", "transcript", "sentence", "label")
Medium = tuple[str, Any]  # its kind, and where it lies


@dataclass(frozen=True)
class Wording:
    """How a record becomes a chat.

    `prompt` is what the user says where the record has no question of its own; by default pictures and clips are to
    be described, and recordings repeated in `language`. `question` and `answer` are the keys looked for, the first
    that is there counts.
    """

    prompt: str | None = None
    question: Sequence[str] = QUESTIONS
    answer: Sequence[str] = ANSWERS
    language: str = "English"

    def row(self, record: Mapping[str, Any], media: Sequence[Medium], name: str, find: Find) -> Row:
        """Return the row of a record and the media that belong to it; what is left of the record is `extra`.

        Under `messages` a record holds a whole chat: its media are named there, found by `find`, or, where a part
        names none, the given ones in order. Raises RowError that begins with `name`.
        """
        if "messages" in record:
            extra = {key: value for key, value in record.items() if key != "messages"}
            return make_row(_filled(record["messages"], media, name), extra, name, find)
        asked = next((key for key in self.question if _there(record.get(key))), None)
        said = next((key for key in self.answer if _there(record.get(key))), None)
        if said is None:
            raise RowError(
                f"{name}: there is no answer: none of {', '.join(self.answer)} is there", "empty_answer"
            )
        answer = _text(record[said], said, name)
        question = _text(record[asked], asked, name) if asked else self.prompt
        extra = {key: value for key, value in record.items() if key not in (asked, said)}
        return Row(self._messages(media, question, answer), name, extra | {"text": answer})

    def identity(self) -> str:
        """What a digest of rows worded so must hold."""
        return repr((self.prompt, tuple(self.question), tuple(self.answer), self.language))

    def _messages(self, media: Sequence[Medium], question: str | None, answer: str) -> tuple[Message, ...]:
        kinds = {kind for kind, _ in media}
        heard = kinds == {"speech"}
        parts: list[MediaPart | Text] = [
            MediaPart(kind, source, answer if heard and question is None and len(media) == 1 else "")
            for kind, source in media
        ]
        system: tuple[Message, ...] = ()
        if question is None and heard:
            system = (Message("system", (Text(repeat_prompt(self.language)),)),)
        elif question is None and media:
            question = PROMPTS["video" if "video" in kinds else "image"]
        if question:
            parts.append(Text(question))
        return (*system, Message("user", tuple(parts)), Message("assistant", (Text(answer),)))


def kind_of_ending(name: str) -> str | None:
    """The kind of medium that files of this name's ending hold."""
    return KIND_OF_ENDING.get(PurePath(name).suffix.lower())


def _there(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _text(value: Any, key: str, name: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{name}: {key!r} must be a text or a number, not {type(value).__name__}", "bad_type")
    return str(value).strip()


def _filled(messages: Any, media: Sequence[Medium], name: str) -> Any:
    """Parts that name no medium of their own get the given ones, in order, each of them once."""
    left = list(media)
    if not isinstance(messages, list):
        return messages  # what checks rows says what is wrong

    def fill(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        part = {key: value for key, value in part.items() if value is not None}
        kind = PART_KINDS.get(str(part.get("type")))
        if kind is None or len(part) > 1 + ("transcript" in part):
            return part
        if not left or left[0][0] != kind:
            raise RowError(f"{name}: the chat shows more {kind} media than the record holds", "missing_file")
        return part | {MEDIA_TYPES[kind]: left.pop(0)[1]} | {"type": MEDIA_TYPES[kind]}

    filled = []
    for message in messages:
        if isinstance(message, Mapping):
            message = {key: value for key, value in message.items() if value is not None}
            content = message.get("content")
            if isinstance(content, list):
                message["content"] = [fill(part) for part in content]
        filled.append(message)
    if left:
        raise RowError(f"{name}: {len(left)} media of the record stand nowhere in its chat", "bad_type")
    return filled
