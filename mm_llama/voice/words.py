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
    "x": "times", "²": "squared", "³": "cubed",
}  # fmt: skip

# A fraction that is one sign: by itself, and behind a whole number.
FRACTIONS = {
    "½": ("one half", "and a half"), "¼": ("one quarter", "and a quarter"),
    "¾": ("three quarters", "and three quarters"),
    "⅓": ("one third", "and a third"), "⅔": ("two thirds", "and two thirds"), "⅛": ("one eighth", "and an eighth"),
    "⅜": ("three eighths", "and three eighths"), "⅝": ("five eighths", "and five eighths"),
    "⅞": ("seven eighths", "and seven eighths"), "⅕": ("one fifth", "and a fifth"),
    "⅖": ("two fifths", "and two fifths"),
}  # fmt: skip

# How many, in a letter or two behind a number.
LARGE = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "b": "billion", "B": "billion",
    "bn": "billion", "T": "trillion", "tn": "trillion",
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
    "'": ("foot", "feet"), "′": ("foot", "feet"), "’": ("foot", "feet"),
    '"': ("inch", "inches"), "″": ("inch", "inches"), "”": ("inch", "inches"),
    "sq": ("square", "square"), "cu": ("cubic", "cubic"), "nm": ("nanometer", "nanometers"),
    "ha": ("hectare", "hectares"), "gal": ("gallon", "gallons"), "qt": ("quart", "quarts"),
    "cl": ("centiliter", "centiliters"),
    "tsp": ("teaspoon", "teaspoons"), "tbsp": ("tablespoon", "tablespoons"), "mcg": ("microgram", "micrograms"),
    "µg": ("microgram", "micrograms"), "kcal": ("kilocalorie", "kilocalories"), "cal": ("calorie", "calories"),
    "kJ": ("kilojoule", "kilojoules"), "hp": ("horsepower", "horsepower"),
    "rpm": ("revolution per minute", "revolutions per minute"),
    "fps": ("frame per second", "frames per second"), "bpm": ("beat per minute", "beats per minute"),
    "psi": ("P S I", "P S I"),
    "kph": ("kilometer per hour", "kilometers per hour"), "dB": ("decibel", "decibels"), "px": ("pixel", "pixels"),
    "Mbps": ("megabit per second", "megabits per second"), "Gbps": ("gigabit per second", "gigabits per second"),
    "MW": ("megawatt", "megawatts"), "GW": ("gigawatt", "gigawatts"), "mA": ("milliampere", "milliamperes"),
    "mAh": ("milliampere hour", "milliampere hours"), "kV": ("kilovolt", "kilovolts"),
    "kPa": ("kilopascal", "kilopascals"),
    "kB": ("kilobyte", "kilobytes"), "yr": ("year", "years"), "yrs": ("year", "years"), "mins": ("minute", "minutes"),
    "secs": ("second", "seconds"), "wk": ("week", "weeks"), "wks": ("week", "weeks"), "mo": ("month", "months"),
    "¢": ("cent", "cents"), "USD": ("U S dollar", "U S dollars"), "EUR": ("euro", "euros"),
    "GBP": ("British pound", "British pounds"),
    "CAD": ("Canadian dollar", "Canadian dollars"), "AUD": ("Australian dollar", "Australian dollars"),
    "JPY": ("yen", "yen"), "CHF": ("Swiss franc", "Swiss francs"),
}  # fmt: skip

# Sign: a note, notes, a coin, coins.
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "jeon", "jeon"),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₺": ("lira", "lira", "kurus", "kurus"),
    "₿": ("bitcoin", "bitcoins", "cent", "cents"),
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
    "col": ("Colonel",), "maj": ("Major",), "adm": ("Admiral",), "cpl": ("Corporal",), "hon": ("Honorable",),
    "cmdr": ("Commander",), "supt": ("Superintendent",), "atty": ("Attorney",), "messrs": ("Messieurs",),
    "ct": ("Court",), "pl": ("Place",), "sq": ("Square",), "pkwy": ("Parkway",), "bldg": ("Building",),
    "apt": ("apartment",), "ext": ("extension",), "rm": ("room",), "ste": ("suite",), "tel": ("telephone",),
    "p": ("page",), "sec": ("section",), "vols": ("volumes",), "figs": ("figures",), "eq": ("equation",),
    "pt": ("part",),
    "max": ("maximum",), "min": ("minimum",), "avg": ("average",), "temp": ("temperature",),
    "misc": ("miscellaneous",),
    "univ": ("University",), "govt": ("government",), "assn": ("association",), "intl": ("international",),
    "natl": ("national",), "pop": ("population",), "ca": ("circa",), "cf": ("compare",), "al": ("al",),
    "v": ("versus",),
    "w/": ("with",), "w/o": ("without",), "w/out": ("without",), "b/c": ("because",),
    "n": ("north",), "s": ("south",), "e": ("east",), "w": ("west",),
    "co": ("company",), "corp": ("corporation",), "e.g": ("for example",), "i.e": ("that is",), "#": ("number",),
    "jan": ("January",), "feb": ("February",), "mar": ("March",), "apr": ("April",), "jun": ("June",),
    "jul": ("July",), "aug": ("August",), "sep": ("September",), "sept": ("September",), "oct": ("October",),
    "nov": ("November",), "dec": ("December",), "mon": ("Monday",), "tue": ("Tuesday",), "wed": ("Wednesday",),
    "tues": ("Tuesday",), "thur": ("Thursday",), "thurs": ("Thursday",), "thu": ("Thursday",), "fri": ("Friday",),
    "sat": ("Saturday",), "sun": ("Sunday",),
}  # fmt: skip
