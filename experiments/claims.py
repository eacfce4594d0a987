"""What may be said of a few runs: means, 95 % intervals, p-values, and what follows for the paper's claims for the mask.

A quantity T with Student's distribution is sqrt(n) tan(u), n degrees of freedom, where u has a density proportional to
cos(u)^(n - 1): everything here rests on that integral. Paired t-test: Student 1908. Holm's correction: Holm 1979.
"""

import functools

import numpy as np

from experiments.results import by_method

# Of a figure: the claim, the sign of a difference that supports it, and how much worse still counts as no worse.
CLAIMS = {"steps": ("faster", -1, 0), "seconds": ("faster", -1, 0), "wobble": ("steadier", -1, 0)}
CLAIMS |= {"retain_accuracy": ("no worse", 1, 0.01), "frechet_distance": ("no worse", -1, 0.1)}
digits = functools.partial(np.format_float_positional, fractional=False, trim="-")  # a number with so many digits, in words


def student(values):
    """Of at least two numbers: mean, half of its 95 % interval, two-sided p-value of its being zero (all equal: sign test)."""
    n, mean, error = len(values) - 1, float(np.mean(values)), np.std(values, ddof=1) / np.sqrt(len(values))
    if error < 1e-12:  # rounding
        return mean, 0.0, 0.5**n if mean else 1.0
    u = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(u) ** (n - 1)
    inside = np.cumsum(density) - density / 2 - 0.5  # of -u and u: how probable, but for a factor
    half = error * np.sqrt(n) * np.tan(np.interp(0.95 * inside[-1], inside, u))
    return mean, float(half), float(1 - np.interp(np.arctan(abs(mean) / error / np.sqrt(n)), u, inside) / inside[-1])


def holm(p_values):
    """[p-value] -> [p-value that may be read as if it were the only one]."""
    order, corrected = np.argsort(p_values), np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected.tolist()


def mean_and_spread(values):
    """[number or None] -> "mean ± standard deviation" of those that are there, and how many these are, if not all."""
    there = [value for value in values if value is not None]
    missing = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    spread = f" ± {digits(np.std(there, ddof=1).round(12), 2)}" if len(there) > 1 else ""
    return f"{digits(np.mean(there), 3)}{spread}{missing}" if there else "-"


def differences(found, key):
    """{control: [numbers]}: what the mask does beside none and a random one at the same weight, seed by seed, if two or more."""
    rows, minus = by_method(found, key), {}
    for control in sorted(name for name in rows if name.startswith(("none, ", "random, "))):
        masked = rows.get(control.replace("none", "saliency").replace("random", "saliency"), {})
        pairs = [(masked.get(seed), other) for seed, other in rows[control].items()]
        minus[control] = [a - b for a, b in pairs if None not in (a, b)]
    return {control: values for control, values in minus.items() if len(values) > 1}


def tested(found):
    """{(claim, control, figure): {data set, classes, steps: (mean ± interval, p-value corrected for all of them, answer)}}.
    ± is of the difference, p of its distance from zero or from the margin; no answer: it may be on either side."""
    groups, rows = {}, {}
    for one in found:
        flags = one["flags"]
        groups.setdefault(" ".join([flags["data"], *flags["forget"], f"{flags['steps']} steps"]), []).append(one)
    cells = [(name, key, *item) for key in CLAIMS for name, runs in groups.items() for item in differences(runs, key).items()]
    beyond = [student([CLAIMS[key][1] * value + CLAIMS[key][2] for value in values]) for _, key, _, values in cells]
    for (name, key, control, values), (excess, half, _), p in zip(cells, beyond, holm([p for *_, p in beyond])):
        answer = "" if p >= 0.05 else "supported" if excess > 0 else "not supported"
        words = f"{digits(np.mean(values), 3, sign=True)} ± {digits(half, 2)}"
        rows.setdefault((CLAIMS[key][0], control, key), {})[name] = (words, p, answer)
    return rows
