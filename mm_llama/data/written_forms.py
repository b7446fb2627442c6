"""What is not written as it is said, drawn at random: each form of a semiotic class with the rule of every token.

A form is the text of a slot in a template (`mm_llama.data.normalization`) and the names of the rules of its tokens
(`mm_llama.voice.rules`), as they are split by `mm_llama.voice.written`.
"""

from __future__ import annotations

from collections.abc import Callable
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
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_SHORT_MONTHS = ("Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sept", "Oct", "Nov", "Dec")


def cardinal(random: Random) -> Form:
    """Return a whole number, of four digits and more with commas or without."""
    number = random.choice(
        (
            random.randint(2, 99),
            random.randint(100, 999),
            random.randint(1000, 9999),
            random.randint(10_000, 900_000),
        )
    )
    if number >= 10_000 or (number >= 1000 and random.random() < 0.3):
        return f"{number:,}", ["CARDINAL"] + ["CONTINUE", "CONTINUE"] * (len(f"{number:,}") // 4)
    return str(number), ["CARDINAL"]


def digits(random: Random) -> Form:
    """Return a number that is read digit by digit, of three or four."""
    return str(random.randint(101, 9899)), ["DIGITS"]


def three_digits(random: Random) -> Form:
    """Return a whole number of three digits, which could be read digit by digit as well."""
    return str(random.randint(101, 989)), ["CARDINAL"]


def four_digits(random: Random) -> Form:
    """Return a whole number that could be a year."""
    return str(random.randint(1400, 2030)), ["CARDINAL"]


def ordinal(random: Random) -> Form:
    """Return "21st"."""
    number = random.randint(1, 120)
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}", ["ORDINAL", "CONTINUE"]


def year(random: Random) -> Form:
    """Return a year."""
    return str(random.choice((random.randint(1400, 1999), random.randint(1900, 2030)))), ["YEAR"]


def years(random: Random) -> Form:
    """Return a range of years."""
    first = random.randint(1500, 2000)
    return f"{first}-{first + random.randint(1, 25)}", ["YEAR", "TO", "YEAR"]


def decade(random: Random) -> Form:
    """Return "1980s"."""
    return f"{random.randrange(1700, 2000, 10)}s", ["DECADE", "CONTINUE"]


def decimal(random: Random) -> Form:
    """Return "3.14"."""
    return f"{random.randint(0, 99)}.{random.randint(1, 99)}", ["CARDINAL", "POINT", "DIGITS"]


def version(random: Random) -> Form:
    """Return "2.10", whose parts are whole numbers; now and then "2.10.3"."""
    parts = [str(random.randint(1, 40)) for _ in range(random.choice((2, 2, 2, 3)))]
    return ".".join(parts), ["CARDINAL", *["POINT", "CARDINAL"] * (len(parts) - 1)]


def fraction(random: Random) -> Form:
    """Return "3/4"."""
    below = random.randint(2, 9)
    return f"{random.randint(1, below - 1)}/{below}", ["CARDINAL", "SKIP", "DENOMINATOR"]


def mixed(random: Random) -> Form:
    """Return "2 1/2"."""
    below = random.randint(2, 8)
    text = f"{random.randint(2, 12)} {random.randint(1, below - 1)}/{below}"
    return text, ["CARDINAL", "AND_CARDINAL", "SKIP", "DENOMINATOR"]


def date(random: Random) -> Form:
    """Return "3/4" or "3/4/2015", month first."""
    text, rules = f"{random.randint(1, 12)}/{random.randint(1, 28)}", ["MONTH", "SKIP", "ORDINAL"]
    if random.random() < 0.3:
        return f"{text}/{random.randint(1900, 2030)}", [*rules, "SKIP", "YEAR"]
    return text, rules


def iso_date(random: Random) -> Form:
    """Return "2015-03-14"."""
    text = f"{random.randint(1900, 2030)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"
    return text, ["YEAR", "SKIP", "MONTH", "SKIP", "ORDINAL"]


def month_day(random: Random) -> Form:
    """Return "March 14", "Mar. 14", "14 March", with a year or without."""
    day, month = random.randint(1, 28), random.choice(_MONTHS)
    text, rules = random.choice(
        (
            (f"{month} {day}", ["PLAIN", "ORDINAL"]),
            (f"{day} {month}", ["ORDINAL_OF", "PLAIN"]),
            (f"{random.choice(_SHORT_MONTHS)}. {day}", ["EXPAND", "CONTINUE", "ORDINAL"]),
        )
    )
    if random.random() < 0.4 and text[0].isalpha():
        return f"{text}, {random.randint(1900, 2030)}", [*rules, "PLAIN", "YEAR"]
    return text, rules


def time(random: Random) -> Form:
    """Return "3:05", with "pm" or without."""
    text = f"{random.randint(1, 12)}:{random.choice((0, 5, 10, 15, 20, 25, 30, 40, 45, 50, 55)):02}"
    rules = ["CARDINAL", "SKIP", "MINUTES"]
    ending = random.choice(("", "", " am", " pm", " AM", "pm"))
    return text + ending, rules + (["LETTERS"] if ending else [])


def bare_time(random: Random) -> Form:
    """Return "3:05", which could be a ratio."""
    return f"{random.randint(1, 12)}:{random.randint(1, 59):02}", ["CARDINAL", "SKIP", "MINUTES"]


def ratio(random: Random) -> Form:
    """Return "3:1" or "3:10"."""
    return f"{random.randint(1, 12)}:{random.choice((1, 2, 3, 4, 5, 10, 12, 15, 20, 25, 50))}", [
        "CARDINAL",
        "TO",
        "CARDINAL",
    ]


def score(random: Random) -> Form:
    """Return "3-1", also as a range."""
    first = random.randint(0, 40)
    return f"{first}-{first + random.randint(1, 20)}", ["CARDINAL", "TO", "CARDINAL"]


def phone(random: Random) -> Form:
    """Return "555-0123", with an area in front or without."""
    text = f"{random.randint(200, 999)}-{random.randint(0, 9999):04}"
    if random.random() < 0.5:
        return f"{random.randint(200, 999)}-{text}", ["DIGITS", "PAUSE", "DIGITS", "PAUSE", "DIGITS"]
    return text, ["DIGITS", "PAUSE", "DIGITS"]


def money(random: Random) -> Form:
    """Return "$12.50", "$12" or "$5 million", in four currencies."""
    sign, whole = random.choice("$$$€£¥"), random.randint(1, 900)
    kind = random.randrange(3)
    if kind == 0 and sign != "¥":
        return f"{sign}{whole}.{random.randint(1, 99):02}", ["SKIP", "MONEY", "AND", "CENTS"]
    if kind == 1:
        return f"{sign}{whole} {random.choice(('million', 'billion'))}", ["SKIP", "CARDINAL", "MONEY_WORD"]
    return f"{sign}{whole}", ["SKIP", "MONEY"]


def measure(random: Random) -> Form:
    """Return "5 km" or "5.2 km"."""
    unit = random.choice(
        ("km", "m", "cm", "mm", "kg", "g", "mg", "lb", "oz", "ft", "in", "mph", "ml", "GB", "kHz")
    )
    space = random.choice(("", " ", " "))
    if random.random() < 0.3:
        text, rules = decimal(random)
        return f"{text}{space}{unit}", [*rules, "UNIT"]
    return f"{random.randint(1, 250)}{space}{unit}", ["CARDINAL", "UNIT"]


def speed(random: Random) -> Form:
    """Return "90 km/h"."""
    return f"{random.randint(2, 300)} {random.choice(('km/h', 'm/s', 'mg/ml'))}", [
        "CARDINAL",
        "UNIT",
        "PER",
        "UNIT",
    ]


def degrees(random: Random) -> Form:
    """Return "21°C", also below zero."""
    minus = random.random() < 0.4
    rules = ["CARDINAL", "UNIT", "UNIT"]
    text = f"{random.randint(1, 99)}°{random.choice('CF')}"
    return ("-" if minus else "") + text, (["MINUS"] if minus else []) + rules


def percent(random: Random) -> Form:
    """Return "20%" or "2.5%"."""
    text, rules = decimal(random) if random.random() < 0.3 else (str(random.randint(1, 100)), ["CARDINAL"])
    return f"{text}%", [*rules, "SIGN"]


def negative(random: Random) -> Form:
    """Return "-5"."""
    return f"-{random.randint(1, 99)}", ["MINUS", "CARDINAL"]


def web(random: Random) -> Form:
    """Return "www.example.com" or "example.org/music"."""
    name, end = random.choice(_NAMES), random.choice(_ENDINGS)
    if random.random() < 0.5:
        return f"www.{name}.{end}", ["LETTERS", "SIGN", "PLAIN", "SIGN", "PLAIN"]
    return f"{name}.{end}/{random.choice(_NAMES)}", ["PLAIN", "SIGN", "PLAIN", "SIGN", "PLAIN"]


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
    return random.choice(("II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")), [
        "ROMAN_CARDINAL"
    ]


def roman_ordinal(random: Random) -> Form:
    """Return a Roman numeral that is read as an ordinal: of rulers."""
    return roman_cardinal(random)[0], ["ROMAN_ORDINAL"]


def title(random: Random) -> Form:
    """Return what stands shortened before a name."""
    return (
        f"{random.choice(('Dr', 'Mr', 'Mrs', 'Ms', 'Prof', 'Gen', 'Sen', 'Capt', 'Lt', 'Sgt', 'Rev', 'Gov'))}.",
        [
            "EXPAND",
            "CONTINUE",
        ],
    )


def shortened(random: Random) -> Form:
    """Return what stands shortened before a number."""
    return f"{random.choice(('fig', 'no', 'vol', 'ch', 'approx', 'pp', 'nos'))}.", ["EXPAND", "CONTINUE"]


def such_as(random: Random) -> Form:
    """Return "e.g." or "i.e."."""
    return random.choice(("e.g.", "i.e.")), ["EXPAND", "CONTINUE", "CONTINUE", "CONTINUE"]


def hash_number(random: Random) -> Form:
    """Return "#5"."""
    return f"#{random.randint(1, 60)}", ["EXPAND", "CARDINAL"]


FORMS: dict[str, Callable[[Random], Form]] = {
    one.__name__: one
    for one in (
        cardinal, digits, three_digits, four_digits, bare_time, title, shortened, such_as, ordinal, year, years,
        decade, decimal, version, fraction, mixed, date, iso_date, month_day,
        time, ratio, score, phone, money, measure, speed, degrees, percent, negative, web, email, acronym,
        roman_cardinal, roman_ordinal, hash_number,
    )
}  # fmt: skip
