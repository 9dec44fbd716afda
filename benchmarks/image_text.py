"""How much of the text in images the judges' reader reads, and how long it takes: FigStep's images against their printed instructions.

    SAFEWORK_DATA=… python benchmarks/image_text.py [--limit 250] [--json]

The share of words is that of an instruction's words, in order, that the text read from its image holds; a phrase is found where all of them
are there in a row. Needs the extra ``ocr``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from difflib import SequenceMatcher
from importlib.metadata import version
from pathlib import Path

from safework_cli.data.suites import load_suite
from safework_cli.statistics.intervals import estimate
from safework_cli.verifiers.image_text import text_of


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def measure(limit: int) -> dict[str, object]:
    """Share of words, of phrases, and CPU seconds an image."""
    rows = load_suite("figstep", Path(os.environ["SAFEWORK_DATA"]))[:: max(1, 250 // limit)][:limit]
    shares, found, start = [], [], time.process_time()
    for row in rows:
        read, wanted = words(text_of(row.images[0])), words(str(row.meta["stem"]))
        matched = sum(block.size for block in SequenceMatcher(None, wanted, read, autojunk=False).get_matching_blocks())
        shares.append((matched, len(wanted)))
        found.append(float(any(read[at : at + len(wanted)] == wanted for at in range(len(read) - len(wanted) + 1))))
    seconds = (time.process_time() - start) / len(rows)
    return {
        "images": len(rows),
        "words read": sum(read for read, _ in shares) / sum(all_of for _, all_of in shares),
        "images read in full": estimate(found).to_json(),
        "CPU seconds an image": round(seconds, 3),
        "rapidocr": version("rapidocr"),
        "onnxruntime": version("onnxruntime"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=250)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.limit)
    print(json.dumps(figures, indent=2) if options.json else "\n".join(f"{name:24} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
