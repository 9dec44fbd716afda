"""Shapes on a grid, and questions about them whose answers are exact.

The answer is drawn first and the scene is made for it, so that within a kind all answers are equally frequent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from random import Random
from typing import NamedTuple

from PIL import Image as PIL
from PIL import ImageDraw

from safework_data.drawn.drawing import Drawing, Question

COLOURS = {
    "red": (214, 39, 40), "blue": (31, 90, 200), "green": (44, 160, 44), "yellow": (240, 200, 30), "black": (20, 20, 20),
    "purple": (148, 60, 189),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
SIDE = 3
"""Cells of the grid in each direction."""
BACKGROUND = (250, 250, 250)
Thing = tuple[str, str]
"""A colour and a shape."""


class Placed(NamedTuple):
    """A shape in its cell.

    Attributes:
        cell: 0 to 8, row by row.
        x, y, width: of its square, in units of the image's width.
    """

    colour: str
    shape: str
    cell: int
    x: float
    y: float
    width: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


class Scene(Drawing):
    """Shapes in reading order."""

    def __init__(self, placed: Sequence[Placed]):
        self.placed = tuple(sorted(placed, key=lambda each: each.cell))

    @property
    def content(self) -> str:
        """Which shape of which colour is in which cell; where exactly, and how large, is left out."""
        return "scene " + " ".join(f"{each.cell}:{each.colour}-{each.shape}" for each in self.placed)

    @property
    def shows(self) -> list[str]:
        return [each.name for each in self.placed]

    @property
    def shows_not(self) -> list[str]:
        """Every other colour and shape."""
        return [name for colour in COLOURS for shape in SHAPES if (name := f"{colour} {shape}") not in set(self.shows)]

    def thought(self, marks: Sequence[str] = ()) -> str:
        """The shapes, numbered."""
        said = zip_longest(self.shows, marks, fillvalue="")
        return ", ".join(f"{number} {name} {mark}".rstrip() for number, (name, mark) in enumerate(said, start=1)) + "."

    def marked(self, asked: Callable[[Placed], bool]) -> list[str]:
        """Yes or no of each shape. A small model finds its answer in a list by such marks, which follow from what it has just read; it did
        not learn to look back in a list for the thing that a question names."""
        return ["yes" if asked(each) else "no" for each in self.placed]

    def numbers(self, colour: str) -> list[str]:
        """The places of a colour's shapes in the thought's list."""
        return [str(number) for number, each in enumerate(self.placed, start=1) if each.colour == colour]

    def draw(self, size: int) -> PIL.Image:
        image = PIL.new("RGB", (size, size), BACKGROUND)
        canvas = ImageDraw.Draw(image)
        for each in self.placed:
            left, top, width = (round(size * part) for part in (each.x, each.y, each.width))
            right, bottom, fill = left + width, top + width, COLOURS[each.colour]
            if each.shape == "circle":
                canvas.ellipse([left, top, right, bottom], fill=fill)
            elif each.shape == "square":
                canvas.rectangle([left, top, right, bottom], fill=fill)
            else:
                canvas.polygon([(left, bottom), (left + width / 2, top), (right, bottom)], fill=fill)
        return image


def placed(things: Sequence[Thing], rng: Random, cells: Sequence[int] = ()) -> Scene:
    """Puts things into cells: the first ones into those given, the others into free ones at random."""
    free = [cell for cell in range(SIDE * SIDE) if cell not in cells]
    rng.shuffle(free)
    found = []
    for (colour, shape), cell in zip(things, [*cells, *free], strict=False):
        width = rng.uniform(0.52, 0.78) / SIDE
        room = 1 / SIDE - width
        x, y = (part / SIDE + rng.uniform(0.1, 0.9) * room for part in (cell % SIDE, cell // SIDE))
        found.append(Placed(colour, shape, cell, x, y, width))
    return Scene(found)


def _things(rng: Random, count: int, colours: Sequence[str] = tuple(COLOURS), shapes: Sequence[str] = SHAPES) -> list[Thing]:
    return [(rng.choice(colours), rng.choice(shapes)) for _ in range(count)]


def _without(names: Sequence[str], *out: str) -> list[str]:
    return [name for name in names if name not in out]


def _count(answer: str, rng: Random) -> Question:
    return Question(
        placed(_things(rng, int(answer)), rng), rng.choice(("How many shapes are there?", "How many shapes does the image show?"))
    )


def _count_colour(answer: str, rng: Random) -> Question:
    colour, count = rng.choice(list(COLOURS)), int(answer)
    things = [(colour, rng.choice(SHAPES)) for _ in range(count)]
    things += _things(rng, rng.randint(0 if count else 1, 6 - count), _without(list(COLOURS), colour))
    rng.shuffle(things)
    scene = placed(things, rng)
    return Question(scene, f"How many {colour} shapes are there?", marks=scene.marked(lambda each: each.colour == colour))


def _colour(answer: str, rng: Random) -> Question:
    shape = rng.choice(SHAPES)
    others = _things(rng, rng.randint(1, 4), shapes=_without(SHAPES, shape))
    scene = placed([(answer, shape), *others], rng)
    return Question(scene, f"Which colour is the {shape}?", marks=scene.marked(lambda each: each.shape == shape))


def _shape(answer: str, rng: Random) -> Question:
    colour = rng.choice(list(COLOURS))
    others = _things(rng, rng.randint(1, 4), _without(list(COLOURS), colour))
    scene = placed([(colour, answer), *others], rng)
    return Question(scene, f"Which shape is {colour}?", marks=scene.marked(lambda each: each.colour == colour))


def _exists(answer: str, rng: Random) -> Question:
    """Where the answer is no, the colour and the shape are there, on other things."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    things = [(colour, rng.choice(_without(SHAPES, shape))), (rng.choice(_without(list(COLOURS), colour)), shape)]
    if answer == "yes":
        things.append((colour, shape))
    more = _things(rng, rng.randint(3, 5) - len(things))
    things += [thing for thing in more if thing != (colour, shape)]
    scene = placed(things, rng)
    marks = scene.marked(lambda each: (each.colour, each.shape) == (colour, shape))
    return Question(scene, f"Is there a {colour} {shape}?", marks=marks)


def _relation(axis: Callable[[int], int], word: str, names: Sequence[str]) -> Callable[[str, Random], Question]:
    """Two things, each the only one of its kind, in different rows or columns.

    Args:
        axis: cell → its place from 0, left to right or top to bottom.
        names: of the places.
    """

    def ask(answer: str, rng: Random) -> Question:
        one, other = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], 2)
        every = range(SIDE * SIDE)
        cells = [(a, b) for a in every for b in every if axis(a) != axis(b) and (axis(a) < axis(b)) == (answer == "yes")]
        others = [thing for thing in _things(rng, rng.randint(0, 3)) if thing not in (one, other)]
        where = rng.choice(cells)
        scene = placed([one, other, *others], rng, where)
        marks = [names[axis(each.cell)] if each.cell in where else "" for each in scene.placed]
        return Question(scene, f"Is the {' '.join(one)} {word} the {' '.join(other)}?", marks=marks)

    return ask


def _more(answer: str, rng: Random) -> Question:
    other = rng.choice(_without(list(COLOURS), answer))
    fewer = rng.randint(0, 2)
    things = [(answer, rng.choice(SHAPES)) for _ in range(rng.randint(fewer + 1, 6 - fewer if fewer else 4))]
    things += [(other, rng.choice(SHAPES)) for _ in range(fewer)]
    things += _things(rng, rng.randint(0, max(0, 7 - len(things))), _without(list(COLOURS), answer, other))
    pair = [answer, other]
    rng.shuffle(pair)
    scene = placed(things, rng)
    worked = " ".join(f"{colour.capitalize()}: {', '.join(scene.numbers(colour)) or 'none'}." for colour in pair)
    return Question(scene, f"Are there more {pair[0]} shapes or more {pair[1]} shapes?", worked)


WORD, NUMBER, YES_OR_NO = "Answer with one word.", "Answer with a number.", "Answer yes or no."
KINDS: dict[str, tuple[Sequence[str], str, Callable[[str, Random], Question]]] = {
    "count": (tuple("123456"), NUMBER, _count),
    "count-colour": (tuple("0123"), NUMBER, _count_colour),
    "colour": (tuple(COLOURS), WORD, _colour),
    "shape": (SHAPES, WORD, _shape),
    "exists": (("yes", "no"), YES_OR_NO, _exists),
    "left": (("yes", "no"), YES_OR_NO, _relation(lambda cell: cell % SIDE, "left of", ("left", "middle", "right"))),
    "above": (("yes", "no"), YES_OR_NO, _relation(lambda cell: cell // SIDE, "above", ("top", "middle", "bottom"))),
    "more": (tuple(COLOURS), WORD, _more),
}
"""Kind of question → its answers, the line that asks for their form, and what makes a scene for an answer."""
