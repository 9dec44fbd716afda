"""Exact and near duplicates. Subsets are looked at one by one: the same prompt may well stand in two of them.

MinHash and LSH are rensa's. Weighed against datasketch on 120 permutations: rensa signs and inserts 20,000 rows in 0.12 s, datasketch
4,000 in 1.4 s (both with the same bands), and its indexes are of Rust and need no SciPy. datasketch's storage back ends are not
needed here. Every pair that LSH proposes is confirmed by the exact Jaccard similarity, so that nothing is dropped by estimate.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from safework_cli.rows import Row
from safework_data.drops import Candidate, Drops
from safework_data.text import shingles, words

PERMUTATIONS, BANDS = 120, 20
"""Bands of six: a pair at similarity 0.8 is proposed with probability 0.998, a pair at 0.3 with 0.015."""
SHINGLE_WORDS = 3
HASH_SEED = 42
"""Fixed, so that the same rows stay whatever the recipe's seed is."""


def conversation_key(row: Row) -> bytes:
    """Digest of roles, texts and images: equal for equal conversations."""
    digest = hashlib.blake2b(digest_size=16)
    for message in row.messages:
        digest.update(f"{message['role']}\0{message['content'].strip()}\0".encode())
    digest.update(_images_key(row))
    return digest.digest()


def _images_key(row: Row) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for image in row.images:
        digest.update(image["bytes"] or str(image["path"]).encode())
    return digest.digest() if row.images else b""


def gold(row: Row) -> tuple[Hashable, ...]:
    """What a reply is judged by. Two rows that are judged differently say different things, however alike they read."""
    constraints = row.meta.get("constraints")
    return row.answer, row.harmful, row.meta.get("label"), json.dumps(constraints, sort_keys=True) if constraints else None


def without_exact(candidates: list[Candidate], drops: Drops) -> list[Candidate]:
    """Keeps the first of equal conversations; drops all of them where their gold answers, flags or labels contradict each other."""
    copies: dict[tuple[str, bytes], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        copies[candidate.subset, conversation_key(candidate.row)].append(candidate)
    dropped: set[int] = set()
    for same in copies.values():
        if len(same) == 1:
            continue
        first = same[0].row
        if _contradict([gold(candidate.row) for candidate in same]):
            for candidate in same:
                drops.add(candidate, "contradicting copies", f"judged in different ways: {', '.join(c.row.id for c in same[:4])}")
            dropped.update(map(id, same))
        else:
            for candidate in same[1:]:
                drops.add(candidate, "exact duplicate", f"of {first.id}")
            dropped.update(map(id, same[1:]))
    return [candidate for candidate in candidates if id(candidate) not in dropped]


def _contradict(golds: list[tuple[Hashable, ...]]) -> bool:
    return any(len({value for value in values if value is not None}) > 1 for values in zip(*golds, strict=True))


def without_near(candidates: list[Candidate], threshold: float, drops: Drops) -> list[Candidate]:
    """Drops rows whose user turns *and* replies are nearly those of an earlier row that is judged by the same gold.

    Both must agree: a stock refusal under another question is another lesson, and so is another reply to the same question.

    Args:
        threshold: Jaccard similarity of three-word runs, in (0, 1].
    """
    # Only rows that share gold and images can be duplicates. Bucketing first also keeps templated questions, which differ by
    # their numbers and so by their answers, from proposing each other.
    buckets: dict[tuple[Any, ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        buckets[candidate.subset, candidate.row.task, gold(candidate.row), _images_key(candidate.row)].append(candidate)
    dropped: dict[int, str] = {}
    for bucket in buckets.values():
        if len(bucket) > 1:
            dropped.update(_near_in(bucket, threshold))
    kept = []
    for candidate in candidates:
        if id(candidate) in dropped:
            drops.add(candidate, "near duplicate", f"of {dropped[id(candidate)]}")
        else:
            kept.append(candidate)
    return kept


def _near_in(bucket: list[Candidate], threshold: float) -> dict[int, str]:
    from rensa import RMinHash, RMinHashLSH

    asked = [_shingles_of(candidate.row, "user") for candidate in bucket]
    signatures = RMinHash.from_token_sets(asked, PERMUTATIONS, HASH_SEED)
    index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    dropped: dict[int, str] = {}
    for number, (candidate, signature) in enumerate(zip(bucket, signatures, strict=True)):
        for earlier in sorted(index.query(signature)):
            if jaccard(asked[number], asked[earlier]) < threshold:
                continue
            replies = (_shingles_of(c.row, "assistant") for c in (candidate, bucket[earlier]))
            if jaccard(*replies) >= threshold:
                dropped[id(candidate)] = bucket[earlier].row.id
                break
        else:
            index.insert(number, signature)
    return dropped


def _shingles_of(row: Row, role: str) -> set[str]:
    text = "\n".join(m["content"] for m in row.messages if m["role"] == role)
    return shingles(words(text) or [text], SHINGLE_WORDS)  # signs without words (an emoji) are compared as they stand


def jaccard(a: set[str], b: set[str]) -> float:
    """|a ∩ b| / |a ∪ b|; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0
