"""The figure of the three networks in README.md, for experiments.report: who draws, who judges, where the gradients go."""

from experiments.plots import COLOURS, GREY, text

DRAWS, KNOWS, LEARNS = COLOURS[:3]  # generator, teacher, fake score
WORDS = [  # middle, first line, colour, dashes of its frame if it has one, lines
    (87, 44, GREY, "", "noise, label"),
    (87, 131, DRAWS, "none", "generator", "one evaluation:", "noise to picture"),
    (250, 140, GREY, "", "picture", "+ fresh noise"),
    (413, 55, KNOWS, "none", "teacher, frozen:", "what it should be", "(to forget: the cover)"),
    (413, 207, LEARNS, "none", "fake score:", "what it is now", "(the label asked for)"),
    (392, 300, LEARNS, "", "learns all the time to clean the generator's pictures"),
    (572, 142, GREY, "", "the difference", "makes the loss"),
    (330, 342, DRAWS, "", "gradient, back through both judges and the picture to the generator's weights"),
    (203, 250, DRAWS, "", "retain"),
    (87, 243, DRAWS, "3 3", "mask: weights that", "may change to forget"),
]
ARROWS = {  # colour: dashes, ways
    GREY: ("none", "87 52L87 108", "164 144L206 144", "270 126L334 74", "270 164L334 214", "490 74L536 126", "490 214L536 166"),
    DRAWS: ("6 4", "572 168L572 326L87 326L87 276", "182 326L182 196L150 196L150 180", "87 222L87 180"),
    LEARNS: ("2 3", "236 164L236 284L413 284L413 256"),
}


def networks():
    """The text of the SVG file."""
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 356" font-family="sans-serif" font-size="12">']
    for x, y, colour, frame, *lines in WORDS:
        parts += [text(x, y + 16 * i, line, colour=colour) for i, line in enumerate(lines)]
        shape = f'<rect x="{x - 77}" y="{y - 21}" width="154" height="{16 * len(lines) + 20}" rx="8"'
        parts += [f'{shape} fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{frame}"/>'] * bool(frame)
    for colour, (dashes, *ways) in ARROWS.items():
        head = f'<marker id="a{colour[1:]}" refX="10" refY="5" markerWidth="10" markerHeight="10" markerUnits="userSpaceOnUse"'
        parts.append(f'{head} orient="auto"><path d="M0 0L10 5L0 10Z" fill="{colour}"/></marker>')
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}" marker-end="url(#a{colour[1:]})"'
        parts += [f'<path d="M{way}" {style}/>' for way in ways]
    return "\n".join([*parts, "</svg>", ""])
