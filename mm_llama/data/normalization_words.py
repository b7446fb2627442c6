"""Nouns, names and verbs that tell how a number, or a shortened word, beside them is read."""

from __future__ import annotations

from collections.abc import Iterator

# Nouns, names and verbs by what they make of the number beside them. Each list is as many as make whole eights, so that
# a word is of one split in every sentence.
COUNTED = (
    "people", "students", "books", "soldiers", "trees", "houses", "ships", "apples", "members", "visitors", "letters",
    "horses", "children", "workers", "pages", "bottles", "votes", "cars", "sheep", "guests", "words", "chairs",
    "prisoners", "islands", "stars", "songs", "photographs", "eggs", "patients", "bricks", "coins", "villages",
    "tickets", "birds", "engineers", "dollars", "miles", "customers", "bridges", "loaves of bread", "teachers",
    "farmers", "windows", "stones", "sailors", "paintings", "dogs", "machines",
)  # fmt: skip
YEARLY = (
    "election", "census", "edition", "earthquake", "flood", "revolution", "harvest", "championship", "referendum",
    "strike", "treaty", "epidemic", "film", "album", "report", "budget", "rebellion", "festival", "constitution",
    "exhibition", "famine", "drought", "tournament", "agreement", "uprising", "riots", "invasion", "reform", "crisis",
    "eruption", "coup", "hurricane",
)  # fmt: skip
NUMBERED = (
    "room", "flight", "apartment", "extension", "gate", "suite", "bus", "locker", "channel", "code", "cabin",
    "highway",
    "PIN", "unit", "box", "cell", "train", "password", "area code", "ward", "platform", "studio", "combination",
    "badge", "route", "postal code", "line", "frequency", "compartment", "access number", "docket", "serial number",
    "bed", "bay", "pier", "form", "invoice", "order", "case", "account", "lot", "dorm", "hangar", "ID",
    "ticket", "order number", "zip code", "tracking number", "seat", "court", "warehouse", "policy", "model",
    "hut", "booth", "license", "mailbox", "passport", "meter", "shelf", "wagon", "ring", "batch",
    "member number",
)  # fmt: skip
PAGED = (
    "page", "chapter", "verse", "question", "exercise", "day", "week", "level", "article", "paragraph", "lesson",
    "episode", "round", "stage", "game", "season", "figure", "table", "item", "step", "grade", "bullet", "song",
    "prize",
    "scene", "problem", "volume", "experiment", "sonnet", "psalm", "challenge", "test",
    "act", "section", "canto", "rule", "clause", "exhibit", "slide", "photo", "sermon", "letter", "poem",
    "story", "part", "map", "plate", "hymn", "note", "strophe", "entry", "appendix", "mission", "recipe",
    "document", "verse number", "riddle", "trial", "module", "puzzle", "phase", "fable", "panel", "diagram",
)  # fmt: skip
DATED = (
    "arrive", "leave", "reply", "pay", "deliver it", "finish it", "return", "decide", "apply", "register", "open",
    "meet", "depart", "submit it", "sign it", "start",
    "begin", "close", "vote", "marry", "move in", "renew it", "cancel it", "graduate", "retire", "land",
    "report back", "send it", "ship it", "launch", "come home", "resign", "publish it", "vacate", "confirm",
    "travel", "check out", "settle", "reopen", "perform", "file it", "book it", "enroll", "announce it",
    "visit", "hand it in", "celebrate", "expire",
)  # fmt: skip
PARTED = (
    "shrink", "grow", "increase", "fall", "reduce it", "cut it", "shorten it", "expand", "rise", "lower it", "drop",
    "slow down", "decrease", "raise it", "stretch it", "decline",
    "multiply it", "thin it", "widen", "swell", "contract", "boost it", "trim it", "exceed it", "diminish",
    "extend it", "shift it", "cut back", "underestimate it", "dilute it", "enlarge it", "improve", "change",
    "weaken", "deflate", "compress it", "tilt it", "fill it", "scale it", "subside", "advance", "dwindle",
    "inflate", "narrow", "miss it", "outgrow it", "recede", "slacken",
)  # fmt: skip
CLOCKED = (
    "departure", "arrival", "sunrise", "bedtime", "closing time", "curfew", "takeoff", "breakfast", "sunset",
    "landing",
    "dinner", "reveille", "opening", "lunch", "high tide", "boarding",
    "check-in", "wake-up call", "noon bell", "kickoff", "appointment", "alarm", "last train", "first bus",
    "sign-off", "moonrise", "low tide", "lights out", "tea", "supper", "shift change", "broadcast",
    "roll call", "deadline", "pickup", "checkout", "touchdown", "dawn", "start", "wedding", "rehearsal",
    "second show", "evening news", "tee time", "briefing", "launch time", "ferry", "dusk",
)  # fmt: skip
COMPARED = (
    "score", "ratio", "result", "scale", "proportion", "final score", "exchange", "mixture", "outcome", "majority",
    "split", "odds ratio", "balance", "aspect ratio", "dilution", "win",
    "gear ratio", "victory", "defeat", "score at halftime", "blend", "tally", "vote", "draw", "advantage",
    "lead", "margin", "count", "match", "compression", "zoom", "concentration", "exchange rate", "upset",
    "mixing ratio", "settlement", "signal", "parity", "ruling", "slope", "fight", "odds", "staff ratio",
    "final", "contrast", "sex ratio", "gradient", "win-loss record",
)  # fmt: skip
VERSIONED = (
    "version", "release", "Python", "Windows", "firmware", "Android", "section", "build", "kernel", "driver",
    "Ubuntu",
    "clause", "paragraph", "update", "standard", "macOS",
    "iOS", "Linux", "Java", "edition", "patch", "protocol", "schema", "app version", "Chrome", "bulletin",
    "rule", "Firefox", "plugin", "toolkit", "annex", "article", "Photoshop", "compiler", "game version",
    "Debian", "library", "package", "format", "subsection", "Bluetooth", "chapter", "HTML", "requirement",
    "Fedora", "MySQL", "USB", "interface",
)  # fmt: skip
VALUED = (
    "factor", "average", "rate", "value", "index", "magnitude", "coefficient", "mean", "probability", "distance",
    "density", "price", "median", "weight", "variance", "temperature",
    "speed", "ratio", "error", "height", "score", "grade", "radius", "width", "mass", "depth", "yield", "GPA",
    "length", "volume", "slope", "voltage", "fee", "current", "rating", "power", "pressure", "angle", "cost",
    "force", "margin", "discount", "area", "thickness", "diameter", "acidity", "offset", "salary",
)  # fmt: skip
RULERS = (
    "King Henry", "Pope Pius", "Louis", "Queen Elizabeth", "Charles", "Edward", "Pope John", "George", "King James",
    "Frederick", "Napoleon", "Philip", "Richard", "Catherine", "Tsar Peter", "William",
    "Prince Albert", "Ramses", "Pope Benedict", "King Olaf", "Ivan", "Emperor Otto", "Alexander",
    "Queen Mary", "Ferdinand", "Leopold", "Christian", "Pope Gregory", "King Edward", "Isabella", "Wilhelm",
    "Gustav", "Pope Urban", "Henry", "Nicholas", "Darius", "King Charles", "Margaret", "Pope Leo", "Robert",
    "Peter", "King Louis", "Emperor Franz", "Malcolm", "Ptolemy", "Tsar Ivan", "Alfonso", "Elizabeth",
)  # fmt: skip
PARTS = (
    "World War", "Chapter", "Part", "Volume", "Act", "Article", "Super Bowl", "Book", "Phase", "Type", "Section",
    "Scene",
    "Appendix", "Stage", "Title", "Canto",
    "Episode", "Level", "Class", "Division", "Figure", "Grade", "Schedule", "Saturn", "Rocky", "Table",
    "Apollo", "Opus", "Lesson", "Battle Group", "Plan", "Region", "Sonata", "Category", "Zone", "Symphony",
    "Rule", "Canon", "Mark", "Group", "Exercise", "Tier", "Plate", "Army Corps", "Sector", "Book of Kings",
    "Playoff", "Unit",
)  # fmt: skip
# Letters that are read one by one, and letters that are read as a word.
SPELLED = (
    "FBI", "CIA", "BBC", "USA", "IBM", "DNA", "CEO", "UFO", "NBA", "HTML", "ATM", "GPS", "CNN", "PhD", "MIT", "USB",
    "EU", "UN", "NFL", "CPU", "FAQ", "HIV", "MTV", "SUV", "BMW", "WHO", "IRS", "DVD", "KGB", "NHS", "XML", "VIP",
    "UK", "TV", "PC", "CD", "IT", "HR", "PR", "LA", "NYC", "UCLA", "URL", "PDF", "SMS", "GDP", "IPO", "CFO",
    "CTO", "NGO", "IQ", "DJ", "RSVP", "AC", "DC", "ER", "EKG", "MRI", "HBO", "NYPD", "LAPD", "NHL", "MLB",
    "ABC",
)  # fmt: skip
SPOKEN_AS_WORDS = (
    "NASA", "NATO", "UNESCO", "OPEC", "RADAR", "SWAT", "UNICEF", "AIDS", "STOP", "LASER", "FIFA", "SCUBA", "PIN",
    "NAFTA",
    "RAM", "WARNING",
    "ASAP", "SONAR", "GIF", "NASDAQ", "JPEG", "CAPTCHA", "TASER", "NICE", "SARS", "EBITDA", "ASCII", "BASIC",
    "UNIX", "SIM", "CERN", "OSHA",
)  # fmt: skip
SAINTS = (
    "Peter", "Mary", "George", "Louis", "Paul", "Francis", "Nicholas", "Patrick", "John", "Anthony", "Andrew",
    "Joseph",
    "Helena", "Catherine", "Bernard", "Thomas",
)  # fmt: skip
STREETS = (
    "Main", "Oak", "King", "Elm", "Lake", "Hill", "Church", "Meadow", "Washington", "Maple", "Park", "Broad", "Pine",
    "River", "Mill", "Market", "Franklin", "Walnut", "Spring", "Cedar", "High", "Station", "Jefferson", "Bridge",
    "Union", "Lincoln", "Sunset", "Wall", "Pearl", "Forest", "Canal", "Baker",
)  # fmt: skip
# What happens in a year.
IN_YEAR = (
    "She was born in {year}.", "The war ended in {year}.", "He moved to Paris in {year}.",
    "The bridge was built in {year}.", "In {year} the company was founded.", "They married in {year}.",
    "The law was passed in {year}.", "By {year} the town had a railway.", "Since {year} nothing has changed.",
    "It was published in {year}.", "The king died in {year}.", "The fire of {year} destroyed the city.",
    "He graduated in {year}.", "The {year} election was close.", "Until {year} it was a school.",
    "The treaty of {year} was never signed.", "The winter of {year} was cold.", "They emigrated in {year}.",
    "The {year} edition is rare.", "In the summer of {year} they met again.", "The church dates from {year}.",
    "Around {year} the river was moved.", "The {year} earthquake was terrible.", "He retired in {year}.",
)  # fmt: skip
# What is done with a number that is called, and what is called for.
DIALED = (
    "call", "ring", "text", "telephone", "phone", "try", "message", "dial", "reach", "key in", "punch in", "contact",
    "tap", "press", "enter", "type",
)  # fmt: skip
# What is told by a share of the most there is, what has a day, and what is a part.
RATED = (
    "score", "grade", "mark", "rating", "quiz result", "review", "exam score", "evaluation", "test result", "verdict",
    "final mark", "assessment", "points total", "ranking", "exam grade", "critic's rating",
)  # fmt: skip
SCHEDULED = (
    "deadline", "wedding", "party", "exam", "concert", "meeting", "launch", "trial", "hearing", "reunion", "parade",
    "holiday", "due date", "opening", "birthday", "appointment",
)  # fmt: skip
SHARED = (
    "share", "part", "portion", "piece", "amount", "dose", "remainder", "fraction", "serving", "slice", "segment",
    "chunk", "quantity", "section", "bit", "proportion",
)  # fmt: skip
# Of what there are thousands and millions, and what stands behind "5K" and "4G".
FOLLOWED = (
    "followers", "views", "users", "downloads", "subscribers", "likes", "clicks", "readers", "copies", "streams",
    "fans",
    "listeners", "comments", "shares", "members", "visitors",
)  # fmt: skip
LETTERED = (
    "race", "video", "screen", "network", "run", "monitor", "camera", "movie", "TV", "signal", "phone", "display",
    "resolution", "projector", "printer", "marathon",
)  # fmt: skip
# Books with verses.
BOOKS = (
    "Matthew", "Luke", "Genesis", "Acts", "Mark", "Romans", "Exodus", "Psalm", "Isaiah", "Job", "Proverbs", "Hebrews",
    "Daniel", "James", "Ruth", "John",
)  # fmt: skip
# What is so high, so wide, or so many times more.
SIZED = (
    "photo", "board", "tile", "frame", "grid", "matrix", "poster", "room", "rug", "screen", "sheet", "envelope",
    "garden",
    "canvas", "carpet", "board game",
)  # fmt: skip


def each(sentence: str, words: tuple[str, ...]) -> Iterator[str]:
    """Yield a sentence with each of the words in the place of its star, a capital at the beginning."""
    first = sentence.startswith("*")
    return (sentence.replace("*", word[0].upper() + word[1:] if first else word) for word in words)
