"""Numbers that are read digit by digit, drawn at random: codes, telephone numbers, and the like.

As `mm_llama.data.written_forms`, which holds them beside others.
"""

from __future__ import annotations

from random import Random

from mm_llama.data.written_names import Form


def digits(random: Random) -> Form:
    """Return a number that is read digit by digit, most often of three or four, now and then of more."""
    kind = random.random()
    if kind < 0.12:
        return str(random.randint(10_000, 999_999)), ["DIGITS"]
    if kind < 0.17:
        return f"0{random.randint(10, 999)}", ["DIGITS"]
    return str(random.randint(101, 9899)), ["DIGITS"]


def service_number(random: Random) -> Form:
    """Return a short number that is called: of three digits, or six."""
    return str(random.choice((random.randint(100, 999), random.randint(100_000, 899_999)))), ["DIGITS"]


def phone(random: Random) -> Form:
    """Return "555-0123", with an area or a country in front or without, also "(212) 555-0123" and "212.555.0123"."""
    area, text = random.randint(200, 999), f"{random.randint(200, 999)}-{random.randint(0, 9999):04}"
    rules = ["DIGITS", "PAUSE", "DIGITS"]
    kind = random.randrange(7)
    if kind == 0:
        return f"({area}) {text}", ["SKIP", "DIGITS", "PAUSE", *rules]
    if kind == 1:
        return f"{area}.{text.replace('-', '.')}", ["DIGITS", "PAUSE", *rules]
    if kind == 2:
        return f"{area}-{text}", ["DIGITS", "PAUSE", *rules]
    if kind == 3:
        return f"1-{area}-{text}", ["DIGITS", "PAUSE", "DIGITS", "PAUSE", *rules]
    if kind == 4:
        groups = [str(random.randint(10, 999)), *(f"{random.randint(0, 9999):04}" for _ in range(2))]
        return f"+{random.randint(20, 99)} {' '.join(groups)}", ["SIGN", *["DIGITS"] * 4]
    return text, rules


def grouped(random: Random) -> Form:
    """Return a number in groups: "078-05-1120", "978-3-16-148410-0", "4111 1111 1111 1111"."""
    sign = random.choice("- ")
    sizes = random.choice(((3, 2, 4), (4, 4, 4, 4), (3, 1, 2, 6, 1), (2, 7), (4, 4), (3, 3, 3)))
    groups = ["".join(str(random.randint(0, 9)) for _ in range(size)) for size in sizes]
    between = ["PAUSE"] if sign == "-" else []
    return sign.join(groups), ["DIGITS", *(between + ["DIGITS"]) * (len(groups) - 1)]


def ip_address(random: Random) -> Form:
    """Return "192.168.0.1"."""
    parts = [str(random.choice((random.randint(0, 9), random.randint(10, 255)))) for _ in range(4)]
    return ".".join(parts), ["DIGITS", *["SIGN", "DIGITS"] * 3]


def plate(random: Random) -> Form:
    """Return letters with digits: "BA117"."""
    letters = "".join(random.choices("BCDFGHJKLMNPQRTVWXZ", k=2))
    return f"{letters}{random.choice(('', '', ' '))}{random.randint(101, 9899)}", ["LETTERS", "DIGITS"]


def extension(random: Random) -> Form:
    """Return "ext. 305" or "apt. 604"."""
    name = random.choice(("ext", "Ext", "apt", "Apt", "rm", "Rm", "Ste"))
    return f"{name}. {random.randint(101, 9899)}", ["EXPAND", "CONTINUE", "DIGITS"]
