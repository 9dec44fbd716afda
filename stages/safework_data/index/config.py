"""Settings of ``safework data index``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from safework_cli.core.errors import nearest
from safework_cli.core.settings import Settings, StageConfig
from safework_data.files import Format

PASSAGE_FIELDS = ("id", "title", "text", "abstract")


class StarterPassages(Settings):
    """The passages of the starter set."""

    kind: Literal["starter"]
    """The word `starter`."""


class FilePassages(Settings):
    """Local files of passages: CSV, JSON Lines, JSON or Parquet."""

    kind: Literal["file"]
    """The word `file`."""
    path: str
    """A file or a glob such as `wiki/*.jsonl`; `~` and environment variables are filled in."""
    format: Format | None = None
    """csv, jsonl, json or parquet; default: what the file's suffix says."""
    columns: dict[str, str] = Field(default_factory=lambda: {"id": "id", "title": "title", "text": "text"})
    """Passage field → column. Fields: id, title, text (needed), and abstract (default: the first sentence of the text)."""
    limit: int | None = Field(default=None, ge=1, le=10**9)
    """How many passages are read, from the first; default all."""

    @field_validator("columns")
    @classmethod
    def _targets(cls, value: dict[str, str]) -> dict[str, str]:
        for target in value:
            if target not in PASSAGE_FIELDS:
                raise ValueError(f"'{target}' is not a field of a passage{nearest(target, PASSAGE_FIELDS)} ({', '.join(PASSAGE_FIELDS)})")
        missing = [name for name in ("id", "title", "text") if name not in value]
        if missing:
            raise ValueError(f"columns must name `{missing[0]}`")
        return value


class XQuADPassages(Settings):
    """The paragraphs of an XQuAD file, with the ids that the suites xquad-en and xquad-zh point to."""

    kind: Literal["xquad"]
    """The word `xquad`."""
    path: str
    """The file, such as `${SAFEWORK_DATA}/xquad/xquad.en.json`; environment variables are filled in."""


PassageSource = Annotated[StarterPassages | FilePassages | XQuADPassages, Field(discriminator="kind")]


class IndexConfig(StageConfig):
    """Settings of ``data index``."""

    sources: list[PassageSource] = Field(min_length=1)
    """Where passages come from, in order."""
    k1: float = Field(default=1.5, ge=0.0, le=100)
    """BM25's saturation of term frequency; no unit."""
    b: float = Field(default=0.75, ge=0.0, le=1.0)
    """BM25's correction for length: 0 none, 1 full."""
