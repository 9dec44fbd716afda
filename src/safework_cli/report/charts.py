"""Drawings as inline SVG, by hand: they take the page's colours in light and dark, scale on a phone and carry their own description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safework_cli.core.formats import points
from safework_cli.core.terminal import visible

RISE = "both rise"
"""Names the upper right quadrant in the plot."""
_CHARACTER = 6.6
"""Width of a character of 12-pixel text, roughly."""


@dataclass(frozen=True, slots=True)
class Point:
    """A rung in the 45° plot: changes in [−1, 1], intervals where they are known.

    Attributes:
        after: label of the rung that it was made from; that of no other point is the base.
    """

    label: str
    capability: float
    safety: float
    capability_interval: Sequence[float] | None = None
    safety_interval: Sequence[float] | None = None
    after: str = ""


def _escape(text: str) -> Markup:
    return Markup.escape(visible(text))


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[Markup], css: str) -> Markup:
    """Wraps drawing parts; the description is what a screen reader says."""
    body = Markup("\n").join(parts)
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg"><title>{}</title>{}</svg>'
    ).format(css, width, height, _escape(f"{title}. {description}"), _escape(title), body)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, css, _escape(text))


def plot_45(chosen: Sequence[Point]) -> Markup:
    """Change in capability (x) and in safety (y) against the base at the origin, with the line on which both rise alike.

    A line leads to each rung from the one that it was made from, so that several seeds are several ways. The
    quadrant in which both rise is shaded and named; dots outside it are hollow.
    """
    size, left, top = 460.0, 62.0, 18.0
    plot = size - left - top
    ends = [v for p in chosen for v in (p.capability, p.safety, *(p.capability_interval or ()), *(p.safety_interval or ()))]
    low, high, step = _window(ends)

    def place(capability: float, safety: float) -> tuple[float, float]:
        return left + plot * (capability - low) / (high - low), top + plot * (high - safety) / (high - low)

    (zero_x, zero_y), (right_x, top_y) = place(0, 0), place(high, high)
    parts = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="rise"/>').format(
            zero_x, top_y, right_x - zero_x, zero_y - top_y
        )
    ]
    for number in range(round(low / step), round(high / step) + 1):
        value = number * step
        x, y = place(value, value)
        css, said = ("axis", "0") if number == 0 else ("grid", points(value).removesuffix(".0"))
        parts += [_line(x, top, x, top + plot, css), _line(left, y, left + plot, y, css)]
        parts += [_text(x, top + plot + 18, said, "tick", "middle"), _text(left - 8, y + 4, said, "tick", "end")]
    parts.append(_line(*place(low, low), *place(high, high), "diagonal"))
    parts.append(_text(left + plot / 2, size - 14, "change in capability (percentage points)", "label", "middle"))
    parts.append(
        Markup('<text transform="translate(14 {:.1f}) rotate(-90)" text-anchor="middle" class="label">{}</text>').format(
            top + plot / 2, "change in safety (percentage points)"
        )
    )
    places = {point.label: place(point.capability, point.safety) for point in chosen}
    parts += [_line(*places.get(point.after, (zero_x, zero_y)), *places[point.label], "path") for point in chosen]
    for number, point in enumerate(chosen):
        x, y = place(point.capability, point.safety)
        if point.capability_interval:
            first, last = point.capability_interval
            parts.append(_line(place(first, 0)[0], y, place(last, 0)[0], y, f"error c{number % 8}"))
        if point.safety_interval:
            first, last = point.safety_interval
            parts.append(_line(x, place(0, first)[1], x, place(0, last)[1], f"error c{number % 8}"))
    name_box = (right_x - 10 - _CHARACTER * len(RISE), zero_y - 20, right_x, zero_y)
    if name_box[0] > zero_x:  # else the quadrant is too narrow for its name
        parts.append(_text(right_x - 6, zero_y - 7, RISE, "rise-name", "end"))
    dots = [(*place(0, 0), "base", "base-dot")]
    for number, point in enumerate(chosen):
        dots.append((*place(point.capability, point.safety), point.label, f"{'dot' if _inside(point) else 'hollow'} c{number % 8}"))
    for x, y, label, css in dots:
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5.5" class="{}"><title>{}</title></circle>').format(x, y, css, _escape(label))
        )
    parts += _labels([(x, y, label) for x, y, label, _ in dots], left, left + plot, top, top + plot, name_box)
    said = "; ".join(f"{p.label}: capability {points(p.capability)}, safety {points(p.safety)} points, {_side(p)}" for p in chosen)
    return _svg(size, size, "Change in safety over change in capability, against the base", said or "no rung was compared", parts, "plot45")


def _inside(point: Point) -> bool:
    """Whether a rung lies in the upper right quadrant."""
    return point.capability > 0 and point.safety > 0


def _side(point: Point) -> str:
    return f"{'in' if _inside(point) else 'outside'} the upper right quadrant"


def _window(values: Sequence[float]) -> tuple[float, float, float]:
    """The square window of the plot and its grid step: the same scale on both axes, the origin always inside with room around it."""
    highest, lowest = max([0.0, *values]), min([0.0, *values])
    spread = max(highest - lowest, 0.04)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if spread / s <= 7), 0.5)
    high = max(math.ceil(highest * 1.02 / step), 1) * step
    low = min(math.floor(lowest * 1.02 / step), -1) * step
    return low, high, step


def _labels(
    dots: Sequence[tuple[float, float, str]], left: float, right: float, top: float, bottom: float, covered: Sequence[float]
) -> list[Markup]:
    """Names next to their dots, each where it covers no other dot, no other name and not the box ``covered``."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in dots] + [(covered[0], covered[1], covered[2], covered[3])]
    parts = []
    for x, y, label in dots:
        width = _CHARACTER * len(label)
        tries = [(x + 9, y - 6), (x - 9 - width, y - 6), (x + 9, y + 14), (x - 9 - width, y + 14)]
        tries += [(x - width / 2, y + sign * (18 + 14 * k)) for k in range(4) for sign in (-1, 1)]
        boxes = [(a, b - 11, a + width, b + 3) for a, b in tries]
        fits = [box for box in boxes if box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom]
        box = next((b for b in fits if not any(_overlap(b, other) for other in taken)), (fits or boxes)[0])
        taken.append(box)
        parts.append(_text(box[0], box[3] - 3, label, "name"))
    return parts


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curve(name: str, unit: str, steps: Sequence[int], values: Sequence[float], mark: float | None = None) -> Markup:
    """One number over the steps of a run. Values that are no finite numbers leave a gap, and are counted in the description.

    Args:
        mark: a value to draw a dashed line at, such as a constraint's threshold.
    """
    width, height, left, right, top, bottom = 260.0, 150.0, 52.0, 10.0, 26.0, 24.0
    finite = [v for v in values if math.isfinite(v)]
    marked = [] if mark is None else [mark]
    low, high = (min(finite + marked), max(finite + marked)) if finite else (0.0, 1.0)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    first, last = (steps[0], steps[-1]) if steps else (0, 1)
    span = max(last - first, 1)

    def place(step: int, value: float) -> tuple[float, float]:
        return left + (width - left - right) * (step - first) / span, top + (height - top - bottom) * (high - value) / (high - low)

    title = f"{name} ({unit})" if unit else name
    parts = [_text(4, 14, title if len(title) <= 38 else title[:37] + "…", "curve-title")]
    at = (low, (low + high) / 2, high)
    for value, said in zip(at, _ticks(at), strict=True):
        y = place(first, value)[1]
        parts += [_line(left, y, width - right, y, "grid"), _text(left - 5, y + 4, said, "tick", "end")]
    parts += [_text(left, height - 8, f"step {first}", "tick"), _text(width - right, height - 8, str(last), "tick", "end")]
    if mark is not None and finite:
        y = place(first, mark)[1]
        parts.append(_line(left, y, width - right, y, "mark"))
    segment: list[str] = []
    for step, value in [*zip(steps, values, strict=True), (last, math.nan)]:
        if math.isfinite(value):
            segment.append("{:.1f},{:.1f}".format(*place(step, value)))
        elif segment:
            if len(segment) == 1:
                parts.append(Markup('<circle cx="{}" cy="{}" r="2.5" class="curve-dot"/>').format(*segment[0].split(",")))
            else:
                parts.append(Markup('<polyline points="{}" class="curve"/>').format(" ".join(segment)))
            segment = []
    if mark is not None:
        title += f", threshold {mark:.4g}"
    gaps = len(values) - len(finite)
    said = f"from {finite[0]:.4g} to {finite[-1]:.4g}, lowest {min(finite):.4g}, highest {max(finite):.4g}" if finite else "no finite value"
    if gaps:
        said += f"; {gaps} {'value is' if gaps == 1 else 'values are'} not finite"
        parts.append(_text(width - right, 14, f"{gaps} not finite", "tick", "end"))
    return _svg(width, height, title, said, parts, "small-curve")


def _ticks(values: Sequence[float]) -> list[str]:
    """Numbers for an axis, with as many digits as it takes to differ; at most seven characters where three digits do."""
    for digits in range(3, 9):
        said = [_tick(value, digits) for value in values]
        if len(set(said)) == len(said):
            break
    return said


def _tick(value: float, digits: int) -> str:
    short = f"{value:.{digits}g}"
    said = short if len(short) <= max(7, digits + 2) else f"{value:.{digits - 2}e}"
    return said.replace("e-0", "e-").replace("e+0", "e+")


@dataclass(frozen=True, slots=True)
class Node:
    """An artifact in the lineage: ``anchor`` is its card on the page, or empty where it is not in the store."""

    ref: str
    kind: str
    stage: str
    anchor: str
    inputs: tuple[tuple[str, str], ...]
    """(slot, reference)"""


def lineage(nodes: Sequence[Node]) -> Markup:
    """What was made from what, left to right. Nodes must come with every node that they name as an input."""
    by_ref = {node.ref: node for node in nodes}
    column: dict[str, int] = {}
    for node in nodes:
        column[node.ref] = _column(node.ref, by_ref, column, ())
    box_width, box_height, gap_x, gap_y, margin = 186.0, 46.0, 47.0, 16.0, 10.0
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(column[node.ref], []).append(node)
    _untangle(columns)
    tallest = max((len(group) for group in columns.values()), default=0)
    height = 2 * margin + tallest * (box_height + gap_y) - gap_y
    where: dict[str, tuple[float, float]] = {}
    for number, group in columns.items():
        start = (height - len(group) * (box_height + gap_y) + gap_y) / 2
        for row, node in enumerate(group):
            where[node.ref] = margin + number * (box_width + gap_x), start + row * (box_height + gap_y)
    parts: list[Markup] = []
    for node in nodes:
        x2, y2 = where[node.ref]
        for slot, reference in node.inputs:
            x1, y1 = where[reference]
            start_y, end_y, bend = y1 + box_height / 2, y2 + box_height / 2, gap_x / 2
            css = "edge main" if slot == "model" else "edge"
            parts.append(
                Markup('<path d="M{:.1f} {:.1f} C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}" class="{}"><title>{}</title></path>').format(
                    x1 + box_width,
                    start_y,
                    x1 + box_width + bend,
                    start_y,
                    x2 - bend,
                    end_y,
                    x2,
                    end_y,
                    css,
                    _escape(f"{reference} as {slot} of {node.ref}"),
                )
            )
    for node in nodes:
        parts.append(_box(node, *where[node.ref], box_width, box_height))
    width = 2 * margin + len(columns) * (box_width + gap_x) - gap_x
    said = "; ".join(f"{node.ref} from {' and '.join(ref for _, ref in node.inputs)}" for node in nodes if node.inputs)
    svg = _svg(width, height, "Lineage of the artifacts", said or "no artifact has inputs", parts, "lineage")
    return svg.replace(Markup("<svg "), Markup('<svg style="min-width:{:.0f}px;max-width:{:.0f}px" ').format(width * 0.8, width), 1)


def _column(ref: str, by_ref: dict[str, Node], known: dict[str, int], above: tuple[str, ...]) -> int:
    if ref in known:
        return known[ref]
    inputs = [parent for _, parent in by_ref[ref].inputs if parent not in above]
    return max((1 + _column(parent, by_ref, known, (*above, ref)) for parent in inputs), default=0)


def _untangle(columns: dict[int, list[Node]]) -> None:
    """Orders each column by where its inputs stand: fewer edges cross."""
    rank: dict[str, float] = {}
    for number in sorted(columns):
        group = columns[number]
        if number:
            group.sort(key=lambda node: sum(rank.get(ref, 0.0) for _, ref in node.inputs) / max(len(node.inputs), 1))
        for row, node in enumerate(group):
            rank[node.ref] = (row + 0.5) / len(group)


def _box(node: Node, x: float, y: float, width: float, height: float) -> Markup:
    name = node.ref.rpartition("/")[2] if "@v" in node.ref else node.ref
    name = name if len(name) <= 23 else "…" + name[-22:]
    inside = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="6" class="node {}"/>').format(
        x, y, width, height, f"k-{node.kind}" if node.anchor else "outside"
    )
    inside += _text(x + 10, y + 19, name, "node-name") + _text(x + 10, y + 36, f"{node.kind} · {node.stage}", "node-kind")
    inside += Markup("<title>{}</title>").format(_escape(node.ref))
    return Markup('<a href="#{}">{}</a>').format(node.anchor, inside) if node.anchor else Markup("<g>{}</g>").format(inside)
