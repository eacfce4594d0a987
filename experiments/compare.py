"""Which part of the method does what? Every method with every seed, from the one teacher of a finished run.

    python train.py                                                                     # a finished run, in runs/shapes
    python -m experiments.compare --run runs/shapes --out runs/compare --seeds 5        # 55 runs, each about a minute
    python -m experiments.compare --methods "saliency, weight 1.0" "none, weight 1.0"   # some of them

Each run is an ordinary run folder below --out. compare.json has a row for each method, with a value for each seed; the same
command continues where it stopped, and other methods or more seeds add to what is there.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import torch

import train
from experiments.relearn import copy_cover_rows, make_parser, mean_and_spread, positive, print_rows
from pecker import NoiseSchedule, generate, noise_prediction_loss, saliency_mask, sample_ddim

METHODS = {
    f"{mask}, weight {weight}": dict(mask=mask, forget_weight=weight, mask_every=1)
    for weight in (0.1, 1.0, 0.01) for mask in ("saliency", "random", "none")
}  # fmt: skip
METHODS["saliency once, weight 0.1"] = dict(mask="saliency", forget_weight=0.1, mask_every=0)
METHODS["copied row"] = dict(mask="none", forget_weight=0.0, mask_every=1)  # distilled without forgetting; see copy_cover_rows
COLUMNS = {
    "steps_to_forget": "steps to forget", "milliseconds_per_step": "ms a step", "unlearning_accuracy": "unlearning",
    "cover_share": "cover share", "retain_accuracy": "retain", "frechet_distance": "Frechet",
    "cover_frechet_distance": "Frechet cover", "frechet_wobble": "Frechet wobble",
}  # fmt: skip


def wobble(curve):
    """How unsteady a run is: the standard deviation of the Frechet distance of its raw weights along its second half."""
    late = [line["frechet_distance"] for line in curve if line["weights"] == "raw" and line["step"] > curve[-1]["step"] / 2]
    return None if None in late else float(np.std(late))


def differences(rows):
    """What the mask does: the saliency mask minus its controls, seed by seed, in the form of `rows`."""
    found = {}
    for name in rows:
        if name.startswith(("random, ", "none, ")) and (one := rows.get(f"saliency, {name.split(', ')[1]}")):
            minus = lambda a, b: None if None in (a, b) else a - b  # noqa: E731
            found[f"saliency - {name}"] = {key: [*map(minus, one[key], rows[name][key])] for key in one}
    return found


def overlap(first, second):
    """Intersection over union of two masks, each a list of bool tensors."""
    shared = sum((a & b).sum().item() for a, b in zip(first, second))
    return shared / max(1, sum((a | b).sum().item() for a, b in zip(first, second)))


def describe_masks(pecker):
    """Is the mask signal or noise, and is it about the forgotten class? Overlaps of two masks, for teacher and generator: both
    from images of the forgotten classes, none in common, or one from the retained classes. By chance masks that keep a share k
    overlap by k / (2 - k)."""
    pecker.make_mask()  # draws D_f, too
    B = pecker.batch_size
    c = pecker.draw_labels(pecker.retained, B)
    x = sample_ddim(pecker.teacher, pecker.schedule, pecker.draw_noise(B), c, pecker.ddim_steps)
    sets = [*zip(pecker.forget_images.split(B)[:2], pecker.forget_labels.split(B)[:2]), (x, c)]
    report = {"overlap_by_chance": pecker.keep / (2 - pecker.keep)}
    for name, net in (("teacher", pecker.teacher), ("generator", pecker.generator)):
        weights = list(net.requires_grad_(True).parameters())
        losses = [noise_prediction_loss(net, pecker.schedule, x, c) for x, c in sets]
        masks = [saliency_mask(torch.autograd.grad(loss, weights), pecker.keep) for loss in losses]
        report[f"overlap_{name}"] = overlap(masks[0], masks[1])
        report[f"overlap_{name}_with_retained"] = overlap(masks[0], masks[-1])
    return report


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="FOLDER", help="default: runs/compare")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--steps", type=positive, help="steps of Algorithm 1 (default: those of the run)")
    args = parser.parse_args(argv)
    settings, data, classifier, teacher, _ = train.load_run(args.run)
    settings = dataclasses.replace(settings, teacher=args.run, steps=args.steps or settings.steps)
    path, flags = args.out / "compare.json", {"run": str(args.run), "steps": settings.steps}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else flags | {"methods": {}, "masks": []}
    if {name: found[name] for name in flags} != flags:
        train.fail(f"{path} has --run {found['run']} --steps {found['steps']}: give the same, or another --out")
    rows = found["methods"]
    # Everything is judged alike, the teacher too, though it forgets nothing: what the others must be seen beside.
    pairs = train.parse_pairs(settings.forget, data.classes)
    labels = torch.arange(len(data.classes), device=settings.device).repeat_interleave(settings.images)
    schedule = NoiseSchedule().to(settings.device)
    judged = data, classifier, classifier.judge(data.test_images)[0], pairs
    for name, draw in {"DDIM": functools.partial(sample_ddim, steps=settings.ddim_steps), "one step": generate}.items():
        report = train.measure(*judged, functools.partial(draw, teacher, schedule), labels, None)
        rows[f"teacher, {name}"] = {key: [report.get(key)] for key in COLUMNS}

    for name in args.methods:
        row = rows.setdefault(name, {key: [] for key in COLUMNS})
        for seed in range(len(row["cover_share"]), args.seeds):
            print(f"\n{name}, seed {seed}", flush=True)
            folder = args.out / f"{name.replace(', weight ', '-').replace(' ', '-')}-seed{seed}"
            one = dataclasses.replace(settings, **METHODS[name], seed=seed, out=folder)
            train.open_folder("unlearn", one, data)
            nets = train.unlearn(one, data, classifier, teacher)
            curve = [line for line in train.read_log(folder) if "weights" in line]
            net, steps = nets["average"], train.steps_to_forget([line for line in curve if line["weights"] == "average"])
            if name == "copied row":
                net, steps = copy_cover_rows(net, pairs), 0
            report = train.measure(*judged, functools.partial(generate, net, schedule), labels, 1)
            milliseconds = 1000 * torch.load(folder / "generator.pt", weights_only=True)["seconds"] / one.steps
            report |= {"steps_to_forget": steps, "milliseconds_per_step": milliseconds, "frechet_wobble": wobble(curve)}
            for key, values in row.items():
                values.append(report[key])
            if name == "saliency, weight 1.0":
                torch.manual_seed(seed)
                pecker = train.make_pecker(one, data, teacher)
                pecker.generator.load_state_dict(nets["raw"].state_dict())
                found["masks"].append(describe_masks(pecker))
            train.write_json(path, found | train.environment(settings))
    print_rows("mean ± std over seeds", rows, COLUMNS)
    if minus := differences(rows):
        print_rows("difference, same seed, mean ± 95 % interval", minus, COLUMNS, interval=True)
    for key in found["masks"][0] if found["masks"] else ():
        print(f"mask: {key.replace('_', ' ')} {mean_and_spread([masks[key] for masks in found['masks']])}")


if __name__ == "__main__":
    train.run_program(main)
