"""Small SVG pictures of the numbers in experiments/results/, readable on light and dark pages, for experiments.report."""

from xml.sax.saxutils import escape

import numpy as np

from experiments.claims import differences, student
from experiments.results import FIGURES, by_method, load

GREY, COLOURS = "#808080", ("#d55e00", "#009e73", "#0072b2", "#cc79a7")  # told apart by the colour-blind, too: Okabe and Ito


def text(x, y, words, anchor="middle", colour=GREY):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def line(x1, y1, x2, y2, colour=GREY, width=1.0):
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def picture(title, name, low, high, left, right, bottom, draw):
    """A title, an axis for numbers from low to high below, and what draw(at) returns, where at(number) is its place."""
    at = lambda x: left + (x - low) / (high - low or 1) * (right - left)  # noqa: E731
    parts = [text(60, 18, title, "start"), text((left + right) / 2, bottom + 36, name), *draw(at)]
    step = next(digit * 10.0**power for power in range(-9, 9) for digit in (1, 2, 5) if high - low <= 6 * digit * 10.0**power)
    for x in np.arange(np.ceil(low / step), high / step + 0.001) * step:
        parts += [line(at(x), bottom, at(x), bottom + 4), text(at(x), bottom + 18, f"{x + 0:.3g}")]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {bottom + 44}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, *parts, "</svg>", ""])


def lines(title, x_name, series, top=1):
    """series {name: {x: numbers from 0 to top}}: a line a name, the mean, in its band, the 95 % interval."""
    bands = [[(x, *student(values)[:2]) for x, values in points.items()] for points in series.values()]

    def draw(at):
        at_y = lambda y: 276 - min(max(y, 0), top) / top * 242  # noqa: E731
        path = lambda points: "L".join(f"{at(x):.1f} {at_y(y):.1f}" for x, y in points)  # noqa: E731
        for y in np.linspace(0, top, 6):
            yield from (line(60, at_y(y), 430, at_y(y), width=0.3), text(54, at_y(y) + 4, f"{y:.3g}", "end"))
        for i, (name, points, colour) in enumerate(zip(series, bands, COLOURS)):
            edge = [(x, y + half) for x, y, half in points] + [(x, y - half) for x, y, half in reversed(points)]
            yield f'<path d="M{path(edge)}Z" fill="{colour}" fill-opacity="0.2"/>'
            yield f'<path d="M{path((x, y) for x, y, _ in points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            yield text(442, 52 + 20 * i, name, "start", colour)

    xs = [x for points in series.values() for x in points]
    return picture(title, x_name, min(xs), max(xs), 60, 430, 276, draw)


def dots(title, x_name, rows, mark, mark_name):
    """rows {name: numbers}: a dot a row, the mean, on its 95 % interval; a vertical line at the number `mark`."""
    spans, bottom = [student(values)[:2] for values in rows.values()], 52 + 24 * len(rows)
    ends = [mark, *(mean + sign * half for mean, half in spans for sign in (-1, 1))]

    def draw(at):
        yield from (line(at(mark), 48, at(mark), bottom), text(at(mark), 44, mark_name))
        for y, name, (mean, half) in zip(range(64, bottom, 24), rows, spans):
            yield from (text(240, y + 4, name, "end"), line(at(mean - half), y, at(mean + half), y, COLOURS[0], 2))
            yield f'<circle cx="{at(mean):.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>'

    return picture(title, x_name, min(ends), max(ends), 250, 590, bottom, draw)


def curves(found, data, key):
    """A figure of the raw weights, of which the average hides much, against steps: the masks at weight 1, and SFD."""
    series = {}
    for method in ("saliency, weight 1", "random, weight 1", "none, weight 1", "none, weight 0.01"):
        runs = [one["curve"] for one in found if one["method"] == method and "compared" in one]
        if len(runs) > 2:
            series[method] = dict(zip(runs[0]["step"], zip(*(run["raw"][key] for run in runs))))
    return series and lines(f"{FIGURES[key]}, {data}, raw weights: mean and 95 % band over seeds", "step", series)


def mask_differences(found, data):
    rows = {f"beside {name}": values for name, values in differences(found, "steps").items() if len(values) > 2}
    return any(map(any, rows.values())) and dots(f"Steps to forget, {data}: saliency minus control", "steps", rows, 0, "equal")


def mask_overlaps(found, data):
    masks = [one["masks"] for one in found if "masks" in one]
    names = [name for name in (masks[0] if len(masks) > 2 else ()) if name != "overlap_by_chance"]
    rows = {name.removeprefix("overlap_").replace("_", " "): [one[name] for one in masks] for name in names}
    title = f"Overlap of two masks, {data}: mean and 95 % interval over seeds"
    return rows and dots(title, "intersection over union", rows, masks[0]["overlap_by_chance"], "chance")


def keep_ratios(found, data):
    runs = by_method(found, "frechet_distance")
    names = {keep: f"saliency{'' if keep == 0.5 else f' {keep:g}'}, weight 1" for keep in (0.0, 0.1, 0.25, 0.5, 1.0)}
    points = {keep: [*runs[name].values()] for keep, name in names.items() if len(runs.get(name, ())) > 1}
    title, series = f"Frechet distance, {data}, by the share of weights in the mask", {"saliency, weight 1": points}
    return len(points) > 1 and lines(title, "--keep", series, 1.2 * max(map(max, points.values())))


def relearning(found, data):
    tables = [one["relearn"]["rows"] for one in found if "relearn" in one]
    rows = {name.replace(";", ","): [one[name] for one in tables] for name in (tables[0] if len(tables) > 1 else ())}
    rows = {name: steps for name, steps in rows.items() if "retained" not in name and None not in steps}
    return rows and dots(f"Steps until pictures of the class bring it back, {data}: 95 % intervals", "steps", rows, 0, "at once")


def teacher(found, data):
    series = {"teacher": {hours: [share] * 2 for hours, share in one["teacher_curve"]} for one in found if "teacher_curve" in one}
    return series and lines(f"Share of the teacher's pictures, {data}, called by their label", "hours of training", series)


def pictures():
    """{name of a file in assets/: its text}."""
    made = {}
    for data in ("shapes", "fashion-sneaker", "fashion-trouser", "cifar", "cifar36k"):
        found = load(f"{data}-")
        made |= {f"{data}-{key}.svg": curves(found, data, key) for key in ("cover_share", "retain_accuracy")}
        makers = mask_differences, mask_overlaps, keep_ratios, relearning, teacher
        made |= {f"{data}-{make.__name__}.svg": make(found, data) for make in makers}
    return {name.replace("_", "-"): text for name, text in made.items() if text}
