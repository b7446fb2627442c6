"""Names that are not written as they are said, drawn at random: addresses, letters, Roman numerals, abbreviations.

As `mm_llama.data.written_forms`, which holds them beside numbers.
"""

from __future__ import annotations

from random import Random

Form = tuple[str, list[str]]

_LETTERS = "BCDFGHKLMNPRSTVX"
_NAMES = (
    "example",
    "weather",
    "library",
    "museum",
    "garden",
    "science",
    "travel",
    "market",
    "music",
    "school",
)
_PEOPLE = ("john", "mary", "anna", "peter", "laura", "david", "susan", "robert", "emma", "oliver")
_ENDINGS = ("com", "org", "net", "edu", "info")


def web(random: Random) -> Form:
    """Return "www.example.com", "https://example.com" or "example.org/music"."""
    name, end = random.choice(_NAMES), random.choice(_ENDINGS)
    if random.random() < 0.2:
        scheme, rules = (
            random.choice(("http", "https")),
            ["LETTERS", "SIGN", "SIGN", "SIGN", "PLAIN", "SIGN", "PLAIN"],
        )
        if random.random() < 0.3:
            return f"{scheme}://{name}.{end}/{random.randint(1, 2030)}", [*rules, "SIGN", "DIGITS"]
        return f"{scheme}://{name}.{end}", rules
    if random.random() < 0.5:
        return f"www.{name}.{end}", ["LETTERS", "SIGN", "PLAIN", "SIGN", "PLAIN"]
    return f"{name}.{end}/{random.choice(_NAMES)}", ["PLAIN", "SIGN", "PLAIN", "SIGN", "PLAIN"]


def file(random: Random) -> Form:
    """Return "report_2.pdf"."""
    ending, rule = random.choice(
        (("pdf", "LETTERS"), ("txt", "LETTERS"), ("csv", "LETTERS"), ("zip", "PLAIN"))
    )
    if random.random() < 0.5:
        return f"{random.choice(_NAMES)}.{ending}", ["PLAIN", "SIGN", rule]
    sign, other = random.choice("_-"), random.choice(_NAMES)
    return f"{random.choice(_NAMES)}{sign}{other}.{ending}", ["PLAIN", "SIGN", "PLAIN", "SIGN", rule]


def hashtag(random: Random) -> Form:
    """Return "#music" or "@mary"."""
    return random.choice("#@") + random.choice(_NAMES + _PEOPLE), ["SIGN", "PLAIN"]


def email(random: Random) -> Form:
    """Return "mary@example.com" or "mary.smith@example.com"."""
    person, name, end = random.choice(_PEOPLE), random.choice(_NAMES), random.choice(_ENDINGS)
    if random.random() < 0.5:
        sign = random.choice("._-")
        return f"{person}{sign}smith@{name}.{end}", [
            "PLAIN",
            "SIGN",
            "PLAIN",
            "SIGN",
            "PLAIN",
            "SIGN",
            "PLAIN",
        ]
    return f"{person}@{name}.{end}", ["PLAIN", "SIGN", "PLAIN", "SIGN", "PLAIN"]


def acronym(random: Random) -> Form:
    """Return letters that are read one by one, with points or without."""
    letters = random.sample(_LETTERS, random.randint(2, 3))
    if random.random() < 0.4:
        return ".".join(letters) + ".", ["LETTERS", "CONTINUE", *["LETTERS", "CONTINUE"] * (len(letters) - 1)]
    return "".join(letters), ["LETTERS"]


def roman_cardinal(random: Random) -> Form:
    """Return a Roman numeral that is read as a number."""
    number = random.choice(
        (random.randint(1, 12), random.randint(1, 12), random.randint(13, 30), random.randint(31, 60))
    )
    return _roman(number), ["ROMAN_CARDINAL"]


def roman_ordinal(random: Random) -> Form:
    """Return a Roman numeral that is read as an ordinal: of rulers."""
    return _roman(random.choice((random.randint(1, 8), random.randint(1, 24)))), ["ROMAN_ORDINAL"]


def _roman(number: int) -> str:
    tens, ones = divmod(number, 10)
    tens_as = ("", "X", "XX", "XXX", "XL", "L", "LX")
    return tens_as[tens] + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones]


def title(random: Random) -> Form:
    """Return what stands shortened before a name."""
    names = ("Dr", "Mr", "Mrs", "Ms", "Prof", "Gen", "Sen", "Capt", "Lt", "Sgt", "Rev", "Gov", "Col", "Maj")
    return f"{random.choice(names)}.", ["EXPAND", "CONTINUE"]


def shortened(random: Random) -> Form:
    """Return what stands shortened before a number."""
    return f"{random.choice(('fig', 'no', 'vol', 'ch', 'approx', 'pp', 'nos', 'p', 'sec'))}.", [
        "EXPAND",
        "CONTINUE",
    ]


def such_as(random: Random) -> Form:
    """Return "e.g." or "i.e."."""
    return random.choice(("e.g.", "i.e.")), ["EXPAND", "CONTINUE", "CONTINUE", "CONTINUE"]


def hash_number(random: Random) -> Form:
    """Return "#5"."""
    return f"#{random.randint(1, 60)}", ["EXPAND", "CARDINAL"]
