"""What is compared of every row, as numbers: about 250 bytes a row, however long its text.

Shapes: N rows, K = 20 bands.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safework_cli.data.image_content import image_keys
from safework_cli.data.row import Row
from safework_data.build.drops import Candidate
from safework_data.build.splits import is_held_out
from safework_data.build.text import shingles, words

PERMUTATIONS, BANDS = 120, 20
"""Bands of six: a pair at similarity 0.8 is proposed with probability 0.998, a pair at 0.3 with 0.015."""
SHINGLE_WORDS = 3
HASH_SEED = 42
"""Fixed, so that the same rows stay whatever the recipe's seed is."""
_MIX = np.array([0x9E3779B97F4A7C15 * (2 * i + 1) % 2**64 | 1 for i in range(PERMUTATIONS // BANDS)], dtype=np.uint64)


def digest64(*parts: object) -> int:
    """A 64-bit digest of texts; never 0, which stands for "nothing"."""
    text = "".join(f"{part}\0" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1


def conversation_key(row: Row) -> bytes:
    """Digest of roles, texts and images: equal for equal conversations."""
    digest = hashlib.blake2b(digest_size=16)
    for message in row.messages:
        digest.update(f"{message['role']}\0{message['content'].strip()}\0".encode())
    digest.update(images_key(row))
    return digest.digest()


def copy_key(subset: str, row: Row, *, held: bool) -> bytes:
    """Digest that is equal for equal conversations of one subset and one side of the split.

    Args:
        held: whether the key is for the held-out side.
    """
    return hashlib.blake2b(subset.encode() + (b"\0held\0" if held else b"\0") + conversation_key(row), digest_size=16).digest()


def images_key(row: Row) -> bytes:
    """The row's images by their content, in order; empty where it has none."""
    return "\0".join(image_keys(row.images)).encode()


def gold(row: Row) -> tuple[Hashable, ...]:
    """What a reply is judged by. Two rows that are judged differently say different things, however alike they read."""
    constraints = row.meta.get("constraints")
    return row.answer, row.harmful, row.meta.get("label"), json.dumps(constraints, sort_keys=True) if constraints else None


def shingles_of(row: Row, role: str) -> set[str]:
    """The three-word runs of all that one role says; signs without words (an emoji) are compared as they stand."""
    text = "\n".join(m["content"] for m in row.messages if m["role"] == role)
    return shingles(words(text) or [text], SHINGLE_WORDS)


class Traits:
    """Collects the traits of rows, in order.

    Args:
        near: whether rows will be compared for near duplicates: signatures are made then.
    """

    def __init__(self, *, near: bool = True):
        self._near = near
        self._columns = {name: array("Q") for name in ("exact", "exact2", "bucket", "group", "id", "gold0", "gold1", "gold2", "gold3")}
        self._held = array("b")
        self._tokens: list[list[str]] = []
        self._bands: list[NDArray[np.uint64]] = []

    def add(self, candidate: Candidate) -> None:
        row, put = candidate.row, self._columns
        judged_by = gold(row)
        held = is_held_out(candidate)  # the sides are kept apart: of a held-out row and its copy in training, only the latter may go
        key = copy_key(candidate.subset, row, held=held)
        put["exact"].append(int.from_bytes(key[:8], "big"))
        put["exact2"].append(int.from_bytes(key[8:], "big"))
        put["bucket"].append(digest64(candidate.subset, held, row.task, judged_by, images_key(row)))
        put["group"].append(digest64(row.group))
        put["id"].append(digest64(row.id))
        for number, value in enumerate(judged_by):
            put[f"gold{number}"].append(0 if value is None else digest64(type(value).__name__, value))
        self._held.append(held)
        if self._near:
            self._tokens.append(list(shingles_of(row, "user")))

    def extend(self, other: Traits) -> None:
        """Takes over the traits of the rows that come next."""
        for name, column in self._columns.items():
            column.extend(other._columns[name])
        self._held.extend(other._held)
        self.sign()
        other.sign()
        self._bands += other._bands

    def replace(self, places: NDArray[np.int64], other: Traits) -> None:
        """Puts the traits of rows that have changed, in the order of ``places``, in place of those of the rows there."""
        if not len(places):
            return
        for name in self._columns:
            self.column(name)[places] = other.column(name)
        np.frombuffer(self._held, dtype=np.int8)[places] = other.held
        if self._near:
            self.sign()
            other.sign()
            self._bands, other._bands = [np.concatenate(self._bands)], [np.concatenate(other._bands)]
            self._bands[0][places] = other._bands[0]

    def __len__(self) -> int:
        return len(self._held)

    def column(self, name: str) -> NDArray[np.uint64]:
        """One trait of all rows, (N,)."""
        return np.frombuffer(self._columns[name], dtype=np.uint64) if len(self) else np.zeros(0, dtype=np.uint64)

    @property
    def held(self) -> NDArray[np.bool_]:
        """Which rows are for evaluation, (N,)."""
        return np.frombuffer(self._held, dtype=np.int8).astype(bool) if len(self) else np.zeros(0, dtype=bool)

    def bands(self) -> NDArray[np.uint64]:
        """Hash of each band of each row's signature, with its bucket mixed in, (N, K): equal where LSH proposes a pair."""
        self.sign()
        if not self._bands:
            return np.zeros((0, BANDS), dtype=np.uint64)
        bands_NK = np.concatenate(self._bands)
        self._bands = [bands_NK]
        return bands_NK ^ self.column("bucket")[:, None]

    def sign(self) -> None:
        """Makes the signatures that are still to be made: the words of a row take more room."""
        from rensa import RMinHash

        if not self._tokens:
            return
        signed = RMinHash.digests_from_token_sets(self._tokens, PERMUTATIONS, HASH_SEED)
        signature_nKP: Any = np.array(signed, dtype=np.uint64).reshape(len(signed), BANDS, PERMUTATIONS // BANDS)
        mixed_nK = ((signature_nKP + 1) * _MIX).sum(-1, dtype=np.uint64)  # modulo 2^64
        self._bands.append((mixed_nK ^ (mixed_nK >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9))
        self._tokens = []
