"""The process that compares mathematics. Run as a script; imports nothing of safework, so that it starts from any folder.

One JSON object a line in, one a line out: ``{"gold", "reply", "limit"}`` → ``{"correct": bool}`` or ``{"error": why}``. It announces
itself with ``{"ready": true}`` once its imports are done, so that they do not count against a time limit.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from typing import Any

MEMORY_LIMIT_BYTES = 4 << 30
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|operatorname|mbox)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]{4,}|sin|cos|tan|log|exp|ln)(?![A-Za-z])")
_DIGIT_GROUP = re.compile(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))")
_CJK_SEAM = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef])(?=[\x21-\x7e])|(?<=[\x21-\x7e])(?=[\u3000-\u9fff\uff00-\uffef])")


def parsed(text: str) -> list[Any]:
    """math-verify's reading of a text: an expression and its text, or fewer. A ``\\boxed`` expression goes before any other."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    text = _DIGIT_GROUP.sub("", text)  # "10 000" would be read as 10·0
    text = _CJK_SEAM.sub(" ", text)  # a number directly behind Chinese text is not found
    return parse(text, [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()], parsing_timeout=None, raise_on_error=True)


def parsed_gold(gold: str) -> list[Any]:
    """The gold answer's reading. Raises ValueError where it is no mathematical expression."""
    anchored = "\\boxed" in gold or "$" in gold
    found = parsed(gold if anchored else f"\\boxed{{{gold}}}")
    if not gold.strip() or not found or isinstance(found[0], str):
        raise ValueError(f"the gold answer {gold!r} is not a mathematical expression")
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT_COMMAND.sub(" ", gold)))
    if words and getattr(found[0], "free_symbols", None):  # "Evelyn" was read as E·v·e·l·y·n, and any anagram would equal it
        raise ValueError(f"the gold answer {gold!r} holds the word '{words[0]}': use answer_type exact, or a LaTeX command")
    return found


def answer(gold: str, reply: str) -> dict[str, Any]:
    from math_verify import verify

    try:
        target = parsed_gold(gold)
    except Exception as error:
        return {"error": str(error) or type(error).__name__}
    try:
        found = parsed(reply)
    except Exception:
        found = []  # what cannot be read is not an answer
    if not found:
        return {"correct": False, "parsed": False}
    return {"correct": bool(verify(target, found, timeout_seconds=None, raise_on_error=True)), "parsed": True}


def main() -> None:
    logging.disable(logging.WARNING)  # math-verify warns that its own limits are off; ours are on
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # no such limit on this system
    answer("1", "1")  # imports and first use
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        # should the parent die, nobody is left to kill us: the alarm's default action ends the process even inside C code
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(job["limit"]) + 5)
        try:
            result = answer(job["gold"], job["reply"])
        except Exception as error:
            result = {"error": f"comparison failed: {type(error).__name__}: {error}"}
        signal.alarm(0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
