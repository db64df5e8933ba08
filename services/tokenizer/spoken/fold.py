"""Signs that look like others become those, where the meaning stays: fancy quotes, wide letters, fractions, ²."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    **dict.fromkeys("‘’‚‛´`ʹʻʼʽˈʾʿ＇ʼ՚Ꞌꞌ", "'"),
    **dict.fromkeys("“”„‟«»‹›〝〞〟＂❝❞❠「」『』〈〉《》", '"'),
    **dict.fromkeys("‐‑⁃﹣－", "-"),
    **dict.fromkeys("‒–―﹘⸺⸻", "–"),
    "—": "—",
    "−": "−",
    "…": "...", "⋯": "...", "‥": "..",
    "⁄": "/", "∕": "/", "⧸": "/",
    "∶": ":", "꞉": ":", "։": ":",
    "‗": "_", "∗": "*", "⁎": "*", "﹡": "*",
    "∣": "|", "∥": "|", "￨": "|", "¦": "|",
    "。": ".", "、": ",", "，": ",", "．": ".", "！": "!", "？": "?", "：": ":", "；": ";",
    "؟": "?", "،": ",", "؛": ";", "।": ".",
    "‽": "?!", "¿": "", "¡": "", "‼": "!!", "⁉": "!?", "⁈": "?!", "⁇": "??",
    "￥": "¥", "￡": "£", "￠": "¢", "﹩": "$", "＄": "$", "﹪": "%", "٪": "%",
    "℃": "°C", "℉": "°F", "º": "°", "˚": "°", "µ": "μ", "Ω": "Ω", "Å": "Å", "K": "K",
    "№": " number ", "℗": "", "™": "", "®": "", "℠": "", "©": " copyright ", "℅": " care of ",
    "㏇": " co. ", "℡": " telephone ", "✕": "×", "✖": "×", "⨯": "×", "➕": "+", "➖": "−", "➗": "÷",
    "⋅": "·", "∙": "·", "≒": "≈", "≃": "≈", "≅": "≈", "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", "﹤": "<", "﹥": ">",
    "→": " → ", "⟶": " → ", "➔": " → ", "➜": " → ", "➡": " → ", "⇒": " → ", "⟹": " → ",
    **dict.fromkeys("•‣◦▪▫●○■□◆◇▶►▸▹❖➤➢✦✧⁌⁍", "•"),
    "ẞ": "ß", "ɡ": "g",
}  # fmt: skip
_SMALL_CAPITALS = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘǫʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnopqrstuvwyz", strict=True))
# Letters of other scripts that are drawn as Latin ones, for words that mix them with Latin letters.
_LOOK_ALIKES = dict(
    zip("аеорсухіјѕԁӏԛԝАВЕКМНОРСТУХІЈЅԌΑΒΕΖΗΙΚΜΝΟΡΤΥΧοαρνιυ",
        "aeopcyxijsdlqwABEKMHOPCTYXIJSGABEZHIKMNOPTYXoapviu", strict=True)
)  # fmt: skip
_TABLE = str.maketrans({**_SIGNS, **_SMALL_CAPITALS})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_MIXED_WORD = re.compile(r"\w*[A-Za-z]\w*")
_FRACTION = re.compile(r"(\d?)\s?([¼-¾⅐-⅞↉])")
_NUMBER_SIGN = re.compile(r"\b[nN][º°]\s?(?=\d)")
_STARS = re.compile(r"(?<!\S)([★✭⭑]{1,5})([☆✩⭒]{0,4})(?!\S)|(?<=\d)\s?[★⭐✭](?![★⭐✭☆])")
_PRIME = re.compile("(?<=[A-Za-z])′(?=[A-Za-z])")
# With the name of a language and settings, where nothing else is before the line's end.
_FENCE = re.compile(r"(?<!\S)```+[ \t]*[\w+#.-]*[ \t]*(?:\w+=[^`\n]*|\{[^`\n]*\})?(?=\n)|```+")
_CODE_QUOTE = re.compile(r"(`+)(?!`)([^`\n]+)\1(?!`)")


def fold(text: str) -> str:
    """The same text in the commoner of equivalent signs. What carries a meaning of its own (², ½, −, €) keeps it."""
    if "`" in text:  # before lone ones become apostrophes
        text = _FENCE.sub("\n", _CODE_QUOTE.sub(r"\2", text))
    text = text.replace("``", '"').replace("''", '"')
    if text.isascii():
        return text.replace("`", "'") if "`" in text else text
    text = _STARS.sub(_stars, text)
    text = _NUMBER_SIGN.sub(" number ", text)
    text = _FRACTION.sub(_fraction, text)
    text = _PRIME.sub("'", text.translate(_TABLE))
    text = _RAISED.sub(_raised, text)
    if text.isascii():
        return text
    text = "".join(char if char.isascii() else _compatible(char) for char in text)
    return _MIXED_WORD.sub(_one_script, text)


def _stars(match: re.Match[str]) -> str:
    """★★★★☆ is a rating, ★ alone a picture."""
    if not match[1]:
        return " stars"
    full, of = len(match[1]), len(match[1] + match[2])
    return match[0] if of == 1 else f" {full} stars " if full == of else f" {full} out of {of} stars "


def _fraction(match: re.Match[str]) -> str:
    over, under = unicodedata.normalize("NFKC", match[2]).split("⁄")
    return f"{match[1]} {over}/{under}" if match[1] else f" {over}/{under}"


def _raised(match: re.Match[str]) -> str:
    """Raised digits as a power, which the language's stages read: m^2."""
    return "^" + match[0].translate(_SUPERSCRIPTS)


def _compatible(char: str) -> str:
    """Letters and digits in another dress: wide, bold, circled, ligatures, other scripts' digits, squared units."""
    if (digit := unicodedata.digit(char, None)) is not None:
        joins = unicodedata.category(char) == "Nd" or "\u2080" <= char <= "\u2089"  # a circled one stands alone
        return str(digit) if joins else f" {digit} "
    if (number := unicodedata.numeric(char, None)) is not None and unicodedata.category(char) in ("No", "Nd"):
        return f" {number:g} " if number == int(number) else char
    kind = unicodedata.decomposition(char).split(" ")[0]
    if kind in _DRESSES:
        plain = unicodedata.normalize("NFKC", char)
        if plain.startswith(" "):  # a blank with a combining mark: a sign of its own
            return char
        if "\u2170" <= char <= "\u217f":  # small Roman numerals of one character
            return plain.upper()
        return f" {plain} " if kind in ("<circle>", "<square>") and len(plain) > 2 else plain
    name = unicodedata.name(char, "")
    if name.startswith(("NEGATIVE CIRCLED LATIN", "NEGATIVE SQUARED LATIN", "REGIONAL")):
        return name[-1] if "LETTER" in name and not name.startswith("REGIONAL") else char
    return char


_DRESSES = frozenset(
    ("<wide>", "<narrow>", "<font>", "<compat>", "<circle>", "<square>", "<sub>", "<small>", "<super>")
)


def _one_script(match: re.Match[str]) -> str:
    """A Latin word with look-alikes of another script in it, as phishing and bad scans have them."""
    word = match[0]
    return word if word.isascii() else "".join(_LOOK_ALIKES.get(char, char) for char in word)
