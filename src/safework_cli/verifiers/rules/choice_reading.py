"""The letter that follows from what a reply says of each.

The last statement that was not taken back decides; with none, the only verdict; then soft words, a letter on its own line, a leading
letter; then the option whose text was given. Where the evidence points to two letters, or to none, nothing is read: an unread reply is
counted, a wrong letter is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from safework_cli.verifiers.rules import choice_cues as cues
from safework_cli.verifiers.rules.choice_events import CONTEXT, FIRST, LAST, MENTION, SENTENCE, Event, Mentions
from safework_cli.verifiers.rules.choice_text import lower_case

_LONE_LINE = re.compile(
    r"^[^\w]*(?:(?:question|problem|q) ?\d{0,3} ?[:.)-] ?)?(?:(?:the )?(?:final |correct )?(?:option|choice|answer|letter)|选项"
    r"|答案)?[^\w]*([A-Za-z])[^\w]*$",
    re.IGNORECASE,
)
_TEXT_LINE = re.compile(r"^[^\w]*(?:option |choice |选项 ?)?[(\[]?([A-Z])[)\]]?(?: ?[.):,、|-]+ ?|\s)(.+)$")
_LEADS = re.compile(r"^[^\w]{0,6}(?:(?:option|choice|选项) ?[(\"']?)?([A-Za-z])(?![A-Za-z0-9'])")
_LISTED = re.compile(r"(?:^|(?<=[\s;,，。]))[(\[]?([A-Z])[.):、](?=\s|\S)", re.MULTILINE)
_OPENING = re.compile(r"^[^\w]{0,10}(\w[^.,;:!?\n。，；：！？]{0,200})[.,;:!?\n。，；：！？]")
_EQUALS = re.compile(r"=\s*([^=\n]{1,60})$")
_TRAILING = re.compile(r"(?:[(\[【]([A-Za-z])[)\]】]|[.!?\n。] ?([A-Z]))[\s.。!]*$")
"""A letter in brackets at the end, or a last sentence that is a letter."""


class Reading(Mentions):
    """A text with the letter that it chose."""

    def letter(self) -> str | None:
        text, options = self.text, self.options
        if (whole := options.equal_to(text)) is not None:
            return whole
        events = self.events()
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
        """Whether a denial is part of a clause that gives the reason for the choice: "B, because B is false"."""
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

    def _lone(self, after: int) -> str | None:
        """The letter that stands on a line of its own, with or without its option's text, where the lines are no list of the options;
        "" where several letters do."""
        lines = (self.text[after:].partition("\n")[2] if after else self.text).split("\n")
        near = lines if len(lines) <= FIRST + LAST else lines[:FIRST] + lines[-LAST:]
        pure: list[str] = []
        listed: list[str] = []
        for line in near:
            if len(line) > 600:
                continue
            if match := _LONE_LINE.match(line):
                pure.append(match.group(1).upper())
            elif (match := _TEXT_LINE.match(line)) and match.group(1) in self.options.valid and self.options.is_text_of(*match.groups()):
                listed.append(match.group(1))
        valid = self.options.valid
        if pure:
            return pure[0] if len(set(pure)) == 1 and pure[0] in valid else ""
        run = 0
        while run < len(listed) and run < len(valid) and listed[run] == valid[run]:
            run += 1
        rest = listed[run:] if run > 1 else listed
        return rest[0] if len(set(rest)) == 1 else None

    def _leading(self) -> str | None:
        """The letter that the text begins with; "" if that is not an answer: a list, or several."""
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
        single = len({m.group(1) for m in list(MENTION.finditer(self.text))[: FIRST + LAST]} & set(self.options.valid)) == 1
        reason = re.match(r"^(?: (?:because|since|as|for|due|rather than|instead of|over)\b|\s*(?:项|选项|因为|由于|吧))", right) or (
            single and re.match(r"^ (?:is|was)\b", right)
        )
        if not (mark or own or (reason and raw != "I")):
            return None
        if raw in "AI" and not own and re.match(r"^ \w", right) and re.match(r"^ (?:for|with|in|by|on|over|or|but|not|if|given)\b", right):
            return None
        if self.joined_by_another(end, letter, own) is not None:
            return ""
        others = {m.group(1) for m in list(_LISTED.finditer(self.text, end))[: FIRST + LAST]} & set(self.options.valid) - {letter}
        if others and not any(other < letter for other in others):
            return ""  # a list of the options, which begins with this one
        line = self.text[end:].partition("\n")[0]
        named = self.options.begins(line) if own else self.options.equal_to(line)
        return "" if named not in (None, letter) else letter  # "B. Paris", where B is London

    def _by_text(self) -> str | None:
        """The option whose text a reply without letters gives."""
        options, text = self.options, self.text
        if not any(options.texts):
            return None
        last = text.rsplit("\n", 1)[-1]
        if (same := options.equal_to(last[:600])) is not None and "\n" in text:
            return same
        opening = _OPENING.match(text)  # "No, it was not."
        if opening and (same := options.equal_to(opening.group(1))) is not None and len(self.unnegated(text[:600])) == 1:
            return same
        if "\n" in text and _TEXT_LINE.match(last):
            return None  # the end of a list
        near = text if len(text) <= 500 else last[-500:]
        if "\n" in text and len(last) <= 500 and len(self.unnegated(last)) == 1:
            near = last  # the conclusion, where the options were gone through before
        if cues.UNSURE.search(lower_case(near)):
            return None
        equals = _EQUALS.search(near.rstrip(" .。"))
        if equals and (same := options.equal_to(equals.group(1)) or options.begins(equals.group(1))) is not None:
            return same
        letters = self.unnegated(near)
        if len(letters) > 1:
            concluding = [part for part in SENTENCE.split(near) if part.strip()][-1:]
            letters = self.unnegated(concluding[0]) if concluding and cues.CONCLUDES.search(lower_case(concluding[0])) else set()
        if len(letters) != 1:
            return None
        (letter,) = letters
        if options.is_plain_word(letter):
            own = re.escape(options.texts[options.valid.index(letter)])  # "… is 15 km", and not "there are 15 …"
            states = rf"^{own}$|(?:^| )(?:is|be|=|equals|was|是|为|得)(?: \w+)? {own}(?: [^\W\d]+)?$"
            return letter if re.search(states, options.joined(near)) else None
        return letter
