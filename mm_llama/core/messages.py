"""Messages: who said what, with media where they stand, and the OpenAI-style dicts people write them as."""

import base64
import binascii
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "ipython", "tool")
MESSAGE_KEYS = ("role", "content", "train", "end_of_message", "python_tag")
# Type of a content part -> kind of medium, named as its modality; "<type>_url" and "input_audio" are OpenAI's
# spellings of the same parts.
PART_KINDS = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
    "audio": "speech",
    "audio_url": "speech",
    "input_audio": "speech",
}
MEDIA_TYPES = {"image": "image", "video": "video", "speech": "audio"}
SOURCE_KEYS = ("path", "url", "bytes", "base64")
DATA_URI = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?(?P<base64>;base64)?,", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """A stretch of text of a message."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """A medium at its place in a message; `source` is a path, bytes, a PIL image, a tuple of them, or a tensor.

    `transcript` is what is said in a recording, where that is known: a stage may learn from it, nothing else reads it.
    """

    kind: str
    source: Any
    transcript: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a dialog.

    `end_of_message`: ends with eom instead of eot, as a call that waits for its tool's answer does (Llama 3).
    `python_tag`: the body is such a call and starts with the python tag (Llama 3).
    `train`: an assistant message is a target of the loss.
    """

    role: str
    parts: tuple[Text | MediaPart, ...]
    end_of_message: bool = False
    train: bool = True
    python_tag: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(
                f"unknown role {self.role!r}{near(self.role, ROLES)}; roles are {', '.join(ROLES)}"
            )
        for flag in ("end_of_message", "python_tag"):
            if getattr(self, flag) and self.role != "assistant":
                raise ValueError(f"{flag} belongs to assistant messages, not to role {self.role!r}")


def messages_from_dicts(rows: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of OpenAI-style dicts: `content` is a string or a list of text and media parts.

    A media part is `{"type": "image", "path" | "url" | "bytes" | "base64" | "image": ...}` or
    `{"type": "image_url", "image_url": {"url": ...}}`, and the same with `video`; a url is a data URI or a local
    path, nothing is ever fetched. Under `video` a list of pictures may stand, a clip frame by frame. A recording is
    `{"type": "audio", ...}`, also with a `transcript`, or OpenAI's `{"type": "input_audio", "input_audio": {"data":
    base64, "format": "wav"}}`; under `audio` also (samples, rate). Errors name the message, the part and the key.
    """
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise ValueError(f"messages must be a list of messages, not {_kind(rows)}")
    return [_message(row, f"messages[{i}]") for i, row in enumerate(rows)]


def near(word: Any, known: Iterable[str]) -> str:
    """Suggestion for a misspelt word, or nothing."""
    match = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _message(row: Any, where: str) -> Message:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {_kind(row)}")
    _check_keys(row, MESSAGE_KEYS, where)
    for key in ("role", "content"):
        if key not in row:
            raise ValueError(f"{where} lacks the key {key!r}")
    flags = {key: row[key] for key in ("train", "end_of_message", "python_tag") if key in row}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{where}.{key} must be true or false, not {value!r}")
    content = row["content"]
    parts: tuple[Text | MediaPart, ...]
    if isinstance(content, str):
        parts = (Text(content),)
    elif isinstance(content, Sequence) and not isinstance(content, bytes):
        parts = tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    else:
        raise ValueError(f"{where}.content must be a string or a list of parts, not {_kind(content)}")
    try:
        return Message(role=row["role"], parts=parts, **flags)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _part(part: Any, where: str) -> Text | MediaPart:
    if isinstance(part, str):
        return Text(part)
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} must be an object with a type, not {_kind(part)}")
    kind = part.get("type")
    known = ("text", *PART_KINDS)
    if kind == "text":
        _check_keys(part, ("type", "text"), where)
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}.text must be a string, not {_kind(part.get('text'))}")
        return Text(part["text"])
    if kind not in known:  # compared, not hashed: it may be anything
        said = "no type" if kind is None else f"the unknown type {kind!r}{near(kind, known)}"
        raise ValueError(f"{where} has {said}; types are {', '.join(known)}")
    medium = PART_KINDS[kind]
    transcript = ("transcript",) if medium == "speech" else ()
    _check_keys(part, ("type", kind, *SOURCE_KEYS, *transcript), where)
    said = part.get("transcript", "")
    if transcript and not isinstance(said, str):
        raise ValueError(f"{where}.transcript must be a string, not {_kind(said)}")
    given = [key for key in (kind, *SOURCE_KEYS) if part.get(key) is not None]
    if len(given) != 1:
        said = f"{len(given)} sources ({', '.join(given)})" if given else "no source"
        raise ValueError(f"{where} has {said}; give one of {', '.join((kind, *SOURCE_KEYS))}")
    key = given[0]
    source = _source(part[key], key, MEDIA_TYPES[medium], f"{where}.{key}")
    return MediaPart(medium, source, said if transcript else "")


def _source(value: Any, key: str, medium: str, where: str) -> Any:
    if isinstance(value, Mapping) and key.endswith("_url"):
        # "detail" is OpenAI's hint on resolution; the encoder's own preprocessing decides here.
        _check_keys(value, ("url", "detail"), where)
        value, key, where = value.get("url"), "url", f"{where}.url"
    if key == "input_audio":
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object with data and format, not {_kind(value)}")
        _check_keys(value, ("data", "format"), where)  # the format is read from the bytes themselves
        value, key, where = value.get("data"), "base64", f"{where}.data"
    if key == "base64":
        return _decode(value, where)
    if key == "bytes" and not isinstance(value, bytes | bytearray):
        raise ValueError(f"{where} must be bytes, not {_kind(value)}; text from JSON goes under 'base64'")
    if isinstance(value, str):
        return _address(value, medium, where)
    if key in ("path", "url") and not hasattr(value, "__fspath__"):
        raise ValueError(f"{where} must be a string, not {_kind(value)}")
    if hasattr(value, "__fspath__"):
        return str(value)
    if key == medium == "video" and isinstance(value, list | tuple):
        return _pictures(value, where)
    if key == medium == "audio" and isinstance(value, tuple) and len(value) == 2:
        return value  # samples and their rate, which the reader of sound checks
    if value is None or isinstance(value, bool | int | float | list | tuple | Mapping):
        held = {"video": "a list of pictures", "audio": "(samples, rate)"}.get(medium, "a picture")
        raise ValueError(f"{where} must be a path, a data URI, bytes, {held} or a tensor, not {_kind(value)}")
    return bytes(value) if isinstance(value, bytearray) else value


def _pictures(value: Sequence[Any], where: str) -> tuple[Any, ...]:
    """A clip given as its pictures: objects that only the reader of clips knows, so not strings or numbers."""
    if not value:
        raise ValueError(f"{where} is an empty list; expected the pictures of a clip")
    for i, picture in enumerate(value):
        if picture is None or isinstance(picture, str | bytes | int | float | list | tuple | Mapping):
            raise ValueError(f"{where}[{i}] must be a picture, not {_kind(picture)}")
    return tuple(value)


def _address(value: str, medium: str, where: str) -> str | bytes:
    if value[:5].lower() == "data:":
        match = DATA_URI.match(value)
        if match is None or not match["base64"]:
            raise ValueError(f"{where} is a data URI without base64; expected data:{medium}/...;base64,...")
        if match["type"] and not match["type"].lower().startswith(f"{medium}/"):
            raise ValueError(f"{where} is a data URI of type {match['type']!r}; expected {medium}/...")
        return _decode(value[match.end() :], where)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", value)
    if scheme:
        raise ValueError(
            f"{where} is a {scheme[0].lower()} address, which is not fetched; save the {medium} and give its "
            f"local path or a data URI (data:{medium}/...;base64,...)"
        )
    if not value:
        raise ValueError(f"{where} is empty; expected a local path or a data URI")
    return value


def _decode(value: Any, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not base64: {error}") from None


def _check_keys(row: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in row:
        if key not in known:
            raise ValueError(
                f"{where} has the unknown key {key!r}{near(key, known)}; keys are {', '.join(known)}"
            )


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
