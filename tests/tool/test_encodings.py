"""Encodings of rows: kept up to a size, prepared by threads, and the same values whichever way they were made."""

from __future__ import annotations

import threading

import pytest

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row
from safework_cli.models.encodings import Encodings

ROWS = [Row(f"r{number}", "general", [{"role": "user", "content": "x" * number}]) for number in range(9)]


class Counted:
    def __init__(self):
        self.calls: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, row: Row) -> bytes:
        self.free.wait(10)
        self.calls.append(row.id)
        if row.id == "r7":
            raise InputError("the image 'cat.png' cannot be read")
        return row.question.encode()


@pytest.fixture
def made():
    encode = Counted()
    encodings = Encodings(encode, len, lambda row: row.id, limit_bytes=10, threads=2)
    yield encode, encodings
    encode.free.set()
    encodings.close()


def test_each_row_is_encoded_once_while_there_is_room(made):
    encode, encodings = made
    assert [encodings(ROWS[n]) for n in (1, 2, 1, 2)] == [b"x", b"xx", b"x", b"xx"] and encode.calls == ["r1", "r2"]
    assert encodings(ROWS[2]) is encodings(ROWS[2])


def test_the_last_used_are_kept_up_to_the_limit(made):
    encode, encodings = made
    for number in (4, 5, 4, 3):  # 5 goes: 4 was used after it
        encodings(ROWS[number])
    assert encodings.held_bytes == 7
    encodings(ROWS[4])
    assert encode.calls == ["r4", "r5", "r3"]
    encodings(ROWS[5])
    assert encode.calls[-1] == "r5" and encodings.held_bytes <= 10
    encodings(ROWS[8])
    assert encodings.held_bytes == 8


def test_rows_are_prepared_ahead(made):
    encode, encodings = made
    encode.free.clear()
    encodings.ahead(ROWS[1:4])  # returns while the threads wait
    encodings.ahead(ROWS[1:4])
    encode.free.set()
    assert [encodings(row) for row in ROWS[1:4]] == [b"x", b"xx", b"xxx"]
    assert sorted(encode.calls) == ["r1", "r2", "r3"]


def test_no_more_is_prepared_than_there_is_room_for(made):
    encode, encodings = made
    encodings(ROWS[5])
    encodings.ahead(ROWS[:5] + ROWS[6:7])
    assert [encodings(row) for row in ROWS[:5]] == [row.question.encode() for row in ROWS[:5]]
    assert "r6" not in encode.calls


def test_what_is_no_longer_wanted_is_dropped(made):
    encode, encodings = made
    encode.free.clear()
    encodings.ahead(ROWS[:6])
    encodings.ahead(ROWS[6:7])
    encode.free.set()
    assert encodings(ROWS[6]) == b"xxxxxx"
    assert len(encode.calls) <= 3  # the two that had begun, and the wanted one


def test_an_error_in_a_thread_is_raised_where_the_row_is_asked_for(made):
    _, encodings = made
    encodings.ahead(ROWS[6:9])
    assert encodings(ROWS[6]) == b"xxxxxx"
    for _ in range(2):
        with pytest.raises(InputError, match="cat.png"):
            encodings(ROWS[7])
    assert encodings(ROWS[8]) == b"x" * 8
