"""Multiple choice with one or several right options: which letters a reply chose, and how many of the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict
from safework_cli.verifiers.rules import choice_cues as cues
from safework_cli.verifiers.rules.choice_text import CLOSE_BOX, OPEN_BOX, Options, lower_case, readable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_READ = 4_000
"""Characters of a final answer that are read, from its end: the verdict of a longer one is there."""
_NEAR = 70
"""Characters after a cue in which its letters begin, and before it in which it is denied."""
_EDGE = r"(?![A-Za-z0-9+#]|'[A-Za-z]|-[A-Za-z0-9])"
_BARE = rf"(?<![A-Za-z0-9\\-])[A-Z]{_EDGE}"
_WORD = r"(?![AI]\s+(?!and\b|or\b|are\b|is\b|was\b|were\b|because\b|since\b|as\b|for\b|but\b|not\b)[a-z])"
"""No "A" or "I" that is a word of the sentence: "A lens bends", "I am confident"."""
_ONE = rf"(?:\([A-Z]\)|\[[A-Z]\]|{_WORD}{_BARE}\)?)"
_BETWEEN = r"(?: *(?:[,、;/&+]|\band\b|和|与|及|以及) *(?:and +)?| +)(?:(?:options?|choices?) +|选项)?"
_RUN = rf"(?:(?<![A-Za-z0-9])[A-Z]{{2,26}}{_EDGE}|{_ONE}(?:{_BETWEEN}{_ONE})*)"
_RUNS = re.compile(_RUN)
_WHOLE = re.compile(rf"[\s\"'({{]*({_RUN})[\s\"')}}.。!]*")
_WHOLE_LOWER = re.compile(r"\(?[a-z]\)?(?:\s*(?:[,、;/&+]|\band\b)\s*\(?[a-z]\)?)*\s*\.?")
_LOWER_LINE = re.compile(r" *[:=]\s*([a-z](?:[ ,、;/&+a-z()]{0,40}[a-z])?)\.?(?=\n|$)")
_BOX = re.compile(rf"{OPEN_BOX}\s*({_RUN})[^{CLOSE_BOX}]*")
_CUE = re.compile(
    r"\b(?:answers?|ans|solutions?|(?:correct|right|true|best)\s+(?:ones?|statements?|options?|choices?|letters?)"
    r"|(?:options?|choices?|letters?|picks?|selections?)(?=\s*(?:\bis\b|\bare\b|\bmust\b|\bshould\b|[:=]))"
    r"|choose|chose|selected|select|picked|pick|go with)\b"
    r"|(?:答案|正确(?:的)?选项|选项(?=应|为|是|:)|正确的(?=有|是|为)|应选|故选|选择(?!题)|选(?!项|择))",
    re.IGNORECASE,
)
_LEADS = re.compile(  # what may stand between a cue and its letters
    r"[\s\"'(\])】]*(?:[:=→]|->|)[\s\"'(]*(?:(?:options?|choices?|letters?|both|the|ones?)\s+)*"
    r"|[^:\n.。!?;]{0,60}?(?:\b(?:is|are|was|were|be|includes?)\b|[:=→])(?:[^\S\n]|[\"'(:,]|\n(?=\W*[A-Z]\W)|\b[a-z]+\b){0,12}"
    r"|[^A-Za-z\n。;,]{0,12}",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|excluding|eliminate[sd]?|exclude[sd]?|other than|rather than|instead of|but)\b|n't\b"
    r"|[不非未别]|排除|除了?",
    re.IGNORECASE,
)
_NOT_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|don't|didn't|won't|wouldn't|can't)\s+(?:\w+\s+)?|不|别|勿|不要|不能|不应该?|没有?|未)(?:the\s+|再)?$",
    re.IGNORECASE,
)
_OPPOSITE = re.compile(r"(?:\b(?:wrong|incorrect|false|other|untrue|remaining)\s*|(?:错误|不正确|不符合题意)的?)$", re.IGNORECASE)
_INSTEAD = re.compile(
    rf"[^.。!?\n]{{0,30}}?(?:\b(?:but|it is|it's|they are|rather|instead)\b|而是|应该?[是为选]|[,;:]\s*选)[\s:]*"
    rf"(?:(?:rather|the|options?|choices?|both|选项)\s*)*({_RUN})"
)
_SOFT = re.compile(
    r"(?:[:→⇒∴]|(?i:\b(?:it is|it's|they are|it must be|must be|but|rather|so|thus|hence|therefore|leaves|leaving|left with"
    r"|(?:is|are)(?= options? )|(?:wrong|incorrect|false) (?:ones?|options?|statements?|choices?) (?:is|are))\b)|而是|所以|因此|故|即|只有"
    rf"|(?:错误|不正确)的(?:选项|说法)?是)[\s,:]*(?:(?:the|options?|choices?|both|only|选项)\s*)*({_RUN})[\s\"').。!]*(?=$|\n|[.。;!]\s)",
    re.MULTILINE,
)
_ALTERNATIVE = re.compile(rf"[\s,]*(?:\bor\b|或者?)\s*(?:选项)?{_ONE}")
_SUBJECT = re.compile(r"^\s*(?:(?:both|all)\s+)?(?:are|were)(?:\s+(?:both|all))?\b")
_ZH_SUBJECT = re.compile(r"^\s*(?:选项|项)?\s*(?:均|都|皆|全)(?:是|为)?")
_GOOD = re.compile(
    r"^(?:(?:is|was|must be|would be|should be|seems|seems to be)\s+(?:\w+\s+){0,3}?(?:correct|right|true|valid|accurate|answers?)\b"
    r"|[\s.):\-–—]*(?:(?:correct|right|true|yes)\b(?! +\w)|✅|✓|✔|√))"
)
_SUPPOSED = re.compile(r"\b(?:if|suppose|supposing|unless)\b[^.!?\n]*$|(?:如果|假如|假设|若)[^。!?\n]*$", re.IGNORECASE)


def chosen_letters(final: str, letters: str, choices: Sequence[str] = ()) -> frozenset[str] | None:
    """The letters that a final answer chose, or None where it states none, or one that the question does not have.

    Read in this order: the whole answer ("BD", "B, D", "B and D", lines of options with their texts), the last box, the last statement
    that is not denied ("the answers are B and D", "答案：BD"), the verdicts of each letter ("A is wrong. B is correct."), the last clause
    or line that is only letters. A reply that runs on into a question of its own is read up to there.

    Args:
        letters: those of the question's options.
        choices: the options' texts, where they are known.
    """
    text = readable(final)
    if (question := cues.next_question(text)) is not None:
        text = text[: question.start()]
    text = text[-MAX_READ:]
    known = frozenset(letters)
    if (whole := _whole(text, known)) is not None or (whole := _lines(text, Options(choices, letters)) if choices else None) is not None:
        return whole
    boxes = [found for match in _BOX.finditer(text) if (found := _letters_of(match[1], known)) is not None]
    if boxes:
        return boxes[-1] or None
    stated, after = _stated(text, known)
    revised = cues.REVISED.search(lower_case(text), after) if stated is not None else None
    if revised and (later := _weaker(text[revised.end() :], known)) is not None:
        return later
    return (stated or None) if stated is not None else _weaker(text, known)


def _letters_of(run: str, known: frozenset[str]) -> frozenset[str] | None:
    """The letters of a run; empty for a letter that the question does not have, None for a word in capitals ("DNA", "NOT")."""
    compound = re.search(r"[A-Z]{2,}", run)
    found = frozenset(re.sub(r"[^A-Z]", "", run))
    if compound and (len(found) < len(compound[0]) or not found <= known):
        return None
    return found if found <= known else frozenset()


def _whole(text: str, known: frozenset[str]) -> frozenset[str] | None:
    """The letters of a text that is nothing else; without capitals only where each stands apart ("b, d")."""
    if match := _WHOLE.fullmatch(text):
        return _letters_of(match[1], known)
    return _letters_of(re.sub(r"AND", "", text.upper()), known) if _WHOLE_LOWER.fullmatch(text) else None


def _lines(text: str, options: Options) -> frozenset[str] | None:
    """The letters of lines that are options with their texts, all of the text; None where that is every option of the question."""
    found = set[str]()
    for line in text.splitlines():
        match = re.match(r"\W*([A-Z])[).:、]?\s*(.+)", line)
        if match is None or match[1] not in options.valid or not options.is_text_of(match[1], match[2]):
            return None
        found.add(match[1])
    return frozenset(found) if 0 < len(found) < len(options.valid) else None


def _stated(text: str, known: frozenset[str]) -> tuple[frozenset[str] | None, int]:
    """The letters of the last statement that is not denied, and where it ends; empty where it names a letter that there is not, or "B or
    D"; None where nothing is stated."""
    last: frozenset[str] | None = None
    end = 0
    for cue in _CUE.finditer(text):
        before = text[max(0, cue.start() - _NEAR) : cue.start()]
        if cues.REPORTED.search(lower_case(before)) or _SUPPOSED.search(before) or _OPPOSITE.search(before):
            continue
        if (lower := _LOWER_LINE.match(text, cue.end())) and (found := _whole(lower[1], known)) is not None:
            last, end = found, lower.end()
            continue
        run = next(
            (match for match in _RUNS.finditer(text, cue.end(), cue.end() + _NEAR) if _letters_of(match[0], known) is not None), None
        )
        if run is None:
            continue
        lead = text[cue.end() : run.start()]
        denied = _NOT.search(lead) or _NOT_BEFORE.search(before) or cues.DISBELIEF.search(lower_case(before))
        kept = _without_next_clause(text, run)
        if denied or (kept == "" and lead.strip(" :=") == ""):
            if (instead := _INSTEAD.match(text, run.end())) and _letters_of(instead[1], known):
                last, end = _letters_of(instead[1], known), instead.end()
            continue
        if kept and _LEADS.fullmatch(lead):
            last, end = (frozenset() if _ALTERNATIVE.match(text, run.end()) else _letters_of(kept, known)), run.end()
    return last, end


def _without_next_clause(text: str, run: re.Match[str]) -> str:
    """A run without the letters with which the next clause begins ("B and D, A is wrong"); "" where what follows denies all of it."""
    right = _right(text, run.end())
    if not _bad(right) and not re.match(r"(?:is|was|does|has|would|can)\b", right):
        return run[0]
    kept, comma, _ = run[0].rpartition(",")
    if comma:
        return kept
    return "" if _bad(right) else run[0]


def _right(text: str, end: int) -> str:
    """What is said of letters that end there, as of one letter."""
    right = lower_case(text[end : end + 2 * _NEAR]).lstrip(" \"')]")
    return _ZH_SUBJECT.sub("", _SUBJECT.sub("is", right))


def _bad(right: str) -> bool:
    return not right.startswith((".", "\n")) and bool(cues.BAD.match(right) or cues.ZH_BAD.match(right))


def _weaker(text: str, known: frozenset[str]) -> frozenset[str] | None:
    """The letters of which a verdict is given, else those of the last clause or line that is only letters."""
    good: dict[str, bool] = {}
    for run in _RUNS.finditer(text):
        found, right = _letters_of(run[0], known), _right(text, run.end())
        verdict = (_GOOD.match(right) or cues.ZH_GOOD.match(right)) if found else None
        bad = cues.BAD.match(right) or cues.ZH_BAD.match(right)
        denied = bad or cues.DENIED.search(lower_case(text[max(0, run.start() - _NEAR) : run.start()]))
        if found and (denied or verdict):
            good |= dict.fromkeys(found, not denied and not cues.NEGATION.search(verdict[0] if verdict else ""))
    if chosen := frozenset(letter for letter, right in good.items() if right):
        return chosen
    soft = [found for match in _SOFT.finditer(text) if (found := _letters_of(match[1], known)) is not None]
    if soft and soft[-1]:
        return soft[-1]
    last_line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return _whole(last_line, known) or None


class ChoicesRule:
    """1 where the chosen letters are the right ones, ``partial`` where they are some of these and no others, else 0. Labels: "correct",
    "partial", "wrong", "unparsed".

    The gold answer is one or several letters of ``meta.choices``: "BD".

    Args:
        partial: what a part of the right letters is worth; an examination gives half of the points.
    """

    name = "choices"
    version = 2  # the answer is what an answer cue, or the verdicts of the letters, say

    def __init__(self, partial: Annotated[float, Field(ge=0, le=1)] = 0.5):
        self._partial = partial

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(exchange) for exchange in exchanges]

    @staticmethod
    def gold_problem(exchange: Exchange) -> str | None:
        """Why the gold answer is not one or several letters of the question, or None."""
        gold, letters = (exchange.answer or "").strip(), _letters(exchange)
        if len(exchange.meta.get("choices") or ()) > len(LETTERS):
            return f"the question has {len(exchange.meta['choices'])} choices, and letters go to Z"
        known = gold and len(set(gold)) == len(gold) and set(gold) <= set(letters)
        return None if known else f"the gold answer {exchange.answer!r} is not one or several letters among {letters[0]}–{letters[-1]}"

    def _judge(self, exchange: Exchange) -> Verdict:
        if (problem := self.gold_problem(exchange)) is not None:
            return Verdict(None, error=problem)
        gold, chosen = frozenset((exchange.answer or "").strip()), chosen_letters(exchange.final, _letters(exchange), _texts(exchange))
        if not chosen:
            return Verdict(0.0, UNPARSED)
        if chosen == gold:
            return Verdict(1.0, "correct")
        return Verdict(self._partial, "partial") if chosen < gold else Verdict(0.0, "wrong")


def _texts(exchange: Exchange) -> tuple[str, ...]:
    return tuple(map(str, exchange.meta.get("choices") or ()))


def _letters(exchange: Exchange) -> str:
    return LETTERS[: len(exchange.meta.get("choices") or ()) or 10]
