"""What a reply to a multiple-choice question says of each letter.

Letters are looked at one by one with the words before and after them (``choice_cues``): each is *stated* ("the answer is B", a box,
B是正确答案, 故选B), *several* (stated with another one), *denied* ("not B", "B is wrong", 不选B), a *verdict* ("B is correct"), *soft*
("so B", "I think B") or merely mentioned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from safework_cli.verifiers.rules import choice_cues as cues
from safework_cli.verifiers.rules.choice_text import CLOSE_BOX, OPEN_BOX, Options, lower_case

CONTEXT = 160
"""Characters before and after a letter that are read for what is said of it."""
FIRST, LAST = 60, 240
"""How many mentions of letters are looked at, from each end: an answer stands near one of them."""
Kind = Literal["stated", "several", "denied", "verdict", "soft", "mentioned"]
_EDGE = "0-9A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u052f"
MENTION = re.compile(rf"(?<![{_EDGE}\\])(?<![0-9A-Za-z]['-])([A-Za-z])(?![{_EDGE}])(?!'[A-Za-z])(?!-[0-9A-Za-z])(?!\+\+|#)(?!\.[A-Z]\.)")
_RUN = re.compile(rf"(?<![{_EDGE}])([A-Z]{{2,}})(?![{_EDGE}])")
_FORMULA = re.compile(r"^ ?(?:[<>+^*≤≥≠∪∩×÷]|=(?![>=])|\\[a-z])")
_OPENERS, _CLOSERS = " \"'([⟦【「『《<", " \"')]⟧】」』》>"
_ENDS = re.compile(r"^(?:$|[\s]*[.,;:!?)\]⟧】」』》\"'\n。！？、✅✓✔|])")
_CLAUSE_ENDS = re.compile(r"^(?:$|[\s]*[.,;:!?)\]⟧】」』》\"'\n。！？、✅✓✔|]|\s*(?:项|选项|因|,|,)|\s*[-–—→])")
_LOWER_ENDS = re.compile(r"^(?:$|[.:;!?)\]⟧】」』》\"'\n。]|,(?! [a-z]\b))")
_BOX = re.compile(rf"{OPEN_BOX}([^{OPEN_BOX}{CLOSE_BOX}]{{1,400}})(?:{CLOSE_BOX}|\n|$)")
_BOXED_LETTER = re.compile(
    r"^(?:(?:the )?(?:final |correct )?(?:option|choice|answer|letter)(?: is)?|选项"
    r"|答案是?)?[\s:\"'(\[]*([A-Za-z])[\s\"')\].,:;]*(?:$|(?<=[\s)\].,:;])(?P<rest>.*)$)",
    re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(r"^\W*[A-Z](?:\W*(?:(?:and|or|和|或|与|及)\W*)?[A-Z])+\W*$")  # one way to read a gap: with two it is exponential
_HEDGES = re.compile(
    r"^[\s:]*(?:(?:therefore|thus|then|clearly|probably|likely|just|simply|option|i think|i believe)[\s,:]+){0,4}", re.IGNORECASE
)
_CJK_GAP = re.compile(r"(?<=[\u3040-\u9fff]) (?=[\u3040-\u9fff])")
SENTENCE = re.compile(r"(?<=[.!?])\s+|[。！？\n]")


@dataclass(frozen=True, slots=True)
class Event:
    """What a reply says of a letter at a place; ``letter`` is None where it is none of the question's."""

    start: int
    end: int
    letter: str | None
    kind: Kind


class Mentions:
    """A readable text, and what it says of the letters of a question.

    Attributes:
        text: as ``choice_text.readable`` gives it; ``low`` is the same in lower case, with the same positions.
        options: of the question.
    """

    def __init__(self, text: str, options: Options):
        self.text, self.low, self.options = text, lower_case(text), options
        self._joined: set[int] = set()
        self._denied_with: set[int] = set()

    def events(self) -> list[Event]:
        boxes = self._boxes()
        spans = [(event.start, event.end) for event in boxes]
        events = boxes + self._texts_stated()
        matches = list(MENTION.finditer(self.text))
        if len(matches) > FIRST + LAST:
            matches = matches[:FIRST] + matches[-LAST:]
        inside = 0
        for match in matches:
            while inside < len(spans) and spans[inside][1] <= match.start():
                inside += 1
            if inside < len(spans) and spans[inside][0] <= match.start():
                continue
            if (event := self._event(match)) is not None:
                events.append(event)
        for match in list(_RUN.finditer(self.text))[-LAST:]:
            run = match.group(1)
            if set(run) <= set(self.options.valid) and sorted(set(run)) == list(run) and self._cue(match.start()) == "stated":
                events.append(Event(match.start(), match.end(), None, "several"))
        return sorted(events, key=lambda event: event.start)

    def _boxes(self) -> list[Event]:
        """Boxes whose content is a letter, several, or an option's text; a box with a formula does not count."""
        events: list[Event] = []
        for match in list(_BOX.finditer(self.text))[-LAST:]:
            letter, kind = self._boxed(match.group(1).strip())
            if kind == "mentioned":
                continue
            left, right = self._sides(match.start(), match.end())
            if cues.BAD.match(right) or cues.ZH_BAD.match(right) or self.denied(left):
                kind = "denied"
            joined = events and re.fullmatch(r"\s*(?:or|and|,|/|&|或|和|、)\s*", self.low[events[-1].end : match.start()][:12])
            if joined and events[-1].letter != letter:
                letter, kind = None, "several"
            events.append(Event(match.start(), match.end(), letter, kind))
        return events

    def _boxed(self, content: str) -> tuple[str | None, Kind]:
        valid = self.options.valid
        if (same := self.options.equal_to(content)) is not None:
            return same, "stated"
        letter = _BOXED_LETTER.match(content)
        if letter:
            chosen, rest = letter.group(1).upper(), (letter.group("rest") or "").strip()
            other = self.options.equal_to(rest) if rest else None
            if chosen in valid and other not in (None, chosen):
                return None, "several"
            if not rest or other == chosen or (chosen in valid and letter.group(1).isupper() and re.match(r"^\W*\w[)\].:]", content)):
                return (chosen if chosen in valid else None), "stated"
        if _SEVERAL.match(content):
            return None, "several"
        return None, "mentioned"

    def _texts_stated(self) -> list[Event]:
        """Statements whose object is an option's text: "The answer is 15 km"."""
        events: list[Event] = []
        for match in list(cues.TEXT_STATED.finditer(self.low))[-40:]:
            start = match.start("object")
            cue, before = match.group()[: start - match.start()], self.low[max(0, match.start() - 60) : match.start()]
            if cues.NEGATION.search(cue) or cues.PLURAL.search(cue) or cues.DISBELIEF.search(before):
                continue
            what = _HEDGES.sub("", self.text[start : match.end("object")])
            sentence = SENTENCE.split(what, maxsplit=1)[0]
            letter, among = self.options.begins(what), self.unnegated(sentence)
            if letter is None and len(among) == 1 and self.unnegated(what) == among and not self.options.is_plain_word(next(iter(among))):
                (letter,) = among
            if letter is not None and len(among) <= 1:
                events.append(Event(start, match.end("object"), letter, "stated"))
        return events

    def unnegated(self, text: str) -> set[str]:
        """The letters of the options whose text occurs in a text and is not denied there."""
        joined = self.options.joined(text)
        occurrences = self.options.occurring(text)
        before = (_CJK_GAP.sub("", joined[max(0, start - 60) : start].rstrip()) for start, _, _ in occurrences)
        return {
            letter
            for (_, end, letter), left in zip(occurrences, before, strict=True)
            if not self.denied(left) and not cues.DENIED_AFTER.match(_CJK_GAP.sub("", joined[end : end + 60]))
        }

    def _event(self, match: re.Match[str]) -> Event | None:
        raw, start, end = match.group(1), match.start(), match.end()
        letter = raw.upper()
        before, after = self.text[start - 1 : start], self.text[end : end + 1]
        wrapped = before != "" and after != "" and before in "\"'([⟦【「『《" and after in "\"')]⟧】」』》"
        right = self.low[end : end + CONTEXT]
        if letter not in self.options.valid:
            if raw.islower() or not _ENDS.match(right) or (letter == "I" and not wrapped and after not in (".", "")):
                return None
            return Event(start, end, None, "stated") if self._cue(start) == "stated" else None
        own = self.options.length_after(letter, right)
        if _FORMULA.match(right) and not own:
            return None
        if raw.islower() and not wrapped:
            answers = raw not in "ai" and cues.ANSWERS.match(right.lstrip())
            if not answers and (not _LOWER_ENDS.match(right) or self._cue(start) != "stated"):
                return None
        elif raw == "I" and not wrapped and not _ENDS.match(right):
            return None
        elif raw == "A" and not wrapped and re.match(r"^ +\w", right) and not own:
            if not (cues.CONTINUES.match(right) or cues.GOOD.match(right.lstrip()) or cues.ANSWERS.match(right.lstrip())):
                return None
            if re.match(r"^ +(?:for|with|in|by|given|on|over) ", right) and self._cue(start) != "stated":
                return None
        kind = self._kind(start, end, letter, own)
        if (second := self.joined_by_another(end, letter, own)) is not None:
            self._joined.add(second)
            if kind == "denied":
                self._denied_with.add(second)
        if start in self._denied_with:
            kind = "denied"
            if second is not None:
                self._denied_with.add(second)
        if kind != "denied" and (second is not None or start in self._joined):
            kind = "several" if kind in ("stated", "soft") else "mentioned"
        return Event(start, end, letter if kind != "several" else None, kind)

    def _kind(self, start: int, end: int, letter: str, own: int) -> Kind:
        left, right = self._sides(start, end + own)
        if cues.BUT.search(left) or cues.ZH_BUT.search(left) or right.startswith("莫属"):
            return "stated"
        if self.denied(left):
            return "denied"
        cue = self._cue(start)
        if cue == "denied":
            return "denied"
        bad = cues.BAD.match(right) or cues.ZH_BAD.match(right)
        if cues.ZH_NOT_OTHER.match(right):
            return "stated" if cue == "stated" else "soft"
        if cue in ("stated", "soft"):
            answered = cues.ANSWERS.match(right)
            if bad and not right.startswith((".", ":", "\n")) and not answered:
                return "denied"
            if cue == "stated" and self._asked(start, right):
                return "mentioned"
        if cue == "stated":
            return "stated"
        for pattern in (cues.ANSWERS, cues.ZH_ANSWERS):
            if answered := pattern.match(right):
                if cues.NEGATION.search(answered.group()) or re.search("[不错非]", answered.group()):
                    return "denied"
                return "mentioned" if self._asked(start, right) or self._supposed(start) else "stated"
        good = cues.GOOD.match(right)
        if good and cues.NEGATION.search(good.group()):
            return "denied"
        if bad and not (good and good.end() <= bad.end() and good.group().strip(" .:)") in ("yes", "right")):
            return "denied"
        if good or cues.ZH_GOOD.match(right):
            return "mentioned" if self._asked(start, right) or self._supposed(start) else "verdict"
        if cue == "soft":
            follows = self.low[end : end + CONTEXT]
            if _CLAUSE_ENDS.match(follows) or own or re.match(r"^ (?:because|since|as|for|which|due)\b", follows):
                return "mentioned" if self._asked(start, right) else "soft"
        return "mentioned"

    def _cue(self, start: int) -> Kind:
        """What the words before a place make of a letter there."""
        stem = self.low[max(0, start - CONTEXT) : start].rstrip(_OPENERS)
        marked = stem.rstrip(".:=-–—→>| ")
        line = stem.endswith("\n")
        if line:
            stem = stem.rstrip("\n ")
            marked = stem.rstrip(".:=-–—→>| ")
        if match := cues.STATED.search(stem):
            return self._of_statement(match, stem, self.low[start : start + CONTEXT])
        mark = stem[len(marked) :]
        if (
            (match := cues.HEADED.search(marked))
            and "," not in mark
            and ("." not in mark or not marked[: match.start()].rpartition("\n")[2])
        ):
            return "mentioned" if re.search(r"\b(?:each|no|an|another|wrong|incorrect|possible) \w*$", marked) else "stated"
        if match := cues.ZH_STATED.search(stem):
            if cues.ZH_DISBELIEF.search(stem[: match.start()]):
                return "denied"
            if cues.ZH_SUPPOSES.search(stem):
                return "mentioned"
            if match.group("not") or re.search("(?:错误|不正确)(?:的)?$", stem[: match.start()]):
                return "denied" if match.group("not") else "soft"
            return "stated"
        if match := cues.ZH_CHOSEN.search(stem):
            if match.group("not") or cues.ZH_DISBELIEF.search(stem[: match.start()]):
                return "denied"
            return "mentioned" if cues.ZH_SUPPOSES.search(stem[: match.start()]) else "stated"
        if not line and (match := cues.CHOSEN.search(stem)):
            before = stem[: match.start() + len(match.group("subject"))]
            if re.search(
                r"(?:not|n't|never|cannot|(?:tempted|wrong|incorrect|mistake|refuse|decline|unwilling|reluctant|hard) to)\s*(?:\w+\s+)?$",
                before,
            ):
                return "denied"
            if (
                re.search(r"\b(?:(?:was|were|wanted|about|inclined|going) (?:going )?to|first|initially)\s+(?:i\s+)?$", before)
                and "was" in before
            ):
                return "mentioned"
            return (
                "mentioned"
                if re.search(r"\b(?:would|might|could|may|often)\s+$", before) and not re.search(r"\b(?:i|we|you) would\s+$", before)
                else "stated"
            )
        if (not line or stem.endswith((":", ","))) and (match := cues.SOFT.search(stem) or cues.ZH_SOFT.search(stem)):
            before = stem[: match.start()]
            if cues.DISBELIEF.search(before) or cues.ZH_DISBELIEF.search(before):
                return "denied"
            return "mentioned" if cues.ZH_SUPPOSES.search(stem) else "soft"
        return "mentioned"

    def _of_statement(self, match: re.Match[str], stem: str, after: str) -> Kind:
        mid = match.group("mid")
        if cues.PLURAL.search(mid) or '"' in mid.strip('" ') or re.search(r"(?<![\w'])[b-hj-z](?![\w'])", mid):
            return "mentioned"
        before = stem[: match.start()]
        if cues.NEGATION.search(match.group("mid")) or cues.DISBELIEF.search(before):
            return "denied"
        if re.search(r"\b(?:wrong|incorrect|false|least \w+|worst|not|other|another|opposite)\s*$", before):
            return "soft" if re.match(r"(?:option|choice)\b", match.group()) else "denied"
        if cues.REPORTED.search(before):
            return "mentioned"
        if re.search(r"\b(?:would|were|if)\b", match.group()) and (cues.SUPPOSES.search(before) or cues.IF.match(after)):
            return "mentioned"
        return "stated"

    def joined_by_another(self, end: int, letter: str, own: int) -> int | None:
        """Where another letter stands that is named with this one, "A or B", "(A) Paris and (C) Rome"; None where there is none."""
        for offset in {0, own}:
            follows = self.low[end + offset : end + offset + CONTEXT]
            match = cues.ANOTHER.match(follows)
            if not match:
                continue
            at = end + offset + match.start("letter")
            other, raw = match.group("letter").upper(), self.text[at]
            rest = self.low[at + 1 : at + 1 + CONTEXT]
            if other == letter or other not in self.options.valid:
                continue
            wrapped = self.text[at - 1] in "\"'([【"
            spoken = raw in "AI" and re.match(r"^ +\w", rest) and (raw == "I" or not cues.CONTINUES.match(rest))
            if not wrapped and (raw.islower() or spoken):
                continue
            if cues.LISTED_BAD.match(rest.lstrip(_CLOSERS)) and not re.match(r"^\s*(?:and|or|和|与|、|或)", follows.lstrip(_CLOSERS)):
                continue  # "B, A and C are wrong"
            return at
        return None

    def _sides(self, start: int, end: int) -> tuple[str, str]:
        """What stands before and after, without the brackets around it."""
        left = self.low[max(0, start - CONTEXT) : start].rstrip(_OPENERS)
        return left, self.low[end : end + CONTEXT].lstrip(_CLOSERS)

    def denied(self, left: str) -> bool:
        if re.search(r"not only$", left):
            return False
        return bool(cues.DENIED.search(left) or cues.ZH_DENIED.search(left))

    def _asked(self, start: int, right: str) -> bool:
        """Whether the letter is part of a question: "Is it A?", "could the answer be A?", 是A吗."""
        left = self.low[max(0, start - CONTEXT) : start]
        asks = cues.QUESTION.match(right) and (cues.ASKS.search(left) or cues.ZH_ASKS.search(left))
        return bool(asks or cues.ZH_QUESTION.match(right))

    def _supposed(self, start: int) -> bool:
        return bool(cues.SUPPOSES.search(self.low[max(0, start - CONTEXT) : start]))
