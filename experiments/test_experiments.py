"""What must be true of the experiments. Each test is named after the truth that it states."""

import argparse
import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import pecker
import train
from experiments import bench, compare, planted_bugs, relearn, tour
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
    assert relearn.mean_and_spread([1, 3]) == "2 ± 1.4"
    assert relearn.mean_and_spread([1, None, 3]) == "2 ± 1.4 (2/3)"
    assert relearn.mean_and_spread([0.25]) == "0.25" and relearn.mean_and_spread([None]) == "-"


def test_the_interval_is_students():
    assert relearn.mean_and_spread([2, 1], interval=True) == "1.5 ± 6.4"  # 12.71 * (1 / sqrt 2) / sqrt 2
    assert relearn.mean_and_spread([1, 2, 3], interval=True) == "2 ± 2.5"  # 4.30 / sqrt 3
    assert relearn.mean_and_spread([0, 1] * 50, interval=True) == "0.5 ± 0.11"  # 2.26 * 0.5025 / 10


def test_the_difference_between_methods_is_taken_seed_by_seed():
    rows = {"saliency, weight 1.0": {"a": [3, 5, None]}, "none, weight 1.0": {"a": [1, 4, 2]}, "copied row": {"a": [0, 0, 0]}}
    assert compare.differences(rows) == {"saliency - none, weight 1.0": {"a": [2, 1, None]}}
    assert compare.differences({"none, weight 1.0": {"a": [1]}}) == {}


def test_wobble_is_the_spread_of_the_raw_weights_in_the_second_half():
    curve = [{"weights": "raw", "step": step, "frechet_distance": step} for step in (0, 5, 6, 10)]
    curve += [line | {"weights": "average", "frechet_distance": 0} for line in curve]
    assert compare.wobble(curve) == 2  # of 6 and 10
    assert compare.wobble([line | {"frechet_distance": None} for line in curve]) is None


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


def test_compare_runs_every_method_once_and_keeps_what_it_had(finished, tmp_path, capsys):
    shared = ["--run", str(finished), "--out", str(tmp_path)]
    compare.main([*shared, "--seeds", "2", "--steps", "1", "--methods", "saliency, weight 1.0", "copied row"])
    first, names = read(tmp_path / "compare.json"), {"saliency, weight 1.0", "copied row", "teacher, DDIM", "teacher, one step"}
    assert first["methods"].keys() == names and len(first["masks"]) == 2
    lengths = {name: {len(values) for values in row.values()} for name, row in first["methods"].items()}
    assert lengths == {"saliency, weight 1.0": {2}, "copied row": {2}, "teacher, DDIM": {1}, "teacher, one step": {1}}
    assert first["methods"]["copied row"]["steps_to_forget"] == [0, 0]
    folders = {"saliency-1.0-seed0", "saliency-1.0-seed1", "copied-row-seed0", "copied-row-seed1"}
    assert {path.name for path in tmp_path.iterdir()} == folders | {"compare.json"}
    flags = read(tmp_path / "copied-row-seed1" / "settings.json")["flags"]
    assert (flags["mask"], flags["forget_weight"], flags["seed"], flags["steps"]) == ("none", 0.0, 1, 1)

    capsys.readouterr()
    compare.main([*shared, "--seeds", "1", "--steps", "1", "--methods", "none, weight 1.0"])
    printed, second = capsys.readouterr().out, read(tmp_path / "compare.json")
    assert second["methods"].keys() == names | {"none, weight 1.0"} and second["masks"] == first["masks"]
    assert all(second["methods"][name] == first["methods"][name] for name in names)
    assert "saliency - none, weight 1.0" in printed and "mask: overlap teacher with retained" in printed
    assert "--steps 1" in refused(capsys, compare.main, *shared, "--steps", 2)


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
    shared = ["--run", str(finished), "--limit", "2", "--images", "5"]
    relearn.main([*shared, "--seeds", "1"])
    first, printed = read(finished / "relearn.json")["rows"], capsys.readouterr().out
    assert len(first) == 9 and all({len(row["ddim"]), len(row["one_step"])} == {1} for row in first.values())
    assert printed.count("seed 0: back") == 9 and "steps until back" in printed

    relearn.main([*shared, "--seeds", "2"])
    second, printed = read(finished / "relearn.json")["rows"], capsys.readouterr().out
    assert printed.count("seed 1: back") == 9 and "seed 0: back" not in printed
    assert all(second[name][way][:1] == first[name][way] for name in first for way in ("ddim", "one_step"))
    assert "--limit 2" in refused(capsys, relearn.main, "--run", finished, "--limit", 4, "--images", 5)


def test_the_retrained_teacher_has_the_teachers_seed_and_never_sees_the_class(finished):
    relearn.main(["--run", str(finished), "--limit", "2", "--images", "5", "--seeds", "1"])
    folder = finished / "relearn" / "retrained"
    assert read(folder / "settings.json")["flags"]["seed"] == 3 and read(finished / "settings.json")["flags"]["seed"] == 5
    [counts] = [line["labels"] for line in train.read_log(folder) if "labels" in line]
    assert counts["red-disc"] == 0 and counts["blue-disc"] == 1000
    plain = read(finished / "relearn" / "plain" / "settings.json")["flags"]
    assert (plain["forget_weight"], plain["mask"]) == (0.0, "none")


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


def test_bare_passes_are_as_many_as_a_step_makes():
    pecker = Pecker(small_unet(), NoiseSchedule(), {0: 1}, 3, (3, 8, 8), batch_size=2, mask="none")
    images = dict.fromkeys(("teacher", "fake_score", "generator"), 0)

    def count(name):
        def hook(net, given, drawn):
            images[name] += len(given[0])

        getattr(pecker, name).register_forward_hook(hook)

    for name in images:
        count(name)
    pecker.step()
    step = dict(images)
    bench.bare_passes(pecker, torch.randn(4, 3, 8, 8), torch.full((4,), 400), torch.tensor([1, 2, 0, 0]))
    assert {name: images[name] - step[name] for name in images} == step == {"teacher": 4, "fake_score": 8, "generator": 8}


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
