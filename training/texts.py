"""Stage 1, the texts: what the voice learns to read.

Sources, all Debian's: `fortunes` (sentences), `wordnet-base` (examples of use), `wamerican` (a list of words), and the
phrases of voice agents written below: greetings, acknowledgements, questions, times, prices, addresses, spelled names.

    python -m training.texts 40000 30000 40000 60000

writes `texts.json`, a list of strings in random order; the first HELD_OUT of them are whole sentences that appear
nowhere else, and no stage trains on them. Each further number is of texts drawn anew and put behind the others; from the third
on their whole sentences are such as were not said alone before, from the fourth on WordNet's definitions are among them.
"""

import glob
import itertools
import json
import random
import re
import sys
from collections.abc import Callable, Collection, Sequence

from training.settings import HELD_OUT, TEXT_SEED, WORK

LONGEST = 200  # characters: the longest chunk the engine speaks in one go

NUMBER = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
).split()
TENS = NUMBER[20:]
DIGIT = NUMBER[:10]
ORDINAL = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow tonight".split()
MONTH = "January February March April May June July August September October November December".split()
NAME = (
    "Anna Ben Carol David Emma Frank Grace Henry Julia Kevin Laura Maria Nathan Olivia Peter Rachel Sarah Thomas Victor "
    "William Alice Brian Claire Daniel Elena George Hannah Isaac Jack Karen Liam Michael Nora Oscar Paul Robert Sophie "
    "Smith Johnson Brown Taylor Miller Wilson Moore Anderson Jackson White Harris Martin Thompson Garcia Clark Lewis"
).split()
THING = (
    "order package ticket appointment reservation table room account password card invoice payment refund flight train "
    "meeting call message email address delivery prescription subscription booking question request receipt contract "
    "balance schedule document profile device router phone laptop warranty policy claim statement discount coupon gift "
    "shipment passport visa license insurance loan transfer deposit membership parcel bill"
).split()
CITY = (
    "London Paris Berlin Boston Denver Chicago Dublin Madrid Vienna Oslo Seattle Dallas Toronto Sydney Tokyo Rome Lisbon "
    "Houston Atlanta Phoenix Miami Portland Austin Glasgow Manchester Zurich Prague Warsaw Helsinki Cairo"
).split()
STREET = "Main Oak Maple Cedar Park Church Hill Lake Elm Washington River Spring King Queen Station Bridge Mill Garden".split()
ROAD = "Street Road Avenue Lane Drive Square Way Court".split()
WEATHER = "sunny cloudy rainy windy cold warm foggy stormy snowy mild dry hot".split()
ADJECTIVE = "great good new small large quick simple special free early late possible ready important different".split()
TEMPLATES = """Hello, thank you for calling.|Hello! How can I help you?|Hi {name}, how can I help you {day}?|Good morning, {name}.
Good afternoon, this is {name} speaking.|Good evening, and welcome to {city}.|Welcome back, {name}.|How are you {day}?
Your {thing} is confirmed for {day} at {time}.|I can help you with that {thing}.|Could you please repeat your {thing} number?
One moment please, I am checking your {thing}.|The {thing} will arrive on {day}, {date}.|Is there anything else I can help you with?
I am sorry, I did not catch that.|I'm sorry, could you say that again?|Your {thing} number is {digits}.|The train to {city} leaves at {time}.
Would you like to change your {thing}?|Thank you, {name}. Have a nice day.|The weather in {city} is {weather} {day}.|I found {num} results for {city}.
Please hold while I transfer your call.|Sure, I can book a {thing} for {num} people.|That will be {price}.|Let me check the {thing} for you.
The {thing} from {city} was delayed by {num} minutes.|Do you prefer {day} or {day}?|Your {thing} has been cancelled.|I have sent the {thing} to your email.
Goodbye, {name}.|Yes, of course.|No problem at all.|What is your {thing} number, {name}?|We open at {time} and close at {time}.
Our office is closed on {day}.|Can I have your name and {thing}, please?|The total for your {thing} is {price}.|I have updated your {thing}.
You have {num} new messages from {name}.|{name} will meet you in {city} on {day}.|Right, so your {thing} is ready.|Okay, let me see.
I will call you back in {num} minutes.|Please tell me about your {thing}.|The {thing} costs {price} a month.|Okay.|Sure.|Yes.|No.|Right.|Thanks!
All right.|Got it.|I see.|Of course.|Certainly.|Great!|Perfect.|Exactly.|Absolutely.|Thank you.|Thank you very much.|You're welcome.|Goodbye.|Bye!|Hello.|Hi!|Hmm, let me think.
Well, that depends.|Sounds good.|That's right.|That's correct.|One moment, please.|Just a second.|Please wait.|Hold on.|Let me check.|Let me look that up for you.|I understand.|I'm not sure about that.
My name is {name}.|My name is {name}, spelled {spelled}.|That's {spelled}.|Can you spell your last name? Is it {spelled}?|The code is {spelled}, {digits}.
I live at {num2} {street} {road}, {city}.|The address is {digits} {street} {road}.|Take the {ord} left onto {street} {road}.|We are on the {ord} floor, room {digits}.
My phone number is {digits}, {digits}.|Please call {digits}.|It's {time}.|It's {time} in {city}.|The meeting starts at {time} and ends at {time}.|See you on {day}, the {ord} of {month}.
Your appointment with Doctor {name} is on {date} at {time}.|Is {day} at {time} good for you?|How about {day} at {time}?|When would you like to come in?|Which {thing} do you mean?|What would you like to do next?
Where would you like to go?|Who should I ask for?|Why do you want to cancel the {thing}?|How many people will be there?|How much is the {thing}?|Can you hear me?|Are you still there?|Do you need a {thing}?|Did you receive the {thing}?
Have you tried turning it off and on again?|It will be {num} degrees and {weather} in {city} {day}.|The temperature is {num2} degrees.|There are {num} items in your cart.|You saved {price} on this {thing}.|That's {num2} percent more than last {month}.
I've scheduled your {thing} for {date}.|We've shipped your {thing}, and it should arrive within {num} days.|I don't see a {thing} under that name.|It looks like your {thing} has expired.|Please enter your {thing} number, then press pound.|Press {digit} for {thing}s, or {digit} to speak to an agent.
If you'd like, I can send a {thing} to {name}.|Unfortunately, the {thing} isn't available {day}.|The next flight to {city} departs from gate {digit} at {time}.|Your balance is {price}.|Your card ending in {digits} was charged {price}.|The {adj} news is that your {thing} is {adj}.
Alright, {name}, I have booked the {thing}.|Sorry about the wait, {name}.|I'd be happy to help with your {thing}.|Let's start with your {thing}.|First, open the {thing}. Then, choose the {ord} option.|Could I get your {thing} and your date of birth?
We have a table for {num} at {time}.|You can reach us between {time} and {time}, {day} to {day}.|The {ord} of {month} is a {day}.|It takes about {num2} minutes from {city} to {city}.|I'll remind you {day} at {time}."""


def _digit_templates(rng: random.Random) -> str:
    """A phrase with figures and symbols, as flite reads them."""
    n = rng.randint
    return rng.choice(
        [
            f"It costs ${n(1, 99)}.",
            f"That is {n(2, 99)}% of the total.",
            f"Call {n(200, 999)} {n(1000, 9999)}.",
            f"The meeting is at {n(1, 12)}:{rng.choice(['00', '15', '30', '45', '10', '20'])}.",
            f"Room {n(1, 999)}, please.",
            f"You have {n(2, 200)} points.",
            f"It was built in {n(1850, 2030)}.",
            f"There are {n(2, 99)} days left.",
            f"{rng.choice(NAME)} & {rng.choice(NAME)} live at {n(1, 99)} {rng.choice(STREET)} {rng.choice(ROAD)}.",
            f"The answer is {n(1, 999)}.",
            f"Gate {n(1, 60)}, seat {n(1, 40)}.",
            f"{n(1, 20)} + {n(1, 20)} = {n(1, 40)}.",
            f"Version {n(1, 9)}.{n(0, 9)} is ready.",
            f"Chapter {n(1, 30)}.",
            f"Order number {n(1000, 99999)}.",
            f"The code is {n(0, 9)} {n(0, 9)} {n(0, 9)} {n(0, 9)}.",
        ]
    )


def _agent_phrase(rng: random.Random, templates: list[str]) -> str:
    """One template with its slots filled."""

    def below_hundred() -> str:
        return f"{rng.choice(TENS)} {rng.choice(NUMBER[1:10])}" if rng.random() < 0.5 else rng.choice(NUMBER[1:])

    def price() -> str:
        dollars = f"{rng.choice(NUMBER[1:10])} hundred and {below_hundred()}" if rng.random() < 0.3 else below_hundred()
        return f"{dollars} dollars" + (f" and {below_hundred()} cents" if rng.random() < 0.4 else "")

    def time() -> str:
        minutes = rng.choice(["", " fifteen", " thirty", " forty five", " ten", " twenty", " o'clock"])
        return (
            rng.choice(NUMBER[1:13])
            + minutes
            + rng.choice(["", "", " in the morning", " in the afternoon", " p m", " a m"])
        )

    fill: dict[str, Callable[[], str]] = {
        "num": lambda: rng.choice(NUMBER[2:]),
        "num2": below_hundred,
        "digit": lambda: rng.choice(DIGIT),
        "digits": lambda: " ".join(rng.choice(DIGIT) for _ in range(rng.randint(3, 5))),
        "day": lambda: rng.choice(DAY),
        "month": lambda: rng.choice(MONTH),
        "date": lambda: f"{rng.choice(MONTH)} {rng.choice(ORDINAL)}",
        "ord": lambda: rng.choice(ORDINAL),
        "name": lambda: rng.choice(NAME),
        "spelled": lambda: rng.choice([" ", ", "]).join(rng.choice(NAME).upper()),
        "thing": lambda: rng.choice(THING),
        "city": lambda: rng.choice(CITY),
        "street": lambda: rng.choice(STREET),
        "road": lambda: rng.choice(ROAD),
        "weather": lambda: rng.choice(WEATHER),
        "adj": lambda: rng.choice(ADJECTIVE),
        "price": price,
        "time": time,
    }
    text = re.sub(r"\{(\w+)\}", lambda match: fill[match[1]](), rng.choice(templates))
    return text[0].upper() + text[1:]


def fortune_sentences() -> list[str]:
    """Sentences of plain words and marks from Debian's fortunes."""
    found: set[str] = set()
    for path in glob.glob("/usr/share/games/fortunes/*"):
        if path.endswith((".dat", ".u8")):
            continue
        with open(path, encoding="utf8", errors="ignore") as file:
            quotes = file.read().split("\n%\n")
        for quote in quotes:
            for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", quote)):
                sentence = sentence.strip(" \"'-")
                plain = re.fullmatch(r"[A-Za-z ,.'!?;:-]+[.!?]", sentence) and not re.search(r"[A-Z]{2,}", sentence)
                if plain and len(sentence.split()) >= 2 and len(sentence) <= 180:
                    found.add(sentence)
    return sorted(found)


def wordnet_examples() -> list[str]:
    """WordNet's examples of use, written as sentences."""
    found: set[str] = set()
    for part in ("noun", "verb", "adj", "adv"):
        with open(f"/usr/share/wordnet/data.{part}", encoding="utf8", errors="ignore") as file:
            for line in file:
                for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                    example = example.strip(" .,;")
                    if (
                        re.fullmatch(r"[A-Za-z ,.'!?;:-]+", example)
                        and len(example.split()) >= 2
                        and len(example) <= 160
                    ):
                        found.add(example[0].upper() + example[1:] + ("" if example[-1] in "!?" else "."))
    return sorted(found)


def wordnet_definitions() -> list[str]:
    """WordNet's definitions, written as sentences."""
    found: set[str] = set()
    for part in ("noun", "verb", "adj", "adv"):
        with open(f"/usr/share/wordnet/data.{part}", encoding="utf8", errors="ignore") as file:
            for line in file:
                definition = re.split(r'; (?=")', line.partition("|")[2])[0].strip(" .,;:\n")
                if (
                    re.fullmatch(r"[A-Za-z ,.'!?;:-]+", definition)
                    and len(definition.split()) >= 3
                    and len(definition) <= 160
                ):
                    found.add(definition[0].upper() + definition[1:] + ".")
    return sorted(found)


def dictionary() -> list[str]:
    """Lower-case words of two to twelve letters."""
    with open("/usr/share/dict/words", encoding="utf8") as file:
        return [word for word in file.read().split() if re.fullmatch(r"[a-z]{2,12}", word)]


def build(
    count: int,
    seed: int = TEXT_SEED,
    held_out: list[str] | None = None,
    said: Collection[str] = (),
    further: Sequence[str] = (),
) -> list[str]:
    """`count` texts in random order; the first HELD_OUT are whole sentences found nowhere else in the list: those given, or
    the first suitable ones. Sentences that were `said` already are left out, `further` ones drawn from too."""
    rng = random.Random(seed)
    sentences = [*fortune_sentences(), *wordnet_examples(), *further]
    rng.shuffle(sentences)
    templates = TEMPLATES.replace("\n", "|").split("|")
    words = dictionary()
    if held_out is None:
        suitable = (each for each in sentences if 4 <= len(each.split()) <= 20 and len(each) <= 110)
        held_out = list(itertools.islice(suitable, HELD_OUT))
    without = {*held_out, *said}
    kept = [sentence for sentence in sentences if sentence not in without]
    texts: list[str] = []
    turn = 0
    while len(texts) < count - len(held_out):
        kind = rng.random()
        if kind < 0.50:  # a sentence; one in five runs on into the next ones, as a long chunk does
            text = kept[turn % len(kept)]
            turn += 1
            while rng.random() < 0.2 and len(text) + len(kept[turn % len(kept)]) < LONGEST:
                text += " " + kept[turn % len(kept)]
                turn += 1
        elif kind < 0.72:
            text = _agent_phrase(rng, templates)
            if rng.random() < 0.15:
                text += " " + _agent_phrase(rng, templates)
        elif kind < 0.77:
            text = _digit_templates(rng)
        elif kind < 0.89:  # words of the dictionary, so that every spelling is met
            text = " ".join(rng.choice(words) for _ in range(rng.randint(1, 7))).capitalize() + rng.choice("...?!")
        else:  # a piece of a sentence, cut anywhere
            piece = rng.choice(kept).split()
            first = rng.randrange(max(1, len(piece) - 3))
            text = " ".join(piece[first : first + rng.randint(1, 6)]).strip(" ,.;:-'")
            text = text[:1].upper() + text[1:] + rng.choice("....?!,")
        if re.search("[a-z0-9]", text) and len(text) <= LONGEST:
            texts.append(text)
    return held_out + texts


def main() -> None:
    counts = [int(each) for each in sys.argv[1:]] or [40_000]
    WORK.mkdir(parents=True, exist_ok=True)
    texts = build(counts[0])
    held_out = texts[:HELD_OUT]
    for number, count in enumerate(counts[1:], 1):
        said = texts if number > 1 else ()
        further = wordnet_definitions() if number > 2 else ()
        texts += build(count + HELD_OUT, TEXT_SEED + 2 * number, held_out, said, further)[HELD_OUT:]
    (WORK / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0))
    print(f"{len(texts)} texts, {sum(map(len, texts)) / len(texts):.0f} characters each on average")


if __name__ == "__main__":
    main()
