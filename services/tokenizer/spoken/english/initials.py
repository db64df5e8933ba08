"""Capitals that stand together: initials are spelt (F B I), acronyms and shouted words are said (NASA, STOP)."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.sentences import begins_sentence
from services.tokenizer.spoken.english.shorthand import SPELT

# Said as words although they do not look it, or said as words where the rule below would spell them.
_WORDS = frozenset(
    """NASA NATO UNESCO UNICEF OPEC FIFA UEFA AIDS SARS MERS COVID LASER RADAR SONAR SCUBA SWAT NAFTA ASEAN FEMA IKEA LEGO
    NASDAQ RAM ROM SIM GIF LAN BIOS POSIX UNIX LINUX ASCII JAVA BASIC COBOL FORTRAN SOAP REST CRUD SAAS PAAS IAAS POTUS SCOTUS
    FLOTUS YOLO AWOL DEFCON CAPTCHA ZIP OK YES NO NOT AND OR BUT THE FOR ALL ANY NOW NEW OLD BIG TOP RED HOT SALE FREE STOP
    WOW HEY HI OH AH UH UM HMM SHH PSST GRR BRR MR MRS MS DR ST JR SR VS HELP ONLY VERY MUST WILL YOUR YOU ME MY WE HE SHE HIS HER
    IS AM ARE WAS BE BEEN DO DOES DID GO GET GOT HAS HAD HAVE CAN AT BY IF IN OF ON SO TO UP AS AN A I WITH FROM THIS THAT THEN
    THESE THOSE WHEN WHERE WHAT WHY HOW OUT OFF OVER UNDER MORE MOST LESS NONE ONE TWO TEN SIX STEP NOTE TIP TIPS WARNING ERROR
    KEY TRY LOL SPQR DAY BAD GOOD CALL EAT END RUN SIT SUN SAY SEE SEEN SET PUT READ OPEN SHUT HATE LOVE LOST JUST
    NEVER EVER EVEN EVERY FIRST LAST NEXT BEST BOSS CAT DOG CAR CUP ART AIR AGE AID AIM ASK BAG BAN BAR BAT BED BET BID BIT BOX
    BOY BUS BUY CUT DAD MOM MUM DRY DUE EAR EGG EYE FAN FAR FAT FEE FEW FIT FIX FLY FUN GAP GAS GUN GUY HAT HIT ICE ILL INK JAM JOB JOY
    KID LAW LAY LEG LET LIE LIP LOT LOW MAD MAN MAP MAY MEN MIX MUD NET NUT ODD OIL OUR OWN PAN PAY PEN PET PIE PIG PIN POT
    RAN RAT RAW ROW RUB SAD SEA SKY SON TAX TEA TIE TIN TOE TON TOY USE VAN WAR WAY WEB WET WIN WON YET ZOO
    PIZZA CHILD DOCTOR DANGER PUSH PULL EXIT ENTER SUPER ULTRA MEGA HUGE LIVE DEAD LIFE DEATH KING QUEEN WORK HOME HERE THERE
    MEME GULAG INTERPOL HAZMAT QUANGO OXFAM MENSA BAFTA MOMA TASER CERN EBITDA FOMO JSON YAML JPEG SIDS
    ALSO BOTH EACH ELSE ONTO INTO ITS THEY THEM THAN LIKE MANY MUCH SUCH SAME SOME SOON SURE TAKE TELL THINK TIME TODAY
    TOO WANT WELL WENT WERE YEAH NOPE OKAY PLEASE THANKS THANK SORRY HELLO BYE MAJOR MINOR RULE RULES FACT FACTS FALSE TRUE""".split()
)
# Spelt although they could be said.
_SPELT = frozenset(
    """FBI CIA USA UK EU UN UAE IRA IRS IMF IPO API APIS AI AR VR IT ID IQ EQ UI UX TV PC OS IP IPA IOU ISO ISP ITV IVF LED LCD
    CEO CFO CTO COO CIO CMO CPA CPI CPU GPU TPU NPU CV DIY DNA RNA DJ EPA ETA ETF EV FAQ FAA FDA FIA GDP GI GMO GOP GPA GPS HIV HQ HR
    ICU IDE IED IUD LA LLC LLM LLMS MA MBA MIA MIT MLA MOT MP MPH MVP NBA NFL NHL MLB NYC NYU OTC PE PIO POW PR PS
    PSA PTA PTO QA RIP ROI RPM RSVP SEC SEO SLA SLO SOS SUV TBA TBD UFO UPS URI URL USB USDA USSR UTI VIP VPN WC WHO WHO'S
    AC DC AD BC AM PM BA BBC CBS NBC ABC CNN ESPN HBO EMT ER ESL FYI ASAP AKA ATM DOB EOD IMO IMHO BRB OMG LMAO TLDR NSFW
    DOI DOJ DOD DOE EDM EKG ECG ENT ERP CRM CMS CSS CSV CIS ALS AA AAA EEG ADHD AFK AMA AWS GCP ASL ASMR AUD EUR USD
    GBP JPY CNY INR CHF GNU GUI IDF IM IOS IRL IE KIA MRI NPR NRA OCD OPM PDF PDA PGA POS POV PVC RAF RCA RV
    SAS SOC SDK SQL SMS SUV TNT TSA UAV UPC URN USB UV VAT VA VIN VOA YMCA YWCA AED AGI ALU ANC AOL APR AUX CAA DEA DHL EOF
    EA ED EP EPS EST PST CST MST EDT PDT GMT UTC CET BST IST JST HDMI HTML HTTP HTTPS IEEE IETF IO IR IV LAPD NYPD
    OECD OEM OP OT PA PI PO POC PHD QR QE RGB RTX GTX SOB SSD HDD TA TGIF TOS UAT US USAF USMC USPS VC VOIP WNBA WTO WWE
    WWI WWII XML XL XXL ICBM NGO NGOS NICU PTSD ROTC AMD IBM HP LG BMW KFC MTV NPC EOS GPT UCLA IMEI USPS AGM ALA AMC AOC EPL MAU DAU WAU ARR CAC AES SAT XYZ""".split()
) | {word.upper() for word in SPELT}
_SAID_AS = {"JSON": "jason", "YAML": "yammel", "JPEG": "J peg", "NOAA": "noah", "NAACP": "N double A C P", "AAA": "triple A",
            "IEEE": "I triple E", "SCSI": "scuzzy", "OK": "okay", "CD-ROM": "C D rom", "COVID": "covid", "IKEA": "ikea",
            "WYSIWYG": "wizzywig", "SaaS": "sass", "PIN": "pin", "COO": "C O O"}  # fmt: skip
# Two words with the same letters: initials before one of these, the word elsewhere.
_IT_BEFORE = re.compile(
    r"\s+(?:department|team|support|manager|staff|sector|systems?|guy|specialist|services?|industry|professionals?|director|"
    r"infrastructure|help|desk|consultant|security|company|policy|project|budget|admin\w*|equipment|skills|jobs?|solutions?)\b"
)
_US_AFTER = re.compile(r"(?:\b(?:the|in|across|of|outside|throughout|from|to|entire|and|for)\s+|^)$", re.I)
_CAPITALS = re.compile(r"(?<![A-Za-z0-9'’])([A-Z]{2,}(?:&[A-Z]+)*)('?s)?(?![A-Za-z0-9])")
_DOTTED = re.compile(r"(?<![A-Za-z.])((?:[A-Za-z]\.){2,}[A-Za-z]?(?![A-Za-z]))('s)?")
_PERSONAL = re.compile(r"(?<![A-Za-z.])([A-Z])\.(?=\s?[A-Z][a-z.])")
_FORMULAS = frozenset(
    "IoT AIoT SpO NaCl NaOH HCl KCl KOH HBr NaHCO CaCO CaCl MgCl MgO AgNO AgCl CuSO FeSO FeO CaO ZnO TiO SiO LiFePO".split()
)
_MIXED = re.compile(
    r"(?<![A-Za-z])(?:PhDs?|(?:"
    + "|".join(_FORMULAS)
    + r")|[a-z]{1,5}[A-Z]{2,}|[A-Z][a-z]+[A-Z]{2,}|[A-Z]{2,}[a-z]?[A-Z]+|[A-Z]{2,}(?=\d)|(?<=\d)[A-Z]{2,})(?![a-z])"
)
_HALF_CAPITALS = re.compile(r"([a-z]{1,5}|[A-Z][a-z]+)([A-Z]{2,})")  # iOS, macOS, ChatGPT
_AMPERSAND = re.compile(r"(?<![A-Za-z])([A-Z])&([A-Z])('?s)?(?![A-Za-z])")
_SPELT_TAIL = re.compile(r"(?<=\b[A-Z])-(?=[A-Z]\b)")  # U S B-C
# Small letters without a vowel are no word, but for these sounds: npm, ssh, tv.
CONSONANTS = r"(?<![\w'’.-])[b-df-hj-np-tv-xz]{2,5}(?![\w'’-])"
_CONSONANTS = re.compile(CONSONANTS)
_SOUNDS = frozenset(
    "hm hmm hmmm mm mmm mmmm sh shh shhh psst pst pfft brr brrr grr grrr tsk tch nth zz zzz zzzz mhm xth kth th st nd rd".split()
)
_WORD = re.compile(r"[A-Za-z]+")
_VOWELS = frozenset("AEIOUY")
# What an English word may begin and end with, to tell a word from initials.
_ONSETS = frozenset(
    """ B C D F G H J K L M N P QU R S T V W X Y Z BL BR CH CHR CL CR DR DW FL FR GL GR GH GN KN KR KL PH PHR PL PR PS RH SC SCH
    SCR SH SHR SK SL SM SN SP SPH SPL SPR SQU ST STR SW TH THR TR TW WH WR ZH""".split(" ")
) | {"", "QU"}
_CODAS = frozenset(
    """B C D F G H K L M N P R S T V W X Y Z BB BS CH CK CKS CT CTS DD DS FF FT GG GH GHT GHTS GS KS LB LD LDS LF LK LKS LL LLS LM LMS
    LP LPS LS LT LTS LVE MB MP MPS MS MPT NC NCH ND NDS NG NGS NK NKS NN NS NT NTS NTH NX PH PS PT PTS RB RC RCH RD RDS RF RG RK RKS
    RL RLD RM RMS RN RNS RP RPS RR RS RST RT RTH RTS SH SK SKS SM SMS SP SS ST STS TCH TH THS TS TT WN WNS WL WS XT ZZ""".split()
) | {""}


def read_initials(text: str) -> str:
    """Initials letter by letter; a text that shouts throughout in small letters."""
    if "&" in text:
        text = _AMPERSAND.sub(lambda m: f"{m[1]} and {m[2]}" + ("'s" if m[3] else ""), text)
    if "." in text:
        text = _DOTTED.sub(_dotted, text)
        text = _PERSONAL.sub(r"\1", text)
    words = _WORD.findall(text)
    capitals = [word for word in words if len(word) > 1 and word.isupper()]
    if capitals or _CAPITALS.search(text):
        long = [word for word in words if len(word) > 1]
        shouted = len(capitals) >= 3 and len(capitals) >= 0.7 * len(long)
        text = _CAPITALS.sub(lambda m: _capitals(m, shouted), text)
    text = _MIXED.sub(lambda m: spell_mixed(m[0]), text)
    text = _CONSONANTS.sub(lambda m: m[0] if m[0] in _SOUNDS else spell(m[0].upper()), text)
    return _SPELT_TAIL.sub(" ", text)


def is_spelt(word: str) -> bool:
    """Whether these capitals are said letter by letter."""
    if word in _WORDS:
        return False
    if word in _SPELT:
        return True
    return not _looks_like_a_word(word)


def spell(word: str, suffix: str = "") -> str:
    """FBI → F B I; with a suffix, of the plural too: C P U's."""
    return " ".join(word) + ("'s" if suffix else "")


def spell_mixed(word: str) -> str:
    """One word of an address or a name: in capitals, as initials; else as it is."""
    if word == "PhD":
        return "P H D"
    if word == "PhDs":
        return "P H D's"
    if word in _FORMULAS:
        return spell(word.upper())
    if len(word) > 1 and word.isupper():
        return _SAID_AS.get(word) or (spell(word) if is_spelt(word) else word)
    if match := _HALF_CAPITALS.fullmatch(word):
        return f"{match[1]} {spell_mixed(match[2])}"
    return word


def _capitals(match: re.Match[str], shouted: bool) -> str:
    word, suffix = match[1], match[2] or ""
    if "&" in word:
        return " and ".join(spell(part) for part in word.split("&")) + suffix
    if word in _SAID_AS:
        return _SAID_AS[word] + suffix
    if word == "IT" and not _IT_BEFORE.match(match.string, match.end()):
        return "it" + suffix
    if word == "US" and shouted and not _US_AFTER.search(match.string[: match.start()]):
        return "us" + suffix
    if shouted and word in ("WHO", "AM", "LA", "OR", "ED", "PA", "OP", "RIP", "SAT"):
        return word.lower() + suffix
    if not is_spelt(word):
        return (word.lower() if shouted else word) + suffix
    return spell(word, suffix)


def _dotted(match: re.Match[str]) -> str:
    """U.S. → U S; a full stop that also ends the sentence stays."""
    letters, suffix, after = match[1], match[2] or "", match.string[match.end() :]
    lower = letters.lower().rstrip(".")
    if lower in ("e.g", "i.e", "a.k.a", "p.s"):
        return match[0]  # abbreviations, not initials
    spelt = " ".join(letters.replace(".", "").upper())
    ends = letters.endswith(".") and begins_sentence(after)
    return spelt + suffix + ("." if ends else "")


def _looks_like_a_word(word: str) -> bool:
    if len(word) < 3 or not _VOWELS & set(word):
        return False
    parts = [part for part in re.split(r"[AEIOUY]+", word)]
    if parts[0] not in _ONSETS or parts[-1] not in _CODAS:
        return False
    if max(map(len, re.findall(r"[AEIOUY]+", word))) > 3:
        return False
    return len(word) > 3 or word[1] in "AEIOUY"
