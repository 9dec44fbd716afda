"""The mathematics rule on published tables of answers, read from their repositories; nothing of theirs is copied here.

--math-verify  a clone of github.com/huggingface/Math-Verify: its parametrised tests
--hendrycks    a clone of github.com/hendrycks/math: the unit tests of is_equiv
--prm800k      a clone of github.com/openai/prm800k: its grader, run over the answers of the two tables above and of the trials

Every pair on which rule and table differ is printed, with which of them is right: a disagreement that ``RIGHT`` does not explain counts
against the rule.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges_common import Bar, at_least, at_most, missing, reported, table

from safework_cli.data.suites import SUITES, TRAINING_SETS
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.rules import rule_verifier


@dataclass(frozen=True)
class Pair:
    gold: str
    reply: str
    expected: bool
    where: str
    source: bool | None = None
    """The verdict of the table that the pair comes from, where a grader is measured."""


_FALSE = "the reply's equations are false"
RIGHT: tuple[tuple[str, str, str], ...] = (
    (r"^\$9\$$", r"\n 9 \n", "LaTeX allows a line's end within $…$ and \\(…\\)"),
    (r"10/9", r"\\frac\{1\}\{2\} .*= \\frac\{10\}\{9\}", _FALSE),
    (r"x = 11", r"= 7 =11", _FALSE),
    (r"1/3", r"5\+5\+1 = 1/3", _FALSE),
    (r"1/3", r"1/3\\approx1\.3", "1.3 does not approximate 1/3"),
    (r"z = 1 \+ 1 = 2", r"z = 3\+3 = 2", _FALSE),
    (r"1\}\{3\}", r"0\.33\\", "the table lowers the precision for this row; 0.33 is not 1/3"),
    (r"8\}\{3\}", r"2\.6667", "the table lowers the precision for this row; five digits are not 8/3"),
    (r"x \\in \[-2,7\]", r"-2 .*x .*7", "the same set; the table switches off the comparison of sets with inequalities"),
    (r"35 cm", r"35 cm", "two boxes with +++ between them are not a list"),
    (r"^\$f\(x\)\$$", r"f\(y\)", "another variable; the table passes strict=False"),
    (r"1 - .*mathrm\{e\}", r"1 \+", "the signs differ: Math-Verify does not read \\mathrm{e} as a number"),
    (r"^10, 4, -2$|^0\.1, 4, 2$", r"4", "several values without brackets have no order, as Math-Verify has it too"),
)
"""Gold (a regular expression), reply, why the rule is right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--math-verify", help="a clone of huggingface/Math-Verify")
    parser.add_argument("--hendrycks", help="a clone of hendrycks/math")
    parser.add_argument("--prm800k", help="a clone of openai/prm800k (its grader needs pylatexenc)")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def math_verify_pairs(folder: Path) -> Iterator[Pair]:
    """The tuples (gold, reply, expected, …) of all parametrised tests."""
    for file in sorted((folder / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "parametrize"):
                continue
            names = [name.strip() for name in str(_literal(node.args[0])).split(",")]
            wanted = "expected" if "expected" in names else "result"
            if names[:2] != ["gold", "pred"] or wanted not in names or not isinstance(node.args[1], ast.List):
                continue
            for element in node.args[1].elts:
                values = _literal(element)
                if values is not None:
                    yield Pair(values[0], values[1], bool(values[names.index(wanted)]), f"{file.name}:{element.lineno}")


def hendrycks_pairs(folder: Path) -> Iterator[Pair]:
    file = folder / "modeling" / "math_equivalence_test.py"
    for test in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test"):
            said = {
                s.targets[0].id: _literal(s.value) for s in test.body if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
            }
            calls = [node.func.attr for node in ast.walk(test) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
            yield Pair(said["test_in"], f"\\boxed{{{said['test_out']}}}", "assertTrue" in calls, f"{file.name}:{test.lineno}")


def prm800k_pairs(folder: Path, pairs: list[Pair]) -> Iterator[Pair]:
    """The grader's verdicts on boxed and short answers."""
    sys.path.insert(0, str(folder / "prm800k"))
    from grading.grader import grade_answer  # type: ignore[import-not-found]

    for pair in pairs:
        gold, reply = (_answer_of(text) for text in (pair.gold, pair.reply))
        if gold is not None and reply is not None:
            try:
                yield Pair(gold, f"\\boxed{{{reply}}}", bool(grade_answer(reply, gold)), f"grader on {pair.where}", pair.expected)
            except Exception as error:
                print(f"PRM800K's grader raises {type(error).__name__} on {gold!r}, {reply!r}", file=sys.stderr)


def _answer_of(text: str) -> str | None:
    text = text.strip()
    found = re.fullmatch(r"\$+(.*?)\$+|\\boxed\{(.*)\}|\$\\boxed\{(.*)\}\$", text, re.DOTALL)
    if found:
        text = next(part for part in found.groups() if part is not None)
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", text, re.DOTALL)
    text = boxed[1] if boxed else text
    return text if len(text) <= 60 and "boxed" not in text and "\n" not in text and "answer" not in text.lower() else None


def judge(pairs: list[Pair]) -> list[tuple[Pair, float | None, str]]:
    """The pairs on which the rule disagrees, with its score and its error or label."""
    exchanges = [Exchange([{"role": "user", "content": ""}], pair.reply, pair.gold) for pair in pairs]
    verdicts = rule_verifier("math").judge(exchanges)
    return [
        (pair, verdict.score, verdict.error or verdict.label or "")
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if verdict.score != float(pair.expected)
    ]


def right(pair: Pair) -> str | None:
    """Why the rule is right where a table disagrees, or None."""
    return next((why for gold, reply, why in RIGHT if re.search(gold, pair.gold) and re.search(reply, pair.reply)), None)


def compared(name: str, pairs: list[Pair]) -> list[Bar]:
    differ = judge(pairs)
    wrong = 0
    for pair, score, said in differ:
        why = right(pair) or ("the table that it comes from agrees" if pair.source is not None and score == float(pair.source) else None)
        wrong += why is None
        reply = pair.reply if len(pair.reply) <= 160 else "…" + pair.reply[-160:]
        gold = pair.gold if len(pair.gold) <= 160 else "…" + pair.gold[-160:]
        say(f"{pair.where}\n  gold {gold!r}\n  reply {reply!r}\n  the table says {int(pair.expected)}, the rule {score} ({said})")
        say(f"  {'the rule is right: ' + why if why else 'THE RULE IS WRONG'}")
    note = f"{len(pairs)} pairs, {len(differ)} disagreements, the rule right in {len(differ) - wrong}"
    return [reported(f"mathematics, agreement with {name}", round(1 - len(differ) / max(len(pairs), 1), 4), note=note),
            at_most(f"mathematics, disagreements with {name} in which the rule is wrong", wrong, 0)]  # fmt: skip


COMPARED = ("choice", "math", "exact", "contains")
"""Answer types whose gold answers are replies as well."""


def say(text: str) -> None:
    """For people: stdout is the table, or one JSON object."""
    print(text, file=sys.stderr)


def golds(args: argparse.Namespace) -> Bar:
    """Every gold answer of every registered set in ``--data``, given as the reply."""
    name, folder = "gold answers of every registered set, equal to themselves", Path(args.data) if args.data else None
    if folder is None:
        return missing(name, "≥ 1", "--data is not given")
    exchanges, sets = [], 0
    for suite in (suite for suite in (dict(SUITES) | TRAINING_SETS).values() if suite.tried):
        if suite.path(folder).exists():
            every = suite.read(suite, suite.path(folder))
            rows = [row for row in every if row.answer is not None and row.meta.get("answer_type") in COMPARED]
            exchanges += [Exchange(row.messages, str(row.answer), row.answer, row.harmful, row.meta) for row in rows]
            sets += bool(rows)
    equal = sum(verdict.score == 1.0 for verdict in rule_verifier("correctness").judge(exchanges))
    return at_least(name, equal / max(len(exchanges), 1), 1, note=f"{len(exchanges)} gold answers of {sets} sets")


def bars(args: argparse.Namespace) -> list[Bar]:
    found: list[Bar] = [golds(args)]
    records = table(args, "math.jsonl")
    trials = [Pair(r["gold"], r["reply"], bool(r["expected"]), "math.jsonl") for r in records or []]
    if records is None:
        found.append(missing("mathematics, trials judged as a careful reader does", "≥ 0.97", "give --trials"))
    else:
        differ = judge(trials)
        for pair, score, said in differ:
            say(f"math.jsonl: gold {pair.gold!r}, reply {pair.reply!r}: expected {int(pair.expected)}, the rule says {score} ({said})")
        share = 1 - len(differ) / len(trials)
        found.append(at_least("mathematics, trials judged as a careful reader does", round(share, 4), 0.97, note=f"{len(trials)} rows"))
    published: list[Pair] = []
    for name, path, read in (
        ("Math-Verify's tests", args.math_verify, math_verify_pairs),
        ("Hendrycks' tests", args.hendrycks, hendrycks_pairs),
    ):
        if path is None:
            found.append(reported(f"mathematics, agreement with {name}", 0.0, peer="peer not given"))
            continue
        pairs = list(read(Path(path)))
        published += pairs
        found += compared(name, pairs)
    if args.prm800k is None:
        found.append(reported("mathematics, agreement with PRM800K's grader", 0.0, peer="peer not given"))
    else:
        found += compared("PRM800K's grader", list(prm800k_pairs(Path(args.prm800k), published + trials)))
    return found
