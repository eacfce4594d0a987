"""What must be true of the experiments. Each test is named after the truth that it states."""

import argparse
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import train
from experiments import ablations, bench, claims, compare, planted_bugs, plots, probe, relearn, report, results, tour
from pecker import NoiseSchedule, Pecker, generate, noise_prediction_loss
from unet import UNet

torch.set_num_threads(1)  # the networks are too small for more
TINY = (
    "--device cpu --width 4 --multipliers 1 --blocks 1 --attention --image-size 8 --classifier-width 4 --classifier-steps 2 "
    "--pretrain-steps 2 --pretrain-batch-size 4 --steps 2 --batch-size 32 --ddim-steps 2 --images 3"
).split()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run folder whose PECKER has another seed than its teacher, another share of weights, and one mask throughout."""
    teacher, out = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("runs") / "tiny"
    train.main(["pretrain", *TINY, "--seed", "3", "--out", str(teacher)])
    train.main([*TINY, "--seed", "5", "--keep", "0.25", "--mask-every", "0", "--teacher", str(teacher), "--out", str(out)])
    return out


def small_unet():
    torch.manual_seed(0)
    net = UNet(8, 3, width=4, multipliers=(1,), blocks=1, attention_resolutions=(), dropout=0.0)
    for weight in net.parameters():  # also those that start at zero
        nn.init.normal_(weight, std=0.1)
    return net


def test_intervals_and_p_values_are_students():
    table = {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216, 30: 2.04227}  # 97.5 % quantiles of the printed tables
    for n, quantile in table.items():
        values = np.random.default_rng(n).normal(size=n + 1)
        mean, half, _ = claims.student(values)
        assert (mean, half) == pytest.approx((values.mean(), quantile * values.std(ddof=1) / (n + 1) ** 0.5), rel=1e-4)
        assert claims.student(values - values.mean() + half)[2] == pytest.approx(0.05, rel=1e-3)  # zero is just outside
    assert claims.student([0, 0]) == (0, 0, 1) and claims.student([0.3, 0.1 + 0.2, 0.3])[1:] == (0, 0.25)


def test_two_halves_of_the_seeds_of_one_method_differ_as_seldom_as_the_interval_says():
    one, other = np.random.default_rng(0).normal(size=(2, 400, 5))
    assert np.mean([abs(mean) < half for mean, half, _ in map(claims.student, one - other)]) == pytest.approx(0.95, abs=0.025)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_keeps_their_order():
    assert claims.holm([0.01, 0.04, 0.03, 0.9, 0.8]) == pytest.approx([0.05, 0.12, 0.12, 1, 1]) and claims.holm([]) == []


def test_words_say_how_many_are_missing():
    assert [claims.mean_and_spread(values) for values in ([1, None, 3], [None])] == ["2 ± 1.4 (2 of 3)", "-"]


def result(method="none, weight 1", seed=0, **figures):
    figures = {"generator": dict(steps_to_forget=50, cover_share=1.0) | figures}
    curve = dict(step=[0, 5, 6, 10], raw=dict(frechet_distance=[0, 5, 6, 10]))
    flags, seconds = dict(data="shapes", forget=["a:b"], steps=100), dict(pecker=20)
    return dict(method=method, seed=seed, compared=True, flags=flags, seconds=seconds, figures=figures, curve=curve)


def test_figures_of_a_result_are_of_its_generator_and_its_curve():
    one, never = result(), result("copied row", steps_to_forget=None)
    never["curve"]["raw"]["frechet_distance"][2] = None
    figures = [[results.figure(run, key) for key in ("wobble", "steps_to_forget", "steps", "seconds")] for run in (one, never)]
    assert figures == [[4, 50, 50, 10], [None, 0, 100, 20]] and results.figure(one, "cover_share") == 1  # wobble: from 6 to 10


def test_the_difference_between_methods_is_taken_seed_by_seed():
    found = [result("saliency, weight 1", seed, cover_share=value) for seed, value in ((1, 5), (0, 3), (2, None), (3, 9))]
    found += [result("none, weight 1", seed, cover_share=value) for seed, value in enumerate((1, 4, 2))]
    found += [result("copied row"), *(result("random, weight 0.1", seed) for seed in range(4))]  # without a mask at 0.1
    assert claims.differences(found, "cover_share") == {"none, weight 1": [2, 1]}


def test_a_claim_is_told_only_where_the_corrected_difference_says_so():
    found = []
    for mask, seed in [(mask, seed) for mask in ("saliency", "none", "random") for seed in range(5)]:
        kept = dict(steps_to_forget=50 + seed, frechet_distance=1, retain_accuracy=0.9 - 0.01 * seed * (mask == "none"))
        kept |= dict(steps_to_forget=30, frechet_distance=2 + seed) if mask == "saliency" else {}
        found.append(result(f"{mask}, weight 1", seed, **kept))
    told = {key: row["shapes a:b 100 steps"] for (_, control, key), row in claims.tested(found).items() if "none" in control}
    assert told["steps"] == ("-22 ± 2", pytest.approx(6.3e-05, rel=0.01), "supported")
    assert told["wobble"][2] == "" and told["frechet_distance"] == ("+3 ± 2", pytest.approx(0.079, rel=0.01), "")
    assert told["retain_accuracy"] == ("+0.02 ± 0.02", pytest.approx(0.079, rel=0.01), "")  # 0.03 ± 0.02 from the margin
    for seed in range(5):
        found[seed]["figures"]["generator"] |= dict(frechet_distance=3 + seed / 100, steps_to_forget=None)  # never
    other = [one | dict(flags=one["flags"] | dict(forget=["c:d"])) for one in found[:7]]  # two seeds of none, as on a:b
    _, _, first, second, *_ = report.claims(found + other).splitlines()
    assert first.startswith("| faster than none, weight 1 | steps | +48 ± 2, p 3.7e-06, not supported | +49.5 ± 6.4, p 0.051 |")
    assert second.endswith("not supported |  | not supported |")  # no run with a random mask on the other data set


def test_every_table_and_plot_of_the_pages_is_what_the_results_give(monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: path.read_text("utf-8") == text or pytest.fail(path.name))
    report.main()
    assert not any("/" in path.read_text("utf-8") for path in results.FOLDER.iterdir())  # no path of anybody's machine


def test_plots_put_numbers_where_they_belong():
    svg = plots.lines("t & t", "x", {"a": {0: [0, 0], 10: [1, 1]}, "b": {0: [1, 1], 10: [0, 0]}})
    paths = [node.get("d") for node in ElementTree.fromstring(svg) if node.get("stroke-width") == "2"]
    assert paths == ["M60.0 276.0L430.0 34.0", "M60.0 34.0L430.0 276.0"]
    root = ElementTree.fromstring(plots.dots("t", "x", {"a": [1, 1], "b": [2, 2]}, 0, "zero"))
    assert [node.get("cx") for node in root if node.tag.endswith("circle")] == ["420.0", "590.0"]


def test_a_row_becomes_that_of_the_cover_which_is_the_trivial_baseline_or_random():
    old = (net := small_unet()).embed_class.weight
    new, random, other = (relearn.replace_rows(net, {0: 2}, seed).embed_class.weight for seed in (None, 0, 1))
    assert torch.equal(new, old[[2, 1, 2]]) and torch.equal(random[1:], old[1:]) and not torch.isin(random[0], other[0]).any()


def test_masks_of_disjoint_images_are_described_beside_chance():
    one = Pecker(small_unet(), NoiseSchedule(), {0: 1}, 3, (3, 8, 8), batch_size=3, ddim_steps=2, num_forget_images=6)
    shares = compare.describe_masks(one, one.generator)
    assert [0 < share < 1 for share in shares.values()] == 5 * [True] and shares["overlap_by_chance"] == pytest.approx(1 / 3)


def test_compare_runs_every_method_once_and_reads_what_is_finished(finished, tmp_path, capsys, monkeypatch):
    argv = [f"--run={finished}", f"--out={(out := tmp_path / 'r')}", "--seeds=2", "--methods", "saliency, weight 1", "copied row"]
    compare.main(argv)
    before = (metrics := out / "copied-row-seed0" / "metrics.json").read_bytes()
    rows = torch.load(metrics.with_name("generator.pt"), weights_only=True)["average"]["embed_class.weight"]
    compare.main([*argv, "none, weight 1"])
    assert "| faster than none, weight 1 | steps |" in capsys.readouterr().out and metrics.read_bytes() == before

    (out / "none-1-seed0" / "metrics.json").unlink()
    compare.main(["--runs", *map(str, out.iterdir()), str(tmp_path), str(finished)])
    printed = capsys.readouterr().out
    there = f"left out: {tmp_path} is not", "| copied row | 2 |", "| saliency once 0.25, weight 0.1 | 1 |"
    assert printed.count("left out: ") == 2 and all(words in printed for words in there) and torch.equal(rows[0], rows[5])

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.main(map(str, out.glob("*seed0")))
    kept = results.load("shapes-red-disc-blue-disc-compare")
    raw = [line["frechet_distance"] for line in train.read_log(out / "saliency-1-seed0") if line.get("weights") == "raw"]
    assert [one["method"] for one in kept] == ["copied row", "saliency, weight 1"] and "overlap_by_chance" in kept[1]["masks"]
    assert kept[1]["curve"]["raw"]["frechet_distance"] == pytest.approx(raw, rel=1e-4) and str(tmp_path) not in json.dumps(kept)
    for name, other in {"": "copied-row", "images": "saliency-1", "teacher_seed": "saliency-1", "xi": "saliency-1"}.items():
        metrics.write_bytes(before.replace(f'"{name}": '.encode(), f'"{name}": 1'.encode()))  # xi: 11.2
        with pytest.raises(SystemExit):  # the same run twice, then a run that differs from the other in more than VARIED
            compare.main(["--runs", str(metrics.parent), str(out / f"{other}-seed0")])
    with pytest.raises(SystemExit, match="other flags"):
        results.main([metrics.parent])


@pytest.mark.parametrize("only_embedding, rate", [(True, 0.05), (False, 1e-4)])
def test_relearning_tunes_a_copy_and_only_what_it_says_until_the_class_is_back(only_embedding, rate, monkeypatch):
    def sees(own):  # a classifier that calls every other picture by this label, the rest by the next
        return argparse.Namespace(predict=lambda x: (seen.append(len(x)), nn.functional.one_hot(torch.arange(len(x)) % 2 + own)))

    net, tuned, c, seen = small_unet(), small_unet(), torch.tensor([0]), []
    monkeypatch.setattr(relearn.copy, "deepcopy", lambda other: tuned)
    settings = argparse.Namespace(pretrain_lr=1e-3, ddim_steps=2, device="cpu", pretrain_batch_size=2)
    known = train.Data(["a", "b", "c"], torch.zeros(4, 3, 8, 8, dtype=torch.uint8), c.repeat(4), None, None, False)
    back = [relearn.steps_until_back(settings, known, sees(label), net, c, only_embedding, 4, 2) for label in (1, 0)]
    assert back == [None, 0] and seen == [50] * (3 + 1)
    moved = {n: (a - b).abs().max().item() for (n, a), b in zip(net.named_parameters(), tuned.parameters()) if (a != b).any()}
    assert (moved.keys() == {"embed_class.weight"}) == only_embedding and max(moved.values()) == pytest.approx(4 * rate, rel=0.5)


def test_relearn_fills_its_table_beside_a_teacher_of_the_same_seed_that_never_saw_the_class(finished, monkeypatch, capsys):
    seen, calls, teach, tune = [], [], train.train_teacher, relearn.steps_until_back
    monkeypatch.setattr(train, "train_teacher", lambda *a: seen.append((a[0].seed, *a[1].labels.unique())) or teach(*a))
    monkeypatch.setattr(relearn, "steps_until_back", lambda *a: calls.append((0 in a[1].labels, *a[-3:])) or tune(*a))
    relearn.main(["--run", str(finished), "--images", "5"], limit=1)
    assert calls == 5 * [(True, False, 1, 2), (True, True, 1, 2), (False, False, 20, 40)]  # last: no red-disc
    assert seen == [(3, *range(1, 10))] and "| retrained teacher | all, retained images |" in capsys.readouterr().out
    assert len(json.loads((finished / "relearn.json").read_text("utf-8"))["rows"]) == 15 and torch.initial_seed() == 5


def test_the_probe_compares_pecker_with_its_controls_and_judges_twice(finished, monkeypatch, capsys):
    asked, share_called = [], probe.share_called
    monkeypatch.setattr(probe, "share_called", lambda *a: asked.append((len(a[4]), *a[4].unique())) or share_called(*a))
    monkeypatch.setattr(probe.invert, "__defaults__", (4,))
    probe.main(["--run", str(finished)], count=9)
    found = json.loads((finished / "probe.json").read_text("utf-8"))
    assert found.keys() == {"PECKER", "teacher", "retrained teacher", "copied row", "the run's classifier", "a second classifier"}
    assert train.read_settings(finished / "probe")["flags"]["seed"] == 1005 and "| PECKER | " in capsys.readouterr().out
    assert asked[:29] == [(9, 0), (9, *range(1, 10)), *25 * [(500, 0)], (200, 0), (200, 1)]
    monkeypatch.setattr(probe, "share_called", lambda *given: given[3])  # the noise that a white pixel with noise of 0.5 becomes
    white = argparse.Namespace(test_images=torch.tensor([255]), test_labels=torch.tensor([2]), fixed_noise=lambda n, seed: 0.5)
    assert torch.allclose(probe.clean_real(None, s := NoiseSchedule(), None, white, 2), 0.5 + s.alpha[440] / s.sigma[440])
    monkeypatch.setattr(probe, "share_called", lambda _, red, net, noise, c: generate(net, s, noise, c)[:, red].mean().item())
    calls_red_0, data = nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), train.Data([], torch.zeros(1, 3, 8, 8), None, None, None)
    reached = probe.invert(small_unet(), s, calls_red_0, None, data, 0, 40)
    assert [*reached] == [0, 10, 20, 30, 40] and [*reached.values()] == sorted(reached.values())  # ever more red


def test_ablations_change_one_thing_and_leave_a_picture_each(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    (tmp_path / "assets").mkdir()
    ablations.main(["--run", str(finished)])
    assert {path.name for path in tmp_path.glob("assets/*")} == {f"ablation-{name}.png" for name in ablations.VARIANTS}
    products = [finished / "ablations" / name / "generator.pt" for name in ("default", "no-mask", "fake-score-never-learns")]
    default, *others = (torch.load(product, weights_only=True)["raw"] for product in products)
    assert not any(all(torch.equal(default[key], other[key]) for key in default) for other in others)


def test_bench_prints_parts_and_memory_without_data(capsys, monkeypatch):
    monkeypatch.setattr(train, "seconds_of", lambda settings, call, times: call() and times / 4)
    bench.main([*TINY, "--data", "cifar10"], rounds=1)
    assert (printed := capsys.readouterr().out).count(" 250.0 ms") == 4 and 0.1 < float(printed.split()[-2]) < 10  # GiB


def test_the_tour_learns_has_the_flags_of_the_default_and_ends_with_its_picture(tmp_path, monkeypatch):
    made, losses, steps, default = {}, [], [], vars(train.Settings()) | dict(ema=0.5 ** (1 / train.Settings.ema_half_life))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tour, "noise_prediction_loss", lambda *of: losses.append(loss := noise_prediction_loss(*of)) or loss)
    monkeypatch.setattr(Pecker, "step", lambda self, step=Pecker.step: steps.append(step(self)))
    monkeypatch.setattr(tour, "Pecker", lambda *given, **flags: made.update(flags) or Pecker(*given, **flags))
    tour.main(teacher_steps=5, pecker_steps=2)
    assert [loss.item() for loss in losses] == pytest.approx([0.1163, 0.1009, 0.136, 0.0818, 0.1163], rel=2e-3)  # recorded
    assert made == made | {name: default[name] for name in default.keys() & made} and len(steps) == 2
    assert made["pairs"] == train.parse_pairs(train.Settings.forget, train.load_data(train.Settings(device="cpu")).classes)
    assert train.Image.open("runs/tour.png").size == (10 * 66 + 2, 6 * 66 + 2)  # six rows of ten


def test_planted_bugs_are_small_changes_of_functions_and_of_nothing_else():
    source = "LIMIT = 3\n\ndef f(x):\n    '''2 < 3'''\n    if x.flag and (not x.y):\n        x.z = 4 + x.t()\n    x.step(True)\n"
    source += "    return g(x < 5, -x[1:])"
    planted = planted_bugs.plant(source, 100, seed=0)
    changes = {(old, new) for _, old, new, _ in planted}
    assert changes >= {("x < 5", "x <= 5"), ("5", "6"), ("x.flag and (not x.y)", "x.flag or not x.y"), ("1:", ":")}
    assert changes >= {("x.step(True)", "None"), ("True", "False"), ("-x[1:]", "--x[1:]"), ("4 + x.t()", "4 + x")}
    assert changes >= {("g(x < 5, -x[1:])", "g(-x[1:], x < 5)"), ("x.z = 4 + x.t()", "_ = 4 + x.t()"), ("4 + x.t()", "4 - x.t()")}
    assert any("if not (x.flag and (not x.y)):" in text for *_, text in planted)
    assert all("LIMIT = 3\n" in text and "2 < 3" in text for *_, text in planted)


def test_planted_bugs_are_caught_or_survive(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text("def seen(a):\n    return a + a\n\n\ndef unseen(a):\n    return a < a\n")
    (tmp_path / "test_pecker.py").write_text("from toy import seen\n\n\ndef test_seen():\n    assert seen(2) == 4\n")
    planted_bugs.main(["--files", "toy.py"])
    assert capsys.readouterr().out == "survived: toy.py:6  a < a -> a <= a\ntoy.py: 1 of 2 caught\n"
    (tmp_path / "test_pecker.py").write_text("def test_red():\n    assert False\n")
    with pytest.raises(SystemExit):
        planted_bugs.main(["--files", "toy.py"])
