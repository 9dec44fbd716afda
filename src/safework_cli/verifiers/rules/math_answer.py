r"""Where a reply states its answer: the last ``\boxed{…}``, a line such as "Answer: 42", or what its prose ends in (``math_prose``).

A box that is taken back gives the answer that is stated after it; what follows a next question or turn does not count.

Numbers that are denied ("it isn't 42", "42 is wrong") are no answer; "41 or 42" is both, and so not 42. Every pattern is linear; prose is
read from its end only.
"""

from __future__ import annotations

import re

from safework_cli.verifiers.rules.choice_cues import REVISED, next_question
from safework_cli.verifiers.rules.math_notation import balanced_end
from safework_cli.verifiers.rules.math_prose import (
    CLAUSE,
    JOIN,
    SAYS,
    WHOLE,
    formula_list,
    formulas_in,
    hedged,
    in_prose,
    is_answer,
    numbers_in,
    reads,
    without_remark,
)
from safework_cli.verifiers.rules.math_words import NEXT_TO_NUMBER

TAIL = 4_000
"""How much of a reply's end is read as prose, in characters."""
LINE = 600
BOXES = 12

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_WORDS_BETWEEN = re.compile(
    r"[\s$]*(?:\\text\s*\{)?(?:[\s$]|\\[()\[\]])*(?:[A-Za-z]+\s+){0,4}(?:\([a-z]\)\s+)?(?:and|or)\b[\s$}\w=(){\\]{0,30}", re.IGNORECASE
)
_NOT_JOINING = re.compile(r"\b(?:but|then|wait|no|not|so|therefore|thus|hence|wrong|re-?check\w*|actually)\b", re.IGNORECASE)
_MARK = re.compile(
    r"(?:\b(?:final\s+)?(?:answer|result|solution)s?\b[*_ ]*(?:to [^.\n]{0,80}? )?(?:(?:\bis\b|\bare\b|\bwas\b|:)[:* _]*(?:\bis\b)?|=)"
    r"|(?:最终|最后)?(?:答案|结果)[*_ ]*(?:应该是|应为|等于|[:：]|是|为)[:：]?|####)[*_ ]*",
    re.IGNORECASE,
)
_CORRECTED = re.compile(r"\b(?:it|that|this)\s+(?:should(?:\s+have)?\s+be(?:en)?|must be|is actually)\s+(?=[$\\\d-])", re.IGNORECASE)
_DENIAL = r"(?:\bnot\b|\b[a-z]{2,6}n['’]t\b|\bnever\b|\binstead of\b|\brather than\b|不是|并非|不等于|而非|不为)"
_VALUE = r"(?:\$?\\boxed\s*\{[^{}]*\}\$?|\$[^$\n]{1,60}\$|\\\([^\n]{1,60}?\\\)|[$€£¥]?[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)"
_DENIED_BEFORE = re.compile(rf"{_DENIAL}\s*(?:equal(?:s)? to|be|simply|just|the|answer|等于)?\s*{_VALUE}", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    rf"{_VALUE}\s*[*_\"'”]*\s*,?\s*(?:(?:is|was|would be|are|be)\s+(?:therefore |clearly |definitely )?"
    r"(?:(?:not|n't|never)\b|(?:wrong|incorrect|false)\b)"
    r"|isn['’]t\b|wasn['’]t\b|is a (?:wrong|common mistake)|(?:不是|不对|是错|错误|错了))",
    re.IGNORECASE,
)


def last_answer(text: str) -> str:
    r"""The content of the last ``\boxed{…}`` of a text, or the text."""
    return _boxed(text) or text


def stated_answer(final: str, *, words: bool = False) -> str | None:
    """The text of the answer that a final reply states, or None; with ``words``, it may be words.

    A reply that runs on into a question of its own has answered before it, where an answer is announced there; one that runs on into
    another turn, where any is.
    """
    if (question := next_question(final)) is not None:
        before = final[: question.start()]
        tail = _tail(before)
        first = _announced(before, tail, brief=4)
        if first is None and question["turn"]:
            first = in_prose(_without_denied(tail))
        if first is not None:
            return first
    tail = _tail(final)
    answer = _announced(final, tail)
    if answer is None:
        tail = _without_denied(tail)
        answer = in_prose(tail)
    return answer if answer is not None or not words else _in_words(tail)


def _tail(final: str) -> str:
    return _normal(_whole_sentences(final[-TAIL:]) if len(final) > TAIL else final)


def _announced(final: str, tail: str, *, brief: int = WHOLE) -> str | None:
    """An answer that the form shows to be one: a box, all of a short reply (of so many words), what follows "the answer is"."""
    boxed = _boxed(final)
    if boxed is not None:
        return _announced_after_box(tail) or boxed
    whole = without_remark(tail.strip()) if len(final) <= TAIL and len(final.split()) <= brief else ""
    if whole and len(whole) <= WHOLE and "\n" not in whole and is_answer(whole):
        return whole
    return _marked(_without_denied(tail))


def _announced_after_box(tail: str) -> str | None:
    """An answer that is announced after the last box, outside a box: a final one, or any after the box was taken back."""
    end = max(tail.rfind("\\boxed"), tail.rfind("\\fbox"))
    if end < 0:
        return None
    rest = tail[end:]
    if (final := re.search(r"\bfinal answer\b[*_ ]*(?:is\b|:)", rest, re.IGNORECASE)) is not None:
        return _marked(_without_denied(rest[final.start() :]))
    revised = REVISED.search(rest.lower())
    if revised is None:
        return None
    since = _without_denied(rest[revised.start() :])
    if (answer := _marked(since)) is not None:
        return answer
    corrected = _CORRECTED.search(since)
    return _in_statement(since[corrected.end() :].split("\n", 1)[0]) if corrected else None


def _in_words(text: str) -> str | None:
    """The last words of a reply: what its last sentence says, or a reply of a few words."""
    sentences = [part.strip(" *_`\"'") for part in re.split(r"(?<=[.!?。！？])\s|\n", text) if part.strip(" *_`.!\"'")]
    if not sentences:
        return None
    says = list(SAYS.finditer(sentences[-1]))
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
    return JOIN.fullmatch(between) is not None or _WORDS_BETWEEN.fullmatch(between) is not None


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
    return re.sub(r"[(（]\s*[)）]", " ", _DENIED_BEFORE.sub(" ", _DENIED_AFTER.sub(" ", text)))  # "5 (not 6)" leaves no bracket


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


def _in_statement(text: str) -> str | None:
    """The answer in what follows "the answer is"."""
    text = without_remark(text.strip().strip("*_` ").rstrip("*_` "))
    if not text:
        return None
    formulas = formulas_in(text)
    if formulas and re.search(r"[A-Za-z]{2,}", text[: formulas[0][0]]):  # "the volume of $ABC$ is 120"
        verb = re.search(r"\b(?:is|are|equals?)\b[:\s]*", text[formulas[0][1] :], re.IGNORECASE)
        said = _in_statement(text[formulas[0][1] + verb.end() :]) if verb else None
        if said is not None:
            return said
    if formulas and len(re.findall(r"\w+", text[: formulas[0][0]])) <= 12:
        return formula_list(text, formulas, first=True)
    text = re.sub(r"(?<=\d)!+$", "", text)  # in prose, no factorial
    if len(text) <= WHOLE and is_answer(text):
        return text
    cut = CLAUSE.split(text, maxsplit=1)[0].strip(" *_`")
    if cut and cut != text and len(cut) <= WHOLE and is_answer(cut):
        return cut
    if NEXT_TO_NUMBER.match(cut):
        return cut if len(cut) <= WHOLE else None  # "at least 3 of them": not 3
    numbers = numbers_in(cut) or numbers_in(text)
    if numbers:
        return numbers[0] if not hedged(cut) else ", ".join(numbers[:4])
    if cut and len(cut) <= WHOLE and reads(cut):
        return cut
    return None
