"""Does the class come back? Fine-tune each forgetful network as an ordinary diffusion model (Eq. 8) and count the steps.

    python train.py                                                # a finished run, in runs/shapes
    python -m experiments.relearn --run runs/shapes --seeds 3      # about an hour on two CPU cores

Networks: PECKER's average; the copied row, which needs no forgetting at all; a teacher that was trained without the class.
Ways: all weights, or only the class embedding, on pictures of the class; all weights on retained pictures, for 20 times as long
(as DiMRA does, 2512.03564). The class is back when the classifier sees it in half of 50 pictures at its label. The same command
continues; more seeds are added to relearn.json.
"""

import argparse
import copy
import dataclasses
import functools
import json
from pathlib import Path

import torch

import train
from experiments.intervals import in_words
from pecker import NoiseSchedule, generate, noise_prediction_loss, sample_ddim


def positive(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def make_parser(text):
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: train.fail(f"{message}; see --help")
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"), help="folder of a finished run (default: runs/shapes)")
    return parser


def print_rows(title, rows, columns, difference=False):
    """rows {name: {key: [a value per seed]}}, columns {key: text}: a table."""
    width = max(map(len, [*rows, title])) + 2
    print("\n" + title.ljust(width) + "".join(text.rjust(20) for text in columns.values()))
    for name, row in rows.items():
        print(name.ljust(width) + "".join(in_words(row[key], difference).rjust(20) for key in columns))


def copy_cover_rows(net, pairs):
    """The trivial baseline: the forgotten label's row of the class embedding becomes the cover's. No training at all."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for forget, cover in pairs.items():
            net.embed_class.weight[forget] = net.embed_class.weight[cover]
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
    parser.add_argument("--seeds", type=positive, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--images", type=positive, default=100, help="pictures of the class to learn from (default: 100)")
    parser.add_argument("--limit", type=positive, default=100, help="steps to give up after (default: 100)")
    args = parser.parse_args(argv)
    settings, data, classifier, teacher, generators = train.load_run(args.run)
    path, flags = args.run / "relearn.json", {"images": args.images, "limit": args.limit}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else flags | {"rows": {}}
    if {name: found[name] for name in flags} != flags:
        train.fail(f"{path} has --images {found['images']} --limit {found['limit']}: give the same, or rename that file")
    pairs = train.parse_pairs(settings.forget, data.classes)
    forgotten = torch.tensor(sorted(pairs), device=settings.device)
    retained = ~torch.isin(data.labels, forgotten)

    copied, retrained = make_controls(settings, data, classifier, teacher)
    for name, net in {"PECKER": generators["average"], "copied row": copied, "retrained teacher": retrained}.items():
        for tuned in ("all weights", "class embedding", "all, retained images"):
            row = found["rows"].setdefault(f"{name}; {tuned}", {"ddim": [], "one_step": []})
            for seed in range(len(row["ddim"]), args.seeds):
                torch.manual_seed(seed)
                some = torch.nonzero(~retained)[torch.randperm(int((~retained).sum()))[: args.images], 0]
                known = keep_only(data, retained if "retained" in tuned else some)
                span = (20 * args.limit, 40) if "retained" in tuned else (args.limit, 2)
                back = steps_until_back(settings, known, classifier, net, forgotten, tuned == "class embedding", *span)
                print(f"{name}; {tuned}; seed {seed}: back after steps {back}", flush=True)
                for way, values in row.items():
                    values.append(back[way])
                train.write_json(path, found | train.environment(settings))
    print_rows("steps until back, mean ± std over seeds", found["rows"], {"ddim": "DDIM", "one_step": "one step"})


if __name__ == "__main__":
    train.run_program(main)
