"""Templates of text normalisation: sentences with a slot whose reading only the words around it tell.

`{name}` is a form of `mm_llama.data.written_forms`, `[Dr.|EXPAND CONTINUE]` is text with the rules of its tokens, all
else is read as it is written. Where two forms are the same signs ("{digits}" and "{cardinal}", "{fraction}" and
"{date}", "{ratio}" and "{time}"), they stand in the same sentences, and one word tells which it is: a word that
training and test do not share, so that it has to be known what it means. Of each list the fourth, the twelfth, ... are
for choosing settings, the eighth, the sixteenth, ... for the test; training has the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from mm_llama.data.normalization_words import (
    CLOCKED,
    COMPARED,
    COUNTED,
    DATED,
    IN_YEAR,
    NUMBERED,
    PAGED,
    PARTED,
    PARTS,
    RULERS,
    SAINTS,
    SPELLED,
    SPOKEN_AS_WORDS,
    STREETS,
    VALUED,
    VERSIONED,
    YEARLY,
)


def _each(sentence: str, words: tuple[str, ...]) -> Iterator[str]:
    """Yield a sentence with each of the words in the place of its star."""
    return (sentence.replace("*", word) for word in words)


TEMPLATES: dict[str, tuple[str, ...]] = {
    "cardinal": (
        *_each("There are {cardinal} * here.", COUNTED), *_each("All {cardinal} * were forgotten.", COUNTED),
        *_each("The {four_digits} * came later.", COUNTED), *_each("We heard of {four_digits} *.", COUNTED),
        *_each("It is in * {three_digits} now.", PAGED), *_each("We talked about * {three_digits}.", PAGED),
        *_each("Look at * {three_digits} again.", PAGED),
        "The total is {cardinal}.", "He counted to {cardinal}.", "It weighs {cardinal} tons in all.",
        "The population is {cardinal}.", "More than {cardinal} of them came.", "The sum of both is {cardinal}.",
        "They walked {cardinal} steps.", "We need about {cardinal} more.",
    ),
    "digits": (
        *_each("It is in * {digits} now.", NUMBERED), *_each("We talked about * {digits}.", NUMBERED),
        *_each("Look at * {digits} again.", NUMBERED), *_each("Ask for * {digits}, please.", NUMBERED),
    ),
    "year": (
        *IN_YEAR, *_each("The {year} * came later.", YEARLY), *_each("We heard of the {year} *.", YEARLY),
        *_each("After the {year} * they left.", YEARLY),
    ),
    "years": (
        "The war of {years} was long.", "He was president {years}.", "She taught there {years}.",
        "The archive covers {years}.", "The drought of {years} was the worst.", "He reigned {years}.",
        "The museum was closed {years}.", "The period {years} was peaceful.",
    ),
    "decade": (
        "It was popular in the {decade}.", "Music of the {decade} is back.", "In the {decade} life was simple.",
        "The early {decade} were hard.", "He grew up in the {decade}.", "A dress from the {decade} hung there.",
        "The late {decade} brought peace.", "Houses of the {decade} are small.",
    ),
    "ordinal": (
        "He came in {ordinal} place.", "It is her {ordinal} birthday.", "We live on the {ordinal} floor.",
        "This is the {ordinal} time.", "The {ordinal} day was the worst.", "Turn left on {ordinal} Street.",
        "It was their {ordinal} meeting.", "The {ordinal} chapter is short.", "He was the {ordinal} in line.",
        "In the {ordinal} century it was a castle.", "She read the {ordinal} page.", "The {ordinal} try worked.",
    ),
    "decimal": (
        *_each("The * {decimal} is wrong.", VALUED), *_each("We need * {decimal} here.", VALUED),
        *_each("Is * {decimal} enough?", VALUED),
        "The average is {decimal}.", "He jumped {decimal} meters.", "A factor of {decimal} is enough.",
        "The result was {decimal}.", "It grew by {decimal} points.", "The index fell to {decimal}.",
        "Multiply it by {decimal}.", "The mean was {decimal}.",
    ),
    "version": (
        *_each("The * {version} is wrong.", VERSIONED), *_each("We need * {version} here.", VERSIONED),
        *_each("Is * {version} enough?", VERSIONED), *_each("Install * {version} first.", VERSIONED),
    ),
    "fraction": (
        *_each("It will * by {fraction}.", PARTED), *_each("They have to * by {fraction} at least.", PARTED),
        *_each("We * by {fraction}, he said.", PARTED),
        "Add {fraction} cup of sugar.", "About {fraction} of the people left.", "He ate {fraction} of the cake.",
        "Use {fraction} teaspoon of salt.", "Cut off {fraction} of an inch.", "Only {fraction} of the votes counted.",
        "The tank is {fraction} full.", "Pour in {fraction} of a liter.",
    ),
    "mixed": (
        "Add {mixed} cups of flour.", "It is {mixed} inches wide.", "We waited {mixed} hours.",
        "They drove {mixed} miles.", "The board is {mixed} feet long.", "Bake it for {mixed} hours.",
        "She bought {mixed} pounds of rice.", "He lived there {mixed} years.",
    ),
    "date": (
        *_each("It will * by {date}.", DATED), *_each("They have to * by {date} at least.", DATED),
        *_each("We * by {date}, he said.", DATED),
        "The meeting is on {date}.", "She arrives on {date}.", "It is due on {date}.", "Born on {date}, he is young.",
        "The shop opens on {date}.", "We leave on {date} in the morning.", "Your order shipped on {date}.",
        "The deadline is {date}.",
    ),
    "iso_date": (
        "The log starts at {iso_date}.", "It was recorded on {iso_date}.", "Created {iso_date} by the team.",
        "The file is dated {iso_date}.", "Last updated {iso_date}.", "The backup of {iso_date} is good.",
        "The sample was taken on {iso_date}.", "Valid until {iso_date}.",
    ),
    "month_day": (
        "The festival is on {month_day}.", "On {month_day} they met.", "He was born on {month_day}.",
        "The exam is on {month_day}.", "It rained on {month_day}.", "She died on {month_day}.",
        "We open again on {month_day}.", "The vote took place on {month_day}.",
        "The festival is on {ordinal_day}.", "On {ordinal_day} they met.", "He was born on {ordinal_day}.",
        "The exam is on {ordinal_day}.", "It rained on {ordinal_day}.", "She died on {ordinal_day}.",
        "We open again on {ordinal_day}.", "The vote took place on {ordinal_day}.",
    ),
    "time": (
        *_each("The * is {bare_time}.", CLOCKED), *_each("A * of {bare_time} was written down.", CLOCKED),
        *_each("They told us of the *, {bare_time}.", CLOCKED),
        "The train leaves at {time}.", "Dinner is at {time}.", "We met at {time}.", "At {time} the bell rang.",
        "The show starts at {time}.", "He woke up at {time}.", "The shop closes at {time}.", "It is {time} now.",
    ),
    "hours": (
        "We are open {hours}.", "The office is closed {hours}.", "Lessons are {hours} today.", "He works {hours}.",
        "The library opens {hours} on weekdays.", "Visiting hours are {hours}.", "She works from home {hours}.",
        "The museum is open {hours}.", "The market runs {hours}.", "My shift is {hours}.", "Lunch is served {hours}.",
        "The clinic sees patients {hours}.", "The pool is free {hours}.", "Parking is allowed {hours}.",
        "Office hours are {hours}.", "The gym is open {hours} daily.",
    ),
    "ratio": (
        *_each("The * is {ratio}.", COMPARED), *_each("A * of {ratio} was written down.", COMPARED),
        *_each("They told us of the *, {ratio}.", COMPARED),
        "Mix them at a ratio of {ratio}.", "The odds are {ratio}.", "They won the game {ratio}.",
        "A scale of {ratio} is used.", "The team lost {ratio}.", "Use oil and vinegar {ratio}.",
        "Outnumbered {ratio}, they fled.", "The match ended {ratio}.",
    ),
    "score": (
        "They won {score}.", "The final score was {score}.", "Read pages {score} tonight.", "It takes {score} days.",
        "The vote was {score}.", "They lost {score} at home.", "Children aged {score} may enter.",
        "The team leads {score}.", "Boil it for {score} minutes.", "We expect {score} guests.",
        "Bake for {score} minutes.", "The visitors were ahead {score}.",
    ),
    "phone": (
        "Call {phone} for help.", "My number is {phone}.", "Her phone is {phone}.", "Dial {phone} after the tone.",
        "You can reach him at {phone}.", "The fax number is {phone}.", "Text {phone} to join.",
        "For tickets ring {phone}.",
    ),
    "money": (
        "It costs {money}.", "He paid {money} for it.", "The fine is {money}.", "They raised {money} last year.",
        "She earns {money} a week.", "The house sold for {money}.", "A ticket is {money}.", "He owes me {money}.",
        "The budget is {money}.", "We saved {money}.", "The damage was {money}.", "They lost {money} on it.",
    ),
    "measure": (
        "The rope is {measure} long.", "It weighs {measure}.", "Add {measure} of water.", "He ran {measure}.",
        "The box is {measure} wide.", "Move it by {measure}.", "The limit is {measure}.", "The pipe is {measure}.",
        "It is {measure} from here.", "The file has {measure}.", "The dose is {measure}.", "They climbed {measure}.",
    ),
    "speed": (
        "The car went {speed}.", "The limit is {speed}.", "The wind blows at {speed}.", "Its rate is {speed}.",
        "The train reaches {speed}.", "Sound needs more than {speed}.", "It flows at {speed}.", "We drove {speed}.",
    ),
    "degrees": (
        "It is {degrees} outside.", "Heat the oven to {degrees}.", "Water was at {degrees}.", "It fell to {degrees}.",
        "The record is {degrees}.", "Keep it below {degrees}.", "The lake had {degrees}.", "Store it at {degrees}.",
    ),
    "percent": (
        "About {percent} agreed.", "The rate rose by {percent}.", "Take {percent} off.", "He owns {percent} of it.",
        "Only {percent} of them voted.", "Prices fell {percent}.", "A tax of {percent} applies.", "It is {percent}.",
    ),
    "negative": (
        "The result is {negative}.", "It was {negative} last night.", "The balance is {negative}.",
        "Subtract and get {negative}.", "The lowest value was {negative}.", "His score is {negative}.",
        "The temperature is {negative} degrees.", "The function has a root at {negative}.",
    ),
    "web": (
        "Visit {web} for more.", "The site {web} is down.", "Go to {web} today.", "Look it up on {web}.",
        "It is listed at {web}.", "Read it on {web}.", "Her page is {web}.", "Order at {web}.",
    ),
    "email": (
        "Write to {email}.", "Send it to {email} today.", "My address is {email}.", "Contact {email} first.",
        "Mail {email} about it.", "Ask {email} for help.", "The invoice goes to {email}.", "Copy {email} as well.",
    ),
    "hashtag": (
        "They posted it under {hashtag}.", "Follow {hashtag} for news.", "The tag {hashtag} was everywhere.",
        "Search for {hashtag} tonight.", "It was shared with {hashtag}.", "Look for {hashtag} there.",
        "She wrote to {hashtag} again.", "Thousands used {hashtag}.",
    ),
    "aged": (
        "It was a {aged} trip.", "She has a {aged} contract.", "We took the {aged} one.", "A {aged} boat sank.",
        "He read a {aged} report.", "The {aged} dog slept.", "They made a {aged} plan.", "It is a {aged} job.",
    ),
    "named_number": (
        "They heard about {named_number} there.", "We spoke of {named_number}.", "{named_number} was first.",
        "It began with {named_number}.", "Nobody forgot {named_number}.", "She worked on {named_number}.",
        "After {named_number} all was new.", "He saw {named_number} once.",
    ),
    "weekday": (
        "We meet on {weekday} at {time}.", "Open {weekday} through {weekday} only.",
        "The class is {weekday} and {weekday}.",
        "Come on {weekday}, {month_day}.", "It is due {weekday} by {time}.", "The bus runs {weekday} to {weekday}.",
        "See you {weekday} morning.", "They play {weekday} and {weekday} at {time}.",
    ),
    "several": (
        "{title} Smith paid {money} on {date}.", "On {month_day} at {time} it was {degrees}.",
        "{title} Jones, aged {two_digits}, owes {money}.", "In {year}, about {percent} of {cardinal} people voted.",
        "She ran {measure} in {cardinal} minutes on {month_day}.",
        "It rose from {money} in {year} to {money} in {year}.",
        "Call {title} Brown at {phone} before {time}.", "From {time} to {time} we drove {measure}.",
        "The {ordinal} race, over {measure}, begins at {time}.", "He weighs {measure} and is {measure} tall.",
        "At {time} on {date}, {title} Lee left.", "The {ordinal} of {cardinal} costs {money}, or {percent} less.",
        "Between {year} and {year} prices rose by {percent}.", "Write to {email} or call {phone}.",
        "Add {fraction} cup of milk and {mixed} cups of sugar.", "They won {score} in {year} and {score} in {year}.",
        "On {date} the rate was {percent}, on {date} it was {percent}.",
        "{title} White and {title} Green met at {time}.",
        "See {web} or write to {email} by {month_day}.", "It cost {money} per ticket, {money} for two.",
        "The {decade} and the {decade} were good for the {acronym}.",
        "He was {ordinal} in {year} and {ordinal} in {year}.",
        "We need {measure} of flour, {measure} of butter and {cardinal} eggs.", "By {year} it had {cardinal} members.",
        "The temperature fell from {degrees} to {degrees} by {time}.",
        "{percent} of it, or {money}, went to {title} Wilson.",
        "A {aged} trip of {measure} began on {date} at {time}.", "They sold {cardinal} for {money} on {ordinal_day}.",
        "In {cardinal} of {cardinal} cases the {acronym} paid {money}.",
        "It took place {years}, {shortened} {cardinal} says.",
        "The train of {time} was {cardinal} minutes late on {weekday} and left at {time}.",
        "In {year} {title} Miller bought {mixed} acres for {money}.",
    ),
    "acronym": (
        *_each("The [*|LETTERS] said no.", SPELLED), *_each("They talked about [*|LETTERS] again.", SPELLED),
        *_each("An [*|LETTERS] report came out.", SPELLED),
        "The {acronym} said no.", "She works for the {acronym}.", "He joined the {acronym} early.",
        "An {acronym} report came out.", "The {acronym} opened an office.", "Agents of the {acronym} came.",
        "A spokesman of the {acronym} denied it.", "The {acronym} banned it.",
    ),
    "acronym_word": (
        *_each("The [*|PLAIN] said no.", SPOKEN_AS_WORDS),
        *_each("They talked about [*|PLAIN] again.", SPOKEN_AS_WORDS),
        *_each("A [*|PLAIN] report came out.", SPOKEN_AS_WORDS),
    ),
    "roman_cardinal": (
        *_each("* {roman_cardinal} was long.", PARTS), *_each("They spoke of * {roman_cardinal} again.", PARTS),
        *_each("In * {roman_cardinal} it ends.", PARTS),
    ),
    "roman_ordinal": (
        *_each("* {roman_ordinal} was young.", RULERS), *_each("They spoke of * {roman_ordinal} again.", RULERS),
        *_each("Under * {roman_ordinal} it fell.", RULERS),
    ),
    "hash_number": (
        "It is {hash_number} on the list.", "Ticket {hash_number} won.", "He wears {hash_number}.",
        "Question {hash_number} is hard.", "Take {hash_number} now.", "They are {hash_number} in the world.",
        "Room {hash_number} is free.", "Rule {hash_number} is clear.",
    ),
    "title": (
        *_each("[St.|EXPAND CONTINUE] * is old.", SAINTS),
        *_each("We stood near [St.|EXPAND CONTINUE] * then.", SAINTS),
        "{title} Smith called.", "I saw {title} Brown.", "{title} Jones left.", "Ask {title} Green.",
        "{title} Miller spoke.", "We saw {title} Lee.", "A book by {title} White lay there.", "Is {title} Wilson in?",
    ),
    "street": (
        *_each("* [St.|EXPAND_OTHER CONTINUE] is old.", STREETS),
        *_each("* [Dr.|EXPAND_OTHER CONTINUE] is long.", STREETS),
        *_each("He lives on * [St.|EXPAND_OTHER CONTINUE] now.", STREETS),
        *_each("We stood near * [Dr.|EXPAND_OTHER CONTINUE] then.", STREETS),
        *_each("A shop on * [Ave.|EXPAND CONTINUE] closed.", STREETS),
        *_each("* [Rd.|EXPAND CONTINUE] is wide.", STREETS),
    ),
    "short_words": (
        "Bring fruit, {such_as} apples.", "It was Smith [vs.|EXPAND CONTINUE] Jones.",
        "The capital, {such_as} Rome, fell.",
        "See {shortened} {cardinal} for details.", "Paper, pens, [etc.|EXPAND CONTINUE] are there.",
        "It is {shortened} {cardinal} of them.", "Read {shortened} {cardinal} today.",
        "Take {shortened} {cardinal} of these.",
        "Many pets, {such_as} cats, came.", "Look at {shortened} {cardinal} again.",
        "He bought tools, {such_as} a saw.",
        "In {shortened} {cardinal} it is said.", "She likes sports, {such_as} tennis.",
        "It was Ohio [vs.|EXPAND CONTINUE] Iowa.",
        "They forgot {shortened} {cardinal} twice.", "Some metals, {such_as} iron, rust.",
    ),
    "look_alikes": (
        "No. I said so.", "He went in. She stayed.", "I am here in May.", "The sun is out.", "It is no use.",
        "I will march on.", "Go in the house.", "Mix well and sit.", "You and I agree.", "They sat in the sun.",
        "I see a V in the sky.", "No. We did not.", "A cat is in. It sleeps.", "Then I fled.", "He said no.",
        "So did I. Then it rained.",
    ),
    "ampersand": (
        "Salt [&|SIGN] pepper are here.", "Johnson [&|SIGN] Sons closed.", "Food [&|SIGN] drink are free.",
        "Rock [&|SIGN] roll lives.", "Two [+|SIGN] two is four.", "Black [&|SIGN] white is fine.",
        "Research [&|SIGN] development grew.", "Tom [&|SIGN] Anna came.",
    ),
}  # fmt: skip
