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
MAIN = [*FIGURES][1:5]  # these the curve has, too


def read_runs(folders):
    """The results of those folders that are finished runs; the others are named."""
    results = []
    for folder in folders:
        try:
            files = {name: folder / f"{name}.json" for name in ("metrics", "extra", "relearn", "probe")}
            found = {name: json.loads(path.read_text("utf-8")) for name, path in files.items() if path.exists()}
            metrics, extra = found.pop("metrics"), found.pop("extra", {})
            about, log = metrics.pop("settings"), (folder / "log.jsonl").read_text("utf-8").splitlines()
            flags, points = about.pop("flags"), [line for line in map(json.loads, log) if "weights" in line]
            curve = {"step": [point["step"] for point in points if point["weights"] == "raw"]}
            for weights in ("average", "raw"):
                curve[weights] = {key: [point[key] for point in points if point["weights"] == weights] for key in MAIN}
            once = " once" if flags["mask"] != "none" and flags["mask_every"] == 0 else ""
            keep = f" {flags['keep']:g}" if flags["mask"] != "none" and flags["keep"] != 0.5 else ""
            name = {"method": f"{flags['mask']}{once}{keep}, weight {flags['forget_weight']:g}", "seed": flags["seed"]}
            flags["data"] = Path(flags["data"]).name
            results.append(name | extra | found | about | {"flags": flags, "figures": metrics, "curve": curve})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            print(f"left out: {folder} is not the folder of a finished run, which `train.py evaluate` ends: {error!r}")
    return results


def load(prefix):
    """The results in experiments/results/ whose files' names begin so: data set, classes, compare or teacher, method."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob(f"{prefix}*"))]


def figure(result, key):
    """A figure of the generator's average, or None. steps: until it has forgotten, all if it never has, which flatters it;
    seconds: of these. wobble: root mean square change of the raw weights' Frechet distance a point, second half of the curve."""
    curve, figures = result["curve"], result["figures"]["generator"]
    if key == "steps":
        return result["flags"]["steps"] if figures["steps_to_forget"] is None else figures["steps_to_forget"]
    if key == "seconds":
        return result["seconds"]["pecker"] * figure(result, "steps") / result["flags"]["steps"]
    if key == "wobble":
        late = [value for at, value in zip(curve["step"], curve["raw"]["frechet_distance"]) if at > curve["step"][-1] / 2]
        return None if None in late or len(late) < 2 else float(np.sqrt(np.mean(np.diff(late) ** 2)))
    return 0 if key == "steps_to_forget" and result["method"] == "copied row" else figures[key]


def by_method(found, key):
    """The runs of experiments.compare, all from one teacher -> {method: {seed: figure}}."""
    rows = {}
    for one in found:
        if "compared" in one:
            rows.setdefault(one["method"], {})[one["seed"]] = figure(one, key)
    return rows


def main(argv):
    for result in read_runs(map(Path, argv)):
        flags, kind = result["flags"], "compare" if "compared" in result else f"teacher{result['teacher_seed']}"
        words = [flags["data"], *flags["forget"], kind, result["method"], f"{flags['steps']} steps seed{result['seed']}"]
        name = re.sub(r"[^\w.]+", "-", " ".join(words)) + ".json"
        short = json.loads(json.dumps(result), parse_float=lambda digits: float(f"{float(digits):.4g}"))  # more would say nothing
        if any(kept[key] != short[key] for kept in load(name) for key in ("flags", "teacher_seed")):
            raise SystemExit(f"{name} is of a run with other flags or teacher: remove it first, or keep only one of the two")
        (FOLDER / name).write_text(json.dumps(short) + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
