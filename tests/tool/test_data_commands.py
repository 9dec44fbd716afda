"""`data preview`, `data sets`, `data schema`: what a person looks at before training on rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from safework_cli.data.row import Message, Row, write_rows
from safework_cli.data.schema import META, row_schema
from safework_data import starter


def folder_of(tmp_path: Path, *rows: Row) -> str:
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "train.parquet", list(rows))
    return str(tmp_path / "rows")


def row(reply: str, **fields) -> Row:
    messages = [Message(role="user", content="What is a fjord?"), Message(role="assistant", content=reply)]
    return Row("r/1", "knowledge", messages, **fields)


def test_preview_marks_the_supervised_tokens_under_a_models_template(cli, tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    data = folder_of(tmp_path, row("<think>Geography.</think>A drowned valley.", answer="a valley"))
    said = cli("data", "preview", data, "--model", str(tiny_model))
    assert said.returncode == 0, said.stderr
    marked = "".join(re.findall(r"\x1b\[7;32m(.*?)\x1b\[0m", said.stdout, re.DOTALL))
    assert marked.replace("\n", "") == "<think>Geography.</think>A drowned valley.<|im_end|>"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.stdout)
    assert "answer=a valley" in plain and "<|im_start|>user" in plain
    monkeypatch.delenv("FORCE_COLOR")
    piped = cli("data", "preview", data, "--model", str(tiny_model)).stdout
    assert "⟦<think>Geography.</think>A drowned valley.<|im_end|>⟧" in piped and "\x1b" not in piped


def test_preview_shows_hostile_text_and_does_nothing_with_it(cli, tmp_path: Path) -> None:
    data = folder_of(tmp_path, row("\x1b]0;title\x07\x1b[2J[bold red]markup[/bold red]\u202egnp.exe"))
    said = cli("data", "preview", data)
    assert said.returncode == 0, said.stderr
    assert "\x1b" not in said.stdout and "\u202e" not in said.stdout and "\x07" not in said.stdout
    assert "\\x1b[2J[bold red]markup[/bold red]\\u202egnp.exe" in said.stdout


def test_preview_names_what_is_missing(cli, tmp_path: Path) -> None:
    data = folder_of(tmp_path, row("yes"))
    beyond = cli("data", "preview", data, "--start", "7")
    assert beyond.returncode == 3 and "holds 1 rows" in beyond.stderr
    unknown = cli("data", "preview", data, "--id", "r/2")
    assert unknown.returncode == 3 and "r/1" in unknown.stderr


def test_sets_lists_what_may_be_trained_on_and_what_is_kept_out(cli) -> None:
    lines = [json.loads(line) for line in cli("data", "sets", "--json").stdout.splitlines()]
    uses = {line["name"]: line["use"] for line in lines}
    assert uses["mmlu-val"] == "train" and uses["mmlu-test"] == "suite" and uses["ethics-justice-judged-test"] == "test"
    assert all(line["licence"] and line["upstream"] for line in lines)


def test_the_schema_accepts_the_starter_set_and_refuses_what_the_tool_refuses(cli) -> None:
    schema = json.loads(cli("data", "schema").stdout)
    assert schema == row_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    rows = [row for rows in starter.build(0).values() for row in rows]
    used = set()
    for sound in rows:
        record = {**sound.to_record(), "meta": sound.meta}
        validator.validate(record)
        used |= sound.meta.keys()
    assert used - META.keys() == {"outcome"}, "keys that stages understand are in the schema"
    good = {"id": "a", "task": "value", "messages": [{"role": "user", "content": "x"}]}
    validator.validate(good)
    for change in ({"task": "poetry"}, {"messages": []}, {"id": ""}, {"messages": [{"role": "user", "content": " "}]}, {"colour": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(good | change)
