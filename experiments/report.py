"""Makes the tables between markers and the plots of README.md and experiments/README.md from the files in experiments/results/.

    python -m experiments.report        # a second; a test makes them again and compares, so that none of them can be typed

Between <!-- NAME PREFIX --> and <!-- end --> stands what TABLES[NAME] makes of the files with that prefix; plots go to assets/.
"""

import re
from pathlib import Path

from experiments import plots, results
from experiments.claims import mean_and_spread, tested
from experiments.networks import networks
from experiments.results import FIGURES, MAIN

ROOT = Path(__file__).parent.parent


def markdown(head, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def result(found):
    rows = [(FIGURES[key], *(f"{found[0]['figures'][net][key]:.3g}" for net in ("teacher", "generator"))) for key in MAIN]
    return markdown(["", "before", "after"], rows)


def main_job(found):
    """A row a run: the generator's figures, in brackets the teacher's."""
    rows = []
    for one in found:
        both = [(one["figures"]["generator"][key], one["figures"]["teacher"].get(key)) for key in FIGURES]
        cells = ("-" if new is None else new if old is None else f"{new} ({old})" for new, old in both)
        rows.append([one["seed"], one["flags"]["steps"], *cells, f"{sum(one['seconds'].values()) / 60:.0f}", one["commit"]])
    return markdown(["generator (teacher): seed", "steps", *FIGURES.values(), "minutes, without the curve", "commit"], rows)


def methods(found):
    columns = FIGURES | {"wobble": "wobble"}
    values = [results.by_method(found, key) for key in columns]
    rows = [[name, len(runs), *(mean_and_spread([*one[name].values()]) for one in values)] for name, runs in values[0].items()]
    return markdown(["", "seeds", *columns.values()], rows)


def claims(found):
    """What the paper claims of the mask, beside no mask and a random one, on every data set."""
    table, rows = tested(found), []
    names = list(dict.fromkeys(name for cells in table.values() for name in cells))
    for (claim, control, key), cells in table.items():
        words = ["{}, p {:.2g}, {}".format(*cells[name]).removesuffix(", ") if name in cells else "" for name in names]
        answer = " / ".join(sorted({answer for *_, answer in cells.values() if answer})) or "cannot be told"
        rows.append([f"{claim} than {control}", key, *words, answer])
    return markdown(["the mask is", "measure", *names, "answer"], rows) if rows else ""


def relearning(found):
    tables = [one["relearn"]["rows"] for one in found if "relearn" in one]
    rows = [(*name.split("; "), mean_and_spread([one[name] for one in tables])) for name in tables[0]]
    return markdown(["network", "tuned", "training steps until it is back"], rows)


def probes(found):
    """Two rows a network: shares, lowest to highest over the runs; how many searches have found the class after so many steps."""
    tables, shares, searches = [one["probe"] for one in found if "probe" in one], [], []
    keys, starts = ("seeds", "leak", "real", "real, retained class"), ("own", "cover's", "random")
    for name in [name for name, row in tables[0].items() if "seeds" in row]:
        rows = [table[name] for table in tables]
        ordered = [sorted({row[key][0] / row[key][1] for row in rows}) for key in keys]
        shares.append([name, *(" to ".join(f"{share:.3g}" for share in (low, *more[-1:])) for low, *more in ordered)])
        begun = [[points for row in rows for at, points in row["inversion"].items() if at.startswith(start)] for start in starts]
        hits = [[sum(2 * points[after][0] >= points[after][1] for points in some) for after in some[0]] for some in begun]
        searches.append([name, *(f"{', '.join(map(str, counts))} of {len(some)}" for counts, some in zip(hits, begun))])
    return markdown(["network", *keys], shares) + "\n\n" + markdown(["search in, from", *starts], searches)


TABLES = {maker.__name__: maker for maker in (result, main_job, methods, claims, relearning, probes)}


def pages():
    """{path: text} of both pages, with tables and lines of pecker.py as they are now, and of the figure of the networks."""
    lines = enumerate((ROOT / "pecker.py").read_text("utf-8").splitlines(), 1)
    starts = {found[1]: i for i, line in lines if (found := re.match(r" *def (\w+)", line))}
    texts = {path: path.read_text("utf-8") for path in (ROOT / "README.md", ROOT / "experiments" / "README.md")}
    for path, text in texts.items():
        made = lambda found: f"{found[1]}\n{TABLES[found[2]](results.load(found[3]))}\n\n<!-- end -->"  # noqa: E731
        text = re.sub(r"(<!-- (\w+) ?([\w-]*) -->\n).*?<!-- end -->", made, text, flags=re.DOTALL)
        texts[path] = re.sub(r"(`(\w+)`\]\((?:../)?pecker.py#L)\d+", lambda found: f"{found[1]}{starts[found[2]]}", text)
    return texts | {ROOT / "assets" / "networks.svg": networks()}


def main():
    for path, text in (pages() | {ROOT / "assets" / name: text for name, text in plots.pictures().items()}).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
