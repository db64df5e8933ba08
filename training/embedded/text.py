"""What the voice learns to say: an endless, seeded stream of English sentences.

Alignment (which letters sound now) is learnt fastest when the text covers the words and nothing
repeats, so most lines are made, not quoted: chains over a bigram table (modern vocabulary, local
word order), bare word lists, templates with numbers, dates, times, prices and names, and a share
of book and chat sentences. Numbers are written in digits here; `recorder.py` writes most of them as the
tokenizer service does before it hands them on, in words. `HELD_OUT` and `ACCEPTANCE` sentences, used for scoring, are never yielded, nor
most of the acceptance's short answers (`held_out_answers`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = json.loads((Path(__file__).parent / "held_out.json").read_text())
_SENTENCES = Path(__file__).parents[2] / "tests/voice/sentences.json"
ACCEPTANCE = [row["text"] for row in json.loads(_SENTENCES.read_text())]  # what `make voice-test` says
PASSAGES = json.loads(_SENTENCES.with_name("passages.json").read_text())
ANSWERS = json.loads(_SENTENCES.with_name("answers.json").read_text())
MAX_CHARACTERS, LONGEST_CHARACTERS = 200, 300  # of one line; of several that are said as one text
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMES = """James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph
Jessica Thomas Sarah Charles Karen Daniel Lisa Matthew Nancy Anthony Betty Mark Sandra Steven Ashley Paul Emily Andrew
Kimberly Joshua Margaret Kenneth Donna Kevin Michelle Brian Carol George Amanda Timothy Melissa Ronald Deborah Jason
Stephanie Edward Rebecca Jeffrey Sharon Ryan Laura Jacob Cynthia Nicholas Dorothy Gary Olivia Eric Emma Jonathan Sophia
Peter Anna Lucas Maria Noah Chloe Ethan Grace Oliver Hannah Leo Alice Sam Nora Max Julia Ben Kate Priya Ahmed Wei Carlos
Elena Fatima Hiro Ivan Lucia Omar Yuki Sofia Ravi Ingrid""".split()
SURNAMES = """Smith Johnson Williams Brown Jones Garcia Miller Davis Martinez Wilson Anderson Taylor Thomas Moore
Jackson Martin Lee Thompson White Harris Clark Lewis Robinson Walker Young Allen King Wright Scott Green Baker Adams
Nelson Hill Campbell Mitchell Carter Roberts Phillips Evans Turner Parker Collins Edwards Stewart Morris Murphy Cook
Rogers Morgan Cooper Peterson Reed Bailey Bell Kelly Howard Ward Cox Patel Khan Nguyen Kim Chen Singh""".split()
PLACES = """London Paris Berlin Madrid Rome Dublin Boston Chicago Denver Seattle Austin Dallas Houston Phoenix Atlanta
Miami Toronto Sydney Melbourne Tokyo Oslo Vienna Prague Lisbon Athens Geneva Munich Zurich Oxford Cambridge Bristol
Manchester Glasgow Edinburgh Brighton Portland Oakland Nashville Orlando Detroit Singapore Mumbai Cairo Nairobi""".split()
THINGS = """order package parcel ticket booking reservation appointment account password invoice payment refund
subscription delivery meeting flight train bus taxi room table hotel phone laptop printer battery charger camera screen
keyboard coffee sandwich salad pizza soup dinner lunch breakfast car bicycle key wallet passport umbrella jacket letter
email message report document contract project schedule garden kitchen window door machine engine doctor dentist
teacher manager driver neighbor customer library museum station airport hospital pharmacy school office bank market
restaurant bakery weather music movie book picture story question answer problem solution update version website
computer network signal""".split()
PLURALS = """items tickets people rooms minutes seats boxes bottles pages points files messages photos orders cups
chairs miles meters pounds students books cars questions steps players cookies apples""".split()
VERBS = """call email book cancel change check confirm collect deliver find fix forget give help keep leave make meet
move open order pay pick print read remember repair replace return save see sell send show sign start stop take tell
try update use visit wait for watch write about look for talk about think about""".split()
ADJECTIVES = """new old good bad great small large quick slow early late easy hard cheap expensive bright dark warm cold
quiet loud clean fresh heavy light soft strong simple special famous beautiful strange friendly busy empty full free
ready broken missing wrong right perfect terrible wonderful interesting important possible different similar""".split()
COLORS = "red blue green yellow orange purple black white brown gray pink silver golden".split()
UNITS = """kilograms grams pounds tons miles kilometers meters feet inches liters percent degrees dollars cents euros
hours minutes seconds days weeks months years people passengers pages copies times points steps bricks votes""".split()
SHORT = """Yes.|No.|Sure.|Okay.|Thanks.|Thank you.|Maybe.|Hello.|Hi there.|Goodbye.|Please.|Sorry.|Of course.|Not yet.|
All right.|Exactly.|Absolutely.|Never.|Always.|Tomorrow.|Today.|Yesterday.|Really?|Why?|When?|Where?|Who?|How?|
What?|Good morning.|Good evening.|Good night.|See you soon.|No problem.|I don't know.|You're welcome.|Excuse me.|
One moment, please.|Just a second.|That's right.|Sounds good.|I agree.|Me too.|Go ahead.|Well done.|Good luck.|
Take care.|Come in.|Hold on.|Never mind.|Not at all.|OK!|OK.|Okay!|OK, thanks.|Yeah.|Yep.|Nope.|Yes!|No!|Yes?|No?|Hey!|
Hi!|Bye.|Bye!|Right.|Great!|Good.|Fine.|Cool.|Nice.|Wow!|Oh.|Oh no!|Ah.|Well.|So?|And?|But why?|Stop!|Wait!|Help!|Go!|Done.|
Ready?|Correct.|Wrong.|True.|False.|Perfect.|Indeed.|Certainly.|Yes, please.|No, thanks.|No, thank you.|Not now.|
I see.|I do.|I am.|Am I?|Is it?|It is.|Got it.|Let's go.|Who knows?|Why not?|How come?|What now?|So what?|Which one?|
One.|Two.|Three.|Ten.|Zero.|First.|Last.|Next.|Left.|Right?|Up.|Down.|On.|Off.|In.|Out.|Here.|There.|Now.|Then.|Soon.|Later.|
Again.|More.|Less.|Both.|Neither.|None.|All of it.|Open it.|Call me.|Follow me.|Thanks a lot.|Many thanks.|Cheers.|Welcome!|
Hello!|Hello?|Good day.|Good job!|Well said.|Very good.|Too late.|Too bad.|As if.|By now.|Of course!|At last!""".replace(
    "\n", ""
).split("|")


# Shares of the kinds of line. The first sittings wrote 34, 16, 24, 12, 5, 6, 3 and no names: numbers and names were
# then what the model said worst; the fifth writes three times as many texts of one or two words and of letters as the fourth.
MIX = {"chain": 18, "word_list": 10, "template": 18, "book": 6, "chat": 3, "numbers": 10, "names": 5}
MIX |= {"short": 4, "brief": 13, "letters": 9, "passage": 4}
ENDS = (".", ".", ".", "!", "?", "", ",", "...")


class Writer:
    """Draws sentences; `seed` fixes the stream. `folder` holds the word tables made by `prepare.py`."""

    def __init__(self, folder: Path, seed: int):
        self.draw = random.Random(seed)
        self.words: list[str] = (folder / "words.txt").read_text().split()  # commonest first
        self.chains: dict[str, list[list]] = json.loads((folder / "chains.json").read_text())
        self.books: list[str] = (folder / "books.txt").read_text().splitlines()
        self.chats: list[str] = (folder / "chats.txt").read_text().splitlines()
        self.starts = [w for w in self.chains if len(self.chains[w][0]) >= 3]
        self.held_out = {key_of(s) for s in [*HELD_OUT, *ACCEPTANCE, *PASSAGES]} | held_out_answers()

    def __iter__(self) -> Iterator[str]:
        kinds, weights = [getattr(self, name) for name in MIX], list(MIX.values())
        while True:
            line = self.draw.choices(kinds, weights)[0]()
            if len(line) <= MAX_CHARACTERS and self.draw.random() < 0.12:
                line = f"{line} {self.draw.choices(kinds, weights)[0]()}"
            if 1 <= len(line) <= LONGEST_CHARACTERS and key_of(line) not in self.held_out:
                yield line

    def chain(self) -> str:
        """A walk over the bigram table, 3 to 16 words."""
        return self.close(self.chain_words(self.draw.randint(3, 16)))

    def chain_words(self, count: int) -> list[str]:
        word, out = self.draw.choice(self.starts), []
        for _ in range(count):
            out.append(word)
            followers = self.chains.get(word)
            word = self.draw.choices(*followers)[0] if followers else self.draw.choice(self.starts)
            if followers is None and self.draw.random() < 0.25:
                out[-1] += ","
        return out

    def word_list(self) -> str:
        common = self.words[:3000]
        pool = self.draw.choice([common, self.words[:20000], self.words])
        count = self.draw.randint(1, 9)
        out = [self.draw.choice(pool if self.draw.random() < 0.6 else common) for _ in range(count)]
        return self.close([w + "," if self.draw.random() < 0.06 else w for w in out])

    def close(self, words: list[str]) -> str:
        words[-1] = words[-1].strip(",") + self.draw.choices([".", "?", "!", ""], [78, 12, 5, 5])[0]
        text = " ".join("I" if w == "i" else w for w in words)
        return text[0].upper() + text[1:]

    def book(self) -> str:
        return self.draw.choice(self.books)

    def chat(self) -> str:
        return self.draw.choice(self.chats)

    def short(self) -> str:
        return self.draw.choice(SHORT)

    def brief(self) -> str:
        """One or two words, as an answer has them."""
        if self.draw.random() < 0.3:
            text = self.draw.choice([self.pair, self.number, self.measure, self.money])() + self.draw.choice(ENDS)
            return text[0].upper() + text[1:]
        words = [self.draw.choice(self.words[:3000] if self.draw.random() < 0.7 else self.words[:20000])]
        if self.draw.random() < 0.5:
            words.append(self.draw.choice(self.words[:3000]))
        if self.draw.random() < 0.15:
            words = [self.draw.choice([self.draw.choice(NAMES), self.draw.choice(PLACES), self.draw.choice(DAYS)])]
        text = " ".join(words) + self.draw.choice(ENDS)
        return text[0].upper() + text[1:] if self.draw.random() < 0.8 else text

    def pair(self) -> str:
        """Two words that go together."""
        thing = self.draw.choice(THINGS)
        return self.draw.choice(
            [
                f"{self.draw.choice(ADJECTIVES)} {thing}",
                f"{self.draw.choice(COLORS)} {thing}",
                f"{self.draw.choice(VERBS)} {self.draw.choice([thing, self.draw.choice(NAMES), 'it'])}",
                f"{self.draw.choice(['Mr.', 'Mrs.', 'Ms.', 'Dr.'])} {self.draw.choice(SURNAMES)}",
                f"{self.draw.choice(DAYS)} {self.draw.choice(['morning', 'evening', 'night'])}",
                f"{self.draw.choice(NAMES)} {self.draw.choice(SURNAMES)}",
            ]
        )

    def letters(self) -> str:
        """Letters that are said by their names: alone, in a row, after a word, in the midst of a sentence."""
        one = self.draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        row = " ".join(
            self.draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(self.draw.choice([2, 2, 3, 3, 3, 4, 5]))
        )
        kind = self.draw.random()
        if kind < 0.25:
            return one + self.draw.choice([".", ".", "!", "?"])
        if kind < 0.5:
            return row + self.draw.choice(ENDS)
        if kind < 0.65:
            noun = self.draw.choice(
                "option plan section vitamin gate grade team type row letter platform block".split()
            )
            return f"{noun[0].upper()}{noun[1:]} {one}."
        before, after = (" ".join(self.chain_words(self.draw.randint(1, 5))) for _ in range(2))
        return self.close(f"{before} {row} {after if self.draw.random() < 0.7 else ''}".split())

    def passage(self) -> str:
        """Sentences said as one text, 160 characters and more."""
        pick, text = [self.book, self.template, self.chain, self.names, self.chat], ""
        wanted = self.draw.randint(160, LONGEST_CHARACTERS - 40)
        while len(text) < wanted:
            line = self.draw.choice(pick)()
            if len(text) + len(line) < LONGEST_CHARACTERS:
                text += f" {line}" if line[-1] in ".?!" else f" {line}."
        return text.strip()

    def number(self) -> str:
        """A number the way people write it, small ones more often."""
        top = self.draw.choice([10, 20, 100, 100, 1000, 10000, 1000000])
        value = self.draw.randrange(top)
        return f"{value:,}" if self.draw.random() < 0.7 else str(value)

    def clock(self) -> str:
        minute = self.draw.choice([0, 15, 30, 45, self.draw.randrange(60)])
        time = (
            f"{self.draw.randint(1, 12)}:{minute:02d}"
            if minute or self.draw.random() < 0.3
            else str(self.draw.randint(1, 12))
        )
        return time + self.draw.choice([" am", " pm", " a.m.", " p.m.", "", ""])

    def date(self) -> str:
        month, day = self.draw.choice(MONTHS), self.draw.randint(1, 28)
        year = f", {self.draw.randint(1900, 2035)}" if self.draw.random() < 0.4 else ""
        ending = "th" if 4 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        return self.draw.choice(
            [f"{month} {day}{year}", f"the {day}{ending} of {month}", f"{month} {day}{ending}{year}"]
        )

    def money(self) -> str:
        whole, cents = self.draw.randrange(self.draw.choice([10, 100, 1000])), self.draw.randrange(100)
        return f"${whole}.{cents:02d}" if self.draw.random() < 0.5 else f"${whole}"

    def person(self) -> str:
        name = self.draw.choice(NAMES)
        return self.draw.choice(
            [
                name,
                name,
                f"{name} {self.draw.choice(SURNAMES)}",
                f"{self.draw.choice(['Mr.', 'Mrs.', 'Ms.', 'Dr.'])} {self.draw.choice(SURNAMES)}",
            ]
        )

    def year(self) -> str:
        return str(self.draw.randint(1850, 2040))

    def digits(self) -> str:
        return " ".join(str(self.draw.randrange(10)) for _ in range(self.draw.randint(2, 8)))

    def measure(self) -> str:
        """A quantity with its unit: "12 kilograms", "18 percent", "2.5 hours"."""
        value = self.draw.choice(
            [str(self.draw.randint(2, 99)), self.number(), f"{self.draw.randint(1, 20)}.{self.draw.randint(1, 9)}"]
        )
        return f"{value} {self.draw.choice(UNITS)}"

    def numbers(self) -> str:
        """Half of them bare, half between words: a number is learnt where it is heard."""
        pick = self.draw.choice([self.number, self.clock, self.date, self.money, self.digits, self.year, self.measure])
        if self.draw.random() < 0.5:
            return pick().rstrip(".") + "."
        before, after = (" ".join(self.chain_words(self.draw.randint(1, 5))) for _ in range(2))
        return self.close(f"{before} {pick().rstrip('.')} {after if self.draw.random() < 0.6 else ''}".split())

    def names(self) -> str:
        """One to three people or places among words of a chain."""
        words = self.chain_words(self.draw.randint(2, 9))
        for _ in range(self.draw.randint(1, 3)):
            words.insert(self.draw.randint(0, len(words)), self.draw.choice([self.person(), self.draw.choice(PLACES)]))
        return self.close(words)

    def template(self) -> str:
        """One of the patterns below with every {slot} drawn anew."""
        pattern = self.draw.choice(TEMPLATES)
        slots = {
            "n": self.number,
            "t": self.clock,
            "d": self.date,
            "m": self.money,
            "p": self.person,
            "day": lambda: self.draw.choice(DAYS),
            "place": lambda: self.draw.choice(PLACES),
            "thing": lambda: self.draw.choice(THINGS),
            "things": lambda: self.draw.choice(PLURALS),
            "adj": lambda: self.draw.choice(ADJECTIVES),
            "verb": lambda: self.draw.choice(VERBS),
            "color": lambda: self.draw.choice(COLORS),
            "word": lambda: self.draw.choice(self.words[:8000]),
            "k": lambda: str(self.draw.randint(2, 30)),
        }
        text = re.sub(r"\{(\w+)\}", lambda slot: slots[slot.group(1)](), pattern).replace("..", ".")
        return text[0].upper() + text[1:]


def key_of(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def held_out_answers() -> set[str]:
    """Keys of the acceptance's short answers, but for the commonest (SHORT) and for lone letters, of which there are few."""
    return {key for key in map(key_of, ANSWERS) if len(key) > 1} - {key_of(line) for line in SHORT}


TEMPLATES = (
    """
your {thing} will arrive on {day} at {t}.|your {thing} is ready, {p}.|can you {verb} the {thing} before {t}?
the {thing} costs {m}.|that will be {m}, please.|I need {k} {things} and a {adj} {thing}.|where is the {adj} {thing}?
would you like to {verb} your {thing} today?|I'm sorry, the {thing} is not {adj}.|please {verb} the {thing} again.
my name is {p}, and I live in {place}.|{p} will {verb} you on {d}.|what time does the {thing} open on {day}?
the flight to {place} leaves at {t} from gate {k}.|the train to {place} was {k} minutes late.|it is {t} in {place}.
we have {n} {things} left.|there are {n} {things} in the {thing}.|I was born on {d}.|how far is it from {place} to {place}?
the {thing} is {k} {things} away.|is the {thing} {adj} or {adj}?|it's a {adj} day in {place}.|the temperature is {k} degrees.
I think {p} wants a {color} {thing}.|did {p} {verb} the {thing} yet?|she bought a {adj} {color} {thing} for {m}.
let me {verb} that for you.|thank you for calling, how can I help you?|please hold while I {verb} your {thing}.
your confirmation number is {n}.|press {k} to {verb} your {thing}.|you have {k} new messages.|the meeting is on {day}, {d}, at {t}.
don't forget to {verb} the {thing}.|why is the {thing} so {adj}?|who wrote the {thing} about the {word}?
we can't {verb} the {thing} until {day}.|he said the {thing} was {adj}, but it wasn't.|they've already left for {place}.
I would rather {verb} a {thing} than a {thing}.|could you tell me where the {thing} is?|turn left at the {thing}, then right.
the {adj} {thing} and the {adj} {thing} are both {adj}.|my favorite word is {word}.|what does {word} mean?
the answer is {n}.|{n} plus {n} is {n}.|about {k} percent of the {things} were {adj}.|chapter {k}, page {n}.
hello {p}, this is {p} from {place}.|good morning, {p}, did you sleep well?|I haven't seen {p} since {d}.
if the {thing} is {adj}, please {verb} it and try again.|there's no {thing} in the {thing}.|we'll be there in {k} minutes.
your balance is {m}, due on {d}.|a table for {k} at {t}, please.|the {thing} should be {adj} by {day}.
how many {things} do you have?|I'd like a {adj} {thing}, please.|what a {adj} {thing}!|that's a really {adj} idea.
once the {thing} is {adj}, {p} can {verb} it.|in {place}, the {thing} is always {adj}.|the {color} one costs {m} and the {color} one costs {m}.
do you know what the {word} of the {thing} is?|she told me about the {word} and the {word}.|it takes about {k} hours to {verb} the {thing}.
can I {verb} a {thing} for {day} evening?|sorry, I didn't catch that, could you repeat the {thing}?|we're open from {t} to {t}.
the doctor can see you on {day} at {t}.|please enter your {k} digit code.|version {k}.{k} is now available.
yes, the {thing} is {adj}.|no, I don't want to {verb} it.|okay, I will {verb} the {thing}.|well, that was {adj}.
""".strip()
    .replace("\n", "|")
    .split("|")
)
