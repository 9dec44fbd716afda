"""The words by which replies state, deny and weigh the letters of a multiple-choice question.

Every pattern reads a short stretch before or after a letter (``choice_events.CONTEXT`` characters), lower case, so its cost does not grow
with the reply. Patterns that end in ``$`` are searched in what stands before a letter, those that begin with ``^`` are matched on what
follows it.
"""

from __future__ import annotations

import re

_ANSWER = (
    r"(?:answer|ans|solution|verdict|conclusion|selection|guess|réponse|respuesta|antwort|risposta|resposta|ответ|jawaban|odpowiedź|svar"
    r"|antwoord|cevap|đáp án|الإجابة(?: الصحيحة| النهائية)?(?: هي)?|الجواب|उत्तर|উত্তর|정답|답변|답|答え|正解|解答|回答)"
)
_OPTION = r"(?:option|choice|letter|alternative|pick|result|response|opción|lettre|letra)"
_BE = r"(?:\b(?:is|was|be|being|are|remains|becomes|est|es|ist|lautet|è|é|adalah|jest)\b|(?<=\w)'s\b|->|=>|[:=→≈])"
_FILLER = (
    r"(?:therefore|thus|then|hence|so|also|indeed|clearly|definitely|probably|most likely|likely|still|actually|simply|just|only"
    r"|obviously|certainly|surely|really|now|perhaps|maybe|possibly|presumably|undoubtedly|exactly|precisely|again|in fact|of course"
    r"|in my opinion|i think|i believe|i guess|i'd say|i would say|i say|to be|going to be|given by|as follows|represented by|labell?ed"
    r"|marked|none other"
    r" than|the|an|in|correct|right|best|final|true|proper|option|choice|letter|answer|statement|alternative|item|either|both|opción|la"
    r"|l'option|letra|lettre)"
)
STATED = re.compile(rf"\b(?:{_ANSWER}|{_OPTION})\b(?P<mid>[^.!?\n;]{{0,90}}?){_BE}(?:[\s,:\"'(=→>-]|\b{_FILLER}\b)*$")
"""The answer (…) is (therefore the option) …"""
HEADED = re.compile(
    rf"\b(?:{_ANSWER}|(?:correct|right|best|selected|chosen|final|my) {_OPTION})$|(?:^|\n)(?:correct|final|vote|output|sol|decision"
    rf"|selected|chosen)$|答案[】\]]$"
)
"""Answer …, with a mark, a line end or nothing between it and the letter."""
PLURAL = re.compile(r"\b(?:choices|options|answers|alternatives|each|every|following|possible|candidates|any)\b")
"""A cue that introduces the list of options and no answer."""
CHOSEN = re.compile(
    r"(?P<subject>(?:^|[.;:,!?\n(]\s*|\b(?:i|we|you|i'd|i'll|we'd|we'll|i'm|would|should|must|will|can|to|so|then|therefore|thus|hence"
    r"|let's|let"
    r" us|me|also|and|please|am|are|gonna)\s+))"
    r"(?:choose|chose|select|selected|pick|picked|go with|going with|went with|go for|opt for|vote for|settle on|mark|say|choosing"
    r"|selecting|picking)(?:\s+(?:the|with|correct|right|final|option|choice|answer|letter))*[\s\"'(:]*$"
)
"""I would choose …"""
BUT = re.compile(r"\bnot\b[^.!?\n]{0,40}\b(?:but|rather)(?: rather)?(?: option| choice)?$")
"""Not A but …"""
SOFT = re.compile(
    rf"(?:\b(?:so|therefore|thus|hence|then|consequently|accordingly|finally|overall|ultimately|conclusion|elimination|it is|it's"
    rf"|it must be|it has to be|it should be|it would be|it can only be|that'd be|must be|has to be|that is|that's|that would be|which is"
    rf"|i think|i believe|i guess|i'd guess|i suspect|i reckon|we conclude|i conclude|we get|we have|leaves|leaves us with|leaving"
    rf"|left with|left is|remaining|corresponds to|corresponding to|consistent with|confident in|matches|means|namely|in other words"
    rf"|no doubt|yes|sure|well|okay|ok|gives|points to|probably|maybe|perhaps|clearly|definitely|is)\b|⇒|∴)(?:[\s,:\"'(-]|\b{_FILLER}\b)*$"
)
"""So …, it must be …, I think …: a statement where the letter ends its clause."""
DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|non|no|cannot|except|excluding|unlike|eliminate[sd]?|eliminating|excludes?|excluded|rule out"
    r"|ruled out|ruling out|rejects?|rejected|discard(?:ed)?|dismiss(?:ed)?|avoid|instead of|rather than|(?<!none )other than|over"
    r"|(?<!other )than|versus|vs|against|tempted to (?:choose|pick|select|say))|n't)(?: +(?:be|to be|an?|the|is|was|choose|pick|select"
    r"|say|go with|option|choice|answer|letter|correct|right|both|either|only))*[ \"'(:]*$"
)
DENIED_AFTER = re.compile(
    r" (?:(?:is|was|are|were|seems?|looks?|would be|sounds?)(?: \w+ly)? (?:not|wrong|incorrect|false|untrue|impossible|out)\b"
    r"|(?:isn|wasn|aren|can|doesn)'?t\b|cannot\b)|\s*(?:不对|不是|是错|错|不正确|不成立|不符合)"
)
"""What follows an option's text, tokens joined by spaces, where the option is denied."""
NEGATION = re.compile(
    r"\b(?:not|never|no|cannot|neither|nor|incorrect|wrong|false|unlikely|inaccurate|untrue|invalid|hardly|doubt|impossible|least)\b|n't\b"
)
DISBELIEF = re.compile(
    r"(?<!no )(?<!without )(?<!without a )\bdoubt(?: +(?:that|if|whether))? *(?:the|that|my)? *$|(?:not|n't|never) +(?:think|believe|say"
    r"|mean|agree|feel|claim|conclude|sure)(?: +(?:that|if|whether))? *(?:the|that|my)? *$"
)
"""I don't think that (the answer is B)."""
REPORTED = re.compile(
    r"\b(?:some|many|most|people|students|others|they|you|one|someone|anyone)\b[^.!?\n]{0,30}\b(?:say|think|believe|argue|claim|assume"
    r"|guess|expect)s?"
    r"(?:\s+that)?(?:\s+the)?\s*$"
)
"""Some say that (the answer is B)."""
ZH_DISBELIEF = re.compile(r"(?:不|难以|很难)(?:认为|觉得|相信|同意|确定|能说|说)[^。,!?\n]{0,6}$")

_BECOMES = r"(?:is|was|would be|must be|should be|has to be|will be|seems|seems to be|appears|appears to be|looks|looks like|remains|being)"
ANSWERS = re.compile(
    rf"^{_BECOMES}\s+(?:\w+\s+){{0,3}}?(?:(?:correct|right|best|final|only|proper|most \w+|chosen)\s+(?:\w+\s+)?(?:answer|choice|option|one"
    r"|solution|selection|response|pick|match|fit|statement)\b|(?:the|my|our)\s+(?:answer|choice|solution)\b(?!\s+(?:to|for"
    r"|of) an?(?:other)?\b))"
)
"""(B) is the correct answer."""
GOOD = re.compile(
    rf"^(?:{_BECOMES}\s+(?:\w+\s+){{0,2}}?(?:correct|right|true|accurate|valid|best|(?:the )?most \w+|more \w+|appropriate|suitable|it"
    rf"|mine)\b"
    r"|(?:makes (?:the most )?sense|fits best|fits the best|best \w+|it is\b|wins\b|works\b|is the one\b|remains\b)"
    r"|[\s.):\-–—=]*(?:(?:correct|right|true)\b(?! +\w)|yes\b(?=\s*(?:[.;!\n]|$))|✅|✓|✔|√))"
)
BAD = re.compile(
    r"^(?:[\s.):\-–—=]*(?:(?:incorrect|wrong|false)\b(?! +\w)|no\b(?=\s*(?:[.;!\n]|$))|❌|✗|✘|×)|(?:incorrect|wrong|false)\b|(?:is|was"
    r"|are|were|seems|looks|appears|does|do|has|can|could|would|should|must|will|to be)\s+(?:\w+\s+){0,2}?"
    r"(?:not|n't|incorrect|wrong|false|out|invalid|irrelevant|eliminated|excluded|inaccurate|untrue|unlikely|implausible)\b|(?:isn't"
    r"|aren't|wasn't|doesn't|don't|can't|cannot|couldn't|won't|wouldn't|shouldn't|fails)\b)"
)

_ZH_NOT = r"(?:不得不)?(?P<not>(?<!不得)(?:不|没有?|未|别|勿|莫|非|排除|除|并非|而非|否定|放弃))?"
ZH_STATED = re.compile(
    r"(?:(?:答案|正解|正确(?:的)?(?:选项|答案|说法|是|的是)|应答|答|最终选择|我的选择"
    r"|选项(?=[是为:应]))[】\]\"')]*[^。!?\n;,选答不是为:a-z【】\[]{0,12}"
    r"(?P<not>并不|不可能|不太可能|不一定|不会|不应该?|不该|不能|绝不|未必|不)?"
    r"(?:应该是|应当是|应是|应为|应该为|应该选择?|应当选择?|应选择?|应|就是|便是|即为|即是|当是|是|为|选择|选|:|=|→|为选项|是选项)?"
    r"(?:选项|字母)?|故答案?|所以答案?|因此答案?)[\s\"'(:是为选]*(?:选项)?\s*$"
)
ZH_CHOSEN = re.compile(
    r"(?P<not>(?<!不得)(?:不|没|未|别|勿|莫|无法|不能|难以)(?:应该?|应当|该|能|要|会|可以?|宜|再|必|得|考虑)*)?"
    r"(?:应该|应当|应|该|可|宜|须|必须|必|只能|就|故|我|最终|最后|因此|所以|综上|本题|此题|不得不)*(?:选择|选取|选定|选出|选)(?:了|项"
    r"|选项|答案|的是|项目|择)*[\s\"'(:]*$"
)
ZH_DENIED = re.compile(
    r"(?:(?<!难道)(?<!岂)(?<!不得)(?:不|并不|并非|而不|绝不)(?:是|为|属于|可能是|会是|应是|应该是|应为|包括|能是|选)|而非|非|排除了?|除了"
    r"|除去|去掉|否定了?|放弃)"
    r"(?:选项|答案|项)?[\s\"'(:]*$"
)
ZH_BUT = re.compile(r"(?:而是|应改为|改为|改选|更正|修正|订正|改正|应该改成|改成)(?:为|:)?(?:选项)?[\s\"'(:]*$")
ZH_SOFT = re.compile(
    r"(?:所以|因此|故|即|则|显然|可见|综上|综上所述|由此|于是|只有|唯有|剩下|剩余|只剩下?|说明|应该是|应是|应为|就是|是|为|得到?|得出"
    r"|说法(?:错误|不正确|正确)的(?:选项)?是|(?:错误|不正确|不符合)的(?:选项|说法)?是|符合(?:题意|要求|条件)的(?:选项)?是|です|は|대답은"
    r"|답은|정답은)(?:选项|项)?[\s\"'(:,，]*$"
)
ZH_ANSWERS = re.compile(
    r"^\s*(?:项|选项)?\s*(?:就|才|便|应该?|当然|显然|无疑|正)?(?:是|为)\s*(?:本题|唯一|最终|我|这道题|此题)?(?:的)?(?:正确|最佳|标准|最终"
    r"|最合适|最恰当|最符合题意)?(?:的)?"
    r"(?:答案|正解|正确选项|选择|解答)|^\s*(?:が|가|이)\s*(?:正解|答え|정답)|^\s*(?:です|입니다|이다|だ)"
)
ZH_GOOD = re.compile(
    r"^\s*(?:项|选项)?(?:的)?(?:说法|表述|描述|内容|叙述)?\s*(?:是|最|才|才是|完全|明显|显然|也|应该?|更|较|比较|最为|:)*\s*"
    r"(?:正确|对(?![应于比称象立方面话手此错照待])|符合|准确|合适|合理|成立|恰当|无误|莫属|✅|✓|√)"
)
ZH_BAD = re.compile(
    r"^\s*(?:项|选项)?(?:的)?(?:说法|表述|描述|内容|叙述)?\s*(?:是|的|均|都|也|显然|明显|应该?|才|则|:|并|可以|可)*\s*(?:不|错|误|有误"
    r"|排除|无关|❌|×)"
)
ZH_NOT_OTHER = re.compile(r"^\s*,?\s*(?:而)?(?:不是|不选|不要|非)\s*[\"'(]?[a-z](?![a-z])")
"""B不是A: B, and not A."""

ANOTHER = re.compile(
    r"^[\s\"')\]⟧】」』》(]*(?:"
    r"(?:(?:or|and|and/or|as well as|along with|,\s*or|,\s*and|或者?|和|与|及|以及|还是|跟|,?\s*(?:也|还|又)(?:可能|可以)?(?:是"
    r"|选)?)[\s\"'(\[⟦【「『《]*"
    r"(?:(?:also|maybe|possibly|perhaps|either|both|it|the answer|might|could|may|be|is|选|是)\s?)*)|(?:,|/|&|\+|、|;|\?(?=\s*[a-z]\s*\?)"
    r"|(?<=[)\]】])(?=\s*[(\[【]))[\s\"'(\[⟦【「『《]*)"
    r"(?:option |choice |answer |选项)?[\"'(\[⟦【]*(?P<letter>[a-z])(?![a-z0-9'])"
)
"""A second letter that is stated with the first."""
LISTED_BAD = re.compile(
    r"^(?:\s*(?:(?:,\s*and|,\s*or|and|or|&|、|和|与|及|,)\s*)?\(?[a-z]\)?(?![a-z0-9']))*[\s,]*(?:项|选项)?(?:are|is|were|was|都|均|全"
    r"|也)?\s*(?:both |all )?"
    r"(?:wrong|incorrect|false|not\b|out\b|错|不|有误)"
)
"""What shows of a list of letters that they are the wrong ones: "(A), C and D are wrong"."""
CONTINUES = re.compile(
    r"^\s+(?:because|since|as|for|which|that|and|or|is|was|would|must|seems|due|with|in|by|given|based|on|if|but|not|rather|instead|over"
    r"|i'm)\b"
)
"""After a letter: what shows that "A" is one and no article."""
REVISED = re.compile(
    r"\b(?:wait|hold on|correction|on second thoughts?|let me (?:re-?\w+|correct|double)|i made (?:a|an) (?:mistake|error)|i was wrong"
    r"|scratch that|oops|my mistake|i stand corrected)\b|\bno[,.!;—–-]|\bactually\b|(?:^|[。.!?,…\s])不[,。]|等等|等一下|等下|不对|更正"
    r"|我错了|纠正|修正|重新(?:考虑|审视|检查|计算|思考)"
)
"""What comes next takes back what was said."""
QUESTION = re.compile(r"^[^.!?\n。！？]{0,60}\?")
ASKS = re.compile(
    r"(?:^|[.!?\n。！？,:]\s*)(?:is|are|was|could|would|should|why|how|what|which|can|does|maybe|perhaps|might|shall)\b[^.!?\n。！？]*$"
)
ZH_QUESTION = re.compile(r"^[^.!?\n。,]{0,20}(?:吗|么(?!样))")
ZH_ASKS = re.compile(r"(?:难道|是否|是不是|会不会|莫非)[^。!?\n]*$")
SUPPOSES = re.compile(r"\b(?:if|suppose|assuming|unless|were|had (?:it|the|this|we))\b[^.!?\n]*$")
ZH_SUPPOSES = re.compile(r"(?:如果|假如|假设|倘若|若(?!干)|要是)(?:(?!因此|所以|故|综上)[^。!?\n;])*$")
IF = re.compile(r"^[^.!?\n]{0,60}\b(?:if|were|unless)\b")
BUT_SAYS = re.compile(
    r"(?:\b(?:but|however|yet|although|instead)\b,?(?:\s+(?:actually|option|choice|the|in fact))*|但(?:是)?|其实|实际上|却)[\s\"'(,]*$"
)
"""What makes the later of two verdicts the one that counts."""
UNSURE = re.compile(
    r"\b(?:don't know|do not know|can't (?:tell|say|answer|determine)|cannot (?:tell|say|answer|determine|be determined)|not sure|unsure"
    r"|unclear|no idea|unable to|not enough|insufficient|can't help|cannot help|impossible to)\b|不知道|不清楚|无法|不能(?:确定|判断"
    r"|回答)|不确定|难以(?:确定|判断)"
)
CONCLUDES = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|consequently|in conclusion|the answer|answer|the result|result|the solution|it is|it's"
    r"|it must be)\b|因此|所以|故|综上|答案|结果|=)[^\n]{0,300}$"
)
TEXT_STATED = re.compile(
    rf"(?:\b(?:{_ANSWER}|(?:correct|right|best|final|my) (?:{_OPTION}|one|statement)|result|choice)\b[^.!?\n;:=]{{0,60}}?(?:\b(?:is|was"
    rf"|be|est|es|ist)\b:?|[:=]|\n)"
    r"|(?:答案|结果|正确(?:的)?选项)[^。!?\n;，,:是为a-z【】]{0,10}(?:应该是|应是|应为|就是|是|为|选|:|\n):?)\s*(?P<object>[^\n]{1,300})"
)
"""The answer is (the text of an option)."""
NEXT_QUESTION = re.compile(
    r"\n[^\S\n]*(?:(?:question|q|问题|题目|例题|problem)\s*\d*\s*[:.、]|(?P<turn>human|user|assistant)\s*:)", re.IGNORECASE
)
"""The reply runs on into a question of its own, or into another turn."""


def next_question(text: str) -> re.Match[str] | None:
    """Where a reply runs on into a question of its own, or another turn, after something was said; None where it does not."""
    start = 0
    for match in NEXT_QUESTION.finditer(text):
        if text[start : match.start()].strip():
            return match
        start = match.start()
    return None
