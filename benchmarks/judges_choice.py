"""The choice rule on a table of replies, beside OpenCompass's reading of them.

The peer is ``first_option_postprocess`` of OpenCompass's ``opencompass/utils/text_postprocessors.py``: give the path of that file. Only
that one function's code runs, with the standard library's ``re``.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from judges_common import Bar, at_least, at_most, missing, table

from safework_cli.data.reply import parse_reply
from safework_cli.verifiers.rules.choice import chosen_letter

BAR = 0.97


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opencompass", metavar="FILE", help="OpenCompass's text_postprocessors.py: the peer of the choice rule")


def bars(args: argparse.Namespace) -> list[Bar]:
    records = table(args, "choice.jsonl")
    names = ("choice.jsonl: replies read right", "choice.jsonl: wrong letters taken")
    if records is None:
        return [missing(names[0], f"≥ {BAR:g}", "--trials FOLDER with choice.jsonl"), missing(names[1], "≤ 0", "--trials FOLDER")]
    right, wrong, missed = counts(records, chosen_letter)
    peers = ("peer not given", "peer not given")
    if args.opencompass:
        peer = first_option(Path(args.opencompass))
        theirs = counts(records, lambda final, choices: peer(final, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]) or None)
        peers = (f"{theirs[0] / len(records):.4f} (OpenCompass)", f"{theirs[1]} (OpenCompass)")
    note = f"{right} of {len(records)}" + (f"; not: {'; '.join(missed[:5])}" if missed else "")
    return [at_least(names[0], right / len(records), BAR, peer=peers[0], note=note), at_most(names[1], wrong, 0, peer=peers[1])]


def counts(records: Sequence[dict[str, Any]], read: Callable[[str, Sequence[str]], str | None]) -> tuple[int, int, list[str]]:
    """How many replies were read right, how many gave a letter that is not the expected one, and the replies not read right."""
    right = wrong = 0
    missed: list[str] = []
    for record in records:
        letter = read(parse_reply(record["reply"]).answer, record["choices"])
        right += letter == record["expected"]
        wrong += letter is not None and letter != record["expected"]
        if letter != record["expected"]:
            missed.append(f"{record['reply'][:40]!r} read as {letter}, not {record['expected']}")
    return right, wrong, missed


def first_option(path: Path) -> Callable[[str, str], str]:
    """OpenCompass's function, from its file: the whole module needs packages that this benchmark does not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "first_option_postprocess"]
    if not wanted:
        raise SystemExit(f"{path} has no first_option_postprocess")
    wanted[0].decorator_list = []
    space: dict[str, Any] = {"re": re}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), space)  # noqa: S102 - the peer's code, which the caller named
    return space["first_option_postprocess"]
