"""Templates of numbers that are dialed, in groups, or with a sign between or behind them.

As `mm_llama.data.normalization_templates`, which has them beside others.
"""

from __future__ import annotations

from mm_llama.data.normalization_words import (
    BOOKS,
    DIALED,
    FOLLOWED,
    LETTERED,
    RATED,
    SIZED,
    each,
)

NUMBER_TEMPLATES: dict[str, tuple[str, ...]] = {
    "dialed": (
        *each("You can * {service_number} for help.", DIALED), *each("* {service_number} today.", DIALED),
        *each("If there is a fire, * {service_number}.", DIALED), *each("* {service_number} and wait.", DIALED),
    ),
    "rating": (
        *each("The * is {rating}.", RATED), *each("She got a * of {rating}.", RATED),
        "I give it {rating}.", "He scored {rating} on the test.", "We rate it {rating}.", "It got {rating} stars.",
        "She gave the film {rating}.", "He got {rating} right.", "They graded it {rating}.",
        "On a scale it is {rating}.",
    ),
    "pair": (
        "The odds are {evens}.", "They split it {evens}.", "It is a {evens} chance.", "He has {evens} vision.",
        "The mix was {evens}.", "We share it {evens}.", "Opinions are {evens}.", "It is about {evens} now.",
        "We are open {all_day}.", "He works {all_day}.", "Help is there {all_day}.", "The {all_day} store is near.",
        "They watch it {all_day} now.", "A {all_day} line is free.", "It runs {all_day}.", "She is online {all_day}.",
        "Her blood pressure is {pressure}.", "It was {pressure} this morning, the nurse said.",
        "He measured {pressure}.", "A blood pressure of {pressure} is high.", "The doctor read {pressure}.",
        "With pills it fell to {pressure}.", "The cuff showed {pressure}.", "My pressure is {pressure} today.",
    ),
    "sum": (
        "We know that {sum}.", "{sum} is easy.", "He wrote {sum} on the board.", "What is {sum}?", "She says {sum}.",
        "The answer to {sum} is wrong.", "Is {sum} right?", "Type {sum} and press enter.",
    ),
    "size": (
        *each("The * is {size}.", SIZED), *each("A {size} * hung there.", SIZED),
        "It grew {times}.", "It is {times} faster.", "A {times} gain is good.", "We made {times} more.",
        "They zoomed in {times}.", "Prices rose {times}.", "The {times} lens is heavy.", "It is {times} bigger.",
    ),
    "large": (
        *each("It has {large} * now.", FOLLOWED), *each("The {large} * were real.", FOLLOWED),
        *each("About {large} * came.", FOLLOWED),
    ),
    "letter_behind": (
        *each("The {letter_behind} * was good.", LETTERED), *each("It is a {letter_behind} * now.", LETTERED),
    ),
    "height": (
        "He is {height} tall.", "She is {height}.", "My brother is {height} now.", "At {height} he was the tallest.",
        "The player, {height}, scored.", "I am {height} and he is {height}.", "A man of {height} came in.",
        "The door is {height} high.", "They seek women over {height}.", "He stands {height} in his socks.",
        "A {inches} screen is big.", "The pizza is {inches} wide.", "It is {inches} long.", "Cut it to {inches} now.",
        "We got {inches} of snow.", "The {inches} pipe broke.",
    ),
    "quotation": (
        'He said: "I am {two_digits}" and left.', 'She wrote "room {digits}" on it.',
        'It says "version {version}" here.',
        '"There are {cardinal}", he said.', 'They call it "the {year}" here.', 'He asked: "Why {two_digits}"?',
        '"It was in {year}", she said.', 'The sign says "{cardinal}" now.',
    ),
    "place": (
        "It lies at {coordinates}.", "The ship was at {coordinates}, {coordinates}.", "Go to {coordinates}.",
        "The island is at {coordinates}.", "They sank near {coordinates}.", "Its position is {coordinates}.",
        "We met at {coordinates}.", "The map shows {coordinates}, {coordinates}.",
    ),
    "verse": (
        *each("Read * {verse} today.", BOOKS), *each("* {verse} is known.", BOOKS), *each("He quoted * {verse}.",
        BOOKS),
    ),
    "era": (
        "It was built in {era}.", "Rome fell in {era}.", "He was killed in {era}.", "The city dates from {era}.",
        "By {era} it was gone.", "A coin of {era} was found.", "She ruled until {era}.", "They left around {era}.",
    ),
    "grouped": (
        "My social security number is {grouped}.", "The card number is {grouped}.", "Its ISBN is {grouped}.",
        "ISBN {grouped} is the book.", "The account number is {grouped}.", "Use the code {grouped} here.",
        "Enter {grouped} and wait.", "Your reference is {grouped}.",
        "Her IP is {ip_address}.", "The server at {ip_address} is down.", "Ping {ip_address} first.",
        "Connect to {ip_address} now.", "The router is {ip_address}.", "Block {ip_address} at once.",
        "It came from {ip_address}.", "Log in at {ip_address}.",
        "Flight {plate} is late.", "The plate was {plate}.", "He flew on {plate}.", "Look for {plate} there.",
        "Its code is {plate}.", "Train {plate} is full.", "Part {plate} broke.", "Model {plate} is sold out.",
        "Call {extension} for Anna.", "Ask at {extension} please.", "He lives in {extension} now.",
        "It is {extension}.",
        "Mail it to {extension}, Boston.", "She sits in {extension}.", "Our office is {extension}.",
        "Try {extension}.",
    ),
}  # fmt: skip
