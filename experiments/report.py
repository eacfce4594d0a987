"""Makes every table and plot of README.md and experiments/README.md from the files in experiments/results/.

    python -m experiments.report        # a second; a test makes them again and compares, so that no figure can be typed

In a page, what stands between <!-- NAME DATA --> and <!-- end --> is made by TABLES[NAME] from the results of that data set.
Plots go to assets/.
"""

import re
from pathlib import Path

import numpy as np

from experiments import figures, results
from experiments.claims import CLAIMS, tested
from experiments.intervals import in_words, share_in_words
from experiments.results import COLUMNS, DATA, FIGURES, compared

ROOT = Path(__file__).parent.parent


def markdown(head, rows):
    if not rows:
        return "*Not run yet.*"
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def default_runs(data):
    """The runs of train.py itself, as `python train.py` does them, or with more --steps: those come last."""
    found = [one for one in results.load(data) if "compared" not in one and one["method"].startswith("saliency, weight")]
    return sorted(found, key=lambda one: one["flags"]["steps"])


def result(data):
    """The first default run in four rows: before and after."""
    rows = []
    for one in [one["figures"] for one in default_runs(data)[:1]]:
        for key in ("unlearning_accuracy", "cover_share", "retain_accuracy", "frechet_distance"):
            rows.append([FIGURES[key], f"{one['teacher'][key]:.3g}", f"{one['generator'][key]:.3g}"])
    return markdown(["", "before", "after"], rows)


def main_job(data):
    """The default runs: the generator's figures, in brackets the teacher's."""
    found, rows = [one["figures"] | one for one in default_runs(data)], []
    if not found:
        return markdown([], [])
    for key, name in FIGURES.items():
        both = [(one["generator"][key], one["teacher"].get(key)) for one in found]
        missing = "never" if key == "steps_to_forget" else "-"  # or too few pictures
        values = [missing if value is None else value if old is None else f"{value} ({old})" for value, old in both]
        rows.append([name, *values])
    minutes = [sum(one["seconds"].values()) / 60 for one in found]
    rows.append(["minutes, without looking", *(f"{value:.0f}" for value in minutes)])
    names = [f"seed {one['seed']}, {one['flags']['steps']} steps, {one['commit'] or '?'}" for one in found]
    return markdown(["generator (teacher)", *names], rows)


def methods(data):
    rows, found = {}, compared(data)
    for key in COLUMNS:
        for method, values in results.by_method(found, key).items():
            rows.setdefault(method, [method]).append(in_words(list(values.values())))
    return markdown([f"{len(found)} runs", *COLUMNS.values()], [*rows.values()])


def differences(data):
    rows = [(key, name, in_words(v, difference=True), len(v), f"{p:.2g}") for _, key, name, v, p, _ in tested(data)]
    return markdown(["figure", "difference", "mean ± 95 % interval", "seeds", f"p, corrected for {len(rows)}"], rows)


def claims(_):
    """What the paper claims of the mask, against no mask."""
    rows = {(claim, key): [claim, key] for claim, key, *_ in CLAIMS}
    answers = {name: [] for name in rows}
    for data, name in DATA.items():
        for claim, key, difference, values, p, answer in tested(data):
            if difference == "saliency - none, weight 1":
                answers[claim, key].append(f"{name}: {answer}")
                rows[claim, key].append(f"{in_words(values, difference=True)} (p {p:.2g})")
        for row in rows.values():
            row += ["not run"] * (3 + [*DATA].index(data) - len(row))
    return markdown(["the mask is", "figure", *DATA.values(), "answer"], [[*rows[key], "; ".join(answers[key])] for key in rows])


def overlaps(data):
    masks = [one["masks"] for one in compared(data) if "masks" in one]
    rows = [(key, in_words([one[key] for one in masks])) for key in (masks[0] if masks else ())]
    return markdown(["overlap of two masks (intersection over union)", f"{len(masks)} runs"], rows)


def relearning(data):
    found = [one["relearn"]["rows"] for one in results.load(data) if "relearn" in one]
    rows = [(*name.split("; "), in_words(row["ddim"]), in_words(row["one_step"])) for one in found for name, row in one.items()]
    return markdown(["network", "tuned", "steps until it is back, DDIM", "one step"], rows)


def probes(data):
    rows, keys = [], ("seeds", "leak", "real", "real, retained class")
    for probe in [one["probe"] for one in results.load(data) if "probe" in one]:
        for name, row in [(name, row) for name, row in probe.items() if "seeds" in row]:
            inversion = ", ".join(f"{step}: {share[0] / share[1]:.2g}" for step, share in row["inversion"].items())
            rows.append([name, *(share_in_words(*row[key]) for key in keys), inversion])
    return markdown(["network", *keys, "inversion, after so many steps"], rows)


TABLES = [result, main_job, methods, differences, claims, overlaps, relearning, probes]


def pages():
    """{path of a page: its text, with its tables and the lines of pecker.py that it points to as they are now}."""
    makers, code = {maker.__name__: maker for maker in TABLES}, (ROOT / "pecker.py").read_text("utf-8").splitlines()
    lines = {found[1]: i for i, line in enumerate(code, 1) if (found := re.match(r" *def (\w+)", line))}
    texts = {path: path.read_text("utf-8") for path in (ROOT / "README.md", ROOT / "experiments" / "README.md")}
    for path, text in texts.items():
        made = lambda found: f"{found[1]}\n{makers[found[2]](found[3])}\n\n{found[4]}"  # noqa: E731
        text = re.sub(r"(<!-- (\w+) (\w+) -->\n).*?(<!-- end -->)", made, text, flags=re.DOTALL)
        texts[path] = re.sub(r"(`(\w+)`\]\((?:../)?pecker.py#L)\d+", lambda found: f"{found[1]}{lines[found[2]]}", text)
    return texts


def main():
    for path, text in (pages() | {ROOT / "assets" / name: text for name, text in figures.pictures().items()}).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
