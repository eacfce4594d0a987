"""What must be true of the experiments. Each test is named after the truth that it states."""

import argparse
import functools
import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import pecker
import train
from experiments import ablations, bench, claims, compare, figures, intervals, planted_bugs, plots, probe, relearn, report
from experiments import results, tour
from pecker import NoiseSchedule, Pecker
from unet import UNet

torch.set_num_threads(1)  # the networks are too small for more
train.draw_shapes = functools.cache(getattr(train.draw_shapes, "__wrapped__", train.draw_shapes))
TINY = (
    "--device cpu --width 4 --multipliers 1 --blocks 1 --attention --image-size 8 --classifier-width 4 --classifier-steps 2 "
    "--pretrain-steps 2 --pretrain-batch-size 4 --steps 2 --batch-size 32 --ddim-steps 2 --images 3"
).split()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run folder whose PECKER has another seed than its teacher."""
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("runs") / "tiny"
    train.main(["pretrain", *TINY, "--seed", "3", "--out", str(teacher)])
    train.main([*TINY, "--seed", "5", "--teacher", str(teacher), "--out", str(out)])
    return out


def small_unet():
    torch.manual_seed(0)
    net = UNet(8, 3, width=4, multipliers=(1,), blocks=1, attention_resolutions=(), dropout=0.0)
    for weight in net.parameters():  # also those that start at zero
        nn.init.normal_(weight, std=0.1)
    return net


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def refused(capsys, main, *argv):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_row_shows_mean_and_standard_deviation_of_what_is_there():
    assert intervals.in_words([1, 3]) == "2 ± 1.4" and intervals.in_words([1, None, 3]) == "2 ± 1.4 (2 of 3)"
    assert [intervals.in_words(values) for values in ([33, None], [None], [])] == ["33 (1 of 2)", "never", "-"]
    assert intervals.in_words([2, 1], difference=True) == "+1.5 ± 6.4"  # 12.71 * (1 / sqrt 2) / sqrt 2


def test_intervals_and_p_values_are_students():
    table = {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216, 30: 2.04227}  # 97.5 % quantiles of the printed tables
    for n, quantile in table.items():
        values = np.random.default_rng(n).normal(size=n + 1)
        mean, half = intervals.interval(values)
        assert mean == pytest.approx(values.mean())
        assert half == pytest.approx(quantile * values.std(ddof=1) / (n + 1) ** 0.5, rel=1e-4)
        assert intervals.p_value(values - values.mean() + half) == pytest.approx(0.05, rel=1e-3)  # zero is just outside
    assert intervals.p_value([1, 0]) == pytest.approx(0.5)  # t = 1 with one degree of freedom: Cauchy's quartile
    assert intervals.p_value([0, 0]) == 1 and intervals.p_value([2, 2, 2]) == 0.25


def test_two_halves_of_the_seeds_of_one_method_differ_as_seldom_as_the_interval_says():
    rng = np.random.default_rng(0)
    means_and_halves = [intervals.interval(rng.normal(size=5) - rng.normal(size=5)) for _ in range(400)]
    assert np.mean([abs(mean) < half for mean, half in means_and_halves]) == pytest.approx(0.95, abs=0.025)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_keeps_their_order():
    assert intervals.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert intervals.holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1} and intervals.holm({}) == {}


def result(method="none, weight 1", seed=0, **figures):
    generator = dict(steps_to_forget=50, cover_share=1.0) | figures
    curve = dict(step=[0, 5, 6, 10], raw=dict(frechet_distance=[0, 5, 6, 10]))
    flags, figures = dict(steps=100), dict(generator=generator)
    return dict(method=method, seed=seed, seconds=dict(pecker=20.0), flags=flags, figures=figures, curve=curve)


def test_figures_of_a_result_are_of_its_generator_its_time_and_its_curve():
    one = result()
    assert results.figure(one, "cover_share") == 1 and results.figure(one, "milliseconds_per_step") == 200
    assert results.figure(one, "wobble") == 4  # from 6 to 10
    assert results.figure(result("copied row", steps_to_forget=None), "steps_to_forget") == 0
    one["curve"]["raw"]["frechet_distance"][-1] = None
    assert results.figure(one, "wobble") is None


def test_the_difference_between_methods_is_taken_seed_by_seed():
    found = [result("saliency, weight 1", seed, cover_share=value) for seed, value in ((1, 5), (0, 3), (2, None), (3, 9))]
    found += [result("none, weight 1", seed, cover_share=value) for seed, value in enumerate((1, 4, 2))]
    found += [result("random, weight 0.1"), result("copied row")]
    assert claims.differences(found, "cover_share") == {"saliency - none, weight 1": [2, 1]}
    assert results.by_method(found, "cover_share")["saliency, weight 1"] == {1: 5, 0: 3, 2: None, 3: 9}


def test_a_method_is_named_by_its_flags():
    flags = dict(mask="saliency", mask_every=1, keep=0.5, forget_weight=1.0)
    assert results.method_of(flags) == "saliency, weight 1"
    assert results.method_of(flags | dict(mask_every=0, keep=0.25)) == "saliency once 0.25, weight 1"
    assert results.method_of(flags | dict(mask="none", mask_every=0, keep=0.25, forget_weight=0.01)) == "none, weight 0.01"


# --- compare ---------------------------------------------------------------------------------------------------------


def test_the_trivial_baseline_draws_the_cover_exactly():
    net, c = small_unet(), torch.tensor([0, 1, 2])
    copied, x = relearn.copy_cover_rows(net, {0: 2}), torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    before, after = net(x, torch.zeros(3), c), copied(x, torch.zeros(3), c)
    assert torch.equal(after[0], after[2]) and torch.equal(after[1:], before[1:]) and not torch.equal(before[0], before[2])


def test_overlap_of_masks_is_intersection_over_union():
    masks = [[torch.tensor([True, True, False]), torch.tensor([flag])] for flag in (True, False)]
    assert compare.overlap(masks[0], masks[1]) == pytest.approx(2 / 3) and compare.overlap(masks[1], masks[1]) == 1
    assert compare.overlap([~m for m in masks[1]], [torch.zeros_like(m) for m in masks[1]]) == 0


def test_masks_of_disjoint_images_are_described_beside_chance():
    pecker = Pecker(small_unet(), NoiseSchedule(), {0: 1}, 3, (3, 8, 8), batch_size=3, ddim_steps=2, num_forget_images=6)
    report = compare.describe_masks(pecker)
    assert report["overlap_by_chance"] == pytest.approx(1 / 3)
    names = {f"overlap_{net}{other}" for net in ("teacher", "generator") for other in ("", "_with_retained")}
    assert report.keys() == names | {"overlap_by_chance"} and all(0 < report[name] < 1 for name in names)


def test_compare_runs_every_method_once_and_reads_what_is_finished(finished, tmp_path, capsys, monkeypatch):
    shared, out = ["--run", str(finished), "--out", str(tmp_path / "runs")], tmp_path / "runs"
    compare.main([*shared, "--seeds", "1", "--methods", "saliency, weight 1", "copied row"])
    assert {path.name for path in out.iterdir()} == {"saliency-1-seed0", "copied-row-seed0"}
    flags = read(out / "copied-row-seed0" / "settings.json")["flags"]
    assert (flags["mask"], flags["forget_weight"], flags["seed"], flags["steps"]) == ("none", 0.0, 0, 2)
    rows = torch.load(out / "copied-row-seed0" / "generator.pt", weights_only=True)["raw"]["embed_class.weight"]
    assert torch.equal(rows[0], rows[5]) and not torch.equal(rows[0], rows[1])
    before = (out / "copied-row-seed0" / "metrics.json").read_bytes()

    capsys.readouterr()
    compare.main([*shared, "--seeds", "1", "--methods", "saliency, weight 1", "none, weight 1", "copied row"])
    printed = capsys.readouterr().out
    assert "saliency - none, weight 1" in printed and "mask: overlap teacher with retained" in printed
    assert (out / "copied-row-seed0" / "metrics.json").read_bytes() == before

    (out / "none-1-seed0" / "metrics.json").unlink()
    compare.main(["--runs", *map(str, out.iterdir()), str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 2 and f"left out: {tmp_path} is not the folder of a finished run" in printed
    assert "copied row" in printed and "saliency, weight 1 " in printed

    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    results.main(map(str, out.iterdir()))
    kept = results.load("shapes")
    assert [one["method"] for one in kept] == ["copied row", "saliency, weight 1"] and not results.load("fashion")
    assert kept[1]["masks"].keys() >= {"overlap_by_chance"} and str(tmp_path) not in json.dumps(kept)
    log = [line["cover_share"] for line in train.read_log(out / "saliency-1-seed0") if line.get("weights") == "raw"]
    assert kept[1]["curve"]["raw"]["cover_share"] == pytest.approx(log, abs=1e-4)
    assert kept[1]["figures"].items() <= results.read_json(out / "saliency-1-seed0" / "metrics.json").items()


# --- relearn ---------------------------------------------------------------------------------------------------------


class Sees:
    """A classifier that calls every picture by one label."""

    def __init__(self, label):
        self.label = label

    def judge(self, images):
        return None, nn.functional.one_hot(torch.full((len(images),), self.label), 3).float()


def back(label, net, only_embedding=False):
    settings = argparse.Namespace(pretrain_lr=1e-3, ddim_steps=2, device="cpu", pretrain_batch_size=2)
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    known = train.Data(["a", "b", "c"], images, labels, None, None, False)
    return relearn.steps_until_back(settings, known, Sees(label), net, torch.tensor([0]), only_embedding, 3)


def test_relearning_is_noticed_at_once_where_nothing_was_forgotten_and_given_up_where_the_class_never_comes():
    assert back(0, small_unet()) == {"ddim": 0, "one_step": 0} and back(1, small_unet()) == {"ddim": None, "one_step": None}


@pytest.mark.parametrize("only_embedding", [True, False])
def test_relearning_tunes_a_copy_and_only_what_it_says(only_embedding, monkeypatch):
    net, tuned = small_unet(), []
    monkeypatch.setattr(relearn.copy, "deepcopy", lambda other: tuned.append(small_unet()) or tuned[-1])
    back(1, net, only_embedding)
    moved = {name for (name, a), b in zip(net.named_parameters(), tuned[0].parameters()) if not torch.equal(a, b)}
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), small_unet().parameters()))
    assert moved == {"embed_class.weight"} if only_embedding else len(moved) > 10


def test_relearn_fills_its_table_and_continues(finished, capsys):
    shared = ["--run", str(finished), "--limit", "1", "--images", "5"]
    relearn.main([*shared, "--seeds", "1"])
    first, printed = read(finished / "relearn.json")["rows"], capsys.readouterr().out
    assert len(first) == 9 and all({len(row["ddim"]), len(row["one_step"])} == {1} for row in first.values())
    assert printed.count("seed 0: back") == 9 and "steps until back" in printed

    relearn.main([*shared, "--seeds", "2"])
    second, printed = read(finished / "relearn.json")["rows"], capsys.readouterr().out
    assert printed.count("seed 1: back") == 9 and "seed 0: back" not in printed
    assert all(second[name][way][:1] == first[name][way] for name in first for way in ("ddim", "one_step"))
    assert "--limit 1" in refused(capsys, relearn.main, "--run", finished, "--limit", 4, "--images", 5)


def test_the_retrained_teacher_has_the_teachers_seed_and_never_sees_the_class(finished):
    relearn.main(["--run", str(finished), "--limit", "1", "--images", "5", "--seeds", "1"])
    folder = finished / "relearn" / "retrained"
    assert read(folder / "settings.json")["flags"]["seed"] == 3 and read(finished / "settings.json")["flags"]["seed"] == 5
    [counts] = [line["labels"] for line in train.read_log(folder) if "labels" in line]
    assert counts["red-disc"] == 0 and counts["blue-disc"] == 1000
    plain = read(finished / "relearn" / "plain" / "settings.json")["flags"]
    assert (plain["forget_weight"], plain["mask"]) == (0.0, "none")


# --- probe and plots -------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Calls a picture by 1 if it is bright, by 0 if it is dark."""

    def forward(self, x):
        mean = 10 * x.mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean], dim=1)

    def judge(self, images):
        return None, self(train.to_float(images)).softmax(1)


class Constant(nn.Module):
    """Predicts the noise with which every picture has the brightness of its label, the first entry of its embedding."""

    def __init__(self, brightness):
        super().__init__()
        self.embed_class = nn.Embedding.from_pretrained(torch.tensor(brightness)[:, None], freeze=False)

    def forward(self, noisy, t, c):
        schedule = NoiseSchedule()
        alpha, sigma = schedule.alpha[t][:, None, None, None], schedule.sigma[t][:, None, None, None]
        return (noisy - alpha * self.embed_class(c)[:, :, None, None]) / sigma


def test_probes_count_what_the_classifier_calls_by_the_class_and_inversion_finds_it_by_the_embedding():
    net, schedule, pictures = Constant([-0.5, 0.9]), NoiseSchedule(), torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    data = train.Data(["dark", "bright"], pictures, None, pictures, torch.tensor([0, 0, 0, 0, 1, 1]), False)
    draw, c = functools.partial(pecker.generate, net, schedule), torch.tensor([0, 1, 1])
    assert probe.share_called(Bright(), draw, data.fixed_noise(3, 0), c, 1) == (2, 3)
    assert [probe.clean_real(net, schedule, Bright(), data, label) for label in (0, 1)] == [(4, 4), (2, 2)]
    wrong = Constant([-0.5, -0.9])  # label 1 is drawn dark, until its embedding is changed
    reached = probe.invert(wrong, schedule, Bright(), Bright(), data, 1, steps=40)
    assert list(reached) == [0, 10, 20, 30, 40] and reached[0] == (0, 500) and reached[40] == (500, 500)
    assert wrong.embed_class.weight[1].item() == pytest.approx(-0.9)  # a copy was changed


def test_shares_have_an_interval_that_is_not_empty():
    words = [intervals.share_in_words(*share) for share in ((0, 100), (4995, 5000))]
    assert words == ["0 (0 to 0.03699)", "0.999 (0.9977 to 0.9996)"]


def test_the_probe_compares_pecker_with_its_controls_and_judges_twice(finished, capsys):
    probe.main(["--run", str(finished), "--images", "9", "--steps", "4"])
    found, printed = read(finished / "probe.json"), capsys.readouterr().out
    assert found.keys() == {"PECKER", "teacher", "retrained teacher", "copied row", "the run's classifier", "a second classifier"}
    assert found["PECKER"].keys() == {"seeds", "leak", "inversion", "real", "real, retained class"}
    assert found["PECKER"]["leak"][1] == 9 and found["PECKER"]["real"][1] == 200 and "PECKER; seeds: " in printed


def test_plots_put_numbers_where_they_belong():
    svg = plots.lines("t & t", "x", {"a": ([0, 10], [0, 1], [0, 1], [0, 1]), "b": ([0, 10], [1, 0], [1, 0], [1, 0])})
    root = ElementTree.fromstring(svg)
    paths = [node.get("d") for node in root if node.get("stroke-width") == "2"]
    left, right, bottom, top = plots.LEFT, plots.WIDTH - plots.RIGHT, plots.HEIGHT - plots.BOTTOM, plots.TOP
    assert paths[0] == f"M{left}.0 {bottom}.0L{right}.0 {top}.0" and paths[1] == f"M{left}.0 {top}.0L{right}.0 {bottom}.0"
    assert {"t & t", "x", "a", "b", "0", "10", "0.2"} <= {node.text for node in root}
    root = ElementTree.fromstring(plots.dots("t", "x", [("a", 1.0, 1.0), ("b", 3.0, 0.5)], [(0, "zero")]))
    spans = [[float(x) for x in re.findall(r"[\d.]+", node.get("d"))] for node in root if node.get("stroke-width") == "2"]
    middles = [float(node.get("cx")) for node in root if node.tag.endswith("circle")]
    assert [x1 + (x2 - x1) / 2 for x1, _, x2, _ in spans] == pytest.approx(middles, abs=0.1)
    assert spans[0][2] - spans[0][0] == pytest.approx(2 * (spans[1][2] - spans[1][0]), abs=0.3)
    assert plots.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1]) and plots.ticks(-3, 12) == [-2, 0, 2, 4, 6, 8, 10, 12]


# --- report ----------------------------------------------------------------------------------------------------------


def test_every_table_and_plot_of_the_pages_is_what_the_results_give():
    assert all(path.read_text("utf-8") == text for path, text in report.pages().items())
    assert all((report.ROOT / "assets" / name).read_text("utf-8") == text for name, text in figures.pictures().items())


def test_links_of_the_pages_lead_somewhere():
    anchor = lambda title: re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")  # noqa: E731
    texts = {path: path.read_text("utf-8") for path in report.pages()}
    anchors = {path: {anchor(title) for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)} for path, text in texts.items()}
    for path, text in texts.items():
        for target, name in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            there = (path.parent / target).resolve() if target else path
            assert there.exists() and (not name or name.startswith("L") or name in anchors[there]), (target, name)


def test_a_claim_is_told_only_where_the_corrected_difference_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for mask, seed in itertools.product(("saliency", "none", "random"), range(5)):
        kept = dict.fromkeys(["unlearning_accuracy", "precision", "recall", "cover_frechet_distance"], 0.5)
        kept |= dict(steps_to_forget=50 + seed, frechet_distance=1, retain_accuracy=0.9 - 0.01 * seed * (mask == "none"))
        kept |= dict(steps_to_forget=30, frechet_distance=2 + seed) if mask == "saliency" else {}
        one = result(f"{mask}, weight 1", seed, **kept) | {"compared": True}
        one |= {"flags": dict(data="shapes", steps=100), "masks": dict(overlap_by_chance=1 / 3, overlap_teacher=seed / 10)}
        one["curve"]["raw"] |= dict(cover_share=[0, 0, 1, 1], retain_accuracy=[1, 1, 1, 1])
        (tmp_path / f"{mask}{seed}.json").write_text(json.dumps(one))
    rows = {tuple(row.split(" | ")[:2]): row for row in report.claims("").splitlines()}
    assert "-22 ± 2 (p 5.1e-05) | not run | not run | shapes: supported" in rows["| faster", "steps_to_forget"]
    assert "shapes: cannot be told" in rows["| steadier", "wobble"]
    assert "shapes: supported" in rows["| harmless", "retain_accuracy"]
    assert "+3 ± 2 (p 0.079) | not run | not run | shapes: cannot be told" in rows["| harmless", "frechet_distance"]
    for seed in range(5):
        one = read(tmp_path / f"saliency{seed}.json")
        one["figures"]["generator"] |= dict(frechet_distance=3 + seed / 100, steps_to_forget=None)
        (tmp_path / f"saliency{seed}.json").write_text(json.dumps(one))
    answers = {(key, name): (values, answer) for _, key, name, values, _, answer in claims.tested("shapes")}
    assert answers["frechet_distance", "saliency - none, weight 1"][1] == "not supported"
    assert answers["steps_to_forget", "saliency - none, weight 1"] == ([50, 49, 48, 47, 46], "not supported")  # never
    assert "| saliency, weight 1 | never | 0.5 ± 0 | 1 ± 0 |" in report.methods("shapes")
    names = "cover-share", "retain-accuracy", "mask-differences", "mask-overlaps"
    assert figures.pictures().keys() == {"networks.svg"} | {f"shapes-{name}.svg" for name in names}


def test_ablations_change_one_thing_and_leave_a_picture_each(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(ablations, "VARIANTS", {"default": {}, "fake-score-detached": {}})
    ablations.main(["--run", str(finished)])
    pictures = [(tmp_path / "assets" / f"ablation-{name}.png").read_bytes() for name in ablations.VARIANTS]
    products = [finished / "ablations" / name / "generator.pt" for name in ablations.VARIANTS]
    weights = [torch.load(product, weights_only=True)["raw"] for product in products]
    same = [all(torch.equal(weights[0][key], other[key]) for key in other) for other in weights]
    assert same == [True, False] and len(pictures[0]) > 1000


# --- flags, bench and tour -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["--seeds 0", "--seeds x", "--limit -1", "--images 0", "--see 3", "--run nowhere"])
def test_wrong_flags_are_refused_in_one_sentence(flags, capsys):
    assert refused(capsys, relearn.main, *flags.split())
    assert flags.startswith(("--limit", "--images")) or refused(capsys, compare.main, *flags.split())
    assert "copied row" in refused(capsys, compare.main, "--methods", "best")


def test_bench_prints_parts_ratios_and_memory_without_data(capsys):
    bench.main([*TINY, "--data", "cifar10"], seconds=0)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("pretraining step", "mask refreshed / SFD step", "images/s", "FLOP/s"))
    assert bench.resource is None or "peak memory" in printed
    assert "width" in refused(capsys, bench.main, *TINY, "--width", 6)


def test_the_tour_ends_with_its_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pecker, "sample_ddim", lambda net, schedule, noise, c, steps: noise)  # what the mask is made from
    tour.main(teacher_steps=2, pecker_steps=1)
    assert Path("runs/tour.png").stat().st_size > 1000


def test_planted_bugs_are_small_changes_of_code_and_of_nothing_else():
    source = 'LIMIT = 3\n\n\ndef f(x):\n    """2 < 3"""\n    if x.flag and x.y:\n        raise ValueError("no " * 4)\n'
    found = list(planted_bugs.sites(source + "    x.step()\n    return g(x < 5, -x[1:])\n"))
    changes = {(old, new) for _, old, new, _ in found}
    assert changes >= {("x < 5", "x <= 5"), ("5", "6"), ("x.flag and x.y", "x.flag or x.y"), ("x.step()", "pass")}
    assert changes >= {("g(x < 5, -x[1:])", "g(-x[1:], x < 5)"), ("x.flag and x.y", "not (x.flag and x.y)"), ("1:", ":")}
    assert all(text in planted for text in ("LIMIT = 3\n", "2 < 3", '"no " * 4') for *_, planted in found)


def test_planted_bugs_are_caught_or_survive(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text("def seen(a):\n    return a + a\n\n\ndef unseen(a):\n    return a < a\n")
    (tmp_path / "test_pecker.py").write_text("from toy import seen\n\n\ndef test_seen():\n    assert seen(2) == 4\n")
    planted_bugs.main(["--files", "toy.py"])
    printed = capsys.readouterr().out
    assert "caught by test_pecker.py::test_seen:  toy.py:2  a + a -> a - a\n" in printed
    assert "all: 1 of 3 caught\nsurvivors:\n" in printed and printed.count("toy.py:6  a < a -> a ") == 4
    (tmp_path / "test_pecker.py").write_text("def test_red():\n    assert False\n")
    with pytest.raises(SystemExit):
        planted_bugs.main(["--files", "toy.py"])
