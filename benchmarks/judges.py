"""How well rules and served judges read replies, and how fast: every figure with its bar and, where one was given, its peer.

    python benchmarks/judges.py --trials FOLDER [--only choice maths text speed] [--json]

FOLDER has tables of replies with the verdict of a careful reader: choice.jsonl, math.jsonl, refusal.jsonl; its default is SAFEWORK_TRIALS.
Peers are published code that is not copied here: each is imported from a folder that you name, and measured in the same run on the same
replies. Exits with 1 where a bar does not hold, or could not be measured because an argument is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict

from judges_common import Bar

SUBJECTS = ("choice", "maths", "text", "speed")
"""Each is a module ``judges_NAME`` with ``add_arguments(parser)`` and ``bars(args) -> list[Bar]``."""


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    modules = {name: importlib.import_module(f"judges_{name}") for name in SUBJECTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default=os.environ.get("SAFEWORK_TRIALS"), help="folder of choice.jsonl, math.jsonl, refusal.jsonl")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="subjects, all by default")
    parser.add_argument("--json", action="store_true")
    for module in modules.values():
        module.add_arguments(parser)
    args = parser.parse_args()
    found: list[Bar] = []
    for name in args.only:
        print(f"{name} …", file=sys.stderr)
        found += modules[name].bars(args)
    if args.json:
        print(json.dumps({"bars": [asdict(bar) for bar in found]}, ensure_ascii=False, indent=2))
    else:
        print("| what | value | bar | holds | peer | note |\n|---|---|---|---|---|---|")
        for bar in found:
            cells = [bar.name, shown(bar.value), bar.bar, "yes" if bar.holds else "NO", bar.peer, bar.note]
            print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    sys.exit(0 if all(bar.holds for bar in found) else 1)


if __name__ == "__main__":
    main()
