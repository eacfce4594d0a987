"""Does the class come back? Fine-tune each forgetful network as an ordinary diffusion model (Eq. 8) and count the steps.

    python train.py                                                # a finished run, in runs/shapes
    python -m experiments.relearn --run runs/shapes --seeds 3      # about an hour on two CPU cores

Networks: PECKER's average; the copied row, which needs no forgetting at all; a teacher that was trained without the class.
Ways: all weights, or only the class embedding, on pictures of the class; all weights on retained pictures, for 20 times as long
(as DiMRA does, 2512.03564). The class is back when the classifier sees it in half of 50 pictures at its label.
"""

import argparse
import copy
import dataclasses
import functools
from pathlib import Path

import torch

import train
from experiments import report
from pecker import NoiseSchedule, generate, noise_prediction_loss, sample_ddim


def make_parser(text):
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: train.fail(f"{message}; see --help")
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"), help="folder of a finished run (default: runs/shapes)")
    return parser


def copy_cover_rows(net, pairs):
    """The trivial baseline: the forgotten label's row of the class embedding becomes the cover's. No training at all."""
    net = copy.deepcopy(net)
    rows = net.embed_class.weight.data
    rows[[*pairs]] = rows[[*pairs.values()]]
    return net


def keep_only(data, chosen):
    return dataclasses.replace(data, images=data.images[chosen], labels=data.labels[chosen])


def make_controls(settings, data, classifier, teacher):
    """The copied row, and a teacher that was trained without the class, both from folders below the run's own."""
    pairs, home = train.parse_pairs(settings.forget, data.classes), settings.out / "relearn"
    plain = dataclasses.replace(settings, mask="none", forget_weight=0.0, teacher=settings.out, out=home / "plain")
    train.open_folder("unlearn", plain, data)
    copied = copy_cover_rows(train.unlearn(plain, data, classifier, teacher)["average"], pairs)
    seed = train.read_settings(settings.out)["teacher_seed"]  # so that nothing but the class is missing
    without = dataclasses.replace(settings, seed=seed, teacher=None, out=home / "retrained")
    known = keep_only(data, ~torch.isin(data.labels, torch.tensor([*pairs], device=data.labels.device)))
    train.open_folder("pretrain", without, known)
    return copied, train.train_teacher(without, known)


def steps_until_back(settings, known, classifier, net, forgotten, only_embedding, limit, every=2):
    """Fine-tune a copy on the Data `known`; look every so many steps, to `limit`, at 50 pictures of the labels `forgotten` (K,).
    Returns {"ddim": step or None, "one_step": step or None}: when at least half of them were called so, in two ways to draw."""
    net, schedule = copy.deepcopy(net).requires_grad_(True), NoiseSchedule().to(settings.device)
    lr = 0.05 if only_embedding else settings.pretrain_lr / 10  # entries of the table are of size 1, an attacker would use it
    optimizer = torch.optim.Adam((net.embed_class if only_embedding else net).parameters(), lr=lr)
    noise, c = known.fixed_noise(50, seed=3), forgotten.repeat(50)[:50]
    draws = {"ddim": functools.partial(sample_ddim, steps=settings.ddim_steps), "one_step": generate}
    back = dict.fromkeys(draws)
    for step in range(limit + 1):
        for way, draw in draws.items() if step % every == 0 else ():
            guess = classifier.judge(train.draw_pictures(functools.partial(draw, net, schedule), noise, c))[1].argmax(1)
            if back[way] is None and (guess == c.cpu()).double().mean() >= 0.5:
                back[way] = step
        if None not in back.values():
            break
        loss = noise_prediction_loss(net, schedule, *known.batch(settings.pretrain_batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return back


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--images", type=int, default=100, help="pictures of the class to learn from (default: 100)")
    parser.add_argument("--limit", type=int, default=100, help="steps to give up after (default: 100)")
    args = parser.parse_args(argv)
    settings, data, classifier, teacher, generators = train.load_run(args.run)
    forgotten = torch.tensor(sorted(train.parse_pairs(settings.forget, data.classes)), device=settings.device)
    members = torch.isin(data.labels, forgotten)
    copied, retrained = make_controls(settings, data, classifier, teacher)
    found = {"images": args.images, "limit": args.limit, "rows": {}} | train.environment(settings)
    for name, net in {"PECKER": generators["average"], "copied row": copied, "retrained teacher": retrained}.items():
        for tuned in ("all weights", "class embedding", "all, retained images"):
            row = found["rows"].setdefault(f"{name}; {tuned}", {"ddim": [], "one_step": []})
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                some = torch.nonzero(members)[torch.randperm(int(members.sum()))[: args.images], 0]
                known = keep_only(data, ~members if "retained" in tuned else some)
                span = (20 * args.limit, 40) if "retained" in tuned else (args.limit, 2)
                back = steps_until_back(settings, known, classifier, net, forgotten, tuned == "class embedding", *span)
                print(f"{name}; {tuned}; seed {seed}: back after steps {back}", flush=True)
                for way, values in row.items():
                    values.append(back[way])
    train.write_json(args.run / "relearn.json", found)
    print(report.relearning([{"relearn": found}]))


if __name__ == "__main__":
    train.run_program(main)
