"""Untrusted text that goes into a prompt: what a tokenizer would read as a control token in it is broken. Torch-free.

A reply that is judged, a passage that was retrieved or a question from outside may hold ``<|im_end|>`` or ``[INST]``. Servers turn such
text into the control token itself, so that it could end its turn and open another one. Here a zero-width space is put into it: a person or
a model reads the same, and no tokenizer finds the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BREAK = "\u200b"
"""Zero-width space."""

_HTML = (
    "a|abbr|address|article|aside|b|blockquote|body|br|button|caption|center|code|col|dd|del|details|div|dl|dt|em|fieldset"
    "|figure|footer|form|h1|h2|h3|h4|h5|h6|head|header|hr|html|i|input|ins|kbd|label|legend|li|link|main|meta|nav|ol|option"
    "|p|pre|samp|script|section|select|small|span|strong|style|sub|summary|sup|table|tbody|td|textarea|tfoot|th|thead|title"
    "|tr|tt|u|ul"
)
"""Elements, in lower case, that no model family uses as a token. ``<s>``, ``<img>``, ``<image>``, ``<video>``, ``<ref>`` and ``<box>`` are
tokens somewhere and are broken."""
_BRACKETED = (
    r"INST|SYS|SYSTEM|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOLS?|TOOL_(?:CALLS?|RESULTS?|CONTENT)|ARGS|CALL_ID|THINK|IMG(?:_BREAK|_END)?"
    r"|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX|BOS|EOS|PAD|UNK|CLS|SEP|s?gMASK|MASK|BEGIN_OF_TEXT|END_OF_TEXT|control_\d+|unused_?\d+"
)
_CONTROL = re.compile(
    "|".join(
        (
            # <|im_end|>, <｜Assistant｜>, <[begin▁of▁sentence]>, <<SYS>>, in ASCII and in full width
            r"[<＜﹤](?=[|｜︱¦∣❘\[]|\s{1,4}[|｜][^|｜\n]{1,48}[|｜]\s{0,4}[>＞﹥]|(?i:[<＜﹤]\s{0,4}/?\s{0,4}SYS\b))",
            # <turn|>, <s>, </think>, <end_of_turn>, <seed:bos>, < / s >
            rf"[<＜﹤](?=\s{{0,4}}/?\s{{0,4}}(?!(?:{_HTML})\s{{0,4}}/?[>＞﹥])[^\W\d][\w:.▁-]{{0,63}}[|｜]?\s{{0,4}}/?[>＞﹥])",
            r"[<＜﹤](?=0x[0-9A-Fa-f]{2}[>＞﹥])",  # a byte
            # [INST], [/INST], [TOOL_CALLS], [|user|], and any other name in capitals
            rf"[\[［](?=\s{{0,4}}/?\s{{0,4}}(?i:{_BRACKETED})\s{{0,4}}[\]］]|[|｜]|/?[A-Z][A-Z_]{{2,40}}\])",
            r"◁(?=/?\w{1,32}▷)",  # ◁think▷
            r"\](?=~!?b\[|~b\]|<\])|\[(?=e~\[)",  # ]~b]ai, [e~[
        )
    )
)


def disarmed(text: str, tokens: Iterable[str] = ()) -> str:
    """Text in which no control token is whole; it still reads the same.

    Args:
        text: untrusted.
        tokens: the special tokens of the model that will read it, where they are known. Without them the shapes count that tokens of the
            common families have: `<|…|>` with ASCII or full-width bars, `<name>` and `</name>` (but for plain HTML elements), `[NAME]`,
            `[/INST]`, `<<SYS>>`, `◁think▷`, in any case and with spaces inside.
    """
    known = sorted({token for token in tokens if len(token.strip()) > 1}, key=len, reverse=True)
    if known:
        text = re.sub("|".join(map(re.escape, known)), lambda match: match[0][0] + BREAK + match[0][1:], text)
    return _CONTROL.sub(lambda match: match[0] + BREAK, text)
