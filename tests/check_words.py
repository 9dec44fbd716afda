"""Counts words that are unusual in the field in code and documents: ``make check`` runs it, and it fails above a bar.

    python tests/check_words.py [--list] [FILE]...

All tracked text of the repository is counted, except the content of the starter set (`stages/safework_data/starter/parts`) and data
files, which are language that models learn from, and this list itself. ``--list`` prints each place.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BAR = 1.5
ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".py", ".md", ".yaml", ".sh", ".toml", ".j2", ".css", "Makefile")
EXCLUDED = ("stages/safework_data/starter/parts/", "tests/data/", "tests/check_words.py")

WORDS = re.compile(
    r"\b(?:"
    # archaic or poetic
    r"mend(?:s|ed|ing)?|faults?|anew|afresh|for ever|heed(?:s|ed)?|nought|seldom|thereby|lest|befits?"
    # personification
    r"|nobody|somebody|told|tells? (?:apart|how|what|which)|taught|gives? way|knows? nothing|says? nothing|has enough|quieter|likeness"
    # inversion
    r"|is no [a-z]+|means nothing|none of (?:them|it) is|say the same"
    # a spatial word for time or logic
    r"|behind|beside|alone|stands? (?:in|by itself|there)|lies? (?:there|beside|here|at|in)|on the record|goes on|go on from|went on"
    # metaphors of the project's own
    r"|pictures?|pictured|crew|sieve|sift(?:s|ed)?|settles?|hands? (?:it|them|its)|whole ones?|unlike|so it|cut in two|cut short|cut off"
    r")\b",
    re.IGNORECASE,
)


def tracked_files() -> list[str]:
    """The files that are counted, by their path in the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if name.endswith(SUFFIXES) and not name.startswith(EXCLUDED)]


def main(arguments: list[str]) -> int:
    listing = "--list" in arguments
    lines = hits = 0
    for name in [a for a in arguments if a != "--list"] or tracked_files():
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found = WORDS.findall(line)
            lines, hits = lines + 1, hits + len(found)
            if found and listing:
                print(f"{name}:{number}: {', '.join(found)}: {line.strip()}")
    rate = 1000 * hits / max(lines, 1)
    print(f"{hits} unusual words in {lines:,} lines: {rate:.1f} per thousand (at most {BAR:g})")
    return int(rate > BAR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
