"""Replies to multiple-choice questions as plain text: markup, LaTeX and full-width characters resolved, and option texts compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

OPEN_BOX, CLOSE_BOX = "⟦", "⟧"
r"""What a box (``\boxed{…}``, ``<answer>…</answer>``) becomes."""

FIRST_READ, LAST_READ = 50_000, 150_000
"""Characters of a reply that are read, from each end."""

_SAME = str.maketrans({
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "`": "", "−": "-", "‐": "-", "‑": "-", "\u200b": "",
    "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u200e": "", "\u200f": "", "\u3164": "", "\ufe0f": "",
    "⇒": "→", "➡": "→", "⟶": "→", "⟹": "→",
    "أ": "A", OPEN_BOX: "[", CLOSE_BOX: "]", "∶": ":",
})  # fmt: skip
_SPACES = re.compile(r"[ \t\xa0\r\f\v]+")
_LINES = re.compile(r"\n\s*")
_BOX = r"(?:\\f?boxed|\\fbox|\\framebox|\x08oxed|(?<![A-Za-z\\])boxed(?=\s?\{))"
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s?\(?([A-Za-z])\)?(?![A-Za-z])")
_BRACES = re.compile(rf"\\[{{}}]|{_BOX}\s?\{{|[{{}}]")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|sf|it|bb|cal|tt|normal)|boldsymbol|bm|operatorname\*?|mbox|hbox|underline|emph|bf|rm"
    r"|large|Large|displaystyle|left|right)(?![A-Za-z])\s?"
)
_LATEX_SPACE = re.compile(r"\\(?:[ ,;:!]|q?quad(?![A-Za-z])\s?)|(?<=\w)~(?=\w)")
_LATEX_MATH = re.compile(r"\\[()\[\]]|\${1,2}")
_STRUCK = re.compile(r"~~[^~\n]{1,300}~~")
_EMPHASIS = re.compile(r"\*{2,}|(?<![0-9A-Za-z)])\*|\*(?![0-9A-Za-z(])|_{2,}|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_HTML = re.compile(r"</?(?:b|i|u|em|strong|span|p|div|mark|code|font|center|h\d|li|ul|ol|sup|sub|details|summary)\b[^<>\n]{0,100}>")
_TAGS = r"(?:final[_ ]?answer|answer|ans|option|choice|final|response|solution)"
_TAG_OPENS, _TAG_CLOSES = re.compile(rf"<{_TAGS}>", re.IGNORECASE), re.compile(rf"</{_TAGS}>", re.IGNORECASE)
_LINE_START = re.compile(r"^ ?(?:(?:#{1,6}|>) ?|[-•·▪◦+–—] |\d{1,2}[.)] (?=[A-Z][.):]? ?$))+(?=\S)", re.MULTILINE)
_WORD_UNDERSCORE = re.compile(r"(?<=[a-z])_(?=[a-z]{2})")
_HYPHEN_CUE = re.compile(r"\b(answer|option|choice|ans) ?- ?(?=[A-Za-z](?![A-Za-z]))", re.IGNORECASE)

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+(?:'[^\W\d_]+)?|[\u3040-\u30ff\u3400-\u9fff]|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?'\"()[]⟦⟧、。，；：！？【】「」『』《》<>…·|")
_MARK = "ａ"
_LETTER_A = re.compile(r"\bA(?![\w'])(?! \w)")
"""The letter, which "A." or "(A)" is and "A city" is not."""
_ARTICLES = frozenset(("a", "an", "the"))


def readable(text: str) -> str:
    """A reply without what only shows it: NFKC (full-width letters and punctuation become plain), one space, no blank lines, no markdown,
    no LaTeX styles and mathematics marks; boxes and answer tags become ``⟦…⟧``. Takes time linear in the text."""
    text = unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME)
    if len(text) > FIRST_READ + LAST_READ:
        text = f"{text[:FIRST_READ]}\n{text[-LAST_READ:]}"
    text = _LINES.sub("\n", _SPACES.sub(" ", text)).strip()
    text = _TAG_CLOSES.sub(CLOSE_BOX + "\n", _TAG_OPENS.sub("\nanswer: " + OPEN_BOX, text))
    text = _HTML.sub("", text.replace("<br>", "\n").replace("<br/>", "\n"))
    if "\\" in text or "oxed" in text:
        text = _STYLE.sub("", _LATEX_SPACE.sub(" ", text.replace("\\\\", "\n")))
    text = _LATEX_MATH.sub("", text)
    text = _unbraced(_BOX_WITHOUT_BRACES.sub(rf"{OPEN_BOX}\1{CLOSE_BOX}", text))
    text = _EMPHASIS.sub("", _STRUCK.sub("", _WORD_UNDERSCORE.sub(" ", text)))
    text = _HYPHEN_CUE.sub(r"\1: ", _LINE_START.sub("", text))
    return _LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def lower_case(text: str) -> str:
    """Lower case with the positions of the original."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _unbraced(text: str) -> str:
    """Braces dropped, but for those of boxes, which become ``⟦`` and ``⟧``; a box that never closes ends nowhere."""
    if "{" not in text and "}" not in text:
        return text
    pieces: list[str] = []
    closers: list[str] = []
    last = 0
    for match in _BRACES.finditer(text):
        pieces.append(text[last : match.start()])
        last, mark = match.end(), match.group()
        if mark in ("\\{", "\\}"):
            continue
        if mark == "}":
            pieces.append(closers.pop() if closers else "")
            continue
        boxed = len(mark) > 1
        pieces.append(OPEN_BOX if boxed else "")
        closers.append(CLOSE_BOX if boxed else "")
    pieces.append(text[last:])
    return "".join(pieces)


def tokens_of(text: str) -> list[str]:
    """Words, numbers with their decimal points, Chinese characters and signs, lower case; no punctuation, no articles if words remain."""
    tokens = [token for token in _TOKEN.findall(_LETTER_A.sub(_MARK, text).lower()) if token not in _PUNCTUATION]
    return ["a" if token == _MARK else token for token in tokens if token not in _ARTICLES] or tokens


class Options:
    """The texts of a question's options.

    Attributes:
        valid: the letters that the question has.
        texts: each option's tokens, joined by spaces; empty for an option that has none or that is itself a letter.
    """

    def __init__(self, choices: Sequence[str], letters: str):
        self.valid = letters
        plain = [readable(str(choice)) for choice in choices]
        joined = [" ".join(tokens_of(text)) for text in plain]
        self.texts = ["" if len(text) == 1 and text.upper() in letters else text for text in joined]
        self._plain = [lower_case(text) for text in plain]
        self._longest = max(map(len, plain), default=0)

    def equal_to(self, text: str) -> str | None:
        """The letter of the option whose whole text this is."""
        if len(text) > 2 * self._longest + 100:
            return None
        have = " ".join(tokens_of(text))
        same = [i for i, option in enumerate(self.texts) if option and option == have]
        return self.valid[same[0]] if len(same) == 1 else None

    def is_text_of(self, letter: str, text: str) -> bool:
        """Whether this is the whole text of a letter's option; another option may have the same."""
        own = self.texts[self.valid.index(letter)] if self.texts else ""
        return bool(own) and len(text) <= 2 * self._longest + 100 and own == self.joined(text)

    def begins(self, text: str) -> str | None:
        """The letter of the option whose text this begins with, the longest of those that do; None where "or" and another's follow."""
        have = self.joined(text[: 3 * self._longest + 200])
        best = self._first(have)
        if best is None or sum(option == self.texts[best] for option in self.texts) > 1:
            return None
        joined = re.match(r" (?:or|and|&|/|\+|或 者|或|和|及|与|还 是) ", have[len(self.texts[best]) :] + " ")
        return None if joined and self._first(have[len(self.texts[best]) + joined.end() :]) is not None else self.valid[best]

    def _first(self, joined: str) -> int | None:
        same = [i for i, option in enumerate(self.texts) if option and f"{joined} ".startswith(option + " ")]
        return max(same, key=lambda i: len(self.texts[i]), default=None)

    def length_after(self, letter: str, text: str) -> int:
        """How many characters of the text are this letter's own option text and what separates it from the letter; 0 where it does not
        follow."""
        own = self._plain[self.valid.index(letter)] if self._plain else ""
        stripped = text.lstrip(" .:,)]-–—、\t\"'(⟧】=")
        return len(text) - len(stripped) + len(own) if own and stripped.startswith(own) else 0

    def occurring(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, letter) of option texts among the text's tokens, the longest first where one holds another; positions count in the
        joined tokens, which ``joined`` gives."""
        places: list[tuple[int, int, str]] = []
        rest = f" {self.joined(text)} "
        for i in sorted(range(len(self.texts)), key=lambda i: -len(self.texts[i])):
            option = f" {self.texts[i]} "
            at = rest.find(option) if self.texts[i] else -1
            while at >= 0 and len(places) < 200:
                places.append((at, at + len(option) - 2, self.valid[i]))
                rest = rest[: at + 1] + "\x00" * (len(option) - 2) + rest[at + len(option) - 1 :]
                at = rest.find(option, at + 1)
        return sorted(places)

    @staticmethod
    def joined(text: str) -> str:
        return " ".join(tokens_of(text))

    def is_plain_word(self, letter: str) -> bool:
        """Whether many replies that do not choose an option contain its text: a number, "yes", "none"."""
        text = self.texts[self.valid.index(letter)]
        return " " not in text and (len(text) <= 3 or not text.isalpha() or text in ("true", "false", "none", "both", "neither", "maybe"))
