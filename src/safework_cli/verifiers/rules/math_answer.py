r"""Where a reply states its answer: the last ``\boxed{…}``, a line such as "Answer: 42", the last formula, or the last number in prose.

Numbers that are denied ("it isn't 42", "42 is wrong") are no answer; "41 or 42" is both, and so not 42. Every pattern is linear; prose is
read from its end only.
"""

from __future__ import annotations

import re

from safework_cli.verifiers.rules.math_notation import balanced_end
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

TAIL = 4_000
"""How much of a reply's end is read as prose, in characters."""
LINE = 600
WHOLE = 160
"""A reply or a stated answer up to this length is tried as an answer as a whole."""
BOXES = 12

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_JOIN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;!\\ ]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|\b(?:and|or)\b|和|或|与|、|，)*", re.IGNORECASE
)
_WORDS_BETWEEN = re.compile(
    r"[\s$]*(?:\\text\s*\{)?(?:[\s$]|\\[()\[\]])*(?:[A-Za-z]+\s+){0,4}(?:\([a-z]\)\s+)?(?:and|or)\b[\s$}\w=(){\\]{0,30}", re.IGNORECASE
)
_NOT_JOINING = re.compile(r"\b(?:but|then|wait|no|not|so|therefore|thus|hence|wrong|re-?check\w*|actually)\b", re.IGNORECASE)
_MARK = re.compile(
    r"(?:\b(?:final\s+)?(?:answer|result|solution)s?\b[*_ ]*(?:to [^.\n]{0,80}? )?(?:(?:\bis\b|\bare\b|\bwas\b|:)[:* _]*(?:\bis\b)?|=)"
    r"|(?:最终|最后)?(?:答案|结果)[*_ ]*(?:应该是|应为|等于|[:：]|是|为)[:：]?|####)[*_ ]*",
    re.IGNORECASE,
)
_DENIAL = r"(?:\bnot\b|\b[a-z]{2,6}n['’]t\b|\bnever\b|\binstead of\b|\brather than\b|不是|并非|不等于|而非|不为)"
_VALUE = r"(?:\$?\\boxed\s*\{[^{}]*\}\$?|\$[^$\n]{1,60}\$|\\\([^\n]{1,60}?\\\)|[$€£¥]?[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)"
_DENIED_BEFORE = re.compile(rf"{_DENIAL}\s*(?:equal(?:s)? to|be|simply|just|the|answer|等于)?\s*{_VALUE}", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    rf"{_VALUE}\s*[*_\"'”]*\s*,?\s*(?:(?:is|was|would be|are|be)\s+(?:therefore |clearly |definitely )?"
    r"(?:(?:not|n't|never)\b|(?:wrong|incorrect|false)\b)"
    r"|isn['’]t\b|wasn['’]t\b|is a (?:wrong|common mistake)|(?:不是|不对|是错|错误|错了))",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"\b(?:step|part|question|problem|equation|eq\.|section|line|figure|fig\.|case|option|chapter|page|example|theorem|lemma)s?\s*\(?#?\d+(?:\.\d+)*\)?"
    r"|第\s*\d+\s*(?:步|题|个|行|部分|章|节)|(?:步骤|问题)\s*\d+",
    re.IGNORECASE,
)
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
_PROGRAM = re.compile(r"[-+]?\(?\s*[-\d(][\d\s.+\-*/^()×÷!√]*")
_SAYS = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|get|gets|got|makes?|totals?|has|have|cost[s]?|of|there are|it'?s|that'?s)\b"
    r"|[:：=≈]|是|为|得到|得|等于|共有|一共|共|有)[\s*_]*",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\s+(?:because|since|as|which|where|for|when|after|before|from|in step|by|so that|that|making|giving|with)\b"
    r"|\s*[(（]|[;；]|\s[-–—]\s|，|,\s+(?=[A-Za-z])|\.\s|\.$|。|！|!\s",
    re.IGNORECASE,
)


def last_answer(text: str) -> str:
    r"""The content of the last ``\boxed{…}`` of a text, or the text."""
    return _boxed(text) or text


def stated_answer(final: str, *, words: bool = False) -> str | None:
    """The text of the answer that a final reply states, or None; with ``words``, it may be words."""
    tail = _normal(_whole_sentences(final[-TAIL:]) if len(final) > TAIL else final)
    boxed = _boxed(final)
    if boxed is not None:
        return _announced_after_box(tail) or boxed
    whole = tail.strip() if len(final) <= TAIL else ""
    if whole and len(whole) <= WHOLE and "\n" not in whole and _is_answer(whole):
        return whole
    tail = _without_denied(tail)
    marked = _marked(tail)
    if marked is not None:
        return marked
    answer = _in_prose(tail)
    return answer if answer is not None or not words else _in_words(tail)


def _announced_after_box(tail: str) -> str | None:
    """A final answer that is announced after the last box, outside a box."""
    end = max(tail.rfind("\\boxed"), tail.rfind("\\fbox"))
    if end < 0:
        return None
    marks = list(re.finditer(r"\bfinal answer\b[*_ ]*(?:is\b|:)", tail[end:], re.IGNORECASE))
    return _marked(_without_denied(tail[end + marks[0].start() :])) if marks else None


def _in_words(text: str) -> str | None:
    """The last words of a reply: what its last sentence says, or a reply of a few words."""
    sentences = [part.strip(" *_`\"'") for part in re.split(r"(?<=[.!?。！？])\s|\n", text) if part.strip(" *_`.!\"'")]
    if not sentences:
        return None
    says = list(_SAYS.finditer(sentences[-1]))
    answer = sentences[-1][says[-1].end() :] if says else sentences[-1]
    return answer.strip() if len(answer.split()) <= 8 and answer.strip() else None


def _whole_sentences(tail: str) -> str:
    """Without the sentence that was cut where the tail begins: a denial may have stood before it."""
    cut = re.search(r"[.!?。！？]\s|\n|[。！？]", tail)
    return tail[cut.end() :] if cut else ""


def _normal(text: str) -> str:
    text = re.sub(r"<<[^<>\n]{0,200}>>", "", text)
    return text.replace("\u2019", "'").replace("\r", "")


def _boxed(text: str) -> str | None:
    """The last box, with the boxes that it is listed with; None where there is none that counts."""
    boxes: list[tuple[int, int, str]] = []  # start, end, content
    end = len(text)
    for _ in range(2 * BOXES):
        if len(boxes) == BOXES:
            break
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            break
        command = _BOX.match(text, start)
        after = command.end() if command else start + 6
        content, stop = _content(text, after)
        if boxes and stop > boxes[-1][0]:  # a box around the one before
            if content is not None and stop >= boxes[-1][1]:
                boxes[-1] = (start, stop, content)
            end = start
            continue
        if content is not None and content.strip() and not _is_denied(text, start, stop):
            boxes.append((start, stop, content))
        end = start
        if len(boxes) > 1 and not _joined(text[boxes[-1][1] : boxes[-2][0]]):
            boxes.pop()
            break
        if len(text) - start > 200_000:
            break
    if not boxes:
        return None
    contents = list(dict.fromkeys(content.strip() for _, _, content in reversed(boxes)))
    if len(contents) == 1:
        (start, stop, _), answer = boxes[0], contents[0]
        percent = re.match(r"\s*\$?\s*(?:\\?%|percent\b|pct\b)", text[stop : stop + 20])
        minus = text[max(0, start - 3) : start].rstrip().endswith("-") and re.search(r"(?:^|[$=(\s])-\s?$", text[max(0, start - 4) : start])
        return f"{'-' if minus else ''}{answer}{'%' if percent and '%' not in answer else ''}"
    return ", ".join(contents)


def _content(text: str, start: int) -> tuple[str | None, int]:
    if start >= len(text):
        return None, start
    if text[start] == "{":
        end = balanced_end(text[: start + 20_000], start)
        if end < 0:  # truncated
            line = text[start + 1 : start + 2_001]
            cut = re.split(r"\$|\n|\\\]|\\\)", line, maxsplit=1)[0]
            return cut, start + 1 + len(cut)
        return text[start + 1 : end], end + 1
    bare = re.match(r"[-+]?\\?[\w.,/]+", text[start : start + 200])
    return (bare[0].rstrip(".,"), start + bare.end()) if bare else (None, start)


def _joined(between: str) -> bool:
    if len(between) > 70 or "\n\n" in between or _NOT_JOINING.search(between):
        return False
    return _JOIN.fullmatch(between) is not None or _WORDS_BETWEEN.fullmatch(between) is not None


def _is_denied(text: str, start: int, stop: int) -> bool:
    before = text[max(0, start - 40) : start].replace("’", "'")
    after = text[stop : stop + 60].replace("’", "'")
    return (
        re.search(rf"{_DENIAL}\s*(?:equal to|be|the|simply|just)?[\s$*]*(?:\\[(\[])?\s*$", before, re.IGNORECASE) is not None
        or re.match(r"[\s$*]*(?:\\[)\]])?\s*,?\s*(?:(?:is|was)\s+(?:not\b|wrong|incorrect|false)|isn't|wasn't|不对|是错|错误|不是)", after)
        is not None
    )


def _without_denied(text: str) -> str:
    if re.search(rf"{_DENIAL}|wrong|incorrect|false|不对|错", text, re.IGNORECASE) is None:
        return text
    return _DENIED_BEFORE.sub(" ", _DENIED_AFTER.sub(" ", text))


def _reads(text: str) -> bool:
    try:
        read(text)
    except (Unreadable, TooLarge, RecursionError):
        return False
    return True


def _is_answer(text: str) -> bool:
    """Whether a text says a mathematical answer as a whole, without prose around it."""
    text = re.sub(r"[*_`]{2}|^[*_`]|[*_`]$", "", text).strip()
    if "#" in text or (re.search(r"[^\W\d_]{2,}", re.sub(r"\b(?:and|or)\b", "", _FORMULA.sub("", text))) and _FORMULA.search(text)):
        return False
    try:
        value = read(text)
    except (Unreadable, TooLarge, RecursionError):
        return False
    return len(text.split()) == 1 if isinstance(value, Words) else not _holds_prose(value)


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
    return re.search(r"[A-Za-z]{4,}|[A-Za-z]{3,}\s*\d|[A-Za-z]{2,}\s+[A-Za-z']{2,}|'[A-Za-z]|[\u4e00-\u9fff:¤]|'\s", said) is not None


def _marked(text: str) -> str | None:
    """The answer on the last line that announces one and gives it."""
    marks = list(_MARK.finditer(text))[-6:]
    for mark in reversed(marks):
        rest = text[mark.end() : mark.end() + LINE].lstrip(" *_\n" if mark[0].rstrip("*_ ")[-1:] in ":：#" else " *_")
        if re.match(r"(?:not\b|n't|不)", rest):
            continue
        line = rest.split("\n\n", 1)[0]
        answer = _in_statement(line if line.lstrip().startswith(("\\[", "$$")) else line.split("\n", 1)[0])
        if answer is not None:
            return answer
    return None


def _formulas(text: str) -> list[tuple[int, int, str]]:
    return [(m.start(), m.end(), next(g for g in m.group("a", "b", "c", "d") if g is not None)) for m in _FORMULA.finditer(text)]


def _in_statement(text: str) -> str | None:
    """The answer in what follows "the answer is"."""
    text = text.strip().strip("*_` ").rstrip("*_` ")
    if not text:
        return None
    formulas = _formulas(text)
    if formulas and re.search(r"[A-Za-z]{2,}", text[: formulas[0][0]]):  # "the volume of $ABC$ is 120"
        verb = re.search(r"\b(?:is|are|equals?)\b[:\s]*", text[formulas[0][1] :], re.IGNORECASE)
        said = _in_statement(text[formulas[0][1] + verb.end() :]) if verb else None
        if said is not None:
            return said
    if formulas and len(re.findall(r"\w+", text[: formulas[0][0]])) <= 12:
        return _formula_list(text, formulas, first=True)
    text = re.sub(r"(?<=\d)!+$", "", text)  # in prose, no factorial
    if len(text) <= WHOLE and _is_answer(text):
        return text
    cut = _CLAUSE.split(text, maxsplit=1)[0].strip(" *_`")
    if cut and cut != text and len(cut) <= WHOLE and _is_answer(cut):
        return cut
    numbers = _numbers(cut) or _numbers(text)
    if numbers:
        return numbers[0] if not _hedged(cut) else ", ".join(numbers[:4])
    if cut and len(cut) <= WHOLE and _reads(cut):
        return cut
    return None


def _formula_list(text: str, formulas: list[tuple[int, int, str]], *, first: bool) -> str | None:
    """The first or the last formula, with those in the same list, and a percent sign after it."""
    order = formulas if first else formulas[::-1]
    kept = [order[0]]
    for formula in order[1:6]:
        between = text[kept[-1][1] : formula[0]] if first else text[formula[1] : kept[-1][0]]
        if len(between) > 30 or not _JOIN.fullmatch(between):
            break
        kept.append(formula)
    if not first:
        kept.reverse()
    percent = re.match(r"\s*(?:\\?%|percent\b|pct\b)", text[kept[-1][1] : kept[-1][1] + 12])
    return ", ".join(content.strip() for _, _, content in kept) + ("%" if percent else "")


def _hedged(text: str) -> bool:
    return re.search(rf"{_NUMERAL.pattern}\s*(?:,|\bor\b|\band\b|或|和|、)\s*{_NUMERAL.pattern}", text) is not None


def _numbers(text: str) -> list[str]:
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


def _in_prose(text: str) -> str | None:
    """The answer in running text: in its last sentence that holds a formula or a number."""
    text = re.sub(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}", "", text) if "**" in text or "`" in text else text
    formulas = _formulas(text)
    sentences = list(re.finditer(r"(?:[^.!?。！？\n]|\.(?=\d)|(?<=\d)\.(?=\d)|\.(?!\s|$)|!(?!\s|$))+", text))
    for sentence in reversed(sentences[-40:]):
        inside = [formula for formula in formulas if formula[0] < sentence.end() and formula[1] > sentence.start()]
        if inside:
            last = inside[-1]
            rest = text[last[1] : sentence.end()]
            if not (re.search(r"\b(?:is|are|equals?|gives?|by|to|makes?|get)\b", rest) and _numbers(rest)):
                return _formula_list(text, [formula for formula in formulas if formula[0] <= last[0]], first=False)
        answer = _in_sentence(sentence[0])
        if answer is not None:
            return answer
    return None


def _in_sentence(sentence: str) -> str | None:
    says = list(_SAYS.finditer(sentence))[-4:]
    for mark in reversed(says):
        after = sentence[mark.end() :]
        answer = _after_verb(after)
        if answer is not None:
            return answer
    main = re.sub(r"[(（][^()（）]*[)）]", " ", sentence)
    main = re.split(r",?\s+(?:as|because|since|see)\b", main, maxsplit=1, flags=re.IGNORECASE)[0]
    if len(main) <= WHOLE and re.search(r"\d", main) and _is_answer(main.strip()):
        return main.strip()
    numbers = _numbers(main)
    if not numbers:
        return None
    if len(numbers) > 1 and _hedged(main):
        return ", ".join(numbers)
    return numbers[-1]


def _after_verb(text: str) -> str | None:
    cut = _CLAUSE.split(text.strip(), maxsplit=1)[0].strip(" *_`")
    if not re.search(r"\d", english_in_digits(chinese_in_digits(cut), fractions=True)):
        return None
    if len(cut) <= WHOLE and _is_answer(cut):
        return cut
    numbers = _numbers(cut)
    if not numbers:
        return None
    return ", ".join(numbers) if len(numbers) > 1 and _hedged(cut) else numbers[0] if len(numbers) == 1 else numbers[-1]
