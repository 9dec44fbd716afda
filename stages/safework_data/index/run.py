"""A search index from passages, from top to bottom: sources → passages → checks → BM25."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.reply import language_of
from safework_cli.data.suites import xquad_passages
from safework_cli.data.suites.tables import read_table
from safework_cli.environments.search.index import Passage, tokenise, write_index
from safework_data.files import matching_files, refuse_missing
from safework_data.index.config import FilePassages, IndexConfig, PassageSource, StarterPassages

MAX_ABSTRACT_CHARACTERS = 300
_SENTENCE_END = re.compile(r"(?<=[。！？])|(?<=[.!?])\s+(?=[^\sa-z])")


def build_index(config: IndexConfig, work: WorkDir) -> Outcome:
    """Builds the index into ``work.output``.

    Raises:
        InputError: a source is missing or broken, two passages share an id, or none can be searched.
    """
    dropped: Counter[str] = Counter()
    with work.progress.phase("reading passages") as phase:
        found = [passage for source in config.sources for passage in passages_of(source)]
        phase.advance(len(found))
    kept = searchable(found, dropped)
    if not kept:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common()) or "the sources hold none"
        raise InputError("no passage can be searched", reasons, "check the columns and the files that the sources name")
    with work.progress.phase("indexing", len(kept)) as phase:
        write_index(work.output, kept, k1=config.k1, b=config.b)
        phase.advance(len(kept))
    for reason, count in dropped.items():
        work.progress.note(f"passages dropped: {reason} {count:,}")
    return Outcome(
        metrics={
            "passages": len(kept),
            "read": len(found),
            "dropped": dict(dropped),
            "languages": dict(Counter(language_of(passage.text) for passage in kept)),
            "mean_characters": round(sum(len(passage.text) for passage in kept) / len(kept)),
        }
    )


def passages_of(source: PassageSource) -> Iterator[Passage]:
    """The passages of one source, in order. Raises InputError where it is missing or broken."""
    if isinstance(source, StarterPassages):
        from safework_data import starter

        yield from map(_passage, starter.passages())
    elif isinstance(source, FilePassages):
        yield from _from_files(source)
    else:
        for path in matching_files(source.path):
            yield from map(_passage, xquad_passages(path))


def _from_files(source: FilePassages) -> Iterator[Passage]:
    number = 0
    for path in matching_files(source.path):
        for record in read_table(path, source.format):
            refuse_missing([column for column in source.columns.values() if column not in record], list(record), str(path))
            yield _passage({target: record[column] for target, column in source.columns.items()})
            number += 1
            if number == source.limit:
                return


def _passage(record: dict[str, Any]) -> Passage:
    texts = {name: "" if record.get(name) is None else str(record[name]).strip() for name in Passage._fields}
    texts["abstract"] = texts["abstract"] or first_sentence(texts["text"])
    return Passage(**texts)


def first_sentence(text: str) -> str:
    """What a search result shows of a passage: its first sentence, cut at 300 characters."""
    sentence = _SENTENCE_END.split(" ".join(text.split()), maxsplit=1)[0].strip()
    return sentence if len(sentence) <= MAX_ABSTRACT_CHARACTERS else sentence[: MAX_ABSTRACT_CHARACTERS - 1] + "…"


def searchable(passages: Iterable[Passage], dropped: Counter[str]) -> list[Passage]:
    """Passages with an id, a text of at least one term, and no earlier passage of the same text; the others are counted by reason.

    Raises InputError where two passages share an id: a policy that reads one would get the other.
    """
    kept: list[Passage] = []
    texts: set[str] = set()
    ids: set[str] = set()
    for passage in passages:
        if not passage.id:
            dropped["no id"] += 1
        elif not tokenise(passage.text):
            dropped["no words in the text"] += 1
        elif passage.text in texts:
            dropped["exact duplicate"] += 1
        elif passage.id in ids:
            raise InputError(f"two different passages have the id '{passage.id}'", "passages are read by their id", "make the ids distinct")
        else:
            texts.add(passage.text)
            ids.add(passage.id)
            kept.append(passage)
    return kept
