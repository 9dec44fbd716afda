"""The search index at run time: BM25 over passages, loaded from an ``index`` artifact.

The artifact holds ``passages.parquet``, the arrays of ``bm25s`` as plain NumPy files with a JSON vocabulary (no pickle, mapped into memory)
and ``index.json``, which records the digest of the passages: an index and passages that do not belong together are refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.errors import InputError

if TYPE_CHECKING:
    from safework_cli.data.row import Row

PASSAGES, INDEX, ARRAYS = "passages.parquet", "index.json", "bm25"
SCHEMA_VERSION = 1
TOKENISER = "words and CJK bigrams 1"
"""Changes whenever ``tokenise`` does: an index built with another one would silently miss words."""

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_RUN = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")


class Passage(NamedTuple):
    """A document of the index."""

    id: str
    title: str
    text: str
    abstract: str


class Hit(NamedTuple):
    """A search result. ``number`` is the passage's place in the index, ``score`` is BM25's, above 0."""

    number: int
    id: str
    title: str
    abstract: str
    score: float


def tokenise(text: str) -> list[str]:
    """Terms of a text: lower-cased words, and for Chinese and Japanese, which write no spaces, each pair of neighbouring characters.

    A lone CJK character is a term by itself. Width and compatibility forms are folded (NFKC).
    """
    terms: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if len(run) > 1 and _IS_CJK.match(run):
            terms.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            terms.append(run)
    return terms


def write_index(folder: Path, passages: Sequence[Passage], *, k1: float, b: float) -> None:
    """Writes an index payload.

    Args:
        folder: an existing folder.
        passages: with distinct ids, each with at least one term.
        k1, b: BM25's parameters (the Lucene variant, whose scores are never negative).
    """
    import bm25s
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([p._asdict() for p in passages]), folder / PASSAGES)
    engine = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    # The vocabulary is numbered here, by first use: bm25s numbers it by Python's string hashes, and no two runs would give the same bytes.
    number_of: dict[str, int] = {}
    terms = [[number_of.setdefault(term, len(number_of)) for term in tokenise(f"{p.title}\n{p.text}")] for p in passages]
    engine.index((terms, number_of), show_progress=False)
    engine.save(folder / ARRAYS, allow_pickle=False, show_progress=False)
    record = {"schema": SCHEMA_VERSION, "tokeniser": TOKENISER, "passages": len(passages), "passages_sha256": sha256_of(folder / PASSAGES)}
    (folder / INDEX).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class SearchIndex:
    """BM25 over passages. Loading maps the arrays; many processes may read one index."""

    def __init__(self, passages: Any, engine: Any):
        self._passages, self._engine = passages, engine
        self._number_of: dict[str, int] = {id: number for number, id in enumerate(passages.column("id").to_pylist())}

    @classmethod
    def load(cls, folder: Path) -> SearchIndex:
        """Opens the payload of an ``index`` artifact.

        Raises:
            InputError: a file is missing or damaged, the passages are not those that were indexed, or another tokeniser cut them.
        """
        import bm25s
        import pyarrow as pa
        import pyarrow.parquet as pq

        again = "build it again: safework data index --fresh"
        try:
            record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            expected, count, tokeniser = record["passages_sha256"], record["passages"], record["tokeniser"]
        except FileNotFoundError:
            raise InputError(f"{folder} is not a search index", f"it has no {INDEX}", "safework artifacts ls --kind index") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / INDEX} is damaged", f"{type(error).__name__}: {error}", again) from None
        if tokeniser != TOKENISER:
            raise InputError(f"{folder} was built with another tokeniser", f"its: {tokeniser}; this version's: {TOKENISER}", again)
        try:
            if sha256_of(folder / PASSAGES) != expected:
                raise InputError(f"{folder} is an index whose passages changed", f"{PASSAGES} is not the file that was indexed", again)
            passages = pq.read_table(folder / PASSAGES)
            engine = bm25s.BM25.load(folder / ARRAYS, mmap=True, allow_pickle=False, show_progress=False, verbosity=0)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(f"the index in {folder} is damaged", f"{type(error).__name__}: {str(error).splitlines()[0]}", again) from None
        if not count == passages.num_rows == engine.scores["num_docs"]:
            why = f"{count} passages indexed, {passages.num_rows} stored, {engine.scores['num_docs']} scored"
            raise InputError(f"the index in {folder} is damaged", why, again)
        return cls(passages, engine)

    def __len__(self) -> int:
        return int(self._passages.num_rows)

    def __contains__(self, id: str) -> bool:
        return id in self._number_of

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The ``k`` best passages, best first; equal scores in the order of the index. Empty where no term of the query is known."""
        import numpy as np

        known = self._engine.get_tokens_ids(tokenise(query))
        if not known or k < 1:
            return []
        scores_N = self._engine.get_scores_from_ids(known)
        matching = np.flatnonzero(scores_N > 0)
        best = matching[np.lexsort((matching, -scores_N[matching]))][:k]
        return [self._hit(int(number), float(scores_N[number])) for number in best]

    def read(self, id: str) -> Passage:
        """The passage of an id. Raises KeyError where there is none: in an episode that is the policy's mistake, not the user's."""
        return self.passage(self._number_of[id])

    def passage(self, number: int) -> Passage:
        """The passage at a place of the index. Raises IndexError."""
        return Passage(**{name: self._passages.column(name)[number].as_py() for name in Passage._fields})

    def _hit(self, number: int, score: float) -> Hit:
        passage = self.passage(number)
        return Hit(number, passage.id, passage.title, passage.abstract, score)


def lost_answers(folder: Path, rows: Sequence[Row], of: str, ref: str) -> InputError | None:
    """The error for questions whose answers are in passages that the index does not have (``meta.passages``); None where it has them
    all, and where the index cannot be read: loading says why.

    Args:
        folder: of the index; its ids only are read.
        of, ref: what the questions and the index are, for the message.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = {passage for row in rows for passage in _passages_of(row)}
    if not wanted:
        return None
    try:
        ids = pq.read_table(folder / PASSAGES, columns=["id"]).column("id")
        names = pa.array(sorted(wanted), ids.type)
        missing = set(names.filter(pc.invert(pc.is_in(names, value_set=pc.unique(ids)))).to_pylist())
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    lost = sum(not missing.isdisjoint(_passages_of(row)) for row in rows)
    if not lost:
        return None
    return InputError(
        f"{lost} of {len(rows)} questions of {of} have their answers in passages that {ref} lacks",
        "no search could find them",
        "build the index from the passages of the questions: safework data index",
    )


def _passages_of(row: Row) -> list[str]:
    """Ids of the passages that hold the answer; none where the row does not name them as the starter set does."""
    passages = row.meta.get("passages")
    return [passage for passage in passages if isinstance(passage, str)] if isinstance(passages, list) else []
