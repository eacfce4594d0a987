"""What does each part do to the pictures? One change at a time, from one teacher, same noise and labels: a grid for each.

    python -m experiments.ablations --run runs/shapes      # 11 runs, two to three minutes each

Writes assets/ablation-NAME.png: a column a class, three rows by the average of the generator.
"""

import dataclasses
import functools
from pathlib import Path
from unittest import mock

import torch

import train
from experiments.relearn import make_parser
from pecker import NoiseSchedule, Pecker, generate

ASSETS = Path(__file__).parent.parent / "assets"
VARIANTS = {
    "default": {}, "no-forgetting": dict(mask="none", forget_weight=0.0), "no-mask": dict(mask="none"),
    "random-mask": dict(mask="random"), "weight-1": dict(forget_weight=1.0), "sfd": dict(mask="none", forget_weight=0.01),
    "keep-0.1": dict(keep=0.1), "xi-0.5": dict(xi=0.5), "xi-1.5": dict(xi=1.5),
    "fake-score-detached": {}, "fake-score-never-learns": dict(fake_score_lr=0.0),
}  # fmt: skip


class Detached(Pecker):
    """No gradient through what the fake score answers: the literal reading of the paper's "stop gradient"."""

    def update_generator(self, retain, forget):
        net = self.fake_score
        with mock.patch.object(self, "fake_score", lambda *inputs: net(*inputs).detach()):
            return super().update_generator(retain, forget)


def main(argv):
    args = make_parser(__doc__).parse_args(argv)
    settings, data, classifier, teacher, _ = train.load_run(args.run)
    labels = torch.arange(len(data.classes), device=settings.device).repeat(3)
    for name, flags in VARIANTS.items():
        one = dataclasses.replace(settings, **flags, teacher=args.run, out=args.run / "ablations" / name)
        with mock.patch.object(train, "Pecker", Detached if name == "fake-score-detached" else Pecker):
            train.open_folder("unlearn", one, data)
            net = train.unlearn(one, data, classifier, teacher)["average"]
        draw = functools.partial(generate, net, NoiseSchedule().to(settings.device))
        pictures = train.draw_pictures(draw, data.fixed_noise(len(labels), seed=2), labels)
        rows = pictures.unflatten(0, (3, len(data.classes)))
        train.save_picture(ASSETS / f"ablation-{name}.png", rows, [name, "", ""], data.classes)
        print(f"{name}: {ASSETS / f'ablation-{name}.png'}", flush=True)


if __name__ == "__main__":
    train.run_program(main)
