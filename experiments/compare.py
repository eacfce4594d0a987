"""Which part of the method does what? Every method with every seed, from the one teacher of a finished run.

    python -m experiments.compare --run runs/shapes --out runs/compare --seeds 5        # 55 runs, two to three minutes each
    python -m experiments.compare --runs runs/job*                                      # reads finished run folders instead

Each run is an ordinary run folder below --out, with metrics.json; the same command continues where it stopped.
"""

from pathlib import Path

import torch

import train
from experiments import report, results
from experiments.relearn import make_parser, open_run, replace_rows
from pecker import sample_ddim

METHODS = {f"{mask}, weight 1": dict(mask=mask, forget_weight=1.0) for mask in ("saliency", "random", "none")}
METHODS |= {f"saliency {keep:g}, weight 1": METHODS["saliency, weight 1"] | dict(keep=keep) for keep in (0.0, 0.1, 0.25, 1.0)}
METHODS |= {f"{mask} once, weight 1": METHODS[f"{mask}, weight 1"] | dict(mask_every=0) for mask in ("saliency", "random")}
METHODS["none, weight 0.01"] = dict(mask="none", forget_weight=0.01)  # SFD
METHODS["copied row"] = dict(mask="none", forget_weight=0.0)  # distilled without forgetting; see replace_rows
VARIED = ("seed", "mask", "keep", "mask_every", "forget_weight")  # flags that runs to be compared may differ in


def describe_masks(pecker, generator):
    """Is the mask signal, and is it about the class? Overlaps (intersection over union) of two masks, for generator and teacher:
    both from images of the forgotten classes, none in common, or one from the retained classes. This uses the Pecker up."""
    B, sets = pecker.batch_size, []
    for labels in (pecker.forgotten, pecker.forgotten, pecker.retained):
        c = pecker.draw_labels(labels, B)
        sets.append((sample_ddim(pecker.teacher, pecker.schedule, pecker.draw_noise(B), c, pecker.ddim_steps), c))
    pecker.num_forget_images, found = B, {"overlap_by_chance": pecker.keep / (2 - pecker.keep)}
    for name, net in (("generator", generator), ("teacher", pecker.teacher)):
        pecker.generator.load_state_dict(net.state_dict())
        masks = []
        for pecker.forget_images, pecker.forget_labels in sets:
            masks.append(torch.cat([part.flatten() for part in pecker.make_mask()]))
        first, second, other = masks
        found[f"overlap_{name}"] = (first & second).sum().item() / (first | second).sum().item()
        found[f"overlap_{name}_with_retained"] = (first & other).sum().item() / (first | other).sum().item()
    return found


def main(argv):
    parser = make_parser(__doc__, out=Path("runs/compare"), seeds=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--runs", type=Path, nargs="+", metavar="FOLDER", help="read finished runs, run nothing")
    args, paths = parser.parse_args(argv), []
    if not args.runs:
        settings, data, classifier, teacher, _ = train.load_run(args.run)
        for name, seed in [(name, seed) for seed in range(args.seeds) for name in args.methods]:
            paths.append(args.out / f"{name.replace(', weight ', '-').replace(' ', '-')}-seed{seed}")
            one = open_run(settings, data, paths[-1], **dict(keep=0.5, mask_every=1) | METHODS[name], seed=seed, teacher=args.run)
            if (one.out / "metrics.json").exists():
                continue
            print(f"\n{name}, seed {seed}", flush=True)
            nets, extra = train.unlearn(one, data, classifier, teacher), {"compared": True, "method": name}
            if name == "copied row":
                path, pairs = one.out / "generator.pt", train.parse_pairs(one.forget, data.classes)
                nets = {key: replace_rows(net, pairs) for key, net in nets.items()}
                saved = torch.load(path, weights_only=True) | {key: net.state_dict() for key, net in nets.items()}
                train.write(path, lambda file: torch.save(saved, file))  # `train.py evaluate` and `sample` read it
            if name == "saliency, weight 1":
                extra["masks"] = describe_masks(train.make_pecker(one, data, teacher), nets["raw"])
            train.write_json(one.out / "extra.json", extra)  # what is known besides the figures of an ordinary run
            train.evaluate(one, data, classifier, teacher, nets)
    found = [one | {"compared": True} for one in results.read_runs(args.runs or paths)]
    same = [[one["teacher_seed"], results.figure(one, "images"), {**one["flags"], **dict.fromkeys(VARIED)}] for one in found]
    if not found or len({(one["method"], one["seed"]) for one in found}) < len(found) or same != [same[0]] * len(same):
        train.fail("give finished runs of one teacher, each with another method or seed and no other difference")
    print("", report.methods(found), "", report.claims(found), sep="\n")


if __name__ == "__main__":
    train.run_program(main)
