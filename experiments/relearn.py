"""Does the class come back? Fine-tune each forgetful network as an ordinary diffusion model (Eq. 8) and count the steps.

    python -m experiments.relearn --run runs/shapes      # about half an hour on one CPU core

Networks: PECKER's average, also with the cover's or a random row for the class; copied row; a teacher trained without the class.
Ways: all weights, or only the class embedding, on so many pictures of the class (--images); all weights on retained pictures, 20
times as long, which leave the class's row as it is. It is back when half of 50 pictures at its label, by DDIM, are called so.
"""

import argparse
import copy
import dataclasses
import itertools
from pathlib import Path

import torch

import train
from experiments import report
from pecker import NoiseSchedule, noise_prediction_loss


def make_parser(text, **defaults):
    """The flags --run, a finished run folder, and those of `defaults`, of their types; the text says what they mean."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: train.fail(f"{message}; see --help")
    for name, default in {"run": Path("runs/shapes"), **defaults}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="(default: %(default)s)")
    return parser


def open_run(settings, data, folder, **flags):
    """The settings of a loaded run, with other flags, for this folder; refuses one of yet other flags or another teacher."""
    settings = dataclasses.replace(settings, **flags, out=folder)
    train.open_folder("unlearn" if settings.teacher else "pretrain", settings, data)
    return settings


def replace_rows(net, pairs, seed=None):
    """The forgotten labels' rows of the class embedding become the covers', or random, from a seed. No further training."""
    net = copy.deepcopy(net)
    rows = net.embed_class.weight.data
    noise = torch.randn(len(pairs), rows.shape[1], generator=torch.Generator().manual_seed(seed or 0))
    rows[[*pairs]] = rows[[*pairs.values()]] if seed is None else noise.to(rows)
    return net


def load_networks(folder):
    """A finished run -> settings, data, classifier, {name: network}: PECKER's average, its teacher and two controls, the copied
    row and a teacher that was trained with its seed, but without the class, both from folders below the run's own."""
    settings, data, classifier, teacher, generators = train.load_run(folder)
    pairs = train.parse_pairs(settings.forget, data.classes)
    plain = open_run(settings, data, folder / "relearn" / "plain", mask="none", forget_weight=0.0, teacher=folder)
    copied = replace_rows(train.unlearn(plain, data, classifier, teacher)["average"], pairs)
    known = ~torch.isin(data.labels, torch.tensor([*pairs], device=data.labels.device))
    known = dataclasses.replace(data, images=data.images[known], labels=data.labels[known])
    without = open_run(settings, known, folder / "relearn" / "retrained", seed=train.read_settings(folder)["teacher_seed"])
    nets = {"PECKER": generators["average"], "teacher": teacher, "retrained teacher": train.train_teacher(without, known)}
    return settings, data, classifier, nets | {"copied row": copied}


def share_called(classifier, label, net, noise, c, steps=None):
    """Of N pictures drawn from this noise at the labels c (N,), how many are called `label`, one or (N,): (count, N)."""
    guess = classifier.predict(train.draw_pictures(net, noise, c, steps))[1].argmax(1)
    return int((guess == label).sum()), len(guess)


def steps_until_back(settings, known, classifier, net, forgotten, only_embedding, limit, every):
    """Fine-tune a copy on the Data `known`; look every so many steps, to `limit`, at 50 pictures of the labels `forgotten` (K,).
    Returns the first of these steps at which at least half of them are called so, or None."""
    net, schedule = copy.deepcopy(net).requires_grad_(True), NoiseSchedule().to(settings.device)
    lr = 0.05 if only_embedding else settings.pretrain_lr / 10  # entries of the table are of size 1, an attacker would use it
    optimizer = torch.optim.Adam((net.embed_class if only_embedding else net).parameters(), lr=lr)
    noise, c = known.fixed_noise(50, seed=3), forgotten.repeat(50)[:50]
    for step in range(limit + 1):
        if step % every == 0 and share_called(classifier, c.cpu(), net, noise, c, settings.ddim_steps)[0] >= 25:
            return step
        loss = noise_prediction_loss(net, schedule, *known.batch(settings.pretrain_batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return None


def main(argv, limit=100):
    args = make_parser(__doc__, images=100).parse_args(argv)
    settings, data, classifier, nets = load_networks(args.run)
    pairs, pecker = train.parse_pairs(settings.forget, data.classes), nets["PECKER"]
    nets |= {"PECKER, cover's row": replace_rows(pecker, pairs), "PECKER, random row": replace_rows(pecker, pairs, settings.seed)}
    forgotten = torch.tensor(sorted(pairs), device=settings.device)
    members, rows = torch.isin(data.labels, forgotten), {}
    names, ways = sorted(nets.keys() - {"teacher"}), ("all weights", "class embedding", "all, retained images")
    for name, tuned in itertools.product(names, ways):
        torch.manual_seed(settings.seed)
        some = torch.nonzero(members)[torch.randperm(int(members.sum()))[: args.images], 0]
        some, *span = (~members, 20 * limit, 40) if "retained" in tuned else (some, limit, 2)
        known = dataclasses.replace(data, images=data.images[some], labels=data.labels[some])
        step = steps_until_back(settings, known, classifier, nets[name], forgotten, tuned == "class embedding", *span)
        rows[f"{name}; {tuned}"] = step
        print(f"{name}; {tuned}: back after {step} steps", flush=True)
    found = {"images": args.images, "limit": limit, "rows": rows} | train.environment(settings)
    train.write_json(args.run / "relearn.json", found)
    print(report.relearning([{"relearn": found}]))


if __name__ == "__main__":
    train.run_program(main)
