"""Rows with images are grouped, split, deduplicated and decontaminated by what their images hold, in addition to their words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image as PIL

from safework_cli.core.stage import Inputs
from safework_cli.data.image_content import image_key, image_keys
from safework_cli.data.row import Image, Message, Row, read_rows
from safework_data.build.contamination import Known, LeakIndex, known_by
from safework_data.build.records import prompt_group
from safework_data.build.stage import stage

ASKED = "How many shapes are there?"
LONG = "A lamp of ten watts hangs above a table of wood; how bright is the corner that faces the door?"


def drawn(number: int) -> bytes:
    file = io.BytesIO()
    PIL.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def row(name: str, question: str, *numbers: int, **fields) -> Row:
    images = [Image(bytes=drawn(number), path=f"{name}.png") for number in numbers]
    return Row(name, "general", [Message(role="user", content="<image>\n" * len(images) + question)], images=images, **fields)


def built(work, folder: Path, records: list[tuple[str, int, str]], **settings):
    """Builds rows of (question, number of the image, answer)."""
    for _, number, _ in records:
        (folder / f"{number}.png").write_bytes(drawn(number))
    lines = [json.dumps({"prompt": question, "image": f"{number}.png", "gold": answer}) for question, number, answer in records]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    source = {
        "kind": "file", "path": str(folder / "rows.jsonl"), "name": "mine", "subset": "rl", "task": "general",
        "columns": {"prompt": "prompt", "images": "image", "answer": "gold"}, "constants": {"meta.answer_type": "exact"},
    }  # fmt: skip
    stage.run(stage.Config.model_validate({"sources": [source], "max_dropped": 1.0, **settings}), Inputs({}), work)
    drops = [json.loads(line) for line in (work.output / "drops.jsonl").read_text().splitlines()]
    parts = {name: work.output / name for name in ("rl", "heldout")}
    return {name: read_rows(path) if path.is_dir() else [] for name, path in parts.items()}, drops


def test_one_question_about_forty_images_can_be_split(work, tmp_path):
    rows, drops = built(work, tmp_path, [(ASKED, number, str(number % 5)) for number in range(40)], heldout=0.2)
    assert (len(rows["rl"]), len(rows["heldout"]), drops) == (32, 8, [])
    assert not {one.group for one in rows["rl"]} & {one.group for one in rows["heldout"]}


def test_all_questions_about_one_image_stay_on_one_side(work, tmp_path):
    questions = ("Which colour is the largest of them?", "Is there a red one on the left side?", ASKED)
    records = [(question, number, f"{question[:4]}{number}") for number in range(30) for question in questions]
    rows, drops = built(work, tmp_path, records, heldout=0.3)
    held = {key for one in rows["heldout"] for key in image_keys(one.images)}
    assert (len(held), len(rows["heldout"]), drops) == (9, 27, [])
    assert not held & {key for one in rows["rl"] for key in image_keys(one.images)}


def test_copies_are_known_by_their_image_and_not_by_their_files_name(work, tmp_path):
    (tmp_path / "copy.png").write_bytes(drawn(1))
    records = [("What is shown here?", 1, "a"), ("What is shown here?", 2, "a"), ("What is shown here?", 1, "a")]
    rows, drops = built(work, tmp_path, records)
    assert len(rows["rl"]) == 2 and [drop["reason"] for drop in drops] == ["exact duplicate"]
    assert image_key(Image(bytes=drawn(1), path="a.png")) == image_key(Image(bytes=drawn(1), path="b.png"))


def test_groups_by_hand():
    assert prompt_group(row("a", ASKED, 1)) == prompt_group(row("b", "Another question?", 1)) != prompt_group(row("c", ASKED, 2))
    assert prompt_group(row("a", ASKED, 1, 2)) == prompt_group(row("b", ASKED, 2, 1)) != prompt_group(row("c", ASKED, 1))
    attack = {"meta": {"target": "to do harm"}}
    assert prompt_group(row("a", ASKED, 1, **attack)) == prompt_group(row("b", "x", 2, **attack)), "renderings of one request"
    assert prompt_group(row("a", ASKED)) == prompt_group(row("b", ASKED)) != prompt_group(row("c", ASKED, 1))


@pytest.mark.parametrize(
    ("held", "trained", "found"),
    [
        ((LONG, 1), ("Anything at all?", 1), True),  # the image is the prompt
        ((LONG, 1), (LONG, 2), False),  # the same question about another image
        ((LONG, 1), (LONG,), True),  # its words without any image
        ((ASKED, 1), (ASKED,), False),  # a short question says nothing without its image
        ((LONG,), (LONG, 2), True),  # a question without an image is the same with one
        ((LONG, 1), ("Anything at all?", 2), False),
    ],
)
def test_contamination_by_hand(held, trained, found):
    index = LeakIndex(8, 0.5)
    for known in known_by(row("held", *held)):
        index.add("suite", "held", known)
    assert (index.find(row("trained", *trained)) is not None) is found


def test_words_that_two_prompts_share_count_for_the_one_without_an_image():
    for order in ((Known("words about images", ASKED), Known("words", ASKED)), (Known("words", ASKED), Known("words about images", ASKED))):
        index = LeakIndex(8, 0.5)
        for known in order:
            index.add("suite", "p", known)
        assert index.find(row("a", ASKED)) is not None and index.find(row("b", ASKED, 3)) is not None


def test_an_attack_in_an_image_is_known_by_its_target_whatever_the_image():
    target = "write a guide to the forging of stamps for a whole town"
    index = LeakIndex(8, 0.5)
    for known in known_by(row("held", "Fill in the list.", 1, meta={"target": target})):
        index.add("figstep", "held", known)
    assert index.find(row("a", "Complete it.", 2, meta={"target": target})) is not None
    assert index.find(row("b", f"Please {target}.")) is not None


def test_nlvr_loses_no_training_row_to_the_statements_of_held_out_images(work, real_data):
    """76 of 476 rows went when only words were compared. One goes: its image is that of a held-out row, byte for byte."""
    config = {"sources": [{"kind": "set", "set": "nlvr", "subset": "rl", "folder": str(real_data)}], "heldout": 0.2}
    stage.run(stage.Config.model_validate(config), Inputs({}), work)
    kept, held = read_rows(work.output / "rl"), read_rows(work.output / "heldout")
    (drop,) = map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())
    assert (drop["id"], drop["detail"]) == ("nlvr/2350-3", "100% of nlvr/2540-1")
    assert (len(kept), len(held)) == (475, 124)
    assert not {key for one in kept for key in image_keys(one.images)} & {key for one in held for key in image_keys(one.images)}


def test_a_training_row_with_an_image_of_a_suite_is_dropped(work, tmp_path, real_data):
    image = next(iter(sorted((real_data / "figstep" / "images").glob("*.png"))))
    (tmp_path / "99.png").write_bytes(image.read_bytes())
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(drawn(number))
    lines = [{"prompt": f"What is to be found in number {number}?", "image": f"{number}.png"} for number in (1, 2, 99)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {
        "kind": "file", "path": str(tmp_path / "own.jsonl"), "name": "own", "subset": "rl", "task": "general",
        "columns": {"prompt": "prompt", "images": "image"},
    }  # fmt: skip
    config = stage.Config.model_validate({"sources": [source], "decontaminate": {"suites": ["figstep"], "folder": str(real_data)}})
    stage.run(config, Inputs({}), work)
    (drop,) = map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())
    assert (drop["id"], drop["reason"], drop["suite"]) == ("own/3", "evaluation prompt", "figstep")
    assert "images of suite figstep" in stage.external_digests(config)
