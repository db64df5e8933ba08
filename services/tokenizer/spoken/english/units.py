"""Quantities with a unit: percent, temperature, length, weight, volume, data, speed."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.fractions import FRACTION, fraction_words
from services.tokenizer.spoken.english.numbers import MAGNITUDE_WORDS, NUMBER, is_one, number

# (one, several); read after a number alone.
_UNITS: dict[str, tuple[str, str]] = {
    unit: (one, several)
    for units, one, several in (
        ("%", "percent", "percent"), ("‰", "per mille", "per mille"), ("pp", "percentage point", "percentage points"),
        ("bps|bp", "basis point", "basis points"), ("ppm", "part per million", "parts per million"),
        ("ppb", "part per billion", "parts per billion"),
        ("°C|° C|ºC|degC", "degree Celsius", "degrees Celsius"), ("°F|° F|ºF|degF", "degree Fahrenheit", "degrees Fahrenheit"),
        ("°K", "kelvin", "kelvin"), ("°", "degree", "degrees"), ("K", "kelvin", "kelvin"),
        ("nm", "nanometer", "nanometers"), ("μm|um", "micrometer", "micrometers"), ("mm", "millimeter", "millimeters"),
        ("cm", "centimeter", "centimeters"), ("dm", "decimeter", "decimeters"), ("m", "meter", "meters"),
        ("km|kms", "kilometer", "kilometers"), ("in|in.", "inch", "inches"), ("ft|ft.", "foot", "feet"),
        ("yd|yds", "yard", "yards"), ("mi", "mile", "miles"), ("nmi", "nautical mile", "nautical miles"),
        ("ly", "light year", "light years"), ("au", "astronomical unit", "astronomical units"),
        ("mm^2", "square millimeter", "square millimeters"), ("cm^2|sq cm", "square centimeter", "square centimeters"),
        ("m^2|sqm|sq m|sq. m", "square meter", "square meters"), ("km^2|sq km|sq. km", "square kilometer", "square kilometers"),
        ("ft^2|sqft|sq ft|sq. ft.|sq. ft|sq.ft.", "square foot", "square feet"), ("in^2|sq in|sq. in", "square inch", "square inches"),
        ("mi^2|sq mi|sq. mi", "square mile", "square miles"), ("ha", "hectare", "hectares"), ("ac", "acre", "acres"),
        ("mm^3", "cubic millimeter", "cubic millimeters"), ("cm^3|cc", "cubic centimeter", "cubic centimeters"),
        ("m^3", "cubic meter", "cubic meters"), ("km^3", "cubic kilometer", "cubic kilometers"), ("ft^3|cu ft", "cubic foot", "cubic feet"),
        ("μg|ug|mcg", "microgram", "micrograms"), ("mg", "milligram", "milligrams"), ("g|gr", "gram", "grams"),
        ("kg|kgs|kilo", "kilogram", "kilograms"), ("lb|lbs|lb.|lbs.", "pound", "pounds"), ("oz|oz.", "ounce", "ounces"),
        ("st", "stone", "stone"), ("t", "ton", "tons"), ("Mt", "megaton", "megatons"),
        ("μl|ul|μL", "microliter", "microliters"), ("ml|mL", "milliliter", "milliliters"), ("cl|cL", "centiliter", "centiliters"),
        ("dl|dL", "deciliter", "deciliters"), ("l|L", "liter", "liters"), ("gal|gal.", "gallon", "gallons"), ("qt", "quart", "quarts"),
        ("pt", "pint", "pints"), ("fl oz|fl. oz.|fl. oz", "fluid ounce", "fluid ounces"), ("tsp|tsp.", "teaspoon", "teaspoons"),
        ("tbsp|tbsp.|Tbsp|Tbsp.", "tablespoon", "tablespoons"), ("bbl", "barrel", "barrels"), ("c.", "cup", "cups"),
        ("ns", "nanosecond", "nanoseconds"), ("μs|us", "microsecond", "microseconds"), ("ms", "millisecond", "milliseconds"),
        ("s|sec|secs|sec.", "second", "seconds"), ("min|mins|min.", "minute", "minutes"), ("h|hr|hrs|hr.|hrs.", "hour", "hours"),
        ("d", "day", "days"), ("wk|wks", "week", "weeks"), ("mo|mos", "month", "months"), ("yr|yrs|yr.|yrs.", "year", "years"),
        ("yo|y/o|y.o.", "year old", "years old"),
        ("mph|mi/h", "mile per hour", "miles per hour"), ("km/h|kmh|kph|kmph", "kilometer per hour", "kilometers per hour"),
        ("m/s|m·s^-1|m s^-1", "meter per second", "meters per second"), ("m/s^2|m·s^-2|m s^-2", "meter per second squared", "meters per second squared"),
        ("km/s", "kilometer per second", "kilometers per second"), ("ft/s|fps ", "foot per second", "feet per second"),
        ("km/l|km/L", "kilometer per liter", "kilometers per liter"),
        ("mpg", "mile per gallon", "miles per gallon"), ("kn|kt|kts", "knot", "knots"), ("rpm|RPM", "R P M", "R P M"),
        ("fps|FPS", "frame per second", "frames per second"), ("bpm|BPM", "beat per minute", "beats per minute"),
        ("wpm", "word per minute", "words per minute"), ("mg/dL|mg/dl", "milligram per deciliter", "milligrams per deciliter"),
        ("mg/L|mg/l", "milligram per liter", "milligrams per liter"), ("g/L|g/l", "gram per liter", "grams per liter"),
        ("mg/kg", "milligram per kilogram", "milligrams per kilogram"), ("g/cm^3", "gram per cubic centimeter", "grams per cubic centimeter"),
        ("kg/m^3|kg·m^-3", "kilogram per cubic meter", "kilograms per cubic meter"),
        ("mol", "mole", "moles"), ("mmol/L|mmol/l", "millimole per liter", "millimoles per liter"),
        ("Hz", "hertz", "hertz"), ("kHz|KHz", "kilohertz", "kilohertz"), ("MHz", "megahertz", "megahertz"), ("GHz", "gigahertz", "gigahertz"),
        ("THz", "terahertz", "terahertz"), ("dB|db", "decibel", "decibels"), ("dBm", "D B M", "D B M"),
        ("V", "volt", "volts"), ("mV", "millivolt", "millivolts"), ("kV", "kilovolt", "kilovolts"), ("A", "amp", "amps"),
        ("mA", "milliamp", "milliamps"), ("Ah", "amp hour", "amp hours"), ("mAh", "milliamp hour", "milliamp hours"),
        ("W", "watt", "watts"), ("mW", "milliwatt", "milliwatts"), ("kW", "kilowatt", "kilowatts"), ("MW", "megawatt", "megawatts"),
        ("GW", "gigawatt", "gigawatts"), ("TW", "terawatt", "terawatts"), ("Wh", "watt hour", "watt hours"),
        ("kWh|kwh", "kilowatt hour", "kilowatt hours"), ("MWh", "megawatt hour", "megawatt hours"), ("GWh", "gigawatt hour", "gigawatt hours"),
        ("TWh", "terawatt hour", "terawatt hours"), ("hp|HP", "horsepower", "horsepower"), ("Ω|ohm", "ohm", "ohms"), ("kΩ", "kilohm", "kilohms"),
        ("F ", "farad", "farads"), ("J", "joule", "joules"), ("kJ", "kilojoule", "kilojoules"), ("MJ", "megajoule", "megajoules"),
        ("cal", "calorie", "calories"), ("kcal", "kilocalorie", "kilocalories"), ("BTU", "B T U", "B T Us"), ("N", "newton", "newtons"),
        ("Nm|N·m", "newton meter", "newton meters"), ("Pa", "pascal", "pascals"), ("hPa", "hectopascal", "hectopascals"),
        ("kPa", "kilopascal", "kilopascals"), ("MPa", "megapascal", "megapascals"), ("psi|PSI", "P S I", "P S I"), ("bar", "bar", "bars"),
        ("mmHg", "millimeter of mercury", "millimeters of mercury"), ("lm", "lumen", "lumens"), ("lx", "lux", "lux"),
        ("B ", "byte", "bytes"), ("KB|kB", "kilobyte", "kilobytes"), ("MB", "megabyte", "megabytes"), ("GB", "gigabyte", "gigabytes"),
        ("TB", "terabyte", "terabytes"), ("PB", "petabyte", "petabytes"), ("KiB", "kibibyte", "kibibytes"), ("MiB", "mebibyte", "mebibytes"),
        ("GiB", "gibibyte", "gibibytes"), ("TiB", "tebibyte", "tebibytes"),
        ("kbps|Kbps|kb/s|kbit/s", "kilobit per second", "kilobits per second"), ("Mbps|mbps|Mb/s|Mbit/s", "megabit per second", "megabits per second"),
        ("Gbps|gbps|Gb/s|Gbit/s", "gigabit per second", "gigabits per second"), ("Tbps", "terabit per second", "terabits per second"),
        ("KB/s|kB/s", "kilobyte per second", "kilobytes per second"),
        ("MB/s", "megabyte per second", "megabytes per second"), ("GB/s", "gigabyte per second", "gigabytes per second"),
        ("TB/s", "terabyte per second", "terabytes per second"),
        ("px", "pixel", "pixels"), ("MP", "megapixel", "megapixels"), ("dpi|DPI", "D P I", "D P I"),
        ("TFLOPS|TFLOPs|TFLOP/s", "teraflops", "teraflops"), ("kbit", "kilobit", "kilobits"), ("Mbit", "megabit", "megabits"), ("Gbit", "gigabit", "gigabits"),
    )
    for unit in units.split("|")
}  # fmt: skip
_UNITS = {unit: words for unit, words in _UNITS.items() if not unit.endswith(" ")}
_ALTERNATIVES = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_QUANTITY = re.compile(
    rf"(?<![\w.,])(?:([-−+~≈±<>≤≥])\s?)?({FRACTION}|{NUMBER})(?:(\s|-)({MAGNITUDE_WORDS})\b)?([\s-]?)({_ALTERNATIVES})(?:\s?/\s?(day|week|month|year|yr|hour|hr|person|night|serving|dose))?(?![\w^]|/[A-Za-z])"
)
_FEET_INCHES = re.compile(r"(?<![\w.])(\d{1,2})['’′]\s?(\d{1,2}(?:\.\d)?)(?:[\"”″]|''|(?=[\s.,!?;)]|$))")
_FEET = re.compile(r"(?<![\w.])(\d{1,3})['′](?=\s?(?:tall|long|wide|high|deep|x|by)\b)")
_FEET_BY = re.compile(r"(?<![\w.])(\d{1,3})['′]\s?[x×]\s?(\d{1,3})['′](?!\s?\d)")
_INCHES = re.compile(r"(?<![\w.'])(\d{1,3}(?:\.\d{1,2})?)[\"″](?!\w)")
_PERCENT_FIRST = re.compile(r"(?<![\w%])%\s?(\d+(?:\.\d+)?)(?![\w%]|\.\d)")
_FRACTION_INCHES = re.compile(r"(?<![\w.,/])(\d{1,2}/(?:2|4|8|16|32|64))\"")
_COMPOUND = re.compile(rf"(?<![\w.,/])({NUMBER})\s?([A-Za-zμΩ]{{1,3}})/([A-Za-zμΩ]{{1,4}}(?:\^[23])?)(?![\w/^])")
_DURATION = re.compile(r"(?<![\w.,:/])(?:\d{1,3}\s?[dhm]\s?)(?:\d{1,2}\s?[hms]\b\s?)*\d{1,2}\s?[hms]\b")
_BY = re.compile(r"(?<=meters|inches|pixels|.yards|..feet) [x×] (?=\w)")
_DEGREES = re.compile(r"\bdegrees ([CF])\b(?!\w)")
_PRIMES = re.compile(r"(\d)(?:′′|″)")
_COORDINATE = re.compile(
    r"(\d(?:[\d.]*\d)?)°\s?(?:(\d{1,2}(?:\.\d+)?)['′]\s?)?(?:(\d{1,2}(?:\.\d+)?)[\"″]\s?)?([NSEW])\b"
)
_DIRECTIONS = {"N": "north", "S": "south", "E": "east", "W": "west"}
_SIGN_WORDS = {"-": "minus", "−": "minus", "+": "plus", "~": "about", "≈": "about", "±": "plus or minus", "<": "less than",
               ">": "more than", "≤": "at most", "≥": "at least"}  # fmt: skip
_PROPER = re.compile(r"\d+/(?:[2-9]|1\d|32|64|100)")
_MEASURED = re.compile(
    r"\s(?:ceilings?|screens?|displays?|monitors?|cables?|drives?|bulbs?|pipes?|bags?|bottles?|cans?|lens|lenses|pools?|steaks?|engines?|"
    r"motors?|batter(?:y|ies)|chargers?|adapters?|sprints?|dash|commute|drive|walk|hike|radius|limit|"
    r"nails?|drills?|bolts?|screws?|wheels?|hoses?|pizzas?|boards?|planks?)\b"
)  # nouns that a measure says the size of: two point six meter ceilings
_RATE = {"yr": "year", "hr": "hour"}
_BARE_DEGREE = re.compile(r"°\s?([CF])\b")
_NAMED_UNIT = re.compile(
    r"(?<![\w/])(km/h|mi/h|m/s|MB/s|GB/s|mg/dL|kWh)(?![\w/^])|(?<=\bper )(m\^2|m\^3|km\^2|cm\^2|ft\^2|km/h|kWh|kg|km|mL|ml|GB|MB|sq ft)(?!\w)|(?<=\bin )(km/h|m/s|kWh|GHz|MHz|mph|°C|°F)(?!\w)"
)
_DETERMINER = re.compile(r"(?:\b(?:an?|the|this|that|each|every|another|one)\s+)$", re.I)
_SEVERAL = re.compile(
    r"(?:\b(?:two|three|four|five|six|seven|eight|nine|ten|numbers?|the|these|those|all|my|your|and|or|of|with)\s+)$",
    re.I,
)
_NOUN_FOLLOWS = re.compile(
    r"\s+(?!(?:of|in|and|or|per|from|to|at|for|on|is|was|are|were|with|by|away|apart|ago|long|wide|tall|high|deep|more|less|than|each|off|"
    r"after|before|later|as|that|which|it|he|she|they|we|you|when|if|but|so|the|a|an|has|had|have|will|can|above|below|left|right)\b)[a-z]"
)


def read_units(text: str) -> str:
    """`60 km/h` → sixty kilometers per hour; `-5°C` → minus five degrees Celsius."""
    text = _PRIMES.sub(r'\1"', text)
    if "%" in text:
        text = _PERCENT_FIRST.sub(r"\1%", text)
    if "°" in text:
        text = _COORDINATE.sub(_coordinate, text)
    if "'" in text or "′" in text:
        text = _FEET_BY.sub(lambda m: f"{number(m[1])} feet by {number(m[2])} feet", text)
        text = _FEET_INCHES.sub(_feet_inches, text)
        text = _FEET.sub(lambda m: f"{number(m[1])} feet", text)
    if '"' in text:
        text = _FRACTION_INCHES.sub(
            lambda m: fraction_words(m[1]) + (" inch" if _is_adjective(m) else " of an inch"), text
        )
        text = _INCHES.sub(_inches, text)
    text = _DURATION.sub(_duration, text)
    if "/" in text:
        text = _COMPOUND.sub(_compound, text)
    text = _QUANTITY.sub(_quantity, text)
    text = _BY.sub(" by ", text)
    text = _DEGREES.sub(lambda m: f"degrees {'Celsius' if m[1] == 'C' else 'Fahrenheit'}", text)
    return read_named_units(text)


def _duration(match: re.Match[str]) -> str:
    parts = re.findall(r"(\d+)\s?([dhms])", match[0])
    if [unit for _, unit in parts] != sorted((unit for _, unit in parts), key="dhms".index):
        return match[0]
    names = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
    return " ".join(f"{number(str(int(amount)))} {names[unit]}{'' if amount == '1' else 's'}" for amount, unit in parts)


def read_named_units(text: str) -> str:
    """Units without a number: speed in km/h, °C."""
    text = _NAMED_UNIT.sub(lambda m: _UNITS[m[1] or m[3]][1] if not m[2] else _UNITS[m[2]][0], text)
    return (
        _BARE_DEGREE.sub(lambda m: "degrees Celsius" if m[1] == "C" else "degrees Fahrenheit", text)
        if "°" in text
        else text
    )


def _compound(match: re.Match[str]) -> str:
    """100 W/m^2 → one hundred watts per square meter; what has a name of its own is left."""
    amount, over, under = match.groups()
    if f"{over}/{under}" in _UNITS or over not in _UNITS or under not in _UNITS:
        return match[0]
    return f"{number(amount)} {_UNITS[over][0 if is_one(amount) else 1]} per {_UNITS[under][0]}"


def _quantity(match: re.Match[str]) -> str:
    sign, amount, _blank, scale, gap, unit, per = match.groups()
    after = match.string[match.end() :]
    if gap != "" and _is_no_unit(unit, gap, after):
        return match[0]
    if gap == "" and not _fits_joined(unit, amount, match.string[: match.start()], after):
        return match[0]
    one, several = _UNITS[unit]
    words = fraction_words(amount) if "/" in amount else number(amount)
    lead = f"{_SIGN_WORDS[sign]} " if sign else ""
    is_adjective = gap == "-" or re.match(r"-[a-z]", after) or _is_adjective(match)
    singular = not scale and (is_one(amount) or is_adjective)
    name = one if singular and unit not in ("%",) else several
    if _PROPER.fullmatch(amount) and int(amount.split("/")[0]) < int(amount.split("/")[1]) and unit != "%":
        name = f"of {_article(one)} {one}"
        if amount in ("1/2",):
            words, name = "half", f"{_article(one)} {one}"
    words = (
        f"{lead}{words}" + (f" {scale}" if scale else "") + f" {name}" + (f" per {_RATE.get(per, per)}" if per else "")
    )
    stop = "." if unit.endswith(".") and (not after.strip() or re.match(r"\s+[A-Z]", after)) else ""
    return words + stop


def _is_adjective(match: re.Match[str]) -> bool:
    """a 60W bulb: sixty watt."""
    if _MEASURED.match(match.string, match.end()):
        return True
    return bool(_DETERMINER.search(match.string[: match.start()]) and _NOUN_FOLLOWS.match(match.string, match.end()))


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" or word.startswith("hour") else "a"


def _fits_joined(unit: str, amount: str, before: str, after: str) -> bool:
    """5m is meters, 90s a decade (read before), 4K a resolution, 747s several planes."""
    if unit in ("K", "st", "pt", "d", "A", "au", "us"):
        return False
    return unit not in ("ac", "s") or (
        unit == "s"
        and len(amount.partition(".")[0]) <= 3
        and not after.startswith(" of")
        and not _SEVERAL.search(before)
    )


def _is_no_unit(unit: str, gap: str, after: str) -> bool:
    """After a blank some units are more often words or letters: 5 in the morning, 3 A, 2 d."""
    if unit in ("in", "in."):
        return bool(
            re.match(
                r"\s+(?:the|a|an|my|our|your|his|her|their|its|this|that|these|those|all|every|each|[A-Z\d]|any|one|two|some|total|order|fact)",
                after,
            )
        ) or not re.match(
            r"\s*(?:[.,;:!?)]|$|(?:long|wide|tall|high|deep|thick|x|by|of|and|or|diameter|across|screen|display|pipe)\b|=)",
            after,
        )
    if unit in (
        "st",
        "pt",
        "mi",
        "ha",
        "bar",
        "cal",
        "au",
        "us",
        "d",
        "t",
        "A",
        "K",
        "J",
        "N",
        "as",
        "mo",
        "W",
        "gr",
        "ac",
        "kt",
        "pp",
        "h",
    ):
        return (
            gap == " "
            and unit in ("st", "au", "us", "d", "A", "K", "J", "N", "as", "W", "mo", "gr", "ac", "bar")
            and not (unit in ("K", "W", "A", "bar") and re.match(r"\s*(?:[.,;:!?)]|$)", after))
        )
    return gap == "-" and len(unit) == 1 and unit not in "%°"


def _feet_inches(match: re.Match[str]) -> str:
    feet, inches = match[1], match[2]
    if float(inches) >= 12:
        return f"{number(feet)} minutes {number(inches)} seconds" if float(inches) < 60 else match[0]
    if _DETERMINER.search(match.string[: match.start()]) and re.match(r",|\s[a-z]", match.string[match.end() :]):
        return f"{number(feet)} foot" + (f" {number(inches)}" if float(inches) else "")  # a six foot one man
    words = f"{number(feet)} {'foot' if feet == '1' else 'feet'}"
    return words + (f" {number(inches)} {'inch' if inches == '1' else 'inches'}" if float(inches) else "")


def _inches(match: re.Match[str]) -> str:
    """A quotation mark after a number is inches unless it closes a quotation."""
    if match.string[: match.start()].count('"') % 2:
        return match[0]
    return f"{number(match[1])} {'inch' if is_one(match[1]) or _is_adjective(match) else 'inches'}"


def _coordinate(match: re.Match[str]) -> str:
    words = f"{number(match[1])} {'degree' if is_one(match[1]) else 'degrees'}"
    words += f" {number(match[2].lstrip('0') or '0')} minutes" if match[2] else ""
    words += f" {number(match[3].lstrip('0') or '0')} seconds" if match[3] else ""
    return f"{words} {_DIRECTIONS[match[4]]}"
