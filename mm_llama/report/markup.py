"""HTML elements that escape by default: a plain string is text, only what `element` returned is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "img", "input", "meta", "hr", "col", "path", "line", "circle", "rect", "polyline"})
_SVG_EMPTY = frozenset({"path", "line", "circle", "rect", "polyline"})


class Markup(str):
    """Text that is HTML already; anything else is escaped when it becomes a child."""


Child = str | int | None | Iterable["Child"]


def element(tag: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Return one element; `class_` stands for class, underscores for hyphens, True for a bare attribute."""
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    opening = f"<{tag}{''.join(parts)}"
    if tag in _SVG_EMPTY and not children:
        return Markup(opening + "/>")
    if tag in _VOID:
        return Markup(opening + ">")
    return Markup(f"{opening}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Concatenate children: markup stays, strings and numbers are escaped, None is left out."""
    return Markup("".join(_render(child) for child in children))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (str, int, float)):
        return html.escape(str(child))
    return join(child)
