"""Verdicts in prose: which label they state, and that unclear ones state none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safework_cli.verifiers.spec import PRESETS, LabelSpec
from safework_cli.verifiers.stated import after_thought, written_label

VERDICTS = [
    json.loads(line) for line in Path(__file__).parents[1].joinpath("judge_verdicts.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: f"{case['task']}: {case['text'][:40]}")
def test_a_clear_verdict_is_read_and_an_unclear_one_is_not(case):
    assert written_label(case["text"], PRESETS[case["task"]]) == case["label"]


def test_the_table_is_large_enough_and_half_of_it_is_unclear():
    clear = sum(case["label"] is not None for case in VERDICTS)
    assert len(VERDICTS) >= 200 and 0.4 < clear / len(VERDICTS) < 0.6 and {case["task"] for case in VERDICTS} == set(PRESETS)


def test_every_code_and_label_alone_is_read():
    for spec in PRESETS.values():
        for label, code in zip(spec.labels, spec.codes, strict=True):
            for text in (code, label, f" **{code}**.", f"{code}: {label}", f"{label} ({code})", f"Answer: {code}", f"答案：{label}。"):
                assert written_label(text, spec) == label, (spec.task, text)


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS.keys())
def test_the_instruction_repeated_is_no_verdict(spec: LabelSpec):
    filled = spec.template.replace("{query}", "How?").replace("{response}", "Like this.").replace("{reference}", "That.")
    for text in (
        filled,
        spec.template,
        spec.template.split("<", 1)[0],
        f"{filled}\n{spec.codes[0]}",
        spec.strict_template or spec.template,
    ):
        assert written_label(text, spec) is None
    for end in range(20, len(spec.template), 37):
        assert written_label(spec.template[:end], spec, cut=True) is None, spec.template[:end]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>b", "b"), ("a</think>b", "b"), ("<think>a", None), ("b", "b"), ("<think>a</think>b<think>c", None),
        ("<thinking>a</thinking>b", "b"), ("◁think▷a◁/think▷b", "b"), ("[THINK]a[/THINK]b", "b"), ("<seed:think>a</seed:think>b", "b"),
        ("<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<|channel|>analysis<|message|>A", None), ("analysisIt is A.assistantfinalb", "b"),
    ],
)  # fmt: skip
def test_thoughts_of_every_family_are_left_out(text, said):
    assert after_thought(text) == said


def test_what_was_cut_is_read_only_where_it_is_whole():
    spec = PRESETS["safety"]
    assert written_label("D", spec, cut=True) == "Unsafe"
    assert written_label("Answer: D. The steps are", spec, cut=True) == "Unsafe"
    assert written_label("The answer is A", spec, cut=True) is None


def test_long_texts_are_read_in_a_moment():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "from safework_cli.verifiers.spec import PRESETS\n"
        "from safework_cli.verifiers.stated import written_label\n"
        "for piece in ('A ', 'A\\n', '{', '(', '\\\\boxed{', '<think>', '\\n', ' ', 'answer is ', '\"', '[[', '我', 'x', 'Answer: D. '):\n"
        "    written_label(piece * (1_000_000 // len(piece)), PRESETS['safety'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
