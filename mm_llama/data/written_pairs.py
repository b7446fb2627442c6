"""Numbers with a sign or a letter between them or behind them, drawn at random: sums, sizes, heights, verses, places.

As `mm_llama.data.written_forms`, which holds them beside others.
"""

from __future__ import annotations

from random import Random

from mm_llama.data.written_names import Form


def _dash(random: Random) -> str:
    return random.choice("---–")


def score(random: Random) -> Form:
    """Return "3-1", also as a range."""
    first = random.choice((random.randint(0, 40), random.randint(0, 40), random.randint(60, 120)))
    second = first + random.randint(1, 20)
    low, high = (second, first) if random.random() < 0.3 else (first, second)
    return f"{low}{_dash(random)}{high}", ["CARDINAL", "TO", "CARDINAL"]


def ratio(random: Random) -> Form:
    """Return "3:1" or "3:10"."""
    below = random.choice((1, 2, 3, 4, 5, 10, 12, 15, 20, 25, 50))
    return f"{random.randint(1, 12)}:{below}", ["CARDINAL", "TO", "CARDINAL"]


def hours(random: Random) -> Form:
    """Return "9:00-17:30", "9-5" or "9am-5pm"."""
    first, last = random.randint(6, 12), random.randint(1, 23)
    kind = random.random()
    if kind < 0.3:
        return f"{first}{_dash(random)}{last}", ["CARDINAL", "TO", "CARDINAL"]
    if kind < 0.45:
        halves = random.choice((("am", "pm"), (" am", " pm")))
        text = f"{first}{halves[0]}{_dash(random)}{random.randint(1, 11)}{halves[1]}"
        return text, ["CARDINAL", "LETTERS", "TO", "CARDINAL", "LETTERS"]
    if kind < 0.5:
        return f"{first}-to-{random.randint(1, 11)}", ["CARDINAL", "PLAIN", "PLAIN", "PLAIN", "CARDINAL"]
    rules = ["CARDINAL", "SKIP", "MINUTES"]
    minutes = (0, 15, 30, 45)
    text = f"{first}:{random.choice(minutes):02}{_dash(random)}{last}:{random.choice(minutes):02}"
    return text, [*rules, "TO", *rules]


def weekdays(random: Random) -> Form:
    """Return "Mon-Fri"."""
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    first = random.randrange(6)
    return f"{days[first]}{_dash(random)}{days[random.randint(first + 1, 6)]}", ["EXPAND", "TO", "EXPAND"]


def all_day(random: Random) -> Form:
    """Return "24/7"."""
    return "24/7", ["CARDINAL", "SKIP", "CARDINAL"]


def evens(random: Random) -> Form:
    """Return "50/50" or "70/30": shares of a hundred, and "20/20"."""
    first = random.choice((50, 50, 60, 70, 80, 90, 40, 20))
    return f"{first}/{20 if first == 20 else 100 - first}", ["CARDINAL", "SKIP", "CARDINAL"]


def rating(random: Random) -> Form:
    """Return "8/10" or "85/100"."""
    best = random.choice((5, 10, 10, 20, 50, 100))
    return f"{random.randint(best // 2, best)}/{best}", ["CARDINAL", "OUT_OF", "CARDINAL"]


def pressure(random: Random) -> Form:
    """Return "120/80"."""
    return f"{random.randint(95, 190)}/{random.randint(55, 110)}", ["CARDINAL", "OVER", "CARDINAL"]


def sum(random: Random) -> Form:
    """Return "5 + 3 = 8", with any of the signs of arithmetic."""
    sign, rule = random.choice(
        (
            ("+", "SIGN"),
            ("-", "MINUS"),
            ("x", "SIGN"),
            ("×", "SIGN"),
            ("*", "SIGN"),
            ("/", "OVER"),
            ("÷", "SIGN"),
        )
    )
    first, second, third = (random.randint(2, 99) for _ in range(3))
    text, rules = f"{first} {sign} {second}", ["CARDINAL", rule, "CARDINAL"]
    return (text, rules) if random.random() < 0.3 else (f"{text} = {third}", [*rules, "SIGN", "CARDINAL"])


def size(random: Random) -> Form:
    """Return "8x10" or "3 x 5"."""
    between = random.choice(("x", "x", " x ", "×"))
    parts = [str(random.randint(2, random.choice((20, 2000)))) for _ in range(random.choice((2, 2, 2, 3)))]
    return between.join(parts), ["CARDINAL", *["BY", "CARDINAL"] * (len(parts) - 1)]


def times(random: Random) -> Form:
    """Return "3x"."""
    return f"{random.randint(2, 30)}x", ["CARDINAL", "SIGN"]


def large(random: Random) -> Form:
    """Return "10K" or "1.2M": thousands, millions, billions."""
    if random.random() < 0.4:
        return f"{random.randint(1, 90)}.{random.randint(1, 9)}{random.choice('KMBk')}", [
            "CARDINAL", "POINT", "DIGITS", "LARGE",
        ]  # fmt: skip
    return f"{random.randint(2, 900)}{random.choice('kKMB')}", ["CARDINAL", "LARGE"]


def letter_behind(random: Random) -> Form:
    """Return "5K" or "4G", whose letter is said as a letter."""
    return f"{random.choice((2, 3, 4, 5, 6, 8, 10))}{random.choice('kKKGD')}", ["CARDINAL", "LETTERS"]


def height(random: Random) -> Form:
    """Return 5'10", without the inches' sign now and then, and feet alone."""
    feet, inches = random.choice((("'", '"'), ("'", '"'), ("′", "″"), ("’", "”")))
    text, rules = f"{random.randint(4, 7)}{feet}", ["CARDINAL", "UNIT"]
    if random.random() < 0.15:
        return text, rules
    text, rules = f"{text}{random.randint(1, 11)}", [*rules, "CARDINAL"]
    return (text, rules) if random.random() < 0.3 else (text + inches, [*rules, "UNIT"])


def inches(random: Random) -> Form:
    """Return 12", which could be the end of a quotation."""
    return f'{random.randint(2, 90)}"', ["CARDINAL", "UNIT"]


def coordinates(random: Random) -> Form:
    """Return "40.71° N"."""
    space = random.choice(("", " "))
    text = f"{random.randint(1, 89)}.{random.randint(10, 9999)}°{space}{random.choice('NSEW')}"
    return text, ["CARDINAL", "POINT", "DIGITS", "UNIT", "EXPAND"]


def verse(random: Random) -> Form:
    """Return "3:16", a chapter and a verse of it."""
    return f"{random.randint(1, 40)}:{random.randint(1, 40)}", ["CARDINAL", "SKIP", "MINUTES"]


def era(random: Random) -> Form:
    """Return "44 BC" or "AD 476"."""
    if random.random() < 0.2:
        return f"AD {random.randint(30, 1400)}", ["LETTERS", "YEAR"]
    return f"{random.randint(30, 1400)} {random.choice(('BC', 'AD', 'BCE', 'CE'))}", ["YEAR", "LETTERS"]


def house(random: Random) -> Form:
    """Return the number of a house: "1600", "12", "221B"."""
    if random.random() < 0.45:
        return str(random.randint(1000, 9899)), ["YEAR"]
    number = str(random.randint(2, 989))
    if random.random() < 0.2:
        return f"{number}{random.choice('ABCD')}", ["CARDINAL", "LETTERS"]
    return number, ["CARDINAL"]


def tens(random: Random) -> Form:
    """Return "80s", "'90s" or "1980's"."""
    ten = random.randrange(20, 100, 10)
    kind = random.random()
    if kind < 0.45:
        return f"{ten}s", ["DECADE", "CONTINUE"]
    if kind < 0.85:
        return random.choice("'’") + f"{ten}s", ["SKIP", "DECADE", "CONTINUE"]
    return f"{random.randrange(1700, 2000, 10)}" + random.choice("'’") + "s", [
        "DECADE",
        "CONTINUE",
        "CONTINUE",
    ]


def age(random: Random) -> Form:
    """Return "40s", of years."""
    return f"{random.randrange(20, 100, 10)}s", ["DECADE", "CONTINUE"]


def many(random: Random) -> Form:
    """Return "100s"."""
    return random.choice(("100s", "1000s")), ["DECADE", "CONTINUE"]
