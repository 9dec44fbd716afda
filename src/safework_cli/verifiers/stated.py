"""The label that a judge's text states. Torch-free.

A judge in prose is read strictly: a label counts if it is the complete text, its first words or a line of its own, in a
box, a tag or JSON, or if a sentence states that it is the verdict. Denied labels do not count. Two labels, a condition, a doubt, a
question, the repeated instruction, or a thought that was cut are not a verdict: the caller makes them an error, never a class.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from safework_cli.verifiers.spec import LabelSpec

MAX_CHARACTERS = 50_000
"""How many of the last characters of a judge's text are read."""
_ECHO = 25
"""Characters of a line of the instruction, at least, by which the instruction is known again."""

_THOUGHT = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_OPENED = re.compile(rf"<{_THOUGHT}>|\[THINK\]|◁think▷", re.IGNORECASE)
_CLOSED = re.compile(rf"</{_THOUGHT}>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|[^|>]*\|>[^<]{0,40}){0,2}?<\|message\|>|(?<=assistant)final")
_CONTROL = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>|</?s>|<(?:end_of_turn|eos|pad)>")

_KEYS = (
    r"answer|verdict|label|class|classification|category|judge?ment|grade|rating|decision|conclusion|result|choice|assessment|evaluation"
    r"|code|option|output|ruling|prediction|determination|letter|safety|safety[ _]class|final[ _](?:answer|verdict|label|judge?ment"
    r"|decision)"
)
_NOUN = rf"\b(?:{_KEYS})(?: (?:for|of|to) (?:the|this|that) (?:response|reply|query|answer|case|exchange))?(?: here| therefore)?"
_FILL = (
    r"(?:\s++|(?:therefore|thus|then|clearly|definitely|simply|plainly|obviously|certainly|follows|as|be|to|the|a|an|under|into|in|with"
    r"|label|class|category|option|code|letter|answer|verdict)\b|:|=|->|=>|→|-|–|—|\()*+"
)
_SAID = re.compile(
    rf"{_NOUN}\s*(?:is|was|would be|should be|must be|will be|has to be|:|=|->|=>|→|-|–|—)\s*{_FILL}$"
    rf"|^\W*(?:(?:my|the|final|overall|correct)\s)*(?:{_KEYS})\s+$"
    r"|(?:答案|标签|標籤|结论|結論|判定|判断|判斷|类别|類別|分类|分類|评级|評級|结果|結果|选项|選項|选择|選擇|归类|评估|评价|裁定|评判|判决|等级)"
    r"(?:应该|应当|应|就|则|将|会|的|结果|為|为|是|:|=|→|->|属于|屬於|即|选|選|类|\s)*$",
    re.IGNORECASE,
)
_WHO = (
    r"(?:I|we|one|this|that|it|(?:this|the) (?:response|reply|completion|statement|claim"
    r"|assistant's (?:response|reply)|model's (?:response|reply)|one))"
)
_DOES = (
    r"(?:classif(?:y|ied)|label(?:l?ed|s)?|rated?|judged?|grade[ds]?|cho?ose|picked|pick|select(?:ed)?|call(?:ed)?|mark(?:ed)?|answer|say"
    r"|going with|go with|went with|consider(?:ed)?|assign(?:ed)?|give|deem(?:ed)?|categori[sz]ed?|falls?(?: squarely)? (?:under|into|in)"
    r"|belongs? (?:to|in|under)|qualif(?:y|ies) as|counts? as|gets?|deserves?|receives?|settle on|conclude(?: that)?|find|vote for"
    r"|vote|decide on"
    r"|match(?:es)?|fits?|meets|is|was|be)"
)
_DEEMED = re.compile(
    rf"(?:^|\W){_WHO}(?:'d|'ll|'s|'m| am)?\s+(?:(?:would|will|should|must|shall|do|can|has|have|is|was|clearly|therefore|thus|hereby"
    rf"|best|definitely|be|to|been)\s+)*"
    rf"{_DOES}\s*(?:\s(?:it|this|that|(?:the|this) (?:response|reply|answer|one)))?(?:\s(?:is|that it is))?{_FILL}$"
    rf"|(?:^|\W)(?:it|this|that)'s\s+{_FILL}$"
    rf"|^\W*(?:应该|应|就|因此|所以)?(?:选择?|選擇?)\s*:?\s*$"
    rf"|(?:^|[,;:])\W*(?:and |which )?(?:so|thus|hence|therefore|overall|in conclusion|in short|makes? it"
    rf"|making it)\s*[,:]?\s*{_FILL}$|(?:→|->|=>)\s*$"
    r"|(?:,|我|本人|应|該|该|此|这|這|回复|回覆|回答|它|因此|所以|综上|故|可|将其|把它|其)[^,，。;；]{0,10}?"
    r"(?:选择?|選擇?|判(?:定|断|斷)?[为為]|归(?:类)?(?:为|于|入|到)|标(?:记|注)?为|属于|屬於|是|为|為|给出?|评为|定为|分类为|分为|视为|答)\s*:?\s*$",
    re.IGNORECASE,
)
_IS = re.compile(r"\b(?:is|'s)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_ADVERB = re.compile(
    r"\W*(?:(?:actually|definitely|clearly|certainly|obviously|simply|plainly|correct|well|okay?|hmm+|no|yes|option|class|category"
    r"|label|just)"
    r"[,.:]?\s+){0,2}",
    re.IGNORECASE,
)
_TAIL = re.compile(r"\s*(?:response|reply|category|class)?\W*$", re.IGNORECASE)
_FINAL = re.compile(r"\b(?:final|finally|in conclusion|in the end)\b|最终|最后|最終|最後", re.IGNORECASE)
_NOT = re.compile(
    r"\b(?:not|never|no|neither|nor|rather than|instead of|hardly|far from|other than|different from|than|against|exclud\w+|rul\w+ out"
    r"|reject\w*|den(?:y|ies)|wrong|incorrect|false|mistaken)\b|n't\b|不|非|没|沒|未|无法|無法|难以|而是不|并非",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:might|may|could|possibly|perhaps|maybe|either|between|if|unless|whether|unsure|uncertain|unclear|hard to|difficult to"
    r"|depend\w*"
    r"|arguably|probably|likely|seems?|appears?|lean\w*|tend\w*|almost|nearly|borderline|somewhat|partly|half|sort of|kind of|or"
    r"|sometimes"
    r"|can(?:not|'t)|were|had|suppose|imagine|expected to|asked to|let's|let us|let me|(?:user|query|response|reply|prompt|human"
    r"|assistant|model|it|he|she|they|some|people|somebody)"
    r" (?:\w+ )?(?:says?|said|claims?|states?|asks?|asked|tells?|told|answers?|writes?|wrote|insists?|thinks?))\b"
    r"|可能|也许|也許|或|还是|還是|如果|若|除非|之间|之間|不确定|不確定|大概|似乎|假如|要么|倾向|好像|吗|嗎|难说|介于",
    re.IGNORECASE,
)
_DOUBT_AFTER = re.compile(
    r"\b(?:if|unless|or|maybe|perhaps|possibly|depending|unsure|uncertain|not sure|otherwise|probably|might|could also|-ish)\b"
    r"|或|如果|若|除非|可能|也许|不确定|吗|嗎|还是",
    re.IGNORECASE,
)
_BUT = re.compile(r"^\W*(?:but|though|although|however|yet|except|only|in part|to some|at first|in tone|但|不过|然而|只是)", re.IGNORECASE)
_REVISED = re.compile(
    r"\b(?:wait|on second thoughts?|correction|scratch that|i take (?:that|it) back|reconsider|let me re\w+|hmm+|actually)\b|等等|更正"
    r"|重新考虑|不对",
    re.IGNORECASE,
)
_ABSTAINS = re.compile(
    r"\b(?:can(?:not|'t| not)|could not|couldn't|unable to|won't|will not|refuse to|hard to|difficult to|impossible to|not able to) "
    r"(?:\w+ )?(?:judge|classify|evaluate|determine|decide|label|rate|assess|grade|tell|say|choose|answer|help|assist|provide|comply)\b"
    r"|not enough (?:information|context)|\bI (?:can|could|will|would|'ll|'d) (?:\w+ )?(?:help|assist|be (?:happy|glad))"
    r"|please (?:provide|share|give|send)"
    r"|(?:无法|不能|难以|没法|無法)(?:作出|做出|进行)?(?:判断|判定|评估|确定|分类|评价|回答|判斷)|信息不足|请提供",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\s*(?:类|類|级|項|项|选项|类别|category|class|label|response|reply)?\s*"
    r"(?:$|[.!,;:)\]\n(。、]|[-–—](?!\w)|because\b|since\b|as (?:it|the"
    r"|there)\b|for (?:it|the)\b"
    r"|given\b|due to\b|here\b|overall\b|and (?:not|it|the)\b|rather than\b|instead of\b|not\b|因为|由于|理由|原因|,|而不是|而非|,)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|[。!?！？；]|\n")
_CLAUSE = re.compile(r"[,;:，；：。]|\bbut\b|\bso\b|\btherefore\b|\bhence\b|而是|所以|因此")
_QUOTED = re.compile(r"[\"“「『]([^\"“”「」『』\n]{0,2000})[\"”」』]")
_JSON = re.compile(r"\{[^{}]{0,20000}\}")
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?([^{}\n]{0,80})\}?\s*\}")
_TAGGED = re.compile(r"<(answer|verdict|label|class|judgement|judgment|output|result|grade)>([^<>]{0,80})</\1>", re.IGNORECASE)
_BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,60})\]\]")
_STRIP = " \t\r\n.,;:!。，；：！*_`#>-–—•\"'“”‘’「」『』()[]【】{}<>《》→="


@dataclass(frozen=True, slots=True)
class _Mention:
    """A name of a label in the text, together with its code or label if both are written."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class _Stated:
    label: str
    end: int
    final: bool


class _Names:
    """The labels and codes of a spec, and how they are found in a text."""

    def __init__(self, labels: tuple[str, ...], codes: tuple[str, ...]):
        self.of = {name.casefold(): label for label, code in zip(labels, codes, strict=True) for name in (label, code)}
        names = sorted({*labels, *codes}, key=len, reverse=True)
        # A single letter counts as a capital only, and not as the article: "A reply that …".
        letters = "".join(re.escape(name) for name in names if len(name) == 1)
        words = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names if len(name) > 1)
        parts = [rf"(?i:{words})"] if words else []
        if letters:
            parts.append(
                rf"(?:(?![AI]\s+(?!because|since|as\s|given|due|for\s|here|overall|rather|instead|not\s|and\s)[a-z])[{letters}](?![+#]))"
            )
        self.pattern = re.compile(rf"(?<![A-Za-z0-9_'’\-])(?:{'|'.join(parts)})(?![A-Za-z0-9_'’]|-[A-Za-z]|\.[A-Za-z]|[+-](?:\s|$))")

    def label(self, text: str) -> str | None:
        """The label whose name, or code and name, a text is."""
        if re.search(r"[A-Za-z][+\-]\s*$", text):  # "A-" is a mark at school
            return None
        plain = " ".join(text.strip(_STRIP).split()).casefold()
        if plain in self.of:
            return self.of[plain]
        mentions = self.mentions(text)
        if len(mentions) == 1 and not text[: mentions[0].start].strip(_STRIP) and not text[mentions[0].end :].strip(_STRIP):
            return mentions[0].label
        return None

    def mentions(self, text: str) -> list[_Mention]:
        """In order; a code and its own label side by side ("D: Unsafe", "Unsafe (D)") are one mention."""
        mentions: list[_Mention] = []
        for match in self.pattern.finditer(text):
            label = self.of[" ".join(match[0].split()).casefold()]
            before = mentions[-1] if mentions else None
            if before and before.label == label and re.fullmatch(r"[ \t=:.,()\-–—类類级]{0,8}", text[before.end : match.start()]):
                mentions[-1] = _Mention(before.start, match.end(), label)
            else:
                mentions.append(_Mention(match.start(), match.end(), label))
        return mentions


@lru_cache(maxsize=64)
def _names(labels: tuple[str, ...], codes: tuple[str, ...]) -> _Names:
    return _Names(labels, codes)


def after_thought(text: str) -> str | None:
    """What a judge says after its thoughts; None where a thought does not end, or nothing follows it."""
    if "<|channel|>" in text or re.match(r"analysis[A-Z]", text):  # gpt-oss, with its tokens and without them
        finals = list(_CHANNEL.finditer(text))
        return text[finals[-1].end() :] if finals else None
    outside, place, opened = [], 0, False
    marks = sorted(
        [(m.start(), m.end(), True) for m in _OPENED.finditer(text)] + [(m.start(), m.end(), False) for m in _CLOSED.finditer(text)]
    )
    for start, end, opens in marks:
        if opens and not opened:
            outside.append(text[place:start])
        elif not opens and not opened:
            outside.clear()  # the thought was opened in the prompt
        opened, place = opens, end
    return None if opened else "".join([*outside, text[place:]])


def written_label(text: str, spec: LabelSpec, *, cut: bool = False) -> str | None:
    """The label that a judge's text states, or None.

    Args:
        text: what the judge wrote, with its thought if the server leaves it there.
        cut: the text ended at the limit of tokens: what is at its end may be incomplete: a verdict only if it is the complete text.
    """
    said = after_thought(text[-MAX_CHARACTERS:])
    if said is None:
        return None
    said = unicodedata.normalize("NFKC", _CONTROL.sub(" ", said)).replace("’", "'").replace("\u200b", "").strip()
    names = _names(tuple(spec.labels), tuple(spec.codes))
    if (whole := names.label(said)) is not None:
        return whole
    if _echoes(said, spec, cut):
        return None
    formal = _formal(said, names)
    if formal is not None:
        return formal.pop() if len(formal) == 1 else None
    return _in_prose(said, names, cut)


def _echoes(said: str, spec: LabelSpec, cut: bool) -> bool:
    """Whether the text holds the judge's own instruction: two of its lines, or its frame, or one line that was cut."""
    flat = " ".join(said.casefold().split())
    if any(tag in flat for tag in ("<text_query>", "</text_query>", "<response>", "</response>", "<reference>", "</reference>")):
        return True
    instruction = "\n".join((spec.system, spec.template, spec.strict_template)).casefold()
    lines = {" ".join(line.split()) for line in instruction.splitlines()}
    whole = sum(line in flat for line in lines if len(line) >= _ECHO)
    return whole >= 2 or (cut and any(line.startswith(flat) or flat.startswith(line) for line in lines if len(line) >= _ECHO))


def _formal(said: str, names: _Names) -> set[str | None] | None:
    """The labels in JSON, boxes and tags, with None for a value that is not a label; None if the text has none of these forms."""
    values: list[object] = []
    for match in _JSON.finditer(said):
        try:
            record = json.loads(match[0])
        except (ValueError, RecursionError):
            keys = re.findall(rf"['\"]?\b(?:{_KEYS})\b['\"]?\s*:\s*['\"]([^'\"\n]{{0,60}})['\"]", match[0], re.IGNORECASE)
            values += keys
            continue
        if isinstance(record, dict):
            named = [value for key, value in record.items() if re.fullmatch(_KEYS, str(key).strip(), re.IGNORECASE)]
            values += named or [None]
    values += [match[1] for match in _BOXED.finditer(said)]
    values += [match[2] for match in _TAGGED.finditer(said)]
    values += [match[1] for match in _BRACKETS.finditer(said)]
    if not values:
        return None
    texts = [str(value) if isinstance(value, bool) else value for value in values]
    return {names.label(value) if isinstance(value, str) else None for value in texts}


def _in_prose(said: str, names: _Names, cut: bool) -> str | None:
    def unquoted(match: re.Match[str]) -> str:
        return f" {match[1]} " if names.label(match[1]) is not None else " … "

    plain = re.sub(r"[*`]|(?m:^[ \t]*+(?:>|#+|[-•]\s)\s*)|__", "", said)
    whole = _QUOTED.fullmatch(plain.strip())
    plain = _QUOTED.sub(unquoted, whole[1] if whole else plain)
    plain = re.sub(r"(?<![\w])'([^'\n]{1,40})'(?![\w])", unquoted, plain)
    plain = re.sub(
        r"[(\[【<]([^()\[\]【】<>\n]{1,40})[)\]】>]", lambda m: f" {m[1]} " if names.label(m[1]) is not None else m[0], plain
    ).strip()
    mentions = names.mentions(plain)
    if not mentions or len(mentions) > 200:
        return None
    stated: list[_Stated] = []
    others: set[str] = set()
    doubted = False
    for start, end in _sentences(plain, mentions):
        kept = [m for m in mentions if start <= m.start < end and not _denied(plain, start, m)]
        stated_here = [m for m in kept if _is_stated(plain, start, end, m, cut)]
        if not stated_here:
            doubted = doubted or any(_is_doubted(plain, start, end, m) for m in kept)
            others |= {m.label for m in kept if _telling(plain[m.start : m.end])}
        elif len({m.label for m in kept}) > 1 or plain[start:end].rstrip().endswith("?"):
            doubted = True
        else:
            stated.append(_Stated(stated_here[0].label, end, bool(_FINAL.search(plain[start : stated_here[0].start]))))
    finals = [item for item in stated if item.final]
    if finals:
        stated, doubted, others = finals, False, set()
    elif _ABSTAINS.search(plain):
        return None
    labels = {item.label for item in stated}
    if doubted or len(labels | others) != 1 or not stated or _REVISED.search(plain, stated[-1].end):
        return None
    return labels.pop()


def _telling(name: str) -> bool:
    """Whether a name can hardly be an ordinary word: a letter, or several words."""
    return len(name) == 1 or " " in name


def _sentences(plain: str, mentions: list[_Mention]) -> list[tuple[int, int]]:
    """Start and end of each; a mark inside a mention ("B. Safe with warning") ends nothing."""
    ends = [m.end() for m in _SENTENCE.finditer(plain) if not any(n.start <= m.start() < n.end for n in mentions)]
    places = [0, *ends, len(plain)]
    return [(start, end) for start, end in pairwise(places) if plain[start:end].strip()]


def _denied(plain: str, start: int, mention: _Mention) -> bool:
    """Whether a negation precedes the mention in its clause."""
    clause = _CLAUSE.split(plain[start : mention.start])[-1]
    return bool(_NOT.search(clause))


def _is_doubted(plain: str, start: int, end: int, mention: _Mention) -> bool:
    """Whether a sentence would state a mention, were it not for a doubt."""
    before, after = plain[start : mention.start], plain[mention.end : end]
    said = _SAID.search(before) or _DEEMED.search(before) or len((before + after).split()) <= 3
    return bool(said and (_DOUBT.search(before) or _DOUBT_AFTER.search(after[:60])))


def _is_stated(plain: str, start: int, end: int, mention: _Mention, cut: bool) -> bool:
    """Whether a sentence says that a mention is the verdict, without a doubt about it."""
    before, after = plain[start : mention.start], plain[mention.end : end]
    if (cut and mention.end >= len(plain)) or not _AFTER.match(after):
        return False
    line = plain[plain.rfind("\n", 0, mention.start) + 1 : (plain.find("\n", mention.end) + 1 or len(plain) + 1) - 1]
    own_line = not line.replace(plain[mention.start : mention.end], "", 1).strip(_STRIP)
    leads = own_line or (start == 0 and not before.strip(_STRIP))
    short = own_line or bool(_ADVERB.fullmatch(before) and _TAIL.match(after))
    said, deemed = _SAID.search(before), _DEEMED.search(before)
    if not (leads or short or said or deemed):
        return False
    if _DOUBT.search(before) or _DOUBT_AFTER.search(after[:60]) or (re.search(r"\d\s*%", after) and len(after) < 12):
        return False
    return not (not leads and not said and _IS.search(before) and _BUT.match(after))
