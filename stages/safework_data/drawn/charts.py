"""Bar charts on a unit grid, and questions about them whose answers are exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from PIL import Image as PIL
from PIL import ImageDraw, ImageFont

from safework_data.drawn.drawing import Drawing, Question
from safework_data.drawn.scenes import BACKGROUND, COLOURS, NUMBER

LETTERS = "ABCDE"
HIGHEST = 9
"""The greatest value of a bar."""
LETTER = "Answer with the letter."
GRID, AXIS = (205, 205, 205), (60, 60, 60)


class Chart(Drawing):
    """Bars A, B, C, … with whole values from 1 to 9, in one colour.

    Args:
        values: of the bars, three to five.
        width: of a bar, as a share of its room.
    """

    def __init__(self, values: Sequence[int], colour: str, width: float):
        self.values, self.colour, self.width = tuple(values), colour, width

    @property
    def content(self) -> str:
        """The values; colour and width are left out."""
        return "chart " + " ".join(map(str, self.values))

    @property
    def shows(self) -> list[str]:
        return [f"{letter} {value}" for letter, value in zip(LETTERS, self.values, strict=False)]

    @property
    def shows_not(self) -> list[str]:
        return [
            f"{letter} {value}"
            for letter, own in zip(LETTERS, self.values, strict=False)
            for value in range(1, HIGHEST + 1)
            if value != own
        ]

    def thought(self, marks: Sequence[str] = ()) -> str:
        return ", ".join(self.shows) + "."

    def draw(self, size: int) -> PIL.Image:
        image = PIL.new("RGB", (size, size), BACKGROUND)
        canvas = ImageDraw.Draw(image)
        font = ImageFont.load_default(max(8, round(size * 0.07)))
        left, bottom, unit = size * 0.12, size * 0.88, size * 0.82 / HIGHEST
        for value in range(HIGHEST + 1):
            y = round(bottom - value * unit)
            canvas.line([(left, y), (size * 0.98, y)], fill=AXIS if value == 0 else GRID)
            canvas.text((left * 0.45, y), str(value), fill=AXIS, font=font, anchor="mm")
        step = size * 0.86 / len(self.values)
        for number, value in enumerate(self.values):
            x = left + number * step
            sides = [round(x + step * (1 - self.width) / 2), round(x + step * (1 + self.width) / 2)]
            canvas.rectangle([sides[0], round(bottom - value * unit), sides[1], round(bottom)], fill=COLOURS[self.colour])
            canvas.text((round(x + step / 2), round(size * 0.94)), LETTERS[number], fill=AXIS, font=font, anchor="mm")
        return image


def _chart(values: Sequence[int], rng: Random) -> Chart:
    return Chart(values, rng.choice(list(COLOURS)), rng.uniform(0.4, 0.8))


def _value(answer: str, rng: Random) -> Question:
    values = [rng.randint(1, HIGHEST) for _ in range(rng.randint(3, 5))]
    asked = rng.randrange(len(values))
    values[asked] = int(answer)
    return Question(_chart(values, rng), f"What is the value of {LETTERS[asked]}?")


def _extreme(highest: bool) -> Callable[[str, Random], Question]:
    def ask(answer: str, rng: Random) -> Question:
        place = LETTERS.index(answer)
        count = rng.randint(max(3, place + 1), 5)
        own = rng.randint(4, HIGHEST) if highest else rng.randint(1, 6)
        values = [rng.randint(1, own - 1) if highest else rng.randint(own + 1, HIGHEST) for _ in range(count)]
        values[place] = own
        return Question(_chart(values, rng), f"Which bar is the {'highest' if highest else 'lowest'}?")

    return ask


def _difference(answer: str, rng: Random) -> Question:
    values = [rng.randint(1, HIGHEST) for _ in range(rng.randint(3, 5))]
    more, less = rng.sample(range(len(values)), 2)
    values[less] = rng.randint(1, HIGHEST - int(answer))
    values[more] = values[less] + int(answer)
    asked = f"By how much is {LETTERS[more]} higher than {LETTERS[less]}?"
    return Question(_chart(values, rng), asked, f"{values[more]} - {values[less]} = {answer}.")


KINDS: dict[str, tuple[Sequence[str], str, Callable[[str, Random], Question]]] = {
    "chart-value": (tuple("123456789"), NUMBER, _value),
    "chart-highest": (tuple(LETTERS), LETTER, _extreme(True)),
    "chart-lowest": (tuple(LETTERS), LETTER, _extreme(False)),
    "chart-difference": (tuple("123456"), NUMBER, _difference),
}
"""As ``scenes.KINDS``."""
