"""One reading of a reply to a multiple-choice question: what is said of each letter, and the letter that follows from it.

Letters are looked at one by one with the words before and after them (``choice_cues``): each is *stated* ("the answer is B", ``\\boxed{B}``,
"B是正确答案", 故选B), *several* (stated with another one), *denied* ("not B", "B is wrong", 不选B), a *verdict* ("B is correct"), *soft* ("so B",
"I think B") or merely mentioned. The last statement that was not taken back decides; with none, the only verdict; then soft words, a letter on
its own line, a leading letter; then the option whose text was given. Where the evidence points to two letters, or to none, nothing is read: an
unread reply is counted, a wrong letter is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
_MENTION = re.compile(rf"(?<![{_EDGE}\\])(?<![0-9A-Za-z]['-])([A-Za-z])(?![{_EDGE}])(?!'[A-Za-z])(?!-[0-9A-Za-z])(?!\+\+|#)(?!\.[A-Z]\.)")
_RUN = re.compile(rf"(?<![{_EDGE}])([A-Z]{{2,}})(?![{_EDGE}])")
_FORMULA = re.compile(r"^ ?(?:[<>+^*≤≥≠]|=(?![>=]))")
_OPENERS, _CLOSERS = " \"'([⟦【「『《<", " \"')]⟧】」』》>"
_ENDS = re.compile(r"^(?:$|[\s]*[.,;:!?)\]⟧】」』》\"'\n。！？、✅✓✔|])")
_CLAUSE_ENDS = re.compile(r"^(?:$|[\s]*[.,;:!?)\]⟧】」』》\"'\n。！？、✅✓✔|]|\s*(?:项|选项|因|,|,)|\s*[-–—→])")
_LOWER_ENDS = re.compile(r"^(?:$|[.:;!?)\]⟧】」』》\"'\n。]|,(?! [a-z]\b))")
_BOX = re.compile(rf"{OPEN_BOX}([^{OPEN_BOX}{CLOSE_BOX}]{{1,400}})(?:{CLOSE_BOX}|\n|$)")
_BOXED_LETTER = re.compile(
    r"^(?:(?:the )?(?:final |correct )?(?:option|choice|answer|letter)(?: is)?|选项|答案是?)?[\s:\"'(\[]*([A-Za-z])[\s\"')\].,:;]*(?:$|(?<=[\s)\].,:;])(?P<rest>.*)$)",
    re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(r"^\W*[A-Z](?:\W*(?:,|and|or|&|/|、|和|或|;|与|及)?\W*[A-Z])+\W*$")
_LONE_LINE = re.compile(
    r"^[^\w]*(?:(?:question|problem|q) ?\d{0,3} ?[:.)-] ?)?(?:(?:the )?(?:final |correct )?(?:option|choice|answer|letter)|选项|答案)?[^\w]*([A-Za-z])[^\w]*$",
    re.IGNORECASE,
)
_TEXT_LINE = re.compile(r"^[^\w]*(?:option |choice |选项 ?)?[(\[]?([A-Z])[)\]]?(?: ?[.):,、|-]+ ?|\s)(.+)$")
_LEADS = re.compile(r"^[^\w]{0,6}(?:(?:option|choice|选项) ?[(\"']?)?([A-Za-z])(?![A-Za-z0-9'])")
_LISTED = re.compile(r"(?:^|(?<=[\s;,，。]))[(\[]?([A-Z])[.):、](?=\s|\S)", re.MULTILINE)
_TRAILING = re.compile(r"(?:[(\[【]([A-Za-z])[)\]】]|[.!?\n。] ?([A-Z]))[\s.。!]*$")
"""A letter in brackets at the end, or a last sentence that is a letter."""
_CJK_GAP = re.compile(r"(?<=[\u3040-\u9fff]) (?=[\u3040-\u9fff])")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|[。！？\n]")


@dataclass(frozen=True, slots=True)
class Event:
    """What a reply says of a letter at a place; ``letter`` is None where it is none of the question's."""

    start: int
    end: int
    letter: str | None
    kind: Kind


class Reading:
    """One reading of a text: events by place, and what follows from them."""

    def __init__(self, text: str, options: Options):
        self.text, self.low, self.options = text, lower_case(text), options
        self._joined: set[int] = set()
        self._denied_with: set[int] = set()

    def letter(self) -> str | None:
        text, options = self.text, self.options
        if (whole := options.equal_to(text)) is not None:
            return whole
        events = self._events()
        stated = [event for event in events if event.kind in ("stated", "several")]
        after = 0
        if stated:
            last = stated[-1]
            settled = self._settled(last, events)
            if settled is not None:
                return settled
            after = last.end
        later = [event for event in events if event.start >= after]
        return self._weaker(later, stated_before=bool(stated), after=after)

    # ---------------------------------------------------------------- what follows from the events

    def _settled(self, last: Event, events: Sequence[Event]) -> str | None:
        """The letter of the last statement, unless it is none of the question's, several, or taken back."""
        rest = self.low[last.end :]
        revised = cues.REVISED.search(rest)
        if revised:
            since = last.end + revised.end()
            other = self._weaker([event for event in events if event.start >= since], stated_before=True, after=since)
            if other is not None and other != last.letter:
                return other
        if last.kind == "several" or last.letter is None:
            return None
        for event in events:
            if event.start >= last.end and event.kind == "denied" and event.letter == last.letter and not self._explains(event):
                return None
        if revised and "actually" not in revised.group() and "no" not in revised.group()[:2]:
            again = any(event.letter == last.letter and event.start > last.end for event in events)
            return last.letter if again or self._confirms(last.end + revised.end()) else None
        return last.letter

    def _confirms(self, since: int) -> bool:
        return (
            re.search(r"\b(?:yes|correct|indeed|confirm\w*|still|holds|checks? out|right)\b|没错|确实|正确", self.low[since : since + 300])
            is not None
        )

    def _explains(self, event: Event) -> bool:
        """Whether a denial stands in a clause that gives the reason for the choice: "B, because B is false"."""
        clause = re.split(r"[.!?\n。！？]", self.low[max(0, event.start - CONTEXT) : event.start])[-1]
        return re.search(r"\b(?:because|since|as|reason)\b|因为|由于", clause) is not None

    def _weaker(self, events: Sequence[Event], *, stated_before: bool, after: int) -> str | None:
        """The letter that verdicts, soft words, lines and texts point to, each asked only where the stronger ones are silent."""
        denied = {event.letter for event in events if event.kind == "denied"}
        said = [event for event in events if event.kind == "verdict"]
        if said and cues.BUT_SAYS.search(self.low[max(0, said[-1].start - CONTEXT) : said[-1].start]):
            said = said[-1:]  # "A seems right, but B is correct"
        verdicts = {event.letter for event in said} - denied
        soft = [event for event in events if event.kind == "soft"]
        candidates: list[str | None] = []
        if len(verdicts) == 1:
            candidates.append(next(iter(verdicts)))
        elif len(verdicts) > 1 and not soft:
            return None
        if soft and soft[-1].letter not in denied:
            candidates.append(soft[-1].letter)
        lone = self._lone(after)
        if lone == "" and not candidates:
            return None
        if lone:
            candidates.append(lone)
        if not candidates and not stated_before:
            leading = self._leading()
            if leading == "":
                return None
            if leading and leading not in denied:
                candidates.append(leading)
        if candidates:
            if lone:
                return lone  # a line of its own is the most deliberate of them
            return candidates[0] if len(set(candidates)) == 1 else (soft[-1].letter if soft and soft[-1].start > after else None)
        trailing = _TRAILING.search(self.text, max(0, len(self.text) - 20))
        if trailing and trailing.start() >= after:
            letter = (trailing.group(1) or trailing.group(2)).upper()
            return letter if letter in self.options.valid and letter not in denied else None
        return None if stated_before else self._by_text()

    # ---------------------------------------------------------------- letters and what is said of them

    def _events(self) -> list[Event]:
        boxes = self._boxes()
        spans = [(event.start, event.end) for event in boxes]
        found = boxes + self._texts_stated()
        matches = list(_MENTION.finditer(self.text))
        if len(matches) > FIRST + LAST:
            matches = matches[:FIRST] + matches[-LAST:]
        inside = 0
        for match in matches:
            while inside < len(spans) and spans[inside][1] <= match.start():
                inside += 1
            if inside < len(spans) and spans[inside][0] <= match.start():
                continue
            if (event := self._event(match)) is not None:
                found.append(event)
        for match in list(_RUN.finditer(self.text))[-LAST:]:
            run = match.group(1)
            if set(run) <= set(self.options.valid) and sorted(set(run)) == list(run) and self._cue(match.start()) == "stated":
                found.append(Event(match.start(), match.end(), None, "several"))
        return sorted(found, key=lambda event: event.start)

    def _boxes(self) -> list[Event]:
        """Boxes whose content is a letter, several, or an option's text; a box with a formula says nothing of the letter."""
        found: list[Event] = []
        for match in list(_BOX.finditer(self.text))[-LAST:]:
            letter, kind = self._boxed(match.group(1).strip())
            if kind == "mentioned":
                continue
            left, right = self._sides(match.start(), match.end())
            if cues.BAD.match(right) or cues.ZH_BAD.match(right) or self._denied(left):
                kind = "denied"
            joined = found and re.fullmatch(r"\s*(?:or|and|,|/|&|或|和|、)\s*", self.low[found[-1].end : match.start()][:12])
            if joined and found[-1].letter != letter:
                letter, kind = None, "several"
            found.append(Event(match.start(), match.end(), letter, kind))
        return found

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

    def _sides(self, start: int, end: int) -> tuple[str, str]:
        """What stands before and after, without the brackets around it."""
        left = self.low[max(0, start - CONTEXT) : start].rstrip(_OPENERS)
        return left, self.low[end : end + CONTEXT].lstrip(_CLOSERS)

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
        if (second := self._joined_by_another(end, letter, own)) is not None:
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
        left, right = self._sides(start, end)
        if cues.BUT.search(left) or cues.ZH_BUT.search(left) or right.startswith("莫属"):
            return "stated"
        if self._denied(left):
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

    def _denied(self, left: str) -> bool:
        if re.search(r"not only$", left):
            return False
        return bool(cues.DENIED.search(left) or cues.ZH_DENIED.search(left))

    def _asked(self, start: int, right: str) -> bool:
        """Whether the letter stands in a question: "Is it A?", "could the answer be A?", 是A吗."""
        left = self.low[max(0, start - CONTEXT) : start]
        asks = cues.QUESTION.match(right) and (cues.ASKS.search(left) or cues.ZH_ASKS.search(left))
        return bool(asks or cues.ZH_QUESTION.match(right))

    def _supposed(self, start: int) -> bool:
        return bool(cues.SUPPOSES.search(self.low[max(0, start - CONTEXT) : start]))

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

    def _joined_by_another(self, end: int, letter: str, own: int) -> int | None:
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

    # ---------------------------------------------------------------- lines and texts

    def _lone(self, after: int) -> str | None:
        """The letter that stands on a line of its own, alone or with its option's text, where the lines are no list of the options; "" where
        several letters do."""
        lines = (self.text[after:].partition("\n")[2] if after else self.text).split("\n")
        near = lines if len(lines) <= FIRST + LAST else lines[:FIRST] + lines[-LAST:]
        pure: list[str] = []
        listed: list[str] = []
        for line in near:
            if len(line) > 600:
                continue
            if match := _LONE_LINE.match(line):
                pure.append(match.group(1).upper())
            elif (
                (match := _TEXT_LINE.match(line))
                and match.group(1) in self.options.valid
                and self._text_of(match.group(2)) == match.group(1)
            ):
                listed.append(match.group(1))
        valid = self.options.valid
        if pure:
            return pure[0] if len(set(pure)) == 1 and pure[0] in valid else ""
        run = 0
        while run < len(listed) and run < len(valid) and listed[run] == valid[run]:
            run += 1
        rest = listed[run:] if run > 1 else listed
        return rest[0] if len(set(rest)) == 1 else None

    def _text_of(self, text: str) -> str | None:
        return self.options.equal_to(text)

    def _leading(self) -> str | None:
        """The letter that the text begins with; "" where it begins with one that is no answer: a list, or several."""
        match = _LEADS.match(self.text)
        if not match:
            return None
        raw, end = match.group(1), match.end(1)
        letter = raw.upper()
        right = self.low[end : end + CONTEXT]
        if letter not in self.options.valid:
            return None
        own = self.options.length_after(letter, right)
        mark = re.match(r"^[\"')\]⟧】]*\s?([.):,;、。|(]|[-–—→](?=\s)|$|\n|\t)", right)
        if raw.islower() and not (mark and (self.text[end : end + 1] in (".", ")", ":") or match.start(1) > 0)):
            return None
        alone = len({m.group(1) for m in list(_MENTION.finditer(self.text))[: FIRST + LAST]} & set(self.options.valid)) == 1
        reason = re.match(r"^(?: (?:because|since|as|for|due|rather than|instead of|over)\b|\s*(?:项|选项|因为|由于|吧))", right) or (
            alone and re.match(r"^ (?:is|was)\b", right)
        )
        if not (mark or own or (reason and raw != "I")):
            return None
        if raw in "AI" and not own and re.match(r"^ \w", right) and re.match(r"^ (?:for|with|in|by|on|over|or|but|not|if|given)\b", right):
            return None
        if self._joined_by_another(end, letter, own) is not None:
            return ""
        others = {m.group(1) for m in list(_LISTED.finditer(self.text, end))[: FIRST + LAST]} & set(self.options.valid) - {letter}
        if others and not any(other < letter for other in others):
            return ""  # a list of the options, which begins with this one
        follows = self.text[end : end + 300].split("\n")[0]
        stated = self.options.equal_to(follows) if not own else letter
        return "" if stated not in (None, letter) else letter

    def _texts_stated(self) -> list[Event]:
        """Statements whose object is an option's text: "The answer is 15 km"."""
        found: list[Event] = []
        for match in list(cues.TEXT_STATED.finditer(self.low))[-40:]:
            start = match.start("object")
            sentence = _SENTENCE.split(match.group("object"), maxsplit=1)[0]
            if cues.NEGATION.search(self.low[match.start() : start]) or cues.DISBELIEF.search(
                self.low[max(0, match.start() - 60) : match.start()]
            ):
                continue
            sentence = re.sub(
                r"^[\s:]*(?:(?:therefore|thus|then|clearly|probably|likely|just|simply|option|i think|i believe)[\s,:]+)*", "", sentence
            )
            letter = self.options.equal_to(sentence) or self.options.begins(sentence)
            if letter is None:
                among = self._unnegated(sentence)
                letter = next(iter(among)) if len(among) == 1 and not self.options.is_plain_word(next(iter(among))) else None
            elif len(self._unnegated(sentence)) > 1:
                letter = None
            if letter is not None:
                found.append(Event(start, match.end("object"), letter, "stated"))
        return found

    def _unnegated(self, text: str) -> set[str]:
        """The letters of the options whose text occurs in a text and is not denied there."""
        joined = self.options.joined(text)
        found = self.options.occurring(text)
        before = (_CJK_GAP.sub("", joined[max(0, start - 60) : start].rstrip()) for start, _, _ in found)
        return {letter for (_, _, letter), left in zip(found, before, strict=True) if not self._denied(left)}

    def _by_text(self) -> str | None:
        """The option whose text a reply without letters gives."""
        options, text = self.options, self.text
        if not any(options.texts):
            return None
        last = text.rsplit("\n", 1)[-1]
        if (same := options.equal_to(last[:600])) is not None and "\n" in text:
            return same
        if match := re.match(r"^[^\w]*(\w[^.,;:!?\n。，；：！？]{0,200})[.,;:!?\n。，；：！？]", text):  # "No, it was not."
            if (same := options.equal_to(match.group(1))) is not None and len(self._unnegated(text[:600])) == 1:
                return same
        near = text if len(text) <= 500 else last[-500:]
        if cues.UNSURE.search(lower_case(near)):
            return None
        if match := re.search(r"=\s*([^=\n]{1,60})$", near.rstrip(" .。")):
            if (same := options.equal_to(match.group(1))) is not None or (same := options.begins(match.group(1))) is not None:
                return same
        found = self._unnegated(near)
        if len(found) > 1:
            concluding = [part for part in _SENTENCE.split(near) if part.strip()][-1:]
            found = self._unnegated(concluding[0]) if concluding and cues.CONCLUDES.search(lower_case(concluding[0])) else set()
        if len(found) != 1:
            return None
        (letter,) = found
        if options.is_plain_word(letter):
            joined = options.joined(near)
            ends = joined == options.texts[options.valid.index(letter)] or re.search(
                rf"(?:^| )(?:is|be|=|equals|are|was|是|为|得)(?: \w+)? {re.escape(options.texts[options.valid.index(letter)])}(?: [^\W\d]+)?$",
                joined,
            )
            return letter if ends else None
        return letter
