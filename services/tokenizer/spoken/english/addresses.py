"""Web and mail addresses, file names, paths, handles and hashtags: read as people read them out."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.initials import spell_mixed
from services.tokenizer.spoken.english.numbers import digits, year

_TOP_LEVEL = (
    "com|org|net|edu|gov|mil|int|io|ai|co|uk|us|de|fr|eu|ca|au|nz|jp|in|ch|nl|se|no|es|it|at|be|dk|fi|ie|pl|br|mx|cn|ru|"
    "info|biz|dev|app|me|tv|cc|ly|gg|xyz|online|site|tech|cloud|shop|store|blog|news|live|health|care|example|local|test"
)
_SUFFIXES = (
    "pdf|docx?|xlsx?|pptx?|txt|csv|tsv|json|ya?ml|toml|xml|html?|css|js|ts|tsx|jsx|py|ipynb|rb|rs|go|java|cpp|hpp|sh|bat|"
    "exe|dll|zip|tar|gz|tgz|rar|7z|png|jpe?g|gif|svg|webp|bmp|ico|mp3|mp4|wav|flac|ogg|avi|mov|mkv|md|rst|log|cfg|ini|conf|"
    "env|db|sql|bak|tmp|iso|apk|dmg|deb|rpm|psd|ai|eps|tex|bib|proto|lock|onnx|safetensors"
)
_DOT_NAMES = (
    "gitignore|gitattributes|gitmodules|git|github|dockerignore|bashrc|bash_profile|zshrc|profile|vimrc|npmrc|editorconfig|htaccess|"
    "ssh|config|cache|local|venv|vscode|idea|aws|kube|docker|eslintrc|prettierrc"
)
_MAIL = re.compile(r"(?:mailto:)?(?<![\w.+-])([\w.+-]+)@((?:[\w-]+\.)+[A-Za-z]{2,24}(?::[\w./-]*\w)?)(?![\w@])")
_URL = re.compile(
    r"(?<![\w@])(?:[a-z][a-z0-9+.-]{1,11}://(?:[^\s/@<>\"']+@)?[^\s<>\"'|^{}]+|www\.[\w-]+\.[^\s<>\"'|^{}]+)", re.I
)
_DOMAIN = re.compile(
    rf"(?<![\w@.-])((?:[A-Za-z0-9](?:[\w-]*\w)?\.)+(?:{_TOP_LEVEL}))((?::\d{{1,5}})?(?:/[\w./%&=?#~:+@-]*)?)(?![\w@-]|\.\w)"
)
_HOST = re.compile(r"\blocalhost:(\d{2,5})\b((?:/[\w./%&=?#~:+@-]*)?)")
_IP = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?(?:/(\d{1,2}))?(?![\d.]*\d)")
_FILE = re.compile(rf"(?<![\w.@/\\-])([\w-]+(?:\.[\w-]+)*(?:\(\d+\))?)\.({_SUFFIXES})(?![\w-]|\.\w)", re.I)
_PATH = re.compile(
    r"(?<![\w/.:<])(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}/?|(?<![\w/.:<])(?:~|\.{1,2})/[\w.@+-]+/?|\b[A-Za-z]:\\[\w.\\ -]*[\w\\]"
)
_DOT_FILE = re.compile(rf"(?<![^\s\"'(])\.({_SUFFIXES}|{_DOT_NAMES})(?![\w-]|\.\w)")
_HASHTAG = re.compile(r"(?<![\w&#/])#(?!(?=[0-9A-Fa-f]*\d)(?:[0-9A-Fa-f]{6}|[0-9A-Fa-f]{3})\b)(\d*[A-Za-z_]\w*)")
_HASH_CODE = re.compile(r"(?<![\w&#/])#(?=[A-Z]{1,4}-\d|\d{1,4}[A-Z]\b|\d[0-9A-Z]{7,}\b)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\w:]*::|(?:\w+:){5})(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"
)  # hardware addresses too
_HASH_NUMBER = re.compile(r"(?<![\w&#/])#\s?(\d+)(?!\w)")
_FILE_PATH = re.compile(rf"(?<![\w.@/\\-])((?:[\w.-]+/)+[\w-]+(?:\.[\w-]+)*)\.({_SUFFIXES})(?![\w-]|\.\w)", re.I)
_HANDLE = re.compile(r"(?<![\w@.])@([A-Za-z_][\w.]*\w|[A-Za-z])")
_TRAILING = re.compile(r"[.,;:!?)\]'\"]+$")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]{1,11}://", re.I)
_USER = re.compile(r"^[^\s/@]+@")  # and a password: not for all to hear
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_YEAR = re.compile(r"(?:19|20)\d\d")
_PORT = re.compile(r"(?<=[\w\]]):(\d{1,5})\b")
_NAMES = {
    ".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark", "=": "equals",
    "&": "and", "#": "hash", "%": "percent", "+": "plus", "~": "tilde", "\\": "backslash",
}  # fmt: skip
# Parts of addresses that are said letter by letter.
_SPELT = frozenset(
    "www uk us de fr eu io ai tv nz jp ch nl dk html htm css js ts tsx jsx py rb rs sh pdf xls csv tsv xml sql "
    "png svg mp mkv ftp api url faq id ui cpp hpp exe dll dmg apk iso psd md usr http https ssh wss mov avi bmp ip".split()
)
_AS_WORDS = {
    "jpeg": "J peg", "jpg": "J peg", "json": "jason", "yaml": "yammel", "yml": "yammel", "docx": "doc X", "xlsx": "X L S X",
    "pptx": "P P T X", "etc": "et C", "tmp": "temp", "txt": "text", "ipynb": "I P Y N B", "wav": "wave", "co": "co",
    "md": "M D", "mp3": "M P three", "mp4": "M P four", "gov": "gov", "org": "org",
}  # fmt: skip


def read_addresses(text: str) -> str:
    """Addresses with their dots and slashes in words."""
    if "/" in text or "www." in text or "WWW." in text:
        text = _URL.sub(_url, text)
    if "@" in text:
        text = _MAIL.sub(_mail, text)
    if "." in text:
        text = _IP.sub(_ip, text)
        text = _FILE_PATH.sub(lambda m: f"{_spoken(m[1], name=True)} dot {_part(m[2])}", text)
        text = _FILE.sub(lambda m: f"{_spoken(m[1], name=True)} dot {_part(m[2])}", text)
        text = _DOT_FILE.sub(lambda m: f"dot {_spoken(m[1], name=True)}", text)
        text = _DOMAIN.sub(lambda m: _tailed(m[1] + m[2]), text)
    if text.count(":") > 1:
        text = _IPV6.sub(_ip_v6, text)
    if "localhost:" in text:
        text = _HOST.sub(lambda m: f"localhost port {digits(m[1])} {_spoken(m[2])}".rstrip(), text)
    if "/" in text or "\\" in text:
        text = _PATH.sub(lambda m: _tailed(m[0]) if len(m[0]) > 1 else _spoken(m[0]), text)
    if "#" in text:
        text = _HASH_CODE.sub("number ", text)
        text = _HASHTAG.sub(lambda m: f"hashtag {words_of(m[1])}", text)
        text = _HASH_NUMBER.sub(r"number \1", text)
    return _HANDLE.sub(lambda m: f"at {_spoken(m[1], name=True)}", text) if "@" in text else text


def words_of(name: str) -> str:
    """`ThrowBack_Thursday` → throw back thursday; capitals that stand together stay so."""
    return " ".join(
        part if part.isupper() and len(part) > 1 else year(part) if _YEAR.fullmatch(part) else part.lower()
        for part in _CAMEL.sub(" ", name.replace("_", " ").replace("-", " ")).split()
    )


def _mail(match: re.Match[str]) -> str:
    name, domain = (part.lower() if match[0].isupper() else part for part in match.groups())
    return f"{_spoken(name)} at {_spoken(domain)}"


def _url(match: re.Match[str]) -> str:
    address = _USER.sub("", _SCHEME.sub("", match[0]))
    return _tailed(address.lower() if address.isupper() else address)


def _tailed(address: str) -> str:
    """Spoken, with the sentence's own punctuation after it left alone."""
    tail = _TRAILING.search(address)
    end = tail[0] if tail else ""
    if ")" in end and address.count("(") >= address.count(")"):
        end = ""
    return _spoken(address[: len(address) - len(end)].rstrip("/")) + end


def _ip(match: re.Match[str]) -> str:
    words = " dot ".join(digits(part) for part in match[1].split("."))
    words += f" port {digits(match[2])}" if match[2] else ""
    return words + (f" slash {match[3]}" if match[3] else "")


def _ip_v6(match: re.Match[str]) -> str:
    return " ".join(
        "colon" if char == ":" else digits(char) if char.isdigit() else char.upper() for char in match[0] if char != " "
    )


def _spoken(address: str, name: bool = False) -> str:
    """name: whether _ and - only part words, as in a file's name."""
    out = []
    for piece in re.findall(r"[^\W_]+|[\W_]", _PORT.sub(r" port \1", address)):
        if piece in _NAMES:
            if not (name and piece in "_-"):
                out.append(_NAMES[piece])
        elif piece[0].isalnum():
            out.append(_part(piece))
    return " ".join(out)


def _part(piece: str) -> str:
    lower = piece.lower()
    if lower in _AS_WORDS:
        return _AS_WORDS[lower]
    if lower in _SPELT:
        return " ".join(lower.upper())
    if piece.isdigit():
        return digits(piece) if len(piece) > 2 and not (len(piece) == 4 and piece[:2] in ("19", "20")) else piece
    if not piece.isascii():
        return piece
    if piece.isalpha() and len(piece) < 5 and not set(lower) & set("aeiouy"):
        return " ".join(piece.upper())
    return " ".join(
        spell_mixed(part) if part.isalpha() else digits(part) if len(part) > 2 else part
        for part in _CAMEL.sub(" ", piece).split()
    )
