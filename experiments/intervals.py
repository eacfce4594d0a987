"""What may be said of a few runs: means, 95 % intervals, p-values, and their correction for how many are shown.

A quantity T with Student's distribution is sqrt(n) tan(u), n degrees of freedom, where u has a density proportional to
cos(u)^(n - 1): everything here rests on that integral. Paired t-test: Student 1908. Holm's correction: Holm 1979.
"""

import functools

import numpy as np


@functools.cache
def angles(n):
    """For n degrees of freedom: u from 0 to pi / 2 (N,), and the probability of an angle between -u and u (N,)."""
    u = np.linspace(0, np.pi / 2, 100001)
    density = np.cos(u) ** (n - 1)
    inside = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return u, inside / inside[-1]


def interval(values, confidence=0.95):
    """The mean of at least two numbers, and half of its confidence interval."""
    u, inside = angles(len(values) - 1)
    t = np.sqrt(len(values) - 1) * np.tan(np.interp(confidence, inside, u))
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / np.sqrt(len(values)))


def p_value(values):
    """Two-sided, of the hypothesis that the mean of at least two numbers is zero; where all are equal, that of the sign test."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    if error == 0:
        return 0.5 ** (len(values) - 1) if np.mean(values) else 1.0
    u, inside = angles(len(values) - 1)
    return float(1 - np.interp(np.arctan(abs(np.mean(values)) / error / np.sqrt(len(values) - 1)), u, inside))


def holm(p_values):
    """{name: p-value} -> {name: p-value that may be read as if it were the only one}."""
    corrected, highest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.get)):
        highest = max(highest, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = highest
    return corrected


def in_words(values, difference=False):
    """[number or None] -> "mean ± standard deviation", of a difference "± half of the 95 % interval"; how many, if some are
    missing."""
    there = [value for value in values if value is not None]
    missing = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    if len(there) < 2:
        return f"{there[0]:.3g}{missing}" if there else "never" if values else "-"
    mean, spread = interval(there) if difference else (np.mean(there), np.std(there, ddof=1))
    return f"{mean:{'+' if difference else ''}.3g} ± {spread:.2g}{missing}"


def share_in_words(count, total):
    """A share with its 95 % interval (Wilson 1927), which is not empty at 0 and 1 either."""
    share, z = count / total, 1.96
    middle, half = (share + z**2 / (2 * total)), z * np.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    low, high = (max(0, one / (1 + z**2 / total)) for one in (middle - half, middle + half))
    return f"{share:.4g} ({low:.4g} to {high:.4g})"
