"""What the paper claims of the mask, and what runs with and without it say of that; experiments.report prints it."""

from experiments.intervals import holm, interval, p_value
from experiments.results import by_method, compared

# In a word, the figure that shows it, the sign of a difference that supports it, and how much worse would be no harm.
# Seconds are left out: runs side by side measure the load of the machine; experiments.bench says what a step costs.
CLAIMS = [("faster", "steps_to_forget", -1, 0), ("steadier", "wobble", -1, 0)]
CLAIMS += [("harmless", "retain_accuracy", 1, 0.01), ("harmless", "frechet_distance", -1, 0.1)]


def differences(found, key):
    """{"saliency - none, weight 1": [numbers]}: what the mask does, seed by seed, beside its controls of the same weight.

    A run that never forgot counts as if it had at its very end, which flatters it, be it of the mask or of a control.
    """
    rows, minus = by_method(found, key), {}
    for one in found:
        if rows[one["method"]][one["seed"]] is None and key == "steps_to_forget":
            rows[one["method"]][one["seed"]] = one["flags"]["steps"]
    for method in rows:
        first = "saliency, " + method.split(", ")[-1]
        if method.startswith(("random, ", "none, ")) and first in rows:
            pairs = [(rows[first][seed], rows[method][seed]) for seed in sorted(rows[first].keys() & rows[method].keys())]
            minus[f"saliency - {method}"] = [a - b for a, b in pairs if None not in (a, b)]
    return minus


def tested(data):
    """[(claim, figure, difference, its values, p-value corrected for the length of this list, answer)].

    supported: significantly better, or surely not worse by more than the margin; not supported: significantly worse.
    """
    found, rows = compared(data), []
    for claim, key, sign, margin in CLAIMS:
        minus = differences(found, key)
        names = [name for name in minus if name.endswith("weight 1") and len(minus[name]) > 2]
        rows += [(claim, key, sign, margin, name, minus[name]) for name in names]
    corrected, answers = holm({i: p_value(row[-1]) for i, row in enumerate(rows)}), []
    for i, (claim, key, sign, margin, name, values) in enumerate(rows):
        mean, half = interval(values)
        harmless, significant = margin and sign * mean - half > -margin, corrected[i] < 0.05
        better, worse = significant and sign * mean > 0, significant and sign * mean < 0
        answer = "supported" if better or harmless else "not supported" if worse else "cannot be told"
        answers.append((claim, key, name, values, corrected[i], answer))
    return answers
