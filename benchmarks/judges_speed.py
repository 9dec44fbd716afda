"""How long every rule takes: 10,000 replies of about 512 tokens, and the worst of many hostile replies of 100 kB.

Hostile shapes make patterns backtrack and parsers nest: runs of one character, brackets, unclosed boxes, repeated thoughts.
"""

from __future__ import annotations

import argparse
import random
import time

from judges_common import Bar, at_most, reported

from safework_cli.verifiers import Exchange, judged
from safework_cli.verifiers.rules import rule_names, rule_verifier

REPLIES, WORDS = 10_000, 380
"""English has about 1.35 tokens a word."""
HOSTILE_BYTES = 100_000
LIMIT_SECONDS = 1.0

META = {
    "choice": ("B", {"answer_type": "choice", "choices": ["Paris", "London", "Rome", "Berlin"]}),
    "math": ("42", {"answer_type": "math"}),
    "exact": ("London", {"answer_type": "exact"}),
    "contains": ("London", {"answer_type": "contains"}),
    "f1": ("London", {"answer_type": "contains"}),
    "correctness": ("London", {"answer_type": "exact"}),
    "constraints": (
        None,
        {
            "constraints": [
                {"type": "max_words", "n": 40}, {"type": "bullets", "n": 3}, {"type": "sentences", "n": 4},
                {"id": "detectable_format:number_highlighted_sections", "num_highlights": 2},
                {"id": "detectable_format:title"}, {"id": "detectable_content:number_placeholders", "num_placeholders": 2},
                {"id": "detectable_content:postscript", "postscript_marker": "P.P.S"},
                {"id": "language:response_language", "language": "en"}, {"id": "detectable_format:json_format"},
                {"id": "detectable_format:multiple_sections", "section_spliter": "SECTION", "num_sections": 2},
                {"id": "length_constraints:number_paragraphs", "num_paragraphs": 2},
                {"id": "length_constraints:nth_paragraph_first_word", "num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
                {"id": "length_constraints:number_sentences", "relation": "at least", "num_sentences": 2},
                {"id": "change_case:capital_word_frequency", "capital_relation": "at least", "capital_frequency": 2},
                {"id": "combination:two_responses"}, {"id": "detectable_format:number_bullet_lists", "num_bullets": 3},
            ]
        },
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replies", type=int, default=REPLIES, help="replies that every rule is timed on")


def exchange(rule: str, reply: str) -> Exchange:
    answer, meta = META.get(rule, (None, {}))
    return Exchange([{"role": "user", "content": "What is the capital of England?"}], reply, answer, True, meta)


def ordinary(count: int) -> list[str]:
    """Replies of about 512 tokens, half of it a thought, that end in an answer."""
    draw = random.Random(0)
    filler = "the a river of in because we note that option this value city is are was on total then so if 12 7 north capital large"
    words = filler.split(" ")

    def text(length: int) -> str:
        return " ".join(draw.choice(words) + draw.choice(("", "", "", "", ",", ".")) for _ in range(length))

    endings = ("The answer is B.", "Answer: 42", "\\boxed{42}", "It is London.", "Therefore, B", "I'm sorry, but I can't help with that.")
    return [f"<think>{text(WORDS // 2)}</think>{text(WORDS // 2)}\n\n{draw.choice(endings)}" for _ in range(count)]


def hostile() -> dict[str, str]:
    """Shapes that make readers slow, by name; each 100 kB."""
    units = {
        "newlines": "\n", "spaces": " ", "digits": "7", "letters": "B", "letters apart": "B ", "backslashes": "\\", "stars": "*",
        "opening brackets": "(", "closing brackets": ")", "opening braces": "{", "dollars": "$", "quotes": '"', "commas": ",",
        "full stops": ". ", "signs": "+-", "powers": "^2", "factorials": "!", "slashes": "/", "underscores": "_", "hashes": "#",
        "one word": "London ", "option texts": "Paris London ", "unclosed boxes": "\\boxed{", "boxes": "\\boxed{B}",
        "fractions": "\\frac{1}{",
        "thoughts": "<think>", "closed thoughts": "<think>x</think>", "closing tags": "</think>", "answers": "The answer is ",
        "answered": "The answer is B. ", "negations": "not B, ", "Chinese": "答案", "Chinese answers": "答案是B。", "refusals": "I cannot ",
        "bullets": "- x\n", "numbered": "1. x\n", "titles": "<<", "placeholders": "[", "fences": "```", "tags": "<b>",
        "dates": "1 May 2001 ",
        "numbers": "1,234.5 ", "full-width": "Ｂ", "combining": "e\u0301", "apostrophes": "can't ", "equals": "x=", "ors": "A or ",
    }  # fmt: skip
    made = {name: (unit * (HOSTILE_BYTES // len(unit.encode()) + 1))[:HOSTILE_BYTES] for name, unit in units.items()}
    half = HOSTILE_BYTES // 2
    made |= {
        "nested boxes": "\\boxed{" * (half // 7) + "B" + "}" * (half // 7),
        "nested braces": "\\boxed{" + "{" * half + "}" * half + "}",
        "one line": "a" * HOSTILE_BYTES,
        "answer after a long run": "\n" * HOSTILE_BYTES + "B",
        "a long box": "\\boxed{" + "1+" * half + "1}",
    }
    return made


def bars(args: argparse.Namespace) -> list[Bar]:
    found: list[Bar] = []
    replies, shapes, names = ordinary(args.replies), hostile(), rule_names()
    for name in names:
        rule = rule_verifier(name)
        rule.judge([exchange(name, "a first reply loads what the rule needs")])
        start = time.perf_counter()
        rule.judge([exchange(name, reply) for reply in replies])
        seconds = time.perf_counter() - start
        found.append(reported(f"rule {name}: seconds for {len(replies):,} replies of 512 tokens", round(seconds, 2)))
    for name in names:
        rule = rule_verifier(name)
        times: dict[str, float] = {}
        failed: list[str] = []
        for shape, reply in shapes.items():
            for form, text in (("", reply), (" after a thought", f"<think>x</think>{reply}")):
                start = time.perf_counter()
                (verdict,) = judged(rule, [exchange(name, text)])
                times[shape + form] = time.perf_counter() - start
                if verdict.error is not None:
                    failed.append(f"{shape}{form}: {verdict.error[:60]}")
        worst = max(times, key=times.__getitem__)
        found.append(at_most(f"rule {name}: seconds for the worst reply of 100 kB", round(times[worst], 3), LIMIT_SECONDS, note=worst))
        found.append(at_most(f"rule {name}: hostile replies without a score", len(failed), 0, note="; ".join(failed[:3])))
    return found
