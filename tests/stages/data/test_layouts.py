"""Conversations and gold answers in the layouts and types that people publish: read whole, or refused by name."""

from __future__ import annotations

import base64
import io
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PIL

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.row import Row, read_rows
from safework_data.build.contamination import known_by
from safework_data.build.stage import stage
from safework_data.build.text import asked


def build(work: WorkDir, path: Path | str, columns: dict[str, Any], **more: Any) -> Outcome:
    settings = {key: more.pop(key) for key in ("heldout", "require_thought") if key in more}
    source = {"kind": "file", "path": str(path), "name": "mine", "subset": "sft", "task": "general", "columns": columns} | more
    config = stage.Config.model_validate({"sources": [source], "max_dropped": 1.0, "near_duplicate_threshold": None, **settings})
    plan = stage.plan(config, Inputs({}))
    assert not plan.refusals
    return stage.run(config, Inputs({}), work)


def rows_of(work: WorkDir, subset: str = "sft") -> list[Row]:
    return read_rows(work.output / subset)


def said(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def drops_of(work: WorkDir) -> list[str]:
    return [f"{d['reason']}: {d.get('detail', '')}" for d in map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())]


def table(tmp_path: Path, *cells: Any, column: str = "messages") -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({column: cell}) + "\n" for cell in cells))
    return path


USER, REPLY = {"role": "user", "content": "Add 1."}, {"role": "assistant", "content": "2"}
PLAIN = [("user", "Add 1."), ("assistant", "2")]


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ([USER, REPLY], PLAIN),
        (json.dumps([USER, REPLY]), PLAIN),
        ([{"from": "human", "value": "Add 1."}, {"from": "gpt", "value": "2"}], PLAIN),
        (
            [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "Add 1."}, {"from": "chatgpt", "value": "2"}],
            [("system", "Be brief."), *PLAIN],
        ),
        ({"from": ["human", "gpt"], "value": ["Add 1.", "2"]}, PLAIN),
        ([{"role": "user", "parts": [{"text": "Add 1."}]}, {"role": "model", "parts": [{"text": "2"}]}], PLAIN),
        ([{"role": "developer", "content": "Be brief."}, USER, REPLY], [("system", "Be brief."), *PLAIN]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Add "}, {"type": "input_text", "text": "1."}]}, REPLY],
            PLAIN,
        ),
        ([USER, {**REPLY, "reasoning_content": "One more."}], [PLAIN[0], ("assistant", "<think>One more.</think>2")]),
        ([USER, {**REPLY, "reasoning": "One more."}], [PLAIN[0], ("assistant", "<think>One more.</think>2")]),
        ([USER, {**REPLY, "thinking": "One more.", "tool_calls": None}], [PLAIN[0], ("assistant", "<think>One more.</think>2")]),
        (
            [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "One more."}, {"type": "text", "text": "2"}]}],
            [PLAIN[0], ("assistant", "<think>One more.</think>2")],
        ),
        (
            [USER, {**REPLY, "reasoning_details": [{"type": "reasoning.text", "text": "One more."}]}],
            [PLAIN[0], ("assistant", "<think>One more.</think>2")],
        ),
        (
            [USER, {"role": "assistant", "content": "<think>One more.</think>2", "reasoning": "One more."}],
            [PLAIN[0], ("assistant", "<think>One more.</think>2")],
        ),
        ([USER, {"role": "assistant", "content": None, "refusal": "I can't."}], [PLAIN[0], ("assistant", "I can't.")]),
        ([USER, {**REPLY, "weight": 1}], PLAIN),
        ([{**USER, "train": False}, {**REPLY, "train": True, "loss": 1.0}], PLAIN),
        ([USER, {"role": "assistant", "content": 2.0}], PLAIN),
    ],
)
def test_the_usual_layouts_are_read_whole(work, tmp_path, cell, read):
    outcome = build(work, table(tmp_path, cell), {"messages": "messages"})
    assert said(rows_of(work)[0]) == read and not outcome.notes


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ([USER, {**REPLY, "tool_calls": [{"type": "function"}]}], "tool calls: a message has tool_calls"),
        ([USER, {**REPLY, "function_call": {"name": "f"}}], "tool calls: a message has function_call"),
        ([USER, {"role": "tool", "content": "3"}, REPLY], "tool turns: a message of the role 'tool'"),
        ([{"from": "human", "value": "?"}, {"from": "observation", "value": "3"}], "tool turns: a message of the role 'observation'"),
        ([USER, {**REPLY, "weight": 0}, USER, REPLY], "a turn with a weight of its own: weight 0"),
        ([USER, {**REPLY, "weight": 0.5}], "a turn with a weight of its own: weight 0.5"),
        ([USER, {**REPLY, "train": False}], "a turn that is not to be trained on: train is False"),
        ([USER, {**REPLY, "loss": 0}], "a turn that is not to be trained on: loss is 0"),
        ([USER, {**REPLY, "reasoning": {"steps": 3}}], "a thought that is not text: reasoning is dict"),
        ([USER, {**REPLY, "content": "<think>a</think>2", "reasoning": "b"}], "two thoughts: a separate one and another in the reply"),
        ([USER, {**REPLY, "reasoning": "a</think>b"}], "two thoughts: the reply's separate thought holds tags of its own"),
        ([{**USER, "reasoning": "a"}, REPLY], "a thought outside a reply: of the role 'user'"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}, REPLY], "content that is not text: a part of the type 'input_audio'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}, REPLY], "an image outside its row"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,@"}}]}, REPLY],
            "unreadable image",
        ),
        ([{**USER, "images": ["a.png"]}, REPLY], "images in a message"),
        ([{"role": "user", "content": {"a": 1}}, REPLY], "content is not text: dict"),
        ([{"text": "Add 1."}], "messages are not readable"),
        ("[" * 5000, "messages are not readable: text that is not JSON"),
        ([{"role": "critic", "content": "no"}, REPLY], "schema: unknown role"),
    ],
)
def test_what_a_row_cannot_hold_is_dropped_by_name(work, tmp_path, cell, why):
    outcome = build(work, table(tmp_path, [USER, REPLY], cell), {"messages": "messages"})
    assert len(rows_of(work)) == 1 and outcome.failed_items == 1
    assert drops_of(work)[0].startswith(why)


def test_keys_of_messages_that_are_not_read_are_counted(work, tmp_path):
    timed = [{**USER, "timestamp": "12:00"}, {**REPLY, "timestamp": "12:01"}]
    outcome = build(work, table(tmp_path, timed, [{**USER, "content": "Add 2."}, REPLY]), {"messages": "messages"})
    assert outcome.notes == ["of messages, 'timestamp' is not read: 1 rows"] and outcome.metrics["rows"] == 2


def test_images_among_parts_stand_where_they_were(work, tmp_path):
    file = io.BytesIO()
    PIL.new("RGB", (3, 2)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    part, text = {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": " and what?"}
    inside = [{"role": "user", "content": [part, text]}, REPLY]
    build(work, table(tmp_path, inside), {"messages": "messages"})
    (row,) = rows_of(work)
    assert row.question == "<image> and what?" and row.images[0]["bytes"] == file.getvalue()


def test_places_of_images_are_filled_from_a_column(work, tmp_path):
    PIL.new("RGB", (3, 2)).save(tmp_path / "a.png")
    message = {"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]}
    records = [{"messages": [message, REPLY], "images": ["a.png"]}, {"messages": [message, REPLY], "images": []}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build(work, tmp_path / "rows.jsonl", {"messages": "messages", "images": "images"})
    (row,) = rows_of(work)
    assert row.question == "See <image>" and len(row.images) == 1 and drops_of(work)[0].startswith("schema: … <image> tags")


def test_prompt_and_completion_may_be_lists_of_messages(work, tmp_path):
    records = [
        {"prompt": [{"role": "system", "content": "Be brief."}, USER], "completion": [REPLY]},
        {"prompt": [USER, REPLY, {"role": "user", "content": "And 3?"}], "completion": "4"},
        {"prompt": "Add 5.", "completion": [{"role": "assistant", "content": "6", "reasoning_content": "One more."}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build(work, tmp_path / "rows.jsonl", {"prompt": "prompt", "reply": "completion"})
    assert [said(row) for row in rows_of(work)] == [
        [("system", "Be brief."), *PLAIN],
        [*PLAIN, ("user", "And 3?"), ("assistant", "4")],
        [("user", "Add 5."), ("assistant", "<think>One more.</think>6")],
    ]


def test_a_path_leads_into_nested_columns(work, tmp_path):
    record = {"prompt": [USER], "reward_model": {"ground_truth": 2, "style": "rule"}, "answers": {"text": ["2", "two"]}, "turns": ["first"]}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "rl.parquet")
    columns = {"messages": "prompt", "answer": "reward_model.ground_truth", "meta.kind": "reward_model.style", "meta.first": "turns.0"}
    build(work, tmp_path / "rl.parquet", columns)
    (row,) = rows_of(work)
    assert row.answer == "2" and row.meta["kind"] == "rule" and row.meta["first"] == "first"
    with pytest.raises(InputError, match=r"no column 'reward_model.ground_thruth'; did you mean 'reward_model.ground_truth'"):
        build(work, tmp_path / "rl.parquet", columns | {"answer": "reward_model.ground_thruth"})


GOLDS = [
    (pa.array([5, None], pa.int64()), "5"),
    (pa.array([5.0, None], pa.float64()), "5"),
    (pa.array([0.1, None], pa.float32()), "0.1"),
    (pa.array([2.5, None], pa.float16()), "2.5"),
    (pa.array([-3.0, None], pa.float64()), "-3"),
    (pa.array([1e300, None], pa.float64()), "1e+300"),
    (pa.array([Decimal("5.50"), None], pa.decimal128(6, 2)), "5.5"),
    (pa.array([Decimal("100.00"), None], pa.decimal128(6, 2)), "100"),
    (pa.array([True, None], pa.bool_()), "True"),
    (pa.array([date(2024, 5, 1), None], pa.date32()), "2024-05-01"),
    (pa.array([datetime(2024, 5, 1), None], pa.timestamp("us")), "2024-05-01"),
    (pa.array([datetime(2024, 5, 1, 13, 30), None], pa.timestamp("us")), "2024-05-01 13:30:00"),
    (pa.array([["5", "five"], None], pa.list_(pa.string())), "5"),
    (pa.array([[5.0, 6.5], None], pa.list_(pa.float64())), "5"),
]


@pytest.mark.parametrize(("column", "gold"), GOLDS, ids=[f"{c.type}" for c, _ in GOLDS])
def test_golds_are_what_their_author_wrote_whatever_their_column_is(work, tmp_path, column, gold):
    pq.write_table(pa.table({"q": ["One?", "Two?"], "gold": column, "n": [0.0, None]}), tmp_path / "rows.parquet")
    build(work, tmp_path / "rows.parquet", {"id": "n", "prompt": "q", "answer": "gold"})
    rows = {row.question: row for row in rows_of(work)}
    assert rows["One?"].answer == gold and rows["Two?"].answer is None
    assert rows["One?"].id == "mine/0"
    assert rows["One?"].meta.get("aliases") in (None, ["five"], ["6.5"])


def test_the_number_of_a_choice_may_be_a_float(work, tmp_path):
    pq.write_table(pa.table({"q": ["Which?"], "options": [["red", "blue"]], "gold": pa.array([1.0])}), tmp_path / "rows.parquet")
    build(work, tmp_path / "rows.parquet", {"prompt": "q", "answer": "gold", "meta.choices": "options"}, subset="rl")
    assert rows_of(work, "rl")[0].answer == "B"


def test_shards_that_number_their_rows_from_0_lose_none(work, tmp_path):
    for shard in ("a", "b"):
        (tmp_path / shard).mkdir()
        lines = [json.dumps({"id": n, "q": f"Shard {shard}, row {n}?"}) for n in range(2)]
        (tmp_path / shard / "train.jsonl").write_text("\n".join(lines))
    outcome = build(work, tmp_path / "*" / "train.jsonl", {"id": "id", "prompt": "q"}, subset="rl")
    assert [row.id for row in rows_of(work, "rl")] == ["mine/a/train/0", "mine/a/train/1", "mine/b/train/0", "mine/b/train/1"]
    assert outcome.failed_items == 0


def test_ids_are_by_file_and_number_where_no_column_gives_one(work, tmp_path):
    for shard in ("0", "1"):
        (tmp_path / f"part-{shard}.jsonl").write_text(f'{{"q": "Shard {shard}?"}}\n\n{{"q": "Shard {shard}, again?"}}\n')
    build(work, tmp_path / "part-*.jsonl", {"prompt": "q"}, subset="rl")
    assert [row.id for row in rows_of(work, "rl")] == ["mine/part-0/1", "mine/part-0/2", "mine/part-1/1", "mine/part-1/2"]


HISTORY = [
    {"role": "user", "content": "I have three apples and buy two more at the shop."},
    {"role": "assistant", "content": "Then you have five."},
    {"role": "user", "content": "And after eating one?"},
]


def test_a_held_out_conversation_keeps_its_history_and_loses_its_last_reply(work, tmp_path):
    rows = [[*HISTORY, {"role": "assistant", "content": "Four."}], *([USER, {**REPLY, "content": str(n)}] for n in range(3))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"m": m, "gold": "4", "g": str(i == 0)}) + "\n" for i, m in enumerate(rows)))
    build(work, path, {"messages": "m", "answer": "gold", "meta.group": "g"}, subset="cot", heldout=0.5, require_thought=[])
    held = rows_of(work, "heldout") + rows_of(work, "cot")
    (row,) = [row for row in held if row.meta["group"] == "True"]
    assert [m["content"] for m in asked(row)] == [m["content"] for m in HISTORY]
    (one,) = rows_of(work, "heldout")[:1]
    assert one.messages[-1]["role"] == "user"


def test_a_conversation_is_known_by_all_that_the_user_says():
    row = Row("a", "general", [dict(m) for m in HISTORY])  # type: ignore[misc]
    assert known_by(row) == [("words", "I have three apples and buy two more at the shop.\nAnd after eating one?")]


def test_a_search_episode_is_asked_its_question():
    turns = [("user", "Who built it?"), ("assistant", "<think>Look.</think><search>builder</search>"), ("user", "Results:\n1. A: b")]
    done = [*turns, ("assistant", "<think>There.</think><confidence>9</confidence><answer>A</answer>")]
    row = Row("a", "search", [{"role": role, "content": text} for role, text in done])
    assert [m["content"] for m in asked(row)] == ["Who built it?"] and known_by(row) == [("words", "Who built it?")]
