"""What is kept of a finished run, and what is read off it.

    python -m experiments.results runs/compare/*seed*     # copies what tables and plots need to experiments/results/

A result is one small JSON file: method, flags (no path in them), commit, versions, device, seconds, figures and curve of a run.
"""

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "results"
DATA = {"shapes": "shapes", "fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}  # how names begin in flags, and names on pages
FIGURES = {"steps_to_forget": "steps to forget", "unlearning_accuracy": "unlearning accuracy", "cover_share": "cover share"}
FIGURES |= {"retain_accuracy": "retain accuracy", "frechet_distance": "Frechet, retained", "precision": "precision"}
FIGURES |= {"recall": "recall", "cover_frechet_distance": "Frechet, cover"}
COLUMNS = FIGURES | {"wobble": "wobble", "milliseconds_per_step": "ms a step"}


def loads(text):
    """JSON with four digits of every number: more would say nothing."""
    return json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"))


def read_json(path):
    return loads(path.read_text(encoding="utf-8"))


def method_of(flags):
    """The name of a method in tables, from the flags of its run."""
    once = " once" if flags["mask"] != "none" and flags["mask_every"] == 0 else ""
    keep = f" {flags['keep']:g}" if flags["mask"] != "none" and flags["keep"] != 0.5 else ""
    return f"{flags['mask']}{once}{keep}, weight {flags['forget_weight']:g}"


def read_run(folder):
    """A finished run folder -> its result. ValueError that names the folder if it is not one."""
    try:
        metrics, log = read_json(folder / "metrics.json"), (folder / "log.jsonl").read_text(encoding="utf-8")
        extra = read_json(folder / "extra.json") if (folder / "extra.json").exists() else {}
        extra |= {name: read_json(folder / f"{name}.json") for name in ("relearn", "probe") if (folder / f"{name}.json").exists()}
        about, lines = metrics.pop("settings"), [loads(line) for line in log.splitlines()]
        flags = about.pop("flags")
        curve = {"step": [line["step"] for line in lines if line.get("weights") == "raw"]}
        for weights in ("average", "raw"):
            points = [line for line in lines if line.get("weights") == weights]
            keys = "unlearning_accuracy", "cover_share", "retain_accuracy", "frechet_distance"
            curve[weights] = {key: [point[key] for point in points] for key in keys}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder} is not the folder of a finished run: {error}") from error
    name = {"method": method_of(flags), "seed": flags["seed"]} | extra
    return name | about | {"flags": flags | {"data": Path(flags["data"]).name}, "figures": metrics, "curve": curve}


def load(data):
    """The results in experiments/results/ of a data set, in the order of their files."""
    found = [read_json(path) for path in sorted(FOLDER.glob("*.json"))]
    return [one for one in found if one["flags"]["data"].startswith(data)]


def figure(result, key):
    """A figure of the generator's average, of its time, or of its curve; None if there is none.

    wobble: how unsteady a run is, the root mean square of the changes of the Frechet distance of its raw weights from one point
    of the curve to the next, along its second half.
    """
    curve = result["curve"]
    if key == "wobble":
        late = [value for at, value in zip(curve["step"], curve["raw"]["frechet_distance"]) if at > curve["step"][-1] / 2]
        return None if None in late or len(late) < 2 else float(np.sqrt(np.mean(np.diff(late) ** 2)))
    if key == "milliseconds_per_step":
        return 1000 * result["seconds"]["pecker"] / result["flags"]["steps"]
    if key == "steps_to_forget" and result["method"] == "copied row":
        return 0
    return result["figures"]["generator"][key]


def by_method(found, key):
    """Results -> {method: {seed: figure}}."""
    rows = {}
    for one in found:
        rows.setdefault(one["method"], {})[one["seed"]] = figure(one, key)
    return rows


def compared(data):
    """The runs of experiments.compare, all from one teacher."""
    return [one for one in load(data) if "compared" in one]


def main(argv):
    FOLDER.mkdir(exist_ok=True)
    for folder in argv:
        try:
            result = read_run(Path(folder))
        except ValueError as error:
            print(f"left out: {error}")
            continue
        kind = "compare" if "compared" in result else f"teacher{result['teacher_seed']}"
        flags, method = result["flags"], result["method"]
        words = f"{flags['data']} {' '.join(flags['forget'])} {kind} {method} {flags['steps']} steps seed{result['seed']}"
        name = "-".join("".join(c if c.isalnum() or c == "." else " " for c in words).split()) + ".json"
        (FOLDER / name).write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
