"""Why a row cannot be used, in one word, so that skipped rows are counted by cause and none is lost in a sum."""

from __future__ import annotations

# What a person repairs differently, each under a name of its own.
CAUSES = {
    "missing_file": "a file that the row names is not there",
    "bad_json": "the text of the row does not parse",
    "bad_type": "it parses, but is no chat row: a key, a type, a role or a part of it is wrong",
    "empty_answer": "there is no answer, or an empty one",
    "bad_image": "a picture does not decode, or is over a limit",
    "bad_video": "a clip does not decode, or is over a limit",
    "bad_audio": "a recording does not decode, or is over a limit",
    "bad_shard": "a tar shard or a table is damaged at this place",
    "too_long": "the row has more tokens than the loader takes",
    "bad_row": "anything else",
}
_OF_KIND = {"image": "bad_image", "video": "bad_video", "speech": "bad_audio"}


class RowError(ValueError):
    """What is wrong with one row: a message that begins with its name, and one of CAUSES."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        assert cause in CAUSES, cause
        self.cause = cause


def cause_of(error: BaseException, otherwise: str = "bad_row") -> str:
    """Return the cause that an error brings along, or the one to count it under."""
    if isinstance(error, RowError):
        return error.cause
    return "missing_file" if isinstance(error, FileNotFoundError) else otherwise


def medium_error(row: str, kind: str, error: Exception) -> RowError:
    """Return the error of a row one of whose media cannot be read."""
    what = error.args[0] if isinstance(error, KeyError) and error.args else error
    return RowError(f"{row}: {kind}: {what}", cause_of(error, _OF_KIND.get(kind, "bad_row")))
