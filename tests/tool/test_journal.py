"""A kill cuts a journal's last line; nothing else may be wrong with it."""

from __future__ import annotations

import json

import pytest

from safework_cli.core.errors import InputError
from safework_cli.core.journal import open_journal, read_journal, write_line

WHOLE = b'{"step": 1}\n{"step": 2}\n'


def test_no_file_is_no_records(tmp_path):
    assert read_journal(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b"", 2), (b'{"step": 3', 2), (b'{"step": 3}', 3), (b'{"text": "\xe4\xbd', 2), (b"{", 2)],
)
def test_what_is_appended_after_a_kill_stands_on_a_line_of_its_own(tmp_path, tail, kept):
    path = tmp_path / "j.jsonl"
    path.write_bytes(WHOLE + tail)
    assert [record["step"] for record in read_journal(path)] == [1, 2, 3][:kept]
    with open_journal(path) as handle:
        write_line(handle, {"step": 9, "text": "\u4f60 \ud800"})
    assert [record["step"] for record in read_journal(path)] == [*[1, 2, 3][:kept], 9]
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"" and all(json.loads(line) for line in lines)
    assert read_journal(path)[-1]["text"] == "\u4f60 \ud800"


@pytest.mark.parametrize("line", [b'{"st', b"5", b"null", b"[]", b"[" * 100_000], ids=["cut", "number", "null", "list", "deep"])
def test_a_broken_line_in_the_middle_is_no_kill(tmp_path, line):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"j\.jsonl: line 2 is not a record"):
        read_journal(path)
    broken: list[InputError] = []
    assert read_journal(path, broken=broken) == [{"step": 1}, {"step": 3}] and "line 2" in str(broken[0])


def test_bytes_are_not_written_as_the_text_of_a_literal(tmp_path):
    with open_journal(tmp_path / "j.jsonl") as handle, pytest.raises(TypeError, match="bytes"):
        write_line(handle, {"rows": [{"images": [{"bytes": b"\x89PNG"}]}]})
    assert read_journal(tmp_path / "j.jsonl") == []
