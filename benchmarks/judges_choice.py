"""The choice rule on a table of replies, compared with OpenCompass.

The peer is ``first_option_postprocess`` of OpenCompass's ``opencompass/utils/text_postprocessors.py``: give the path of that file in a
checkout. The module is imported, so OpenCompass's own requirements (mmengine) must be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from judges_common import Bar, at_least, at_most, missing, table

from safework_cli.data.reply import parse_reply
from safework_cli.verifiers.rules.choice import chosen_letter

BAR = 0.97


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opencompass", metavar="FILE", help="text_postprocessors.py in a checkout of OpenCompass: the peer")


def bars(args: argparse.Namespace) -> list[Bar]:
    records = table(args, "choice.jsonl")
    names = ("choice.jsonl: replies read correctly", "choice.jsonl: wrong letters read")
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
    """How many replies were read correctly, how many gave another letter than the expected one, and the replies not read correctly."""
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
    """OpenCompass's function, imported from its file."""
    sys.path.insert(0, str(path.resolve().parents[2]))  # the checkout: the module imports opencompass.registry
    spec = importlib.util.spec_from_file_location("opencompass_text_postprocessors", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SystemExit(f"{path} needs {error.name}: install OpenCompass's requirements") from None
    return module.first_option_postprocess
