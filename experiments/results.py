"""What is kept of a finished run, and what is read off it.

    python -m experiments.results runs/compare/*seed*     # copies what tables and plots need to experiments/results/

A result is one small JSON file: method, flags (no path in them), commit, versions, device, seconds, figures and curve of a run.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "results"
FIGURES = {"steps_to_forget": "steps to forget", "unlearning_accuracy": "unlearning accuracy", "cover_share": "cover share"}
FIGURES |= {"retain_accuracy": "retain accuracy", "frechet_distance": "Frechet, retained", "precision": "precision"}
FIGURES |= {"recall": "recall", "cover_frechet_distance": "Frechet, cover"}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_run(folder):
    """A finished run folder -> its result."""
    kept = {name: folder / f"{name}.json" for name in ("extra", "relearn", "probe")}
    kept = {name: read_json(path) for name, path in kept.items() if path.exists()}
    metrics, log = read_json(folder / "metrics.json"), (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    about, points = metrics.pop("settings"), [line for line in map(json.loads, log) if "weights" in line]
    flags, curve = about.pop("flags"), {"step": [point["step"] for point in points if point["weights"] == "raw"]}
    for weights in ("average", "raw"):
        keys = "unlearning_accuracy", "cover_share", "retain_accuracy", "frechet_distance"
        curve[weights] = {key: [point[key] for point in points if point["weights"] == weights] for key in keys}
    masked = flags["mask"] != "none"
    once, keep = " once" * (masked and flags["mask_every"] == 0), f" {flags['keep']:g}" * (masked and flags["keep"] != 0.5)
    name = {"method": f"{flags['mask']}{once}{keep}, weight {flags['forget_weight']:g}", "seed": flags["seed"]}
    flags["data"] = Path(flags["data"]).name
    return name | kept.pop("extra", {}) | kept | about | {"flags": flags, "figures": metrics, "curve": curve}


def read_runs(folders):
    """The results of those folders that are finished runs; the others are named."""
    found = []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            print(f"left out: {folder} is not the folder of a finished run: {error}")
    return found


def load(data):
    """The results in experiments/results/ of a data set, in the order of their files."""
    found = [read_json(path) for path in sorted(FOLDER.glob("*.json"))]
    return [one for one in found if one["flags"]["data"].startswith(data)]


def compared(found):
    """The runs of experiments.compare, all from one teacher."""
    return [one for one in found if "compared" in one]


def figure(result, key):
    """A figure of the generator's average or of its curve; None if there is none.

    wobble: how unsteady a run is, the root mean square of the changes of the Frechet distance of its raw weights from one point
    of the curve to the next, along its second half.
    """
    curve = result["curve"]
    if key == "wobble":
        late = [value for at, value in zip(curve["step"], curve["raw"]["frechet_distance"]) if at > curve["step"][-1] / 2]
        return None if None in late or len(late) < 2 else float(np.sqrt(np.mean(np.diff(late) ** 2)))
    if key == "steps_to_forget" and result["method"] == "copied row":
        return 0
    return result["figures"]["generator"][key]


def by_method(found, key):
    """Results -> {method: {seed: figure}}."""
    rows = {}
    for one in found:
        rows.setdefault(one["method"], {})[one["seed"]] = figure(one, key)
    return rows


def main(argv):
    for result in read_runs(map(Path, argv)):
        kind = "compare" if "compared" in result else f"teacher{result['teacher_seed']}"
        flags = result["flags"]
        words = [flags["data"], *flags["forget"], kind, result["method"], f"{flags['steps']} steps seed{result['seed']}"]
        name = re.sub(r"[^\w.]+", "-", " ".join(words)) + ".json"
        # Four digits of every number: more would say nothing.
        short = json.loads(json.dumps(result), parse_float=lambda digits: float(f"{float(digits):.4g}"))
        (FOLDER / name).write_text(json.dumps(short) + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
