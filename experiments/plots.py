"""Small SVG pictures of numbers, readable on light and dark pages: lines with bands, dots with intervals."""

import math
from xml.sax.saxutils import escape

COLOURS = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d")  # told apart by the colour-blind, too
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 210, 34, 44  # of the picture, and of its margins


def ticks(low, high, count=5):
    """Round numbers from low to high, about `count` of them."""
    raw = (high - low) / count
    step = min((f * 10.0 ** math.floor(math.log10(raw)) for f in (1, 2, 5, 10)), key=lambda one: abs(one - raw))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def text(x, y, words, anchor="start", colour="#808080"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def line(x1, y1, x2, y2, colour="#808080", width=1.0, dash=""):
    dash = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"{dash}/>'


def picture(title, parts, height=HEIGHT):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, text(LEFT, 18, title), *parts, "</svg>", ""])


def lines(title, x_name, series, y_range=None):
    """series {name: (x, y, low, high)}, each a list of numbers of one length: a line a name, with a band from low to high."""
    xs = [x for one in series.values() for x in one[0]]
    ys = y_range or [y for one in series.values() for values in one[1:] for y in values]
    (x0, x1), (y0, y1) = ((low, high if high > low else low + 1) for low, high in ((min(xs), max(xs)), (min(ys), max(ys))))
    at_x = lambda x: LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    at_y = lambda y: HEIGHT - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle")]
    for x in ticks(x0, x1):
        parts += [line(at_x(x), at_y(y0), at_x(x), at_y(y0) + 4), text(at_x(x), at_y(y0) + 18, f"{x:g}", "middle")]
    for y in ticks(y0, y1):
        parts += [line(LEFT, at_y(y), WIDTH - RIGHT, at_y(y), width=0.3), text(LEFT - 6, at_y(y) + 4, f"{y:.6g}", "end")]
    for i, ((name, (x, y, low, high)), colour) in enumerate(zip(series.items(), COLOURS)):
        path = lambda x, y: "L".join(f"{at_x(a):.1f} {at_y(b):.1f}" for a, b in zip(x, y))  # noqa: E731
        parts.append(f'<path d="M{path(x, high)}L{path(x[::-1], low[::-1])}Z" fill="{colour}" fill-opacity="0.2"/>')
        parts.append(f'<path d="M{path(x, y)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        legend = TOP + 14 + 20 * i
        parts += [line(WIDTH - RIGHT + 12, legend, WIDTH - RIGHT + 32, legend, colour, 3)]
        parts += [text(WIDTH - RIGHT + 38, legend + 4, name, colour=colour)]
    return picture(title, parts)


def dots(title, x_name, rows, marks=()):
    """rows [(name, value, half of the interval)], marks (x, name): a dot a row, from top to bottom, its interval and its name;
    each mark, such as zero or chance, a dashed line."""
    left, top, height = 250, 52, 52 + 24 * len(rows) + BOTTOM
    edges = [value + sign * half for _, value, half in rows for sign in (-1, 1)] + [x for x, _ in marks]
    low, high = min(edges), max(max(edges), min(edges) + 1e-9)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    at_x = lambda x: left + (x - low) / (high - low) * (WIDTH - left - 30)  # noqa: E731
    bottom, parts = height - BOTTOM, [text((left + WIDTH) / 2, height - 8, x_name, "middle")]
    for x in ticks(low, high):
        parts += [line(at_x(x), bottom, at_x(x), bottom + 4), text(at_x(x), bottom + 18, f"{x:.6g}", "middle")]
    for x, name in marks:
        parts += [line(at_x(x), top - 4, at_x(x), bottom, dash="4 3"), text(at_x(x), top - 8, name, "middle")]
    for i, (name, value, half) in enumerate(rows):
        y, colour = top + 24 * i + 12, COLOURS[0]
        parts += [text(left - 10, y + 4, name, "end"), line(at_x(value - half), y, at_x(value + half), y, colour, 2)]
        parts += [f'<circle cx="{at_x(value):.1f}" cy="{y}" r="4" fill="{colour}"/>']
    return picture(title, parts, height)
