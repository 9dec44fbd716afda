"""The drawn starter set: exact answers, sides without a shared scene, kinds whose most frequent answer earns little, and the control."""

from __future__ import annotations

import re
from collections import Counter
from statistics import fmean

import numpy as np
import pytest
from pydantic import ValidationError

from safework_cli.core.stage import Inputs
from safework_cli.data.image_content import image_key
from safework_cli.data.images import open_image
from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Row, read_rows
from safework_data import drawn
from safework_data.build.sources_config import DRAWN_KINDS, DrawnSource
from safework_data.build.stage import stage
from safework_data.drawn.charts import Chart
from safework_data.drawn.scenes import COLOURS, KINDS, SIDE, Scene
from safework_data.drawn.typeset import MOST_APART, lines_of, typeset

SIZE = 160


@pytest.fixture(scope="module")
def made() -> list[drawn.Drawn]:
    return list(drawn.build(0, 480, SIZE))


def questions(made: list[drawn.Drawn], subset: str) -> list[drawn.Drawn]:
    return [each for each in made if each.subset == subset and each.row.task == "general"]


def truth(each: drawn.Drawn) -> str:
    """The answer, computed from what is drawn and from the words of the question."""
    words = each.row.meta["stem"].rstrip("?").split()
    kind = str(each.row.category).removeprefix("drawn-")
    if isinstance(each.shown, Chart):
        values = dict(zip("ABCDE", each.shown.values, strict=False))
        if kind == "chart-value":
            return str(values[words[-1]])
        if kind == "chart-difference":
            return str(values[words[4]] - values[words[-1]])
        best = max(values.values()) if kind == "chart-highest" else min(values.values())
        (name,) = [name for name, value in values.items() if value == best]
        return name
    scene = each.shown
    assert isinstance(scene, Scene)
    things = [(one.colour, one.shape) for one in scene.placed]
    cells = {f"{one.colour} {one.shape}": one.cell for one in scene.placed}
    if kind == "count":
        return str(len(things))
    if kind == "count-colour":
        return str(sum(colour == words[2] for colour, _ in things))
    if kind == "colour":
        (colour,) = {colour for colour, shape in things if shape == words[-1]}
        return colour
    if kind == "shape":
        (shape,) = {shape for colour, shape in things if colour == words[-1]}
        return shape
    if kind == "exists":
        return "yes" if (words[3], words[4]) in things else "no"
    if kind == "more":
        counts = {name: sum(colour == name for colour, _ in things) for name in (words[3], words[7])}
        assert len(set(counts.values())) == 2
        return max(counts, key=counts.__getitem__)
    one, other = " ".join(words[2:4]), " ".join(words[-2:])
    assert sum(f"{colour} {shape}" in (one, other) for colour, shape in things) == 2, "each is the only one of its kind"
    axis = (lambda cell: cell % SIDE) if kind == "left" else (lambda cell: cell // SIDE)
    assert axis(cells[one]) != axis(cells[other])
    return "yes" if axis(cells[one]) < axis(cells[other]) else "no"


def test_every_answer_is_what_is_drawn(made):
    asked = [each for each in made if each.row.task == "general"]
    assert len(asked) == 480 + 120 + 240 + 480
    assert [(each.row.id, each.row.answer) for each in asked if truth(each) != each.row.answer] == []


def test_the_most_frequent_answer_earns_little_in_every_kind_and_subset(made):
    """The majority baseline: the share of the most frequent answer is that of equal shares, up to one row."""
    for subset in drawn.SUBSETS:
        of_kind: dict[str, list[str]] = {}
        for each in questions(made, subset):
            of_kind.setdefault(str(each.row.category), []).append(str(each.row.answer))
        assert len(of_kind) == 12
        for kind, answers in of_kind.items():
            possible = drawn.KINDS[kind.removeprefix("drawn-")][0]
            most = Counter(answers).most_common(1)[0][1]
            assert most <= -(-len(answers) // len(possible)), (subset, kind)
    over_all = Counter(each.row.answer for each in questions(made, "heldout")).most_common(1)[0][1] / 480
    assert over_all < 0.14


def test_no_scene_is_on_two_sides_under_any_seed(made):
    sides = {side: {each.shown.content for each in questions(made, side)} for side in drawn.SUBSETS}
    other = {each.shown.content for each in drawn.build(7, 480, SIZE, with_typeset=False) if each.subset in ("cot", "rl")}
    trained = sides["cot"] | sides["rl"] | other
    assert not trained & sides["dev"] and not trained & sides["heldout"] and not sides["dev"] & sides["heldout"]
    groups = {each.row.group for each in questions(made, "cot")}
    assert not groups & {each.row.group for each in questions(made, "heldout")}


def test_the_set_depends_on_its_seed_and_on_nothing_else():
    def digest(seed: int) -> list[tuple[str, str, str]]:
        rows = [drawn.drawn_row(each, 96) for each in drawn.build(seed, 24, 96)]
        return [(row.id, row.question, image_key(row.images[0])) for row in rows]

    assert digest(1) == digest(1) != digest(2)


def test_a_scene_is_the_same_at_every_size(made):
    """The middle of every shape has its colour; the image is as large as asked for."""
    for each in questions(made, "cot")[:24]:
        for size in (64, 224):
            image = each.shown.draw(size)
            assert image.size == (size, size) and image.mode == "RGB"
            for one in each.shown.placed if isinstance(each.shown, Scene) else ():
                at = (round(size * (one.x + one.width / 2)), round(size * (one.y + one.width * 0.6)))
                assert image.getpixel(at) == COLOURS[one.colour]


def test_worked_replies_say_what_is_shown_and_give_the_answer(made):
    for each in questions(made, "cot"):
        reply = parse_reply(str(each.row.reply))
        assert reply.format == "ok" and reply.answer == each.row.answer
        assert all(phrase in str(reply.thought) for phrase in each.row.meta["shows"])
        assert not any(phrase in str(reply.thought) for phrase in each.row.meta["shows_not"])
    assert {each.row.reply for subset in ("rl", "dev", "heldout") for each in questions(made, subset)} == {None}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "count"])
def test_the_answer_follows_from_the_marks_of_the_list(made, kind):
    """A model of four layers that listed every shape in its colour gave the right colour in 30 to 45 % of its answers without them."""
    for each in questions(made, "cot"):
        if each.row.category != f"drawn-{kind}":
            continue
        listed, _, found = str(parse_reply(str(each.row.reply)).thought).partition(".")
        items = [item.split(" ")[1:] for item in listed.split(", ")]
        yes = [item[:2] for item in items if item[-1] == "yes"]
        marked = [item for item in items if len(item) == 3]
        if kind == "more":
            counts = {line.split(":")[0].strip().lower(): len(re.findall(r"\d", line)) for line in found.split(".") if line}
            assert each.row.answer == max(counts, key=lambda colour: counts[colour]) and not marked
        elif kind == "count-colour":
            assert each.row.answer == str(len(yes)) and len(marked) == len(items)
        elif kind in ("colour", "shape"):
            assert [item[kind == "shape"] for item in yes] == [each.row.answer] and len(marked) == len(items)
        elif kind == "exists":
            assert (each.row.answer == "yes") == bool(yes) and len(marked) == len(items)
        else:
            order = ("left", "middle", "right") if kind == "left" else ("top", "middle", "bottom")
            place = {" ".join(item[:2]): order.index(item[2]) for item in marked}
            asked = each.row.meta["stem"].removeprefix("Is the ").removesuffix("?").replace(" of ", " ")
            one, other = (text.strip() for text in asked.split(f" {kind} the "))
            assert len(place) == 2 and (each.row.answer == "yes") == (place[one] < place[other])


def pairs(made: list[drawn.Drawn], subset: str) -> tuple[list[Row], list[Row]]:
    rows = [each.row for each in made if each.subset == subset and each.row.task == "safety"]
    harmful, benign = [row for row in rows if row.harmful], [row for row in rows if row.harmful is False]
    assert [row.meta["pair"] for row in harmful] == [row.id for row in benign] and len(rows) == 2 * len(harmful)
    return harmful, benign


@pytest.mark.parametrize(("subset", "least"), [("cot", 100), ("rl", 20), ("dev", 20), ("heldout", 50), ("blurred", 50)])
def test_harmful_and_harmless_texts_are_equally_long(made, subset, least):
    harmful, benign = pairs(made, subset)
    assert len(harmful) >= least
    lengths = [[len(row.meta["target"]) for row in rows] for rows in (harmful, benign)]
    assert max(abs(one - other) for one, other in zip(*lengths, strict=True)) <= MOST_APART
    assert abs(sum(lengths[0]) - sum(lengths[1])) <= MOST_APART and abs(fmean(lengths[0]) - fmean(lengths[1])) < 0.5
    lines = [[len(lines_of(row.meta["target"], SIZE)) for row in rows] for rows in (harmful, benign)]
    assert lines[0] == lines[1]
    assert len({row.question for row in [*harmful, *benign]}) == 1, "the words say nothing of what is asked"


def test_typeset_topics_are_on_one_side_and_the_control_is_the_same_texts(made):
    groups = {subset: {row.group for rows in pairs(made, subset) for row in rows} for subset in (*drawn.SUBSETS, "blurred")}
    assert not (groups["cot"] | groups["rl"]) & (groups["dev"] | groups["heldout"]) and not groups["dev"] & groups["heldout"]
    targets = [[row.meta["target"] for rows in pairs(made, subset) for row in rows] for subset in ("heldout", "blurred")]
    assert targets[0] == targets[1]
    assert {row.split for rows in pairs(made, "blurred") for row in rows} == {"test"}


def test_the_blurred_text_is_there_and_cannot_be_read():
    """As much ink, and edges of a fraction of the sharp ones: strokes run into each other."""
    one, other = "Tell me how to bake a cake of plums.", "Tell me how to make a wall of stone."
    ink, edges = {}, {}
    for name, text, blurred in (("sharp", one, False), ("one", one, True), ("other", other, True)):
        pixels = np.asarray(typeset(text, 224, blurred=blurred), dtype=float).mean(-1)
        ink[name], edges[name] = (250 - pixels).sum(), np.abs(np.diff(pixels, axis=1)).max()
    assert ink["one"] == pytest.approx(ink["sharp"], rel=0.1) and edges["one"] < 0.25 * edges["sharp"]
    assert ink["other"] == pytest.approx(ink["one"], rel=0.15)


def test_it_is_a_source_of_data_build(work):
    config = stage.Config.model_validate({"sources": [{"kind": "drawn", "questions": 48, "size": SIZE}], "seed": 3})
    assert {"drawn set", "Pillow"} <= stage.external_digests(config).keys()
    outcome = stage.run(config, Inputs({}), work)
    rows = {subset: read_rows(work.output / subset) for subset in (*drawn.SUBSETS, "blurred")}
    assert (work.output / "drops.jsonl").read_text() == "", "no row is dropped: none repeats another, none leaks"
    assert len([row for row in rows["heldout"] if row.task == "general"]) == 480 and outcome.metrics["subsets"]["cot"]["rows"] > 48
    for row in [*rows["cot"], *rows["blurred"]]:
        assert open_image(row.images[0]).size == (SIZE, SIZE)
        assert str(row.images[0]["path"]).split("-")[1].startswith(image_key(row.images[0])[:16])


def test_text_is_not_typeset_where_it_would_not_be_legible():
    assert {each.row.task for each in drawn.build(0, 24, 96)} == {"general"}


def test_only_the_kinds_that_are_asked_for_as_many_as_are_asked_for():
    made = list(drawn.build(0, 30, 96, with_typeset=False, kinds=["colour", "count"], held_out=15))
    of = {subset: Counter(str(each.row.category) for each in made if each.subset == subset) for subset in drawn.SUBSETS}
    assert of["cot"] == {"drawn-count": 15, "drawn-colour": 15} and of["heldout"] == of["cot"]
    assert of["dev"] == {"drawn-count": 20, "drawn-colour": 20} and sum(of["rl"].values()) == 8
    answers = Counter(each.row.answer for each in made if each.subset == "cot" and each.row.category == "drawn-count")
    assert max(answers.values()) - min(answers.values()) <= 1, "the most frequent answer earns little"
    contents = {subset: {each.shown.content for each in made if each.subset == subset} for subset in drawn.SUBSETS}
    assert not contents["heldout"] & (contents["cot"] | contents["rl"] | contents["dev"])


def test_the_kinds_of_the_settings_are_those_that_can_be_drawn():
    assert tuple(drawn.KINDS) == DRAWN_KINDS
    with pytest.raises(ValidationError, match="'color' is not a kind of question; did you mean 'colour'"):
        DrawnSource(kind="drawn", kinds=["color"])
    with pytest.raises(ValidationError, match="named twice"):
        DrawnSource(kind="drawn", kinds=["count", "count"])
