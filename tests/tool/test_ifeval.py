"""IFEval's instructions: each kept and broken by hand, and every one that its real data names."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from safework_cli.data.suites import load_suite
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.rules import rule_verifier
from safework_cli.verifiers.rules.ifeval import IFEVAL, NUMBERS, kept, published, sentences

LESS, LEAST = "less than", "at least"
CASES = [
    ("change_case:capital_word_frequency", {"capital_relation": LEAST, "capital_frequency": 2}, "A BIG dog", "A big dog"),
    ("change_case:capital_word_frequency", {"capital_relation": LESS, "capital_frequency": 2}, "a BIG dog", "A BIG dog"),
    ("change_case:english_capital", {}, "THIS IS A SENTENCE IN ENGLISH.", "This is a sentence in English."),
    ("change_case:english_lowercase", {}, "this is a sentence in english.", "dies ist gewiss ein deutscher satz über wälder."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Now: yes", "Now: yes. Say it."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******one******two******", "one ****** ****** two"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name] of a place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Text\n\nP. S. more", "Text, pst"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Text\nP.P.S one", "Text\nP.S. one"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no. ", "no"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, "PART 1\nx\nPART 2\ny", "PART 1\nx"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* one", "**bold** alone"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>\ntext"),
    ("keywords:existence", {"keywords": ["dog", "c++"]}, "A Dog and C++", "A dog and c"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket science", "The Rock."),
    ("keywords:frequency", {"relation": LEAST, "keyword": "war", "frequency": 2}, "War and war", "war"),
    ("keywords:letter_frequency", {"let_relation": LESS, "letter": "a", "let_frequency": 2}, "A bee", "a banana"),
    ("language:response_language", {"language": "de"}, "Dies ist gewiss ein deutscher Satz über Wälder.", "This is an English sentence."),
    (
        "length_constraints:nth_paragraph_first_word", {"first_word": "weekend", "num_paragraphs": 2, "nth_paragraph": 2},
        'one\n\n"Weekend," she said', "one\n\nA weekend",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_sentences", {"relation": LESS, "num_sentences": 3}, "One. Two!", "One. Two! Three?"),
    ("length_constraints:number_words", {"relation": LEAST, "num_words": 3}, "one two three", "one two"),
    ("punctuation:no_comma", {}, "none here", "one, here"),
    ("startend:end_checker", {"end_phrase": "Peace!"}, 'And so: "peace!"', "Peace! And so on"),
    ("startend:quotation", {}, ' "all of it" ', '"some" of it'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES)
def test_each_instruction_kept_and_broken(name, arguments, kept, broken):
    for text, score in ((kept, 1.0), (broken, 0.0)):
        exchange = Exchange([], f"<think>t</think>{text}", meta={"constraints": [{"id": name, **arguments}]})
        (verdict,) = rule_verifier("constraints").judge([exchange])
        assert verdict.score == score, (name, text, verdict)


def test_all_of_them_are_tried():
    assert {name for name, *_ in CASES} == IFEVAL.keys() and len(IFEVAL) == 25


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        ({"id": "punctuation:no_coma"}, "unknown constraint 'punctuation:no_coma'; did you mean 'punctuation:no_comma'"),
        ({"id": "keywords:existence"}, "constraint 'keywords:existence' lacks 'keywords'"),
        ({"id": "length_constraints:number_words", "relation": "about", "num_words": 3}, "relation 'about'"),
    ],
)
def test_what_cannot_be_checked_is_an_error(constraint, why):
    (verdict,) = rule_verifier("constraints").judge([Exchange([], "<think>t</think>x", meta={"constraints": [constraint]})])
    assert verdict.score is None and why in verdict.error


def test_every_instruction_of_the_real_data_can_be_checked(real_data: Path):
    rows = load_suite("ifeval", real_data)
    exchanges = [
        Exchange.of(row, '<think>t</think>Yes, of course: "it" is [here].\n\n* one\n* two\n\nP.S. My answer is yes.') for row in rows
    ]
    verdicts = rule_verifier("constraints").judge(exchanges)
    assert [verdict.error for verdict in verdicts if verdict.error] == []
    assert {verdict.label for verdict in verdicts} == {"all", "some", "none"}


def test_enumerations_and_abbreviations_are_counted_as_punkt_counts_them():
    for text, count in (
        ("1. First one. 2. Second one.", 4),
        ("Dr. Smith came. He left at 5 p.m.", 2),
        ("It cost $3.50. Fine!", 2),
        ("A, e.g. this", 2),
        ("What?! No...", 2),
    ):
        assert len(sentences(text)) == count, (text, sentences(text))


def test_the_loose_reading_leaves_out_a_first_or_last_line_and_asterisks():
    constraint = {"id": "startend:end_checker", "end_phrase": "Bye."}
    text = "Sure, here it is:\n**Hello. Bye.**\nI hope that helps!"
    assert not kept(text, constraint) and kept(text, constraint, loose=True)
    assert not kept(" \n ", {"id": "punctuation:no_comma"}, loose=True), "an empty text keeps nothing"


def test_the_four_published_numbers():
    comma, title = {"id": "punctuation:no_comma"}, {"id": "detectable_format:title"}
    answers = [("<<T>>\nno", [comma, title]), ("a, b", [comma, title]), ("first, line\nthen none", [comma]), ("", [comma])]
    found = published(answers)
    assert tuple(found) == NUMBERS
    assert list(found.values()) == pytest.approx([1 / 4, 2 / 6, 2 / 4, 3 / 6])
    assert published([]) == {}


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_each_instruction_reads_hostile_text_in_a_moment(name):
    """A limit on processor time, in a process of its own: what is quadratic takes minutes at this size."""
    arguments = next(arguments for case, arguments, *_ in CASES if case == name)
    code = (
        "import resource\n"
        "from safework_cli.verifiers.rules.ifeval import kept\n"
        f"constraint = { ({'id': name, **arguments})!r}\n"
        "kept('A warm-up.', constraint)\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "for piece in ('\\n', ' ', '[', '{', '*', '<<', '. ', '- ', '*\\n', 'p. ', '1. ', '\"', 'a.', '?!', 'A '):\n"
        "    kept(piece * (200_000 // len(piece)), constraint)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


@pytest.mark.parametrize("part", ["*", "[", "a.", "!", ".*", "* ", "'", "...", "Mr. "])
def test_sentences_are_counted_in_little_time(part):
    """The first call loads NLTK; what is measured is the reading."""
    constraint = {"id": "length_constraints:number_sentences", "relation": "at least", "num_sentences": 100}
    kept("One. Two.", constraint)
    started = time.process_time()
    kept(part * (20_000 // len(part)), constraint)
    assert time.process_time() - started < 2
