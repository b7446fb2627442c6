"""What is not written as it is said, drawn at random: each form of a semiotic class with the rule of every token.

A form is the text of a slot in a template (`mm_llama.data.normalization`) and the names of the rules of its tokens
(`mm_llama.voice.rules`), as they are split by `mm_llama.voice.written`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mm_llama.data.written_codes import digits, extension, grouped, ip_address, phone, plate, service_number
from mm_llama.data.written_names import (
    Form,
    acronym,
    email,
    file,
    hash_number,
    hashtag,
    roman_cardinal,
    roman_ordinal,
    shortened,
    such_as,
    title,
    web,
)
from mm_llama.data.written_pairs import (
    age,
    all_day,
    coordinates,
    era,
    evens,
    height,
    hours,
    house,
    inches,
    large,
    letter_behind,
    many,
    pressure,
    rating,
    ratio,
    score,
    size,
    sum,
    tens,
    times,
    verse,
    weekdays,
)  # fmt: skip

_THOUSANDS = ["CARDINAL", "CONTINUE", "CONTINUE"]  # of "12,345"
_HALVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (" am", ("LETTERS",)),
    (" pm", ("LETTERS",)),
    (" AM", ("LETTERS",)),
    ("pm", ("LETTERS",)),
    (" p.m.", ("LETTERS", "CONTINUE", "CONTINUE", "CONTINUE")),
    (" a.m.", ("LETTERS", "CONTINUE", "CONTINUE", "CONTINUE")),
)
_NUMBERED_NAMES = (
    "COVID",
    "Apollo",
    "Boeing",
    "Area",
    "Catch",
    "Channel",
    "Ocean",
    "Formula",
    "Falcon",
    "Studio",
)
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
)
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
        if number >= 10_000 and random.random() < 0.1:
            return str(number // 1000 * 1000), ["CARDINAL"]
        return f"{number:,}", ["CARDINAL"] + ["CONTINUE", "CONTINUE"] * (len(f"{number:,}") // 4)
    return str(number), ["CARDINAL"]


def two_digits(random: Random) -> Form:
    """Return a whole number of two digits."""
    return str(random.randint(10, 99)), ["CARDINAL"]


def three_digits(random: Random) -> Form:
    """Return a whole number of three digits, which could be read digit by digit as well."""
    return str(random.randint(101, 989)), ["CARDINAL"]


def four_digits(random: Random) -> Form:
    """Return a whole number that could be a year."""
    return str(random.randint(1400, 2030)), ["CARDINAL"]


def aged(random: Random) -> Form:
    """Return a number, or a range, that is joined to words: "10-year-old", "3-5 day"."""
    if random.random() < 0.15:
        low, rest = random.randint(2, 20), random.choice(("day", "page", "hour", "mile", "week"))
        text = f"{low}{random.choice('-–')}{low + random.randint(1, 9)} {rest}"
        return text, ["CARDINAL", "TO", "CARDINAL", "PLAIN"]
    rest = random.choice(
        ("year-old", "mile-long", "page", "story", "foot-tall", "man", "hour", "day", "seat")
    )
    return f"{random.randint(2, 200)}-{rest}", ["CARDINAL", "PLAIN"] + ["PLAIN"] * (2 * rest.count("-") + 1)


def named_number(random: Random) -> Form:
    """Return a name with a number in it: "COVID-19", "Apollo 11"."""
    name, sign = random.choice(_NUMBERED_NAMES), random.choice("- ")
    number = random.randint(2, 99)
    return f"{name}{sign}{number}", ["PLAIN"] * (1 + (sign == "-")) + ["CARDINAL"]


def ordinal(random: Random) -> Form:
    """Return "21st"."""
    number = random.randint(1, 120)
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}", ["ORDINAL", "CONTINUE"]


def ordinal_day(random: Random) -> Form:
    """Return "March 3rd", with a year or without."""
    text, rules = ordinal(random)
    while int(text[:-2]) > 31:
        text, rules = ordinal(random)
    month, short = random.choice(_MONTHS), random.choice(_SHORT_MONTHS)
    text, rules = random.choice(
        ((f"{month} {text}", ["PLAIN", *rules]), (f"{short}. {text}", ["EXPAND", "CONTINUE", *rules]))
    )
    if random.random() < 0.4:
        return f"{text}, {random.randint(1900, 2030)}", [*rules, "PLAIN", "YEAR"]
    return text, rules


def weekday(random: Random) -> Form:
    """Return "Mon."."""
    return random.choice(("Mon.", "Tue.", "Wed.", "Thu.", "Fri.", "Sat.", "Sun.")), ["EXPAND", "CONTINUE"]


def year(random: Random) -> Form:
    """Return a year."""
    return str(random.choice((random.randint(1400, 1999), random.randint(1900, 2030)))), ["YEAR"]


def years(random: Random) -> Form:
    """Return a range of years, the last in two digits now and then."""
    first, dash = random.randint(1500, 2000), random.choice("---–")
    if random.random() < 0.25 and 10 < first % 100 < 90:
        return f"{first}{dash}{random.randint(first % 100 + 1, 99)}", ["YEAR", "TO", "CARDINAL"]
    return f"{first}{dash}{first + random.randint(1, 25)}", ["YEAR", "TO", "YEAR"]


def decade(random: Random) -> Form:
    """Return "1980s"."""
    return f"{random.randrange(1700, 2000, 10)}s", ["DECADE", "CONTINUE"]


def decimal(random: Random) -> Form:
    """Return "3.14", now and then "1,203.5"."""
    part = random.randint(1, 99)
    if random.random() < 0.1:
        return f"{random.randint(1000, 90_000):,}.{part}", [*_THOUSANDS, "POINT", "DIGITS"]
    return f"{random.randint(0, 99)}.{part}", ["CARDINAL", "POINT", "DIGITS"]


def version(random: Random) -> Form:
    """Return "2.10", whose parts are whole numbers; now and then "2.10.3"."""
    parts = [str(random.randint(1, 40)) for _ in range(random.choice((2, 2, 2, 3)))]
    return ".".join(parts), ["CARDINAL", *["POINT", "CARDINAL"] * (len(parts) - 1)]


def fraction(random: Random) -> Form:
    """Return "3/4", now and then "¾"."""
    if random.random() < 0.1:
        return random.choice("½¼¾⅓⅔⅛"), ["SIGN"]
    below = random.randint(2, 9)
    return f"{random.randint(1, below - 1)}/{below}", ["CARDINAL", "SKIP", "DENOMINATOR"]


def mixed(random: Random) -> Form:
    """Return "2 1/2" or "2½"."""
    if random.random() < 0.15:
        return f"{random.randint(1, 12)}{random.choice('½¼¾⅓⅔')}", ["CARDINAL", "SIGN"]
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
    """Return "3:05", with "pm" or "p.m." or without, or "3 pm"."""
    if random.random() < 0.25:
        ending, rules = random.choice(_HALVES)
        return f"{random.randint(1, 12)}{ending}", ["CARDINAL", *rules]
    if random.random() < 0.1:
        ending, rules = random.choice(_HALVES)
        return f"{random.randint(1, 12)}.{random.randint(10, 59)}{ending}", [
            "CARDINAL",
            "SKIP",
            "MINUTES",
            *rules,
        ]
    hour = random.choice(
        (str(random.randint(1, 12)), str(random.randint(1, 12)), f"{random.randint(0, 23):02}")
    )
    text = f"{hour}:{random.choice((0, 5, 10, 15, 20, 25, 30, 40, 45, 50, 55)):02}"
    none: tuple[str, tuple[str, ...]] = ("", ())
    ending, half = random.choice((none, none, *_HALVES))
    return text + ending, ["CARDINAL", "SKIP", "MINUTES", *half]


def bare_time(random: Random) -> Form:
    """Return "3:05", which could be a ratio."""
    return f"{random.randint(1, 12)}:{random.randint(1, 59):02}", ["CARDINAL", "SKIP", "MINUTES"]


def money(random: Random) -> Form:
    """Return "$12.50", "$1,200", "$12", "$5.2 million", "$3M", "$5-10", "99¢" or "20 USD"."""
    sign, whole = random.choice("$$$€£¥"), str(random.randint(1, 900))
    rules = ["SKIP", "MONEY"]
    kind = random.randrange(5)
    if kind == 1:
        word = random.choice((" million", " billion", "M", "B", "k", "K"))
        if random.random() < 0.4:
            text = f"{sign}{random.randint(1, 99)}.{random.randint(1, 9)}{word}"
            return text, ["SKIP", "CARDINAL", "POINT", "DIGITS", "MONEY_WORD"]
        return f"{sign}{whole}{word}", ["SKIP", "CARDINAL", "MONEY_WORD"]
    if kind == 4 and random.random() < 0.5:
        return random.choice(
            (
                (f"{whole}{random.choice(('¢', ' USD', ' EUR', ' GBP'))}", ["CARDINAL", "UNIT"]),
                (f"{sign}{whole}-{int(whole) + 10}", ["SKIP", "CARDINAL", "TO", "MONEY"]),
                (f"{sign}{whole}-{sign}{int(whole) + 10}", ["SKIP", "MONEY", "TO", "SKIP", "MONEY"]),
            )
        )
    if random.random() < 0.3:
        whole, rules = f"{random.randint(1000, 90_000):,}", ["SKIP", "MONEY", *_THOUSANDS[1:]]
    if kind == 0 and sign != "¥":
        cents = random.randint(0, 99) if random.random() < 0.8 else 0
        return f"{sign}{whole}.{cents:02}", [*rules, *(("AND", "CENTS") if cents else ("SKIP", "SKIP"))]
    return f"{sign}{whole}", rules


def measure(random: Random) -> Form:
    """Return "5 km", "5.2 km" or "1,200 km"."""
    unit = random.choice(
        (
            "km", "m", "cm", "mm", "kg", "g", "mg", "lb", "lbs", "oz", "ft", "in", "mph", "ml", "GB", "kHz", "kW",
            "tsp", "tbsp", "yd", "hrs", "gal", "L", "W", "MB", "V", "s",
        )
    )  # fmt: skip
    space = random.choice(("", " ", " "))
    if random.random() < 0.1:
        power = random.choice(
            (("m²", ["UNIT", "CONTINUE"]), ("km²", ["UNIT", "CONTINUE"]), ("sq ft", ["UNIT", "UNIT"]))
        )
        return f"{random.randint(2, 900)} {power[0]}", ["CARDINAL", *power[1]]
    if random.random() < 0.3:
        text, rules = decimal(random)
        return f"{text}{space}{unit}", [*rules, "UNIT"]
    if random.random() < 0.1:
        return f"{random.randint(1000, 90_000):,}{space}{unit}", [*_THOUSANDS, "UNIT"]
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
    if random.random() < 0.1:
        return f"{random.randint(1, 40)}-{random.randint(41, 100)}%", ["CARDINAL", "TO", "CARDINAL", "SIGN"]
    return f"{text}%", [*rules, "SIGN"]


def negative(random: Random) -> Form:
    """Return "-5"."""
    return f"-{random.randint(1, 99)}", ["MINUS", "CARDINAL"]


FORMS: dict[str, Callable[[Random], Form]] = {
    one.__name__: one
    for one in (
        age, all_day, coordinates, era, evens, extension, file, grouped, height, house, inches, ip_address, large,
        letter_behind, many, plate, pressure, rating, service_number, size, sum, tens, times, verse, weekdays,
        cardinal, digits, two_digits, three_digits, four_digits, bare_time, title, shortened, such_as, ordinal, year,
        years,
        decade, decimal, version, fraction, mixed, date, iso_date, month_day,
        aged, named_number, ordinal_day, weekday, hours, hashtag,
        time, ratio, score, phone, money, measure, speed, degrees, percent, negative, web, email, acronym,
        roman_cardinal, roman_ordinal, hash_number,
    )
}  # fmt: skip
