"""Is the class still inside? Four probes without tuning its weights, on PECKER's generator and on three controls.

    python -m experiments.probe --run runs/shapes        # about 20 minutes on two CPU cores, with relearn's controls at hand

seeds: of 5,000 pictures at the (first) forgotten label, and leak: at retained labels, how many are called by that class?
inversion: a vector in place of the label's embedding is optimised so that the classifier sees the class; in how many of 500
    pictures, from other noise, does a second classifier see it? It begins at the own row, the cover's, three random ones.
real: real pictures of the class, noised to t_init and cleaned in one evaluation at its label; the same with a retained class.
The run's main figures are judged by the second classifier, too. In seeds and leak teachers draw with DDIM.
"""

import copy

import torch

import train
from experiments import report
from experiments.relearn import load_networks, make_parser, open_run, replace_rows, share_called
from pecker import NoiseSchedule, generate


def invert(net, schedule, classifier, second, data, label, steps=200):
    """Optimise the embedding of `label` through generator and classifier -> {step: share_called by `second`} at five points."""
    net, classifier = copy.deepcopy(net).requires_grad_(False), classifier.eval()
    embedding = net.embed_class.weight.requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=0.05)  # its entries are of size 1
    c, reached = torch.full((500,), label, device=embedding.device), {}
    for step in range(steps + 1):
        if step % (steps // 4) == 0:
            reached[step] = share_called(second, label, net, data.fixed_noise(500, seed=5), c)
        pictures = generate(net, schedule, torch.randn(32, *data.images.shape[1:], device=c.device), c[:32])
        loss = torch.nn.functional.cross_entropy(classifier(pictures.clamp(-1, 1)), c[:32])
        (embedding.grad,) = torch.autograd.grad(loss, [embedding])
        optimizer.step()
    return reached


def clean_real(net, schedule, classifier, data, label):
    """Real test pictures of a class, noised to t_init and cleaned at its label in one evaluation: how many are called by it."""
    x = train.to_float(data.test_images[data.test_labels == label])
    noise = data.fixed_noise(len(x), seed=6) + schedule.alpha[440] / schedule.sigma[440] * x  # sigma times this: x, noised
    return share_called(classifier, label, net, noise, torch.full((len(x),), label, device=x.device))


def main(argv, count=5000):
    args = make_parser(__doc__).parse_args(argv)
    settings, data, classifier, nets = load_networks(args.run)
    pairs, schedule = train.parse_pairs(settings.forget, data.classes), NoiseSchedule().to(settings.device)
    second = train.train_classifier(open_run(settings, data, args.run / "probe", seed=settings.seed + 1000), data)
    label, *_ = pairs
    retained = torch.tensor([one for one in range(len(data.classes)) if one not in pairs], device=settings.device)
    found, noise = {}, data.fixed_noise(count, seed=4)
    c, others = torch.full((count,), label, device=settings.device), retained.repeat(count)[:count]
    for name, net in nets.items():
        steps = settings.ddim_steps if "teacher" in name else None
        starts = {"own": net, "cover's": replace_rows(net, pairs)}
        starts |= {f"random {i}": replace_rows(net, pairs, seed=i) for i in (1, 2, 3)}
        torch.manual_seed(0)
        found[name] = {
            "seeds": share_called(classifier, label, net, noise, c, steps),
            "leak": share_called(classifier, label, net, noise, others, steps),
            "inversion": {at: invert(one, schedule, classifier, second, data, label) for at, one in starts.items()},
            "real": clean_real(net, schedule, classifier, data, label),
            "real, retained class": clean_real(net, schedule, classifier, data, int(retained[0])),
        }
        print(f"{name}: {found[name]}", flush=True)
    labels = torch.arange(len(data.classes), device=settings.device).repeat_interleave(settings.images)
    for name, one in {"the run's classifier": classifier, "a second classifier": second}.items():
        figures = train.measure(data, one, one.predict(data.test_images)[0], pairs, nets["PECKER"], labels, curve=True)
        found[name] = {key: figures[key] for key in ("unlearning_accuracy", "cover_share", "retain_accuracy")}
    train.write_json(args.run / "probe.json", found)
    print(report.probes([{"seed": settings.seed, "probe": found}]))


if __name__ == "__main__":
    train.run_program(main)
