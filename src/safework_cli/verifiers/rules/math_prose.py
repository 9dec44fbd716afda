"""A mathematical answer in running text: whether a text says one as a whole, and which number a sentence ends in."""

from __future__ import annotations

import re

from safework_cli.verifiers.rules.math_reading import read
from safework_cli.verifiers.rules.math_values import (
    Based,
    Chain,
    Either,
    Expression,
    Group,
    Inequality,
    Matrix,
    Named,
    Number,
    Ratio,
    TooLarge,
    Union,
    Unreadable,
    Value,
    Words,
)
from safework_cli.verifiers.rules.numerals import chinese_in_digits, english_in_digits

WHOLE = 160
"""A reply or a stated answer up to this length is tried as an answer as a whole."""

JOIN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;!\\ ]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b|和|或|与|、|，)*", re.IGNORECASE
)
_REFERENCE = re.compile(
    r"\b(?:step|part|question|problem|equation|eq\.|section|line|figure|fig\.|case|option|chapter|page|example|theorem|lemma)s?\s*\(?#?\d+(?:\.\d+)*\)?"
    r"|第\s*\d+\s*(?:步|题|个|行|部分|章|节)|(?:步骤|问题)\s*\d+",
    re.IGNORECASE,
)
_REMARK = re.compile(r"(.*\d[^()]*?)\s*\((?!mod\b|base\b)[^()\d\\$]*[A-Za-z]{3}[^()\d\\$]*\)\.?")
_REASON = re.compile(r",?\s+(?:as|because|since|see)\b", re.IGNORECASE)
_GIVEN = re.compile(r"\s*(?:since|because|if|when)\b[^,]*,\s+(?=[A-Za-z])", re.IGNORECASE)
_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]{1,2000}?)\$\$|\\\[(?P<b>(?:[^\\]|\\(?!\])){1,2000}?)\\\]|\\\((?P<c>(?:[^\\]|\\(?!\))){1,2000}?)\\\)|(?<![\\\d])\$(?P<d>[^$\n]{1,2000}?)(?<!\\)\$(?!\d)"
)
_SIGN = r"(?:(?<![\w)\]}])[-−]\s?)?"
_NUMERAL = re.compile(
    rf"{_SIGN}[$€£¥]?(?:\\?\$)?(?:"
    r"\d+\s+\d+/\d+|\d+,\d{2}(?![\d,])"  # a mixed number, a decimal comma
    r"|\d{1,3}(?:(?:,|\\,|\{,\})\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s*(?:\\times|×|\*)\s*10\s*\^?\s*(?:\{?[-−]?\d+\}?|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|[eE][+-]?\d+)?"
    r"(?:\s*/\s*\d+(?:\.\d+)?(?![\d/]))?"
    r"(?::\d+)*\s*(?:\\?%|percent\b|per cent\b)?"
)
_CIRCUMSTANCE = re.compile(
    r"\b(for|at|over|after|before|in|per|within|during|out of|at the end of)"
    rf"(?:\s+(?:the|all|only|just|about|these|those|his|her|their|its|next|first|last))*\s+{_NUMERAL.pattern}(?![\w/=+*])",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"\s*[-−]?\\?[$€£¥]?\s?\d[\d,]*(?:\.\d+)?(?=[\s.,;:!?)%]|$)"
    r"(?!.*?[-+*/×÷]\s*\d)"
    r"(?!.*(?:\b(?:is|are|equals?|gives?|so|thus|therefore|hence|makes?|gets?)\b|'s\b).*\d)"
)
SAYS = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|get|gets|got|makes?|totals|total(?=\s+[$€£\d])|has|have|cost[s]?|of|there are|it'?s|that'?s"
    r"|so(?! that))\b"
    r"|[:：=≈]|是|为|得到|得|等于|共有|一共|共|有)[\s*_]*",
    re.IGNORECASE,
)
CLAUSE = re.compile(
    r"\s+(?:because|since|as|which|where|for|when|after|before|from|in step|by|so that|that|making|giving|with)\b"
    r"|\s*[(（]|[;；]|\s[-–—]\s|，|,\s+(?=[A-Za-z])|\.\s|\.$|。|！|!\s",
    re.IGNORECASE,
)


def reads(text: str) -> bool:
    try:
        read(text)
    except (Unreadable, TooLarge, RecursionError):
        return False
    return True


def is_answer(text: str) -> bool:
    """Whether a text says a mathematical answer as a whole, without prose around it."""
    text = re.sub(r"[*_`]{2}|^[*_`]|[*_`]$", "", text).strip()
    if "#" in text or (re.search(r"[^\W\d_]{2,}", re.sub(r"\b(?:and|or)\b", "", _FORMULA.sub("", text))) and _FORMULA.search(text)):
        return False
    try:
        value = read(text)
    except (Unreadable, TooLarge, RecursionError):
        return False
    return len(text.split()) == 1 if isinstance(value, Words) else not _holds_prose(value)


def without_remark(text: str) -> str:
    """A text without a remark of words in brackets at its end, "1,000 (one thousand)"; not "(mod seven)"."""
    remark = _REMARK.fullmatch(text)
    return remark[1] if remark and is_answer(remark[1]) else text


def _holds_prose(value: Value) -> bool:
    """Whether a word stands where a formula would."""
    if isinstance(value, Words | Number | Ratio | Based):
        return False
    if isinstance(value, Named):
        return len(value.name) > 20 or _holds_prose(value.value)
    if isinstance(value, Group):
        words = [isinstance(item, Words) for item in value.items]
        return (any(words) and not all(words)) or any(map(_holds_prose, value.items))
    if isinstance(value, Union):
        return any(map(_holds_prose, value.parts))
    if isinstance(value, Chain):
        return any(map(_holds_prose, value.parts))
    if isinstance(value, Either):
        return any(map(_holds_prose, value.forms))
    if isinstance(value, Matrix):
        return any(_holds_prose(cell) for row in value.rows for cell in row)
    if isinstance(value, Expression):
        said = value.latex
    else:
        said = " ".join(value.parts) if isinstance(value, Inequality) else f"{value.left} {value.right}"
    said = re.sub(r"\\(?:text|mathbb)\s*\{[^{}]*\}|\\[A-Za-z]+|_\{[^{}]*\}", " ", said)
    return (
        re.search(r"[A-Za-z]{4,}|[A-Za-z]{3,}\s*\d|[A-Za-z]{2,}\s+\d|[A-Za-z]{2,}\s+[A-Za-z']{2,}|'[A-Za-z]|[\u4e00-\u9fff:¤]|'\s", said)
        is not None
    )


def formulas_in(text: str) -> list[tuple[int, int, str]]:
    return [(m.start(), m.end(), next(g for g in m.group("a", "b", "c", "d") if g is not None)) for m in _FORMULA.finditer(text)]


def formula_list(text: str, formulas: list[tuple[int, int, str]], *, first: bool) -> str | None:
    """The first or the last formula, with those in the same list, and a percent sign after it."""
    order = formulas if first else formulas[::-1]
    kept = [order[0]]
    for formula in order[1:6]:
        between = text[kept[-1][1] : formula[0]] if first else text[formula[1] : kept[-1][0]]
        if len(between) > 30 or not JOIN.fullmatch(between):
            break
        kept.append(formula)
    if not first:
        kept.reverse()
    percent = re.match(r"\s*(?:\\?%|percent\b|pct\b)", text[kept[-1][1] : kept[-1][1] + 12])
    return ", ".join(content.strip() for _, _, content in kept) + ("%" if percent else "")


def hedged(text: str) -> bool:
    return re.search(rf"{_NUMERAL.pattern}\s*(?:,|\bor\b|\band\b|或|和|、)\s*{_NUMERAL.pattern}", text) is not None


def numbers_in(text: str) -> list[str]:
    """Numbers in prose as text, in order; references ("step 2") left out."""
    text = _REFERENCE.sub(" ", text)
    if not re.search(r"\d", text):
        text = english_in_digits(chinese_in_digits(text), fractions=True)
    elif re.search(r"[万亿]|illion|thousand|分之", text):
        text = english_in_digits(chinese_in_digits(text))
    text = re.sub(r"\b(?:negative|minus)\s+(?=\d)", "-", text, flags=re.IGNORECASE)
    numbers = []
    for match in _NUMERAL.finditer(text):
        before = text[match.start() - 1 : match.start()]
        if match.start() and before.isascii() and (before.isalnum() or before == "_") and match[0][:1] not in "-−$€£¥":
            continue
        numbers.append(match[0].strip())
    return numbers


def in_prose(text: str) -> str | None:
    """The answer in running text: in its last sentence that holds a formula or a number."""
    text = re.sub(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}", "", text) if "**" in text or "`" in text else text
    formulas = formulas_in(text)
    sentences = list(re.finditer(r"(?:[^.!?。！？\n]|\.(?=\d)|(?<=\d)\.(?=\d)|\.(?!\s|$)|!(?!\s|$))+", text))
    for sentence in reversed(sentences[-40:]):
        inside = [formula for formula in formulas if formula[0] < sentence.end() and formula[1] > sentence.start()]
        if inside:
            last = inside[-1]
            rest = text[last[1] : sentence.end()]
            if not (re.search(r"\b(?:is|are|equals?|gives?|by|to|makes?|get)\b", rest) and numbers_in(rest)):
                return formula_list(text, [formula for formula in formulas if formula[0] <= last[0]], first=False)
        answer = _in_sentence(sentence[0])
        if answer is not None:
            return answer
    return None


def _in_sentence(sentence: str) -> str | None:
    if (result := _calculated(sentence)) is not None:
        return result
    sentence = _without_circumstances(sentence)
    says = list(SAYS.finditer(sentence))[-4:]
    for mark in reversed(says):
        after = sentence[mark.end() :]
        answer = _after_verb(after)
        if answer is not None:
            return answer
    main = re.sub(r"[(（][^()（）]*[)）]", " ", sentence)
    main = _REASON.split(main, maxsplit=1)[0]
    if len(main) <= WHOLE and re.search(r"\d", main) and is_answer(main.strip()):
        return main.strip()
    numbers = numbers_in(main)
    if not numbers:
        return None
    if len(numbers) > 1 and hedged(main):
        return ", ".join(numbers)
    return numbers[-1]


def _calculated(sentence: str) -> str | None:
    """The result of the last calculation of a sentence, where no other result is stated after it."""
    _, equals, after = sentence.rpartition("=")
    if not equals or not _RESULT.match(after) or hedged(after):
        return None
    cut = CLAUSE.split(after, maxsplit=1)[0].strip(" *_`")
    return cut if len(cut) <= WHOLE and is_answer(cut) else numbers_in(after)[0]


def _without_circumstances(sentence: str) -> str:
    """A sentence without the numbers of its circumstances ("after 5 days", "for 16 glasses", "out of 24"), where another is left."""
    if (given := _GIVEN.match(sentence)) and numbers_in(sentence[given.end() :]):
        sentence = sentence[given.end() :]  # "Since 1.76 is less than 2, he …"
    if len(numbers_in(sentence)) < 2:
        return sentence
    kept = _CIRCUMSTANCE.sub(r"\1", sentence)
    return kept if numbers_in(kept) else sentence


def _after_verb(text: str) -> str | None:
    cut = CLAUSE.split(text.strip(), maxsplit=1)[0].strip(" *_`")
    if not re.search(r"\d", english_in_digits(chinese_in_digits(cut), fractions=True)):
        return None
    if len(cut) <= WHOLE and is_answer(cut):
        return cut
    numbers = numbers_in(cut)
    if not numbers:
        return None
    return ", ".join(numbers) if len(numbers) > 1 and hedged(cut) else numbers[0] if len(numbers) == 1 else numbers[-1]
