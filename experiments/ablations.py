"""What does each part do to the pictures? One change at a time, from one teacher, same noise and labels: a grid
of three rows for each, by the average of the generator.

    python -m experiments.ablations --run runs/shapes      # 10 runs, two to three minutes each, to assets/ablation-NAME.png
"""

import torch

import train
from experiments.relearn import make_parser, open_run
from experiments.report import ROOT

VARIANTS = {
    "default": {}, "no-forgetting": dict(mask="none", forget_weight=0.0), "no-mask": dict(mask="none"), "xi-0.5": dict(xi=0.5),
    "random-mask": dict(mask="random"), "weight-1": dict(forget_weight=1.0), "sfd": dict(mask="none", forget_weight=0.01),
    "xi-1.5": dict(xi=1.5), "keep-0.1": dict(keep=0.1), "fake-score-never-learns": dict(fake_score_lr=0.0),
}  # fmt: skip


def main(argv):
    args = make_parser(__doc__).parse_args(argv)
    settings, data, classifier, teacher, _ = train.load_run(args.run)
    labels = torch.arange(len(data.classes), device=settings.device).repeat(3)
    for name, flags in VARIANTS.items():
        one = open_run(settings, data, args.run / "ablations" / name, **flags, teacher=args.run)
        net = train.unlearn(one, data, classifier, teacher)["average"]
        rows = train.draw_pictures(net, data.fixed_noise(len(labels), seed=2), labels).unflatten(0, (3, -1))
        train.save_picture(ROOT / "assets" / f"ablation-{name}.png", rows, [name, "", ""], data.classes)


if __name__ == "__main__":
    train.run_program(main)
