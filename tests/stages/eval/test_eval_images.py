"""Suites whose prompts hold images: what identifies them, and what is measured on them."""

from __future__ import annotations

from safework_cli.data.row import Image, Message, Row
from safework_eval.selection import PlannedSuite


def suite(*rows: Row, metric: str = "general") -> PlannedSuite:
    return PlannedSuite("s", metric, rows, "here", "auto")


def row(content: bytes | None) -> Row:
    images = [] if content is None else [Image(bytes=content, path="a.png")]
    return Row("r", "general", [Message(role="user", content="<image>\nWhat?" if images else "What?")], images=images, answer="x")


def test_a_suites_digest_holds_what_its_images_hold():
    one, other = suite(row(b"one")), suite(row(b"other"))
    assert one.digest != other.digest and one.row_digests != other.row_digests
    assert one.digest == suite(row(b"one")).digest
    assert suite(row(None)).row_digests == ["bb74834c4308aaf6"], "digests of rows without images stay as they are"
