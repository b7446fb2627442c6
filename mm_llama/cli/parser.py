"""The parser of every verb: a wrong option is told like every other mistake, in one line with what to type next."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """`argparse`'s own, whose errors are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise ValueError(f"{message}; `{self.prog} --help` shows the options")
