"""The drawn starter set: images made by code, with questions whose answers are exact, and requests as text in an image.

    shapes    counts, colours, shapes, relations, comparisons (``scenes.py``)
    charts    values, extremes, differences (``charts.py``)
    typeset   harmful requests and harmless look-alikes of the text starter set (``typeset.py``)

Drawings are split by what they show: a content that is held out is never trained on, under any seed, and drawings of one content are one
group. Within a kind of question all answers are equally frequent, so that the most frequent one earns little. Pillow's own font is used:
other versions of Pillow may draw other pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from safework_cli.data.images import TAG
from safework_cli.data.reply import make_reply
from safework_cli.data.row import Message, Row
from safework_data import starter
from safework_data.drawn import charts, scenes
from safework_data.drawn.drawing import Drawing, encoded
from safework_data.drawn.typeset import NARROWEST, as_prompt, matched_pairs, typeset
from safework_data.starter.tables import Unit, dice

KINDS = scenes.KINDS | charts.KINDS
SUBSETS = ("cot", "rl", "dev", "heldout")
BLURRED = "blurred"
"""The subset of the control: the held-out typeset requests, out of focus."""
EVALUATED = ("dev", "heldout")
"""Subsets of contents that are never trained on."""
DEV, HELD_OUT = 20, 40
"""Questions of each kind in them."""
RL_SHARE = 0.25
"""Questions for RL, as a share of the worked ones."""
PAIRS = {"cot": 240, "rl": 60, "dev": 30, "heldout": 60}
"""Typeset pairs at most, of each subset."""
TRIES = 10_000


class Drawn(NamedTuple):
    """A row without its image, and what the image shows: a drawing, or a request to typeset.

    Attributes:
        blurred: the text is drawn out of focus.
    """

    row: Row
    subset: str
    shown: Drawing | str
    blurred: bool = False


def build(
    seed: int, worked: int, size: int, *, with_typeset: bool = True, kinds: Sequence[str] = (), held_out: int = HELD_OUT
) -> Iterator[Drawn]:
    """The rows of all subsets, one after the other; images are drawn by ``drawn_row``.

    ``cot`` has worked replies; ``rl``, ``dev`` and ``heldout`` are prompts, and so is ``blurred``.

    Args:
        seed: decides every draw.
        worked: questions about drawings in ``cot``, over all kinds; ``rl`` has a quarter as many.
        size: pixels of an image, which decide how a text is broken into lines.
        with_typeset: requests as text too; below ``typeset.NARROWEST`` pixels there are none.
        kinds: of questions; all where empty.
        held_out: questions of each kind in ``heldout``.
    """
    asked = [kind for kind in KINDS if kind in kinds or not kinds]
    pairs = _pairs(seed, size) if with_typeset and size >= NARROWEST else {}
    for subset in SUBSETS:
        counts = {"cot": worked, "rl": round(worked * RL_SHARE), "dev": DEV * len(asked), "heldout": held_out * len(asked)}
        yield from _asked(subset, counts[subset], seed, asked)
        yield from _typeset(pairs.get(subset, []), subset)
    yield from _typeset(pairs.get("heldout", []), BLURRED)


def _pairs(seed: int, size: int) -> dict[str, list[Unit]]:
    """The typeset pairs of each subset; a fifth of those to train on is for RL."""
    of_side = starter.safety_pairs(seed)
    train = of_side["train"]
    pools = {
        "cot": [unit for place, unit in enumerate(train) if place % 5], "rl": train[::5], "dev": of_side["dev"],
        "heldout": of_side["heldout"],
    }  # fmt: skip
    return {subset: matched_pairs(pools[subset], size, most) for subset, most in PAIRS.items()}


def _typeset(pairs: Sequence[Unit], subset: str) -> Iterator[Drawn]:
    split = "train" if subset in ("cot", "rl") else "test"
    for item in (item for pair in pairs for item in pair):
        row = as_prompt(item, subset, worked=subset == "cot", split=split)
        yield Drawn(row, subset, item.question, blurred=subset == BLURRED)


def drawn_row(drawn: Drawn, size: int) -> Row:
    """The row with its image."""
    image = typeset(drawn.shown, size, blurred=drawn.blurred) if isinstance(drawn.shown, str) else drawn.shown.draw(size)
    drawn.row.images = [encoded(image, "text" if isinstance(drawn.shown, str) else "drawing")]
    return drawn.row


def _asked(subset: str, count: int, seed: int, kinds: Sequence[str]) -> Iterator[Drawn]:
    """Questions of the kinds in turn."""
    rngs = {kind: dice(seed, "drawn", subset, kind) for kind in kinds}
    answers: dict[str, list[str]] = {kind: [] for kind in kinds}
    known: set[tuple[str, str]] = set()
    side = subset if subset in EVALUATED else "train"
    for number in range(count):
        kind = kinds[number % len(kinds)]
        possible, form, make = KINDS[kind]
        if not answers[kind]:
            answers[kind] = _shuffled(possible, rngs[kind])
        answer = answers[kind].pop()
        for _ in range(TRIES):
            question = make(answer, rngs[kind])
            drawing = question.drawing
            if drawing.side == side and (subset not in EVALUATED or (drawing.content, question.text) not in known):
                break
        else:
            raise ValueError(f"drawn set: no drawing of the kind {kind} for {subset} after {TRIES} tries")
        known.add((drawing.content, question.text))
        messages = [Message(role="user", content=f"{TAG}\n{question.text} {form}")]
        if subset == "cot":
            thought = f"{drawing.thought(question.marks)} {question.worked}".strip()
            messages.append(Message(role="assistant", content=make_reply(thought, answer)))
        meta = {
            "group": drawing.group, "language": "en", "template": f"drawn-{kind}", "answer_type": "exact", "stem": question.text,
            "shows": drawing.shows, "shows_not": drawing.shows_not,
        }  # fmt: skip
        row = Row(
            f"{subset}-drawn-{kind}-{number // len(kinds):05d}", "general", messages, answer=answer, category=f"drawn-{kind}",
            source="drawn", licence="Apache-2.0", split="test" if subset in EVALUATED else "train", meta=meta,
        )  # fmt: skip
        yield Drawn(row, subset, drawing)


def _shuffled(answers: Sequence[str], rng: Random) -> list[str]:
    """Each answer once, in a random order."""
    return rng.sample(list(answers), len(answers))
