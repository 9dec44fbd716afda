r"""Mathematical text in one spelling: Unicode signs as LaTeX, styling dropped, ``\text`` apart, brackets counted."""

from __future__ import annotations

import re
import unicodedata

from safework_cli.verifiers.rules.math_values import Unreadable

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≒": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "°": r"^\circ ", "º": r"^\circ ", "∠": r"\angle ", "△": r"\triangle ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "μ": r"\mu ", "σ": r"\sigma ", "，": ", ", "、": ", ", "；": "; ",
    "：": ":", "。": ".",
    "（": "(", "）": ")", "【": "[", "】": "]", "’": "'", "‘": "'", "“": '"', "”": '"', "′": "'", "\u00a0": r"\,",
    "\u2009": r"\,", "\u202f": r"\,",
    "\u3000": " ", "％": "%", "￥": "¥", "∖": r"\setminus ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "",
}  # fmt: skip
_TABLE = str.maketrans(_CHARACTERS)
_VULGAR = {c: f"{n}/{d}" for c, n, d in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", (1, 1, 2, 1, 3, 1, 2, 3, 4, 1, 5, 1, 3, 5, 7),
                                           (2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 8, 8, 8, 8), strict=True)}  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:left|right|bigg?[lrm]?|Bigg?[lrm]?|limits|displaystyle|textstyle|scriptstyle|hfill|bf|rm|it|,?\s*!)(?![A-Za-z])\.?"
    r"|\\(?:tag|label|phantom|hspace|vspace)\*?\s*\{[^{}]*\}|<<[^<>]*>>|\\!"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|thinspace(?![A-Za-z])|enspace(?![A-Za-z])|(?=\n))|~|\s+")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc|up)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|mbox|hbox|operatorname\*?)\s*\{"
)
_COMMAND_NAMES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
                  "leqslant": "le", "geqslant": "ge", "neq": "ne", "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "lbrack": "[",
                  "rbrack": "]", "lparen": "(", "rparen": ")", "lt": "<", "gt": ">", "degree": "circ", "N": "mathbb{N}",
                  "R": "mathbb{R}", "Z": "mathbb{Z}", "Q": "mathbb{Q}", "C": "mathbb{C}", "infin": "infty", "vert": "|",
                  "lvert": "|", "rvert": "|",
                  "mid": "|", "varphi": "phi", "varepsilon": "epsilon", "lg": "log_{10}", "backslash": "setminus", "ast": "cdot",
                  "iff": "Leftrightarrow", "land": "wedge", "lor": "vee"}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "max",
              "min", "gcd", "lcm", "det")  # fmt: skip


def balanced_end(text: str, start: int) -> int:
    """Position of the brace that closes the one at ``start``, or -1."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and not (place and text[place - 1] == "\\" and (place < 2 or text[place - 2] != "\\")):
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return place
    return -1


def cleaned(text: str) -> str:
    r"""A text in one spelling: Unicode signs as LaTeX, no styling, ``\text`` for every font of words, plain spaces, "¤" for dollars."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub("(\\d?)\\s?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", lambda m: f"{m[1]} {_VULGAR[m[2]]}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"[\uff01-\uff5e]", lambda m: unicodedata.normalize("NFKC", m[0]), text.translate(_TABLE))
    text = text.replace("**", "^") if re.search(r"[\w)]\*\*[\w({]", text) else text.replace("**", "")
    text = text.replace(r"\$", "¤").replace(r"\%", "%").replace(r"\#", "#").replace("{,}", "").replace(r"\&", "&")
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    text = re.sub(r",?\\!\s*", "", text)
    text = _DROPPED.sub("", text)
    text = _COMMAND.sub(lambda m: "\\" + _COMMAND_NAMES.get(m[1], m[1]), text)
    text = text.replace("\\<", "<").replace("\\>", ">").replace("\\(", "").replace("\\)", "").replace("\\|", "|").replace("\\$", "¤")
    text = re.sub(r"\\log_\{10\}(?=_)", r"\\log", text)
    text = re.sub(r"\\\[(?!\d)|(?<!\\)\\\]", lambda m: m[0][1:], text) if "\\[" in text else text
    text = re.sub(r"\$\$?([^$]*)\$\$?", r"\1", text)
    text = text.replace("$", "¤")
    text = re.sub(r"\{\s*(?:\\)?(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|\\ |~|\u00a0)(?=\d{3}(?!\d))", "", text)
    text = _SPACE.sub(" ", text)
    return re.sub(r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}", text).strip()


def unstyled(text: str) -> tuple[str, list[tuple[int, str]]]:
    r"""The text without its ``\text{…}`` parts, and those parts with where they stood.

    Letters, digits and signs in them are kept in place.
    """
    out: list[str] = []
    parts: list[tuple[int, str]] = []
    place = length = 0
    for match in _TEXT.finditer(text):
        if match.start() < place:
            continue
        end = balanced_end(text, match.end() - 1)
        if end < 0:
            raise Unreadable("a brace is not closed")
        inner = text[match.end() : end].strip()
        before = text[place : match.start()]
        out.append(before)
        length += len(before)
        kept = _kept_in_place(match[0], inner)
        if kept is None:
            parts.append((length, inner))
            kept = " "
        out.append(kept)
        length += len(kept)
        place = end + 1
    out.append(text[place:])
    return "".join(out), parts


def _kept_in_place(command: str, inner: str) -> str | None:
    """What a styled part is in a formula, or None where it is words."""
    if re.fullmatch(r"(?:,\s*)?(?:and|or|和|或|与)(?:\s*,)?", inner, re.IGNORECASE):
        return f" {inner.strip(', ').lower()} " if inner.isascii() else " and "
    if "operatorname" in command:
        return rf"\{inner} " if inner in FUNCTIONS else None
    if not inner or re.fullmatch(r"[\d\s.,:+\-*/^()=]+|\\[A-Za-z]+", inner):
        return inner
    if re.fullmatch(r"[A-Za-z]", inner) and command.startswith((r"\math", r"\bold", r"\bm")):
        return inner
    return None


def stripped(text: str) -> str:
    """Without outer space, closing punctuation, and braces around the whole."""
    before = None
    while before != text:
        before = text
        text = (
            text.strip().rstrip(".,;:!?。，；\n ").strip()
            if not re.search(r"\d!+\.?$|[)}A-Za-z]!+\.?$", text)
            else text.strip().rstrip(". ")
        )
        text = text.removesuffix("\\").rstrip() if text.endswith("\\") and not text.endswith("\\\\") else text
        if text.startswith("{") and balanced_end(text, 0) == len(text) - 1:
            text = text[1:-1]
        for command in ("\\boxed", "\\fbox", "\\displaystyle"):
            if text.startswith(command + "{") and balanced_end(text, len(command)) == len(text) - 1:
                text = text[len(command) + 1 : -1]
    return text


def split_top(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts of a text between separators that stand outside all brackets, and those separators."""
    parts: list[str] = []
    signs: list[str] = []
    depth = start = place = 0
    while place < len(text):
        if text.startswith("\\{", place) or text.startswith("\\langle", place) or text.startswith("\\begin", place):
            depth += 1
            place += 2
            continue
        if text.startswith("\\}", place) or text.startswith("\\rangle", place) or text.startswith("\\end", place):
            depth -= 1
            place += 2
            continue
        if text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
        elif depth == 0:
            match = separators.match(text, place)
            if match and match.end() > place:
                parts.append(text[start:place])
                signs.append(match[0].strip())
                place = start = match.end()
                continue
        place += 1
    parts.append(text[start:])
    return parts, signs


def name_like(text: str) -> bool:
    r"""Whether the left side of an equation only names the right side: ``x``, ``S_{ABCD}``, ``f(x)``, ``\angle ABC``, ``(x, y)``."""
    text = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w)", "", text)
    text = text.replace("^{-1}", "").replace("'", "")
    text = re.sub(r"(?<=[A-Za-z])\([^()]*\)", "", text)
    text = re.sub(
        r"\\(?:angle|triangle|overline|vec|frac|text|mathrm|hat|bar|square|Delta|measuredangle|widehat|overrightarrow)(?![A-Za-z])",
        " ",
        text,
    )
    if re.search(r"\\(?:sqrt|frac|times|cdot|pm|div|sum|int|cup|pi|infty|ln)(?![A-Za-z])", text):
        return False
    text = re.sub(r"\\[A-Za-z]+", "x", text)
    return bool(re.search(r"[A-Za-z\u4e00-\u9fff]", text)) and re.fullmatch(r"[A-Za-z\u4e00-\u9fff\s|,:(){}\[\]\\]+", text) is not None


def has_variables(latex: str) -> bool:
    """Whether letters are left when commands are taken away, e and i apart."""
    return (
        re.search(r"[A-DF-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", " ", latex)) is not None
        or re.search(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|tau)(?![A-Za-z])", latex) is not None
    )


def closes_at_end(inner: str) -> bool:
    """Whether no bracket of the inside closes one that stands outside of it."""
    depth = 0
    for char in inner:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def latex_of(text: str) -> str:
    """LaTeX of an expression that may be written as in a program: ``sqrt(2)``, ``2*x``, ``pi/2``."""
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(rf"(?<![A-Za-z\\])(pi|theta|alpha|beta|infty|infinity|{'|'.join(FUNCTIONS)})(?![A-Za-z])", r"\\\1 ", text)
    text = text.replace(r"\infinity", r"\infty").replace("*", r"\cdot ")
    text = re.sub(r"(?<![A-Za-z\\])inf(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    return re.sub(r"\s+", " ", text).strip()


def compact(text: str) -> str:
    """A text without redundant spaces and braces: equal results mean equal notation."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+|\\(?:cdot|times)(?=\s*[A-Za-z(\\])", "", re.sub(r"([_^])\{(\w)\}", r"\1\2", text))
