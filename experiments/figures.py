"""The drawings of the pages, most from the files in experiments/results/; experiments.report writes them to assets/."""

import math

import numpy as np

from experiments import plots
from experiments.claims import tested
from experiments.intervals import interval
from experiments.results import DATA, FIGURES, by_method, compared, load

CURVES = {f"{mask}, weight 1": f"{mask}, weight 1" for mask in ("saliency", "random", "none")}
CURVES["none, weight 0.01"] = "SFD (none, 0.01)"


def band(runs):
    """Lists of numbers of one length -> their mean, and the ends of its 95 % interval."""
    mean, half = np.array([interval(values) for values in zip(*runs)]).T
    return mean, mean - half, mean + half


def curves(data, key):
    """A figure of the raw weights, of which the average hides much, against steps: the masks at weight 1, and SFD."""
    series = {}
    for method, name in CURVES.items():
        runs = [one["curve"] for one in compared(data) if one["method"] == method]
        if len(runs) > 1:
            series[name] = runs[0]["step"], *band([run["raw"][key] for run in runs])
    title = f"{FIGURES[key]}, {DATA[data]}, raw weights: mean and 95 % band over seeds"
    return series and plots.lines(title, "step", series, (0, 1))


def mask_differences(data):
    rows = [(name.removesuffix(", weight 1"), *interval(v)) for _, key, name, v, *_ in tested(data) if key == "steps_to_forget"]
    title = f"Steps to forget, {DATA[data]}: the saliency mask minus its controls, 95 % intervals"
    return rows and plots.dots(title, "steps", rows, [(0, "no difference")])


def mask_overlaps(data):
    masks = [one["masks"] for one in compared(data) if "masks" in one]
    names = [key for key in (masks[0] if len(masks) > 1 else ()) if key != "overlap_by_chance"]
    rows = [(name.removeprefix("overlap_").replace("_", " "), *interval([one[name] for one in masks])) for name in names]
    title = f"Overlap of two masks, {DATA[data]}: mean and 95 % interval over seeds"
    return rows and plots.dots(title, "intersection over union", rows, [(masks[0]["overlap_by_chance"], "chance")])


def keep_ratios(data, key="frechet_distance"):
    """A figure against the share of the weights in the mask."""
    runs, points = by_method(compared(data), key), []
    for keep in (0.0, 0.1, 0.25, 0.5, 1.0):
        values = [*runs.get(f"saliency{'' if keep == 0.5 else f' {keep:g}'}, weight 1", {}).values()]
        if len(values) > 1:
            points.append((keep, *band([[value] for value in values])))
    x, *ys = zip(*points) if points else [[]]
    series = {FIGURES[key]: (x, *([value[0] for value in y] for y in ys))}
    title = f"{FIGURES[key]}, {DATA[data]}, by the share of weights in the mask"
    return len(points) > 1 and plots.lines(title, "--keep", series)


def relearning(data):
    """How many steps until the class is back, all weights tuned on a hundred pictures of it, where it always came."""
    found = [one["relearn"]["rows"] for one in load(data) if "relearn" in one]
    rows = [
        (f"{name.split('; ')[0]}, {way.replace('_', ' ')}", *interval(row[way]))
        for one in found for name, row in one.items() if name.endswith("; all weights")
        for way in ("ddim", "one_step") if None not in row[way] and len(row[way]) > 1
    ]  # fmt: skip
    return rows and plots.dots(f"Steps until the class is back, {DATA[data]}: all weights, 95 % intervals", "steps", rows)


def networks():
    """The three networks of PECKER: who draws, who judges, where the gradient goes, where the mask sits."""
    grey, (orange, green, purple, *_) = "#808080", plots.COLOURS

    def box(x, y, colour, *words):
        size = f'width="154" height="{20 + 16 * len(words)}" rx="8"'
        frame = f'<rect x="{x}" y="{y}" {size} fill="none" stroke="{colour}" stroke-width="2"/>'
        return [frame, *(plots.text(x + 77, y + 21 + 16 * i, line, "middle", colour) for i, line in enumerate(words))]

    def arrow(colour, dash, *points):
        """Through the points (x, y), with its head at the last."""
        lines = [plots.line(*start, *end, colour, 2, dash) for start, end in zip(points, points[1:])]
        (x1, y1), (x2, y2) = points[-2:]
        turn = f'transform="translate({x2} {y2}) rotate({math.degrees(math.atan2(y2 - y1, x2 - x1)):.1f})"'
        return [*lines, f'<path d="M0 0L-10 -5L-10 5Z" fill="{colour}" {turn}/>']

    parts = [
        plots.text(87, 44, "noise, label", "middle"), *arrow(grey, "", (87, 52), (87, 108)),
        *box(10, 110, orange, "generator", "one evaluation;", "the product"),
        *arrow(grey, "", (164, 144), (206, 144)),
        plots.text(250, 140, "picture", "middle"), plots.text(250, 156, "+ fresh noise", "middle"),
        *arrow(grey, "", (270, 126), (334, 74)), *arrow(grey, "", (270, 164), (334, 214)),
        *box(336, 34, green, "teacher, frozen:", "what it should be", "(to forget: the cover)"),
        *box(336, 186, purple, "fake score:", "what it is now", "(at the label)"),
        *arrow(grey, "", (490, 74), (536, 126)), *arrow(grey, "", (490, 214), (536, 166)),
        plots.text(572, 142, "the difference", "middle"), plots.text(572, 158, "makes the loss", "middle"),
        *arrow(orange, "6 4", (572, 168), (572, 326), (87, 326), (87, 276)),
        plots.text(330, 342, "gradient, back through both judges and the picture to the generator's weights", "middle", orange),
        *box(10, 222, orange, "mask: what may change", "in order to forget"), *arrow(orange, "6 4", (87, 222), (87, 180)),
        *arrow(orange, "6 4", (182, 326), (182, 196), (150, 196), (150, 180)), plots.text(186, 250, "retain", "start", orange),
        *arrow(purple, "2 3", (236, 164), (236, 284), (413, 284), (413, 256)),
        plots.text(244, 300, "learns all the time to clean the generator's pictures", "start", purple),
    ]  # fmt: skip
    return plots.picture("", parts, 356)


def pictures():
    """{name of a file in assets/: its text}."""
    made = {"networks.svg": networks()}
    for data in DATA:
        made |= {f"{data}-{key}.svg": curves(data, key) for key in ("cover_share", "retain_accuracy")}
        made |= {f"{data}-{make.__name__}.svg": make(data) for make in (mask_differences, mask_overlaps, keep_ratios, relearning)}
    return {name.replace("_", "-"): text for name, text in made.items() if text}
