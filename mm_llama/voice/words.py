"""English words for what is written otherwise: signs, units, currencies, titles, months. Tables alone."""

from __future__ import annotations

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

# Sign: what it is called where it is said at all.
SIGNS = {
    "%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "#": "hash", "/": "slash", "-": "dash",
    "_": "underscore", ".": "dot", ":": "colon", "*": "times", "×": "times", "÷": "divided by", "~": "about",
    "<": "less than", ">": "greater than", "≤": "at most", "≥": "at least", "≈": "about", "±": "plus or minus",
    "°": "degrees", "§": "section", "©": "copyright", "®": "registered", "™": "trademark", "\\": "backslash",
    "|": "bar", "^": "to the power of", "?": "question mark", "!": "exclamation mark", ",": "comma",
    "–": "dash", "—": "dash", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "√": "square root of",
}  # fmt: skip

# Unit: singular and plural.
UNITS = {
    "km": ("kilometer", "kilometers"), "m": ("meter", "meters"), "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"), "kg": ("kilogram", "kilograms"), "g": ("gram", "grams"),
    "mg": ("milligram", "milligrams"), "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"), "mi": ("mile", "miles"), "ft": ("foot", "feet"), "in": ("inch", "inches"),
    "yd": ("yard", "yards"), "mph": ("mile per hour", "miles per hour"), "h": ("hour", "hours"),
    "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "min": ("minute", "minutes"), "s": ("second", "seconds"),
    "sec": ("second", "seconds"), "ms": ("millisecond", "milliseconds"), "l": ("liter", "liters"),
    "L": ("liter", "liters"), "ml": ("milliliter", "milliliters"), "mL": ("milliliter", "milliliters"),
    "KB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes"), "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"), "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"), "W": ("watt", "watts"),
    "kW": ("kilowatt", "kilowatts"), "kWh": ("kilowatt hour", "kilowatt hours"), "V": ("volt", "volts"),
    "°": ("degree", "degrees"), "C": ("Celsius", "Celsius"), "F": ("Fahrenheit", "Fahrenheit"),
}  # fmt: skip

# Sign: a note, notes, a coin, coins.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
}

# What is shortened, in lower case: its readings, the first and, where there are two, the second.
ABBREVIATIONS = {
    "dr": ("Doctor", "Drive"), "st": ("Saint", "Street"), "mr": ("Mister",), "mrs": ("Missus",), "ms": ("Miz",),
    "prof": ("Professor",), "gen": ("General",), "sen": ("Senator",), "rep": ("Representative",),
    "capt": ("Captain",), "lt": ("Lieutenant",), "sgt": ("Sergeant",), "jr": ("Junior",), "sr": ("Senior",),
    "rev": ("Reverend",), "gov": ("Governor",), "pres": ("President",), "ave": ("Avenue",), "rd": ("Road",),
    "blvd": ("Boulevard",), "ln": ("Lane",), "hwy": ("Highway",), "mt": ("Mount",), "ft": ("Fort",),
    "no": ("number",), "nos": ("numbers",), "vol": ("volume",), "ch": ("chapter",), "fig": ("figure",),
    "pp": ("pages",), "ed": ("edition",), "vs": ("versus",), "etc": ("et cetera",), "approx": ("approximately",),
    "dept": ("department",), "est": ("established",), "inc": ("incorporated",), "ltd": ("limited",),
    "co": ("company",), "corp": ("corporation",), "e.g": ("for example",), "i.e": ("that is",), "#": ("number",),
    "jan": ("January",), "feb": ("February",), "mar": ("March",), "apr": ("April",), "jun": ("June",),
    "jul": ("July",), "aug": ("August",), "sep": ("September",), "sept": ("September",), "oct": ("October",),
    "nov": ("November",), "dec": ("December",), "mon": ("Monday",), "tue": ("Tuesday",), "wed": ("Wednesday",),
    "thu": ("Thursday",), "fri": ("Friday",), "sat": ("Saturday",), "sun": ("Sunday",),
}  # fmt: skip
