"""What must be true of PECKER. Each test is named after the truth that it states; run them by `python -m pytest`."""

import contextlib
import copy
import functools
import gzip
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import train
from pecker import NoiseSchedule, Pecker, distillation_loss, generate, noise_error
from pecker import noise_prediction_loss, saliency_mask, sample_ddim
from unet import UNet, group_norm

SHAPE = (2, 4, 4)  # (C, H, W) of the images in most tests of the method
CLASSES, B, HERE = 5, 3, Path(__file__).parent  # B: images a batch
NOISE = torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
TINY = (
    "--device cpu --image-size 8 --classifier-width 4 --classifier-steps 45 --width 4 --multipliers 1 --attention "
    "--pretrain-steps 21 --pretrain-batch-size 4 --steps 10 --batch-size 16 --ddim-steps 2 --images 3 --save-every 5"
).split()
ONE_STEP = "--device cpu --steps 1 --batch-size 16 --ddim-steps 2 --images 2 --mask none --forget red:blue --seed 3".split()
torch.set_num_threads(1)  # as in the subprocess: bit-equality is promised for the same number of threads
train.draw_shapes = functools.cache(getattr(train.draw_shapes, "__wrapped__", train.draw_shapes))


class ConvNet(nn.Module):
    """The smallest network that PECKER can work with: anything called as net(noisy, t, c) will do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # the same weights every time
        self.first = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.table = nn.Embedding(CLASSES, 4)
        self.last = nn.Conv2d(4, SHAPE[0], 3, padding=1)

    def forward(self, noisy, t, c):
        x = torch.tanh(self.first(noisy) + (self.table(c) + (t / 1000)[:, None].to(noisy))[:, :, None, None])
        return nn.functional.conv2d(x, self.last.weight.mT, self.last.bias, padding=1)  # the gradient has other strides


def make_pecker(teacher=None, pairs={0: 1, 3: 2}, **flags):  # 1, 2, 4 are retained
    teacher = teacher or ConvNet()
    schedule = NoiseSchedule().to(next(teacher.parameters()))  # device and dtype
    defaults = dict(batch_size=B, lr=1e-3, fake_score_lr=1e-3, ema=0.9, ddim_steps=4, num_forget_images=8)
    return Pecker(teacher, schedule, pairs, CLASSES, SHAPE, **defaults | flags)


def weights(net):
    return [weight.detach().clone() for weight in net.parameters()]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def images(count, seed=0, shape=SHAPE):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_schedule_is_ddpms_computed_in_float64():
    schedule, signal = NoiseSchedule(), np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float32
    np.testing.assert_allclose(schedule.alpha, np.sqrt(signal), rtol=1e-7)
    np.testing.assert_allclose(schedule.sigma, np.sqrt(1 - signal), rtol=1e-7)
    x, noise, t = images(2), images(2, seed=1), torch.tensor([3, 700])
    noisy = torch.stack([signal[k] ** 0.5 * x[i] + (1 - signal[k]) ** 0.5 * noise[i] for i, k in enumerate(t)])
    assert_close(schedule.add_noise(x, t, noise), noisy)
    assert_close(schedule.predict_x0(noisy, t, noise), x)


def test_noise_prediction_loss_is_a_mean_over_all_times_and_standard_noise():
    def net(noisy, t, c):
        assert t.min() == 0 and t.max() == 999 and abs(t.float().mean() - 499.5) < 10
        return noisy / schedule.sigma[t].view(-1, 1, 1, 1) - 2  # the noise - 2, as the images are zero

    schedule, x, c = NoiseSchedule(), torch.zeros(20000, 1, 2, 2), torch.zeros(20000, dtype=torch.long)
    assert_close(noise_prediction_loss(net, schedule, x, c), torch.tensor(4.0))
    assert abs(noise_prediction_loss(lambda noisy, t, c: 0 * noisy, schedule, x, c) - 1) < 0.02  # E noise^2


@pytest.mark.parametrize("steps, expected", [(1, [999]), (7, [999, 856, 713, 570, 427, 284, 141]), (1000, range(999, -1, -1))])
def test_ddim_ends_at_the_only_image_that_a_class_has(steps, expected):
    schedule, noise, target, c, times = NoiseSchedule(), images(2, 1), images(3), torch.tensor([2, 0]), []
    alpha, sigma, clamped = schedule.alpha, schedule.sigma, target[c].clamp(-1, 1)
    kept = (noise - alpha[999] * clamped) / sigma[999]  # the noise that fits the clamped image stays the same all the way

    def perfect(noisy, t, c):  # the noise, if all images of class c are target[c]
        times.append(t[0].item())
        assert_close(noisy, alpha[t[0]] * clamped + sigma[t[0]] * kept, atol=1e-3, rtol=0)
        return (noisy - alpha[t[0]] * target[c]) / sigma[t[0]]

    assert_close(sample_ddim(perfect, schedule, noise, c, steps), clamped, atol=1e-3, rtol=0)
    assert times == list(expected)


def test_losses_and_gradients_are_those_of_sfds_own_code():
    """The numbers come from the SFD authors' functions in float64; their weight per image is float32, hence 1e-6."""
    schedule, t, i = NoiseSchedule(), torch.tensor([100, 600]), torch.arange(96).double().reshape(2, 3, 4, 4)
    x, noise = (0.9 * torch.sin(0.7 * i + 0.3)).requires_grad_(), torch.cos(1.3 * i + 0.1)
    retain, forget, cover = torch.tensor([2, 3]), torch.tensor([0, 0]), torch.tensor([1, 1])

    def net(noisy, t, c, k=1.1):  # the fake score; the teacher with k = 1
        return 0.6 * k * noisy + 0.1 * torch.tanh(noisy.flip(3)) + (0.05 * k * c + 2e-4 * t.double()).view(2, 1, 1, 1)

    def check(loss, *expected):
        [gradient] = torch.autograd.grad(loss, x, retain_graph=True)
        assert [loss.item(), gradient.norm().item(), gradient.sum().item()][: len(expected)] == pytest.approx(expected, rel=1e-6)

    check(noise_error(net, schedule, x, retain, t, noise).sum(dim=(1, 2, 3)).mean(), 16.601364370050085, 3.2133921758999153)
    noisy = schedule.add_noise(x, t, noise)
    teacher_retain, teacher_cover = (schedule.predict_x0(noisy, t, net(noisy, t, c, 1.0)) for c in (retain, cover))
    fake_retain, fake_forget = (schedule.predict_x0(noisy, t, net(noisy, t, c)) for c in (retain, forget))
    check(distillation_loss(teacher_retain, fake_retain, x, 1.0), 2.689142950212524, 0.3485717705279907, -2.2328479875015055)
    check(distillation_loss(teacher_retain, fake_retain, x, 1.2), 2.4999905401372935, 0.3562435532429634, -2.2620368963543536)
    check(distillation_loss(teacher_cover, fake_forget, x, 1.0), 8.178083350478829, 0.40152308605646725, 2.7433250243540086)
    check(distillation_loss(teacher_cover, fake_forget, x, 1.2), 7.732923687619206, 0.418290580385818, 2.854083624472108)
    check(distillation_loss(x, noise, x, 1.0), -1e5 * (x - noise).square().sum().item() / 2)  # no division by zero


@pytest.mark.parametrize("keep", [0.0, 0.0137, 0.5, 1.0])
def test_mask_keeps_the_largest_entries_over_all_tensors_together_and_all_ties(keep):
    gradients = [100 * images(7), images(1, 1), 0.01 * images(5, 2)]
    masks = saliency_mask(gradients, keep)
    largest = torch.cat([g.flatten() for g in gradients]).abs().argsort(descending=True)[: round(keep * 13 * 32)]
    assert torch.cat([m.flatten() for m in masks]).nonzero().flatten().tolist() == sorted(largest.tolist())
    assert [m.shape for m in masks] == [g.shape for g in gradients] and all(m.dtype == torch.bool for m in masks)
    assert saliency_mask([torch.tensor([1.0, -2.0, 2.0, 2.0, 0.0])], 0.2)[0].tolist() == [False, True, True, True, False]


def fix_draws(pecker):
    """Draw the same B rows for every purpose: neither order nor batches matter then. Returns the numbers of rows drawn."""
    drawn = dict(noise=0, times=0, labels=0)

    def rows(name, count):
        drawn[name] += count
        return torch.arange(count) % B

    pecker.draw_noise = lambda count: NOISE[rows("noise", count)]
    pecker.draw_times = lambda count, low, high: low + (high - 1 - low) * rows("times", count) // (B - 1)  # first, middle, last
    pecker.draw_labels = lambda labels, count: labels[rows("labels", count) % len(labels)]
    return drawn


def ask(net, noisy, t, label):
    return net(noisy[None], torch.tensor([t]), torch.tensor([label]))[0]


def slow_steps(teacher, masks, *, lr, fake_score_lr, retain_weight, forget_weight, xi, grad_clip, t_min, t_init, t_max, ema):
    """Algorithm 1 image by image, from the paper's formulas, one step per mask. Returns the networks and the last losses."""
    alpha, sigma = NoiseSchedule().alpha.double(), NoiseSchedule().sigma.double()
    fake, generator, average = (copy.deepcopy(teacher) for _ in range(3))
    squares = {net: [torch.zeros_like(w) for w in net.parameters()] for net in (fake, generator)}
    times = [t_min, (t_min + t_max - 1) // 2, t_max - 1]
    labels = [(1, 1), (2, 2), (4, 4)], [(0, 1), (3, 2), (0, 1)]  # what the generator and the teacher are asked for

    def draw(i, label):
        z = sigma[t_init] * NOISE[i]
        return (z - sigma[t_init] * ask(generator, z, t_init, label)) / alpha[t_init]

    def error(i, label, _):  # in Eq. 3
        z = alpha[times[i]] * draw(i, label).detach() + sigma[times[i]] * NOISE[i]
        return (NOISE[i] - ask(fake, z, times[i], label)).square().sum()

    def distance(i, label, target):  # Eq. 7
        x, t = draw(i, label), times[i]
        z = alpha[t] * x + sigma[t] * NOISE[i]
        x_teacher = (z - sigma[t] * ask(teacher, z, t, target)) / alpha[t]
        x_fake = (z - sigma[t] * ask(fake, z, t, label)) / alpha[t]
        Q = x_teacher - x_fake
        return ((1 - xi) * Q * Q + Q * (x_fake - x)).sum() / (x_teacher - x).abs().mean().item()

    def adam(net, terms, masks, lr, step):  # beta1 = 0 and eps = 1, so that the size of a gradient shows, not only its sign
        retain, forget = (torch.autograd.grad(term, list(net.parameters())) for term in terms)
        for w, r, f, m, square in zip(net.parameters(), retain, forget, masks, squares[net]):
            g = (retain_weight * r + m * forget_weight * f).clamp(-grad_clip, grad_clip)
            square.lerp_(g * g, 1 - 0.999)
            w.data -= lr * g / ((square / (1 - 0.999**step)).sqrt() + 1)

    for step, mask in enumerate(masks, 1):
        errors = [sum(error(i, *pair) for i, pair in enumerate(term)) / B for term in labels]
        adam(fake, errors, [1] * len(mask), fake_score_lr, step)
        distances = [sum(distance(i, *pair) for i, pair in enumerate(term)) / B for term in labels]
        adam(generator, distances, mask, lr, step)
        for a, w in zip(average.parameters(), generator.parameters()):
            a.data = ema * a.data + (1 - ema) * w.data
    return (fake, generator, average), [loss.item() for loss in errors + distances]


@pytest.mark.parametrize("mask, every, due, size, changed", [
    ("none", 1, [0], B, dict(forget_weight=0.01)),  # SFD
    ("saliency", 2, [0, 2], 12 * B, dict(grad_clip=1e6)),  # PECKER, every image twelve times
    ("random", 1, [0, 1, 2], B, dict(forget_weight=0.5, retain_weight=2.0, xi=1.0)),
])  # fmt: skip
def test_steps_equal_algorithm_1_written_out(mask, every, due, size, changed):
    flags = dict(lr=0.02, fake_score_lr=0.01, retain_weight=1.0, forget_weight=1.0, xi=1.2, grad_clip=1.0)
    flags |= dict(t_min=20, t_init=300, t_max=601, ema=0.8) | changed
    teacher = ConvNet().double()
    pecker = make_pecker(teacher, mask=mask, mask_every=every, keep=0.3, batch_size=size, num_forget_images=40, **flags)
    for optimizer in (pecker.fake_score_optimizer, pecker.generator_optimizer):
        optimizer.param_groups[0]["eps"] = 1.0
    drawn, masks, pecker.fake_score.first.bias.grad = fix_draws(pecker), [], torch.ones(4).double()  # as if interrupted
    for _ in range(3):
        log = pecker.step()
        masks.append(pecker.mask)
    nets, losses = slow_steps(teacher, masks, **flags)
    for found, expected in zip((pecker.fake_score, pecker.generator, pecker.ema), nets):
        assert_close(weights(found), weights(expected), rtol=1e-8, atol=1e-10)
    keys = ["fake_score_retain_loss", "fake_score_forget_loss", "retain_loss", "forget_loss"]
    assert [log[key].item() for key in keys] == pytest.approx(losses, rel=1e-8) and not any(x.requires_grad for x in log.values())
    for net in (pecker.teacher, pecker.fake_score, pecker.ema):  # frozen: a gradient runs through them, their weights get none
        assert all(w.dtype == torch.float64 and w.grad is None and not w.requires_grad for w in net.parameters())
    assert [i for i in range(3) if i == 0 or masks[i] is not masks[i - 1]] == due
    refresh, D_f = (2 * size, 40) if mask == "saliency" else (0, 0)  # the controls need no images to forget
    assert drawn == dict(noise=24 * size + refresh + D_f, times=12 * size + refresh, labels=6 * size + D_f)  # each draw is fresh


def test_saliency_is_the_gradient_of_the_noise_error_on_images_drawn_once_by_the_teacher():
    pecker = make_pecker(ConvNet().double())
    fix_draws(pecker)
    pecker.step()  # so that the generator is no longer the teacher
    noise, labels = NOISE[[0, 1, 2, 0, 1, 2, 0, 1]], torch.tensor([0, 3, 0, 0, 3, 0, 0, 3])
    x = sample_ddim(pecker.teacher, pecker.schedule, noise, labels, 4)
    chosen = torch.randperm(8, generator=copy.deepcopy(pecker).rng)[:B]
    alpha, sigma = pecker.schedule.alpha.double(), pecker.schedule.sigma.double()
    rows = zip(chosen, [0, 499, 999], NOISE)
    error = torch.stack([n - ask(pecker.generator, alpha[t] * x[i] + sigma[t] * n, t, labels[i]) for i, t, n in rows])
    expected = torch.autograd.grad(error.square().mean(), list(pecker.generator.parameters()))
    assert_close(pecker.saliency(), expected, rtol=1e-8, atol=1e-12)


def test_draws_are_standard_noise_and_all_labels_and_times():
    pecker = make_pecker(pairs={torch.tensor(0): torch.tensor(1), torch.tensor(3): torch.tensor(2)})
    assert set(pecker.draw_times(500, 38, 44).tolist()) == {38, 39, 40, 41, 42, 43}
    assert set(pecker.draw_labels(pecker.retained, 500).tolist()) == {1, 2, 4}
    assert set(pecker.draw_labels(pecker.forgotten, 500).tolist()) == {0, 3}
    assert abs(pecker.draw_noise(2000).mean()) < 0.02 and abs(pecker.draw_noise(2000).std() - 1) < 0.02


def test_defaults_are_those_of_the_paper_and_of_sfd():
    expected = dict(retain_weight=1.0, forget_weight=1.0, xi=1.2, keep=0.5, mask="saliency", mask_every=1, ema=0.9999, seed=0)
    expected |= dict(batch_size=128, lr=1e-5, fake_score_lr=1e-5, t_min=38, t_init=440, t_max=712, grad_clip=1.0)
    assert Pecker.__init__.__kwdefaults__ == expected | dict(ddim_steps=50, num_forget_images=256)
    assert generate.__defaults__ == (440,) and UNet.__init__.__defaults__ == (128, (1, 2, 2, 2), 2, (16,), 0.1, 3)


def test_a_mask_of_ones_is_no_mask_and_a_mask_of_zeros_removes_the_forget_term():
    def moved(**flags):
        pecker = make_pecker(ConvNet().double(), num_forget_images=B, **flags)
        fix_draws(pecker)
        pecker.mask = pecker.make_mask()
        pecker.update_generator(torch.tensor([1, 2, 4]), torch.tensor([0, 3, 0]))
        assert all(m.dtype == torch.bool for m in pecker.mask)
        return weights(pecker.generator)

    assert same(moved(keep=1.0, t_min=0, t_init=0), moved(mask="none", t_min=0, t_init=0))  # also at the limits of the times
    assert same(moved(keep=0.0, t_max=1000, t_init=999), moved(mask="none", forget_weight=0.0, t_max=1000, t_init=999))


@pytest.mark.parametrize("kind", ["saliency", "random"])
def test_weights_outside_the_mask_stay_equal_bit_for_bit_without_a_retain_gradient(kind):
    pecker = make_pecker(mask=kind, retain_weight=0.0, keep=0.4, mask_every=0, pairs={label: 4 for label in range(4)})
    for _ in range(3):
        pecker.step()
    moved = [a != b for a, b in zip(weights(pecker.generator), weights(pecker.teacher))]
    assert not any((m & ~inside).any() for m, inside in zip(moved, pecker.mask, strict=True)) and any(m.any() for m in moved)
    assert sum(m.sum() for m in pecker.mask) == round(0.4 * sum(m.numel() for m in moved))
    assert same(copy.deepcopy(pecker).make_mask(), one := pecker.make_mask()) and not same(one, pecker.make_mask())  # by its rng


def test_any_teacher_will_do_and_is_left_alone():
    class Odd(ConvNet):
        def forward(self, noisy, t, c):
            assert not self.training  # dropout is off
            # A gradient ends at the weights or runs through the input, never both.
            assert not torch.is_grad_enabled() or self.last.weight.requires_grad != noisy.requires_grad
            return super().forward(noisy, t, c)

    teacher = Odd()
    teacher.unused = nn.Parameter(torch.ones(2))  # a weight without a gradient
    teacher.bfloat16().requires_grad_(False)
    before = weights(teacher)
    pecker = make_pecker(teacher, batch_size=1, num_forget_images=1)
    pecker.schedule = NoiseSchedule()  # float32
    pecker.step()
    assert same(weights(teacher), before) and teacher.training and not any(w.requires_grad for w in teacher.parameters())
    assert torch.equal(pecker.generator.unused, teacher.unused) and not same(weights(pecker.generator), before)


def test_continuing_equals_never_having_stopped_whatever_torchs_global_random_state():
    whole, first, second = make_pecker(mask_every=2), make_pecker(mask_every=2), make_pecker(mask_every=2, seed=9)
    for _ in range(3):  # stops between two refreshes of the mask
        first.step()
    second.load_state_dict(first.state_dict())
    first.step()  # they share nothing
    for pecker, count in ((whole, 5), (second, 2)):
        state = torch.manual_seed(count).get_state()
        for _ in range(count):
            pecker.step()
        assert torch.equal(torch.get_rng_state(), state)
    assert all(same(weights(getattr(whole, name)), weights(getattr(second, name))) for name in ("generator", "fake_score", "ema"))
    assert same(whole.mask, second.mask) and whole.steps == second.steps == 5
    assert not torch.equal(make_pecker(seed=9).draw_noise(1), make_pecker().draw_noise(1))


def small_unet(**flags):
    torch.manual_seed(0)
    defaults = dict(image_size=8, num_classes=3, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0.5)
    return UNet(**defaults | flags)


@pytest.mark.parametrize("call, flags, word", [
    (make_pecker, dict(pairs={0: 1, 1: 2}), "1 covers 0 but is forgotten itself"),
    (make_pecker, dict(pairs={0: 5}), "5 is out of range.*0..4"), (make_pecker, dict(pairs={-1: 2}), "-1 is out of range"),
    (make_pecker, dict(pairs={}), "at least one"), (make_pecker, dict(pairs={label: 0 for label in range(5)}), "5 of 5"),
    (make_pecker, dict(keep=-0.1), "keep"), (make_pecker, dict(keep=1.1), "keep"), (make_pecker, dict(keep=math.nan), "keep"),
    (make_pecker, dict(mask="best"), '"best"'), (make_pecker, dict(mask_every=-1), "mask_every"),
    (make_pecker, dict(batch_size=0), "batch_size"), (make_pecker, dict(num_forget_images=2), "images no less"),
    (make_pecker, dict(t_min=-1), "times"), (make_pecker, dict(t_min=712), "times"), (make_pecker, dict(t_max=1001), "times"),
    (make_pecker, dict(t_init=-1), "times"), (make_pecker, dict(t_init=1000), "times"), (make_pecker, dict(ema=1.0), "ema in"),
    *[(saliency_mask, dict(gradients=[], keep=k), "keep") for k in (-0.1, 1.1)], (make_pecker, dict(ddim_steps=0), "ddim"),
    *[(lambda steps: sample_ddim(None, NoiseSchedule(), None, None, steps), dict(steps=n), "1..1000") for n in (0, 1001)],
    (small_unet, dict(width=0), "multiple of 4"), (small_unet, dict(width=6), "multiple of 4"),
    (small_unet, dict(image_size=10, multipliers=(1, 1, 1)), "halved 2 times"), (small_unet, dict(patch=3), "divided by 3"),
])  # fmt: skip
def test_impossible_arguments_are_refused_with_advice(call, flags, word):
    with pytest.raises(ValueError, match=word):
        call(**flags)


def test_a_step_mixes_no_devices_and_waits_for_no_value(monkeypatch):
    """Tensors on "meta" have shapes but no values: who reads a value, or joins such a tensor with one of the CPU, fails."""
    generator, adam, saved = torch.Generator(), torch.optim.Adam, make_pecker()
    saved.step()  # on the CPU; first, because what torch imports late needs its own torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: generator)  # neither this nor a fused Adam exists for "meta"
    monkeypatch.setattr(torch.optim, "Adam", lambda *arguments, fused, **flags: adam(*arguments, **flags))
    pecker = make_pecker(small_unet(image_size=SHAPE[1], num_classes=CLASSES, in_channels=SHAPE[0]).to("meta"))
    pecker.step()
    pecker.load_state_dict(pecker.state_dict() | dict(mask=saved.mask, forget_images=saved.forget_images))
    assert all(tensor.is_meta for tensor in [*pecker.mask, *pecker.ema.parameters(), pecker.forget_images])
    net, x, c = small_unet().to("meta"), torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    noise_prediction_loss(net, pecker.schedule, x, c).backward()
    assert train.Classifier(3, 5, 4).to("meta")(x).is_meta and net.last[-2].weight.grad.is_meta


def test_unet_starts_as_the_identity_and_then_gives_the_numbers_recorded_here_except_for_dropout_in_training():
    """The numbers come from this network written out by hand from its weights by name, layer after layer, in float64."""
    net, x, t, c = small_unet(), images(3, shape=(3, 8, 8)), torch.tensor([0, 7, 999]), torch.tensor([0, 2, 1])
    assert torch.equal(net(x, t, c), x)
    assert sum(not w.any() for w in net.parameters()) == 2 * 13 + 21  # 13 layers of zeros, and the shifts of 21 norms
    for k, weight in enumerate(net.parameters()):
        weight.data = (0.3 * torch.cos(torch.arange(weight.numel()).double() ** 1.5 + k)).view(weight.shape).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, t, c).dtype == torch.float32
    net, x = net.double(), torch.sin(0.7 * torch.arange(576).double()).view(3, 3, 8, 8)
    assert not torch.equal(net(x, t, c), net(x, t, c))
    found = net.eval()(x, t, c)
    assert found[:, 0, 3, 5].tolist() == pytest.approx([0.2198, -1.1797, -0.7340], abs=2e-4)
    assert found[:, 2, 7, 0].tolist() == pytest.approx([0.2544, -0.3720, 1.3317], abs=2e-4)


def test_unet_sees_the_pixels_of_a_patch_as_channels():
    net, other, t = small_unet(patch=2).eval(), small_unet(image_size=4, in_channels=12).eval(), torch.arange(3)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1)
    other.load_state_dict(net.state_dict())
    x = images(3, shape=(3, 8, 8))
    assert_close(net(x, t, t), nn.functional.pixel_shuffle(other(nn.functional.pixel_unshuffle(x, 2), t, t), 2))


def test_unet_has_the_channels_and_the_attention_asked_for():
    net = small_unet(image_size=12, width=4, multipliers=(1, 2, 3), blocks=2, attention_resolutions=(12, 3), in_channels=1)
    assert net(images(2, shape=(1, 12, 12)), torch.tensor([0, 9]), torch.tensor([0, 2])).shape == (2, 1, 12, 12)
    assert sum(hasattr(module, "qkv") for module in net.modules()) == 2 + 2 + 1 + 3 + 3
    assert [group_norm(channels).num_groups for channels in (4, 12, 128, 192, 256)] == [1, 1, 32, 16, 32]
    with torch.device("meta"):
        assert sum(w.numel() for w in UNet(32, 10).parameters()) == 35_751_427 and not torch.backends.cuda.cudnn_sdp_enabled()


def run(*argv):
    """`python train.py argv` in this process -> exit status, what it printed, what it said on stderr."""
    status, printed, said, argv = 0, io.TextIOWrapper(io.BytesIO(), "ascii"), io.StringIO(), ["train.py", *map(str, argv)]
    train.stopping.update(signal=None, looping=False)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), mock.patch.object(sys, "argv", argv):
            train.run_program(train.main)
    except SystemExit as stop:
        status = stop.code
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    printed.seek(0)
    return status, printed.read(), said.getvalue()


def refused(argv, *words, folder):
    """Exit status 2, one sentence on stderr that has these words, and nothing written or changed in the folder."""
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    status, _, said = run(*argv)
    assert status == 2 and said.startswith("train.py: ") and said.count("\n") == 1, said
    assert all(str(word) in said for word in words), said
    assert before == {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def load(*argv):
    """The settings and data that `python train.py ...` would work with."""
    settings = train.parse_args(["pretrain", "--device", "cpu", "--out", "nowhere", *map(str, argv)])[1]
    return settings, train.load_data(settings)


def read(path):
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run folder of one whole tiny job that nothing has stopped. Nobody writes into it."""
    status, printed, said = run(*TINY, "--out", out := tmp_path_factory.mktemp("дом") / "run")
    assert status == 0 and printed.startswith("This will take about ") and printed.endswith("\\u0434\\u043e\\u043c0/run\n"), said
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of that run folder, to change."""
    out = shutil.copytree(whole, tmp_path / "run")
    saved = read(out / "settings.json")
    train.write_json(out / "settings.json", saved | {"flags": saved["flags"] | {"out": out}})
    return out


def test_every_setting_is_a_flag_and_a_preset_is_what_is_not_given():
    flags = "--data own/a/.. --no-flip --multipliers 1 3 --attention --forget 0:1 2:3 --keep .25 --xi -1 --seed 1 --bf16"
    given = dict(data="own/a/..", flip=False, multipliers=(1, 3), attention=(), forget=("0:1", "2:3"), keep=0.25, xi=-1.0, seed=1)
    few = dict(bf16=True, classifier_steps=300, pretrain_steps=300, steps=300, lr=1.2e-4, fake_score_lr=1.2e-4, ema_half_life=40)
    expected = vars(train.Settings(size="small")) | train.SMALL | given | few | dict(out=Path("runs/own"), device="cpu")
    assert train.parse_args([*flags.split(), "--device", "cpu"]) == ("all", train.Settings(**expected))
    status, printed, _ = run("--help")
    assert status == 0 and all(f"--{name.replace('_', '-')} " in printed for name in expected)


def test_size_and_precision_follow_the_device_and_a_folders_steps_its_pictures(whole, tmp_path, monkeypatch):
    settings = lambda *argv: train.parse_args(["--out", str(tmp_path / "out"), "--data", *argv])[1]  # noqa: E731
    assert settings("stl10/").forget == ("airplane:car",)
    for data in ("fashion", "cifar10", "stl10"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert settings(data).blocks == settings(data, "--size", "small").blocks == 1 < settings(data, "--size", "full").blocks
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for fast, capability in ((True, (8, 0)), (False, (7, 5))):  # older cards than 8.0 claim bfloat16, and fail
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
            assert (settings(data).steps, settings(data).bf16) == (train.PRESETS[data, "full"]["steps"], fast)
    refused(["--out", tmp_path, "--bf16"], "--bf16 needs", folder=tmp_path)
    assert train.parse_args(["--out", str(whole)])[1].size == "small"  # as it was begun
    assert settings("shapes", "--size", "full") == settings("shapes", "--size", "small")  # it has one
    (tmp_path / "data").mkdir(), (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    for name in ("notes.txt", *map("{}.png".format, range(600))):
        (tmp_path / "elsewhere" / name).touch()
    found = settings(str(tmp_path / "data"), "--size", "full", "--image-size", "16")  # sqrt(600 / 60000) = 0.1
    assert (found.classifier_steps, found.pretrain_steps, found.steps, found.width) == (600, 4000, 400, 64)


BAD = """
--forget red-disk:blue-disc|no class red-disk; --forget red-disc|A:B; --forget red-disc:|A:B; --forget :1|A:B
--forget 0:0|itself; --forget 0:10|no class 10; --forget red:blue blue:red|retain; --forget 0:5 red-disc:blue-ring|two covers
--keep 1.01|[0, 1]; --keep nan|keep; --steps 0|--steps; --steps 1e3|--steps; --lr -1|--lr; --xi inf|--xi
--multipliers 1 0|--multipliers; --mask best|--mask; --device tpu|tpu; --data nowhere|nowhere; --width 6|multiple of 4
--image-size 10 --multipliers 1 2 2|halved; --nonsense=1|--nonsense; --step=3|--step; unlearn|pretrain; evaluate|pretrain
sample|pretrain; trian|trian; --teacher nowhere|nowhere; --ddim-steps 1001|1000; --seed -1|--seed; --out |empty; --out=|empty
--mask-every 99999999999999999999|--mask-every; --batch-size 1000000000|--batch-size; --ema-half-life 0|--ema; --stepz 3|--stepz
"""


@pytest.mark.parametrize("case", re.split("; |\n", BAD.strip()))
def test_bad_flags_are_refused_with_advice_before_anything_is_written(case, tmp_path):
    argv, word = case.split("|")
    refused([*TINY, "--out", tmp_path / "out", *argv.split(" ")], word, folder=tmp_path)


def test_fashion_mnist_is_read_packed_or_unpacked_with_names_fit_for_files(tmp_path):
    raw, pixels = tmp_path / "FashionMNIST" / "raw", torch.randint(256, (2, 12, 28, 28), dtype=torch.uint8)
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"half of it")[:-9])  # is not unpacked in part
    refused([*TINY, "--data", "fashion", "--data-dir", tmp_path, "--out", tmp_path / "out"], "fashion", folder=tmp_path)
    shape, labels = bytes([0, 0, 0, 12, 0, 0, 0, 28, 0, 0, 0, 28]), bytes([0, 0, 8, 1, 0, 0, 0, 12, *range(10), 0, 1])
    for part, pictures in zip(("train", "t10k"), pixels):
        contents = {"images-idx3": bytes([0, 0, 8, 3]) + shape + pictures.numpy().tobytes(), "labels-idx1": labels}
        for kind, content in contents.items():
            path = raw / f"{part}-{kind}-ubyte"
            path.write_bytes(content) if part == "train" else path.with_suffix(".gz").write_bytes(gzip.compress(content))
    data = load("--data", "fashion", "--data-dir", tmp_path)[1]
    assert torch.equal(data.images[:, 0], pixels[0]) and torch.equal(data.test_images[:, 0], pixels[1])
    assert data.classes[::3] == ["t-shirt-top", "dress", "shirt", "ankle-boot"] and data.labels[-1] == 1


def picture(path, mode="RGB", colour=100, height=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((height, 3 * height, 3), 128, np.uint8)
    array[:, height : 2 * height] = colour  # the square in the middle
    PIL.Image.fromarray(array).convert(mode).save(path)


def test_a_folder_of_pictures_of_any_8_bit_mode_and_size_becomes_squares(tmp_path):
    home, out = tmp_path / "home", tmp_path / "out"
    for name, colour, times in (("café au lait", 255, 4), ("tea", 0, 2), ("water", 99, 1)):
        for i, mode in enumerate(["RGB", "L", "P", "RGBA", "1"] * times):
            picture(home / name / f"{i:02} é.png", mode, colour, 10 + i)
        (home / name / "notes.txt").write_text("not a picture")
    flags = *TINY, "--image-size", 4, "--forget", "tea:0", "--out", out, "--data"
    (settings, data), (moved, again) = (load(*flags, where) for where in (home, os.path.relpath(home)))
    for one in (settings, moved):  # a run may find its pictures elsewhere
        train.open_folder("pretrain", one, data)
        (out / "resume.pt").touch()
    refused([*flags, "shapes"], "(now shapes), the classes caf", "the pictures 31 (now 10000)", folder=tmp_path)
    assert data.classes == ["café au lait", "tea", "water"] and torch.equal(data.labels, again.labels)
    assert data.labels.bincount().tolist() == [18, 9, 4] and data.images.shape[1:] == (1, 4, 4) and not data.flip  # all are grey
    assert data.test_labels.bincount().tolist() == [2, 1, 1]  # a tenth of each class
    assert all(data.images[data.labels == label].unique().tolist() == [255 - 255 * label] for label in (0, 1))
    for part in ("train", "val"):
        shutil.copytree(home, (split := tmp_path / "split") / part)
    picture(split / "val" / "tea" / "00 é.png", colour=(9, 0, 0))
    both = [load(*TINY, "--data", (split / "val").rename(split / name).parent, "--image-size", 4)[1] for name in ("val", "test")]
    assert all(x.images.shape == (35, 3, 4, 4) and x.flip and torch.equal(x.test_labels, x.labels) for x in both)


def test_bad_picture_folders_are_refused_by_name(tmp_path):
    cat, dog = tmp_path / "data" / "cat", tmp_path / "data" / "dog"
    no = functools.partial(refused, [*TINY, "--data", cat.parent, "--forget", "0:1", "--out", tmp_path / "out"], folder=tmp_path)
    picture(cat / "1.png"), picture(cat / "2.png")
    no("one class")
    picture(dog / "1.png")
    no("class dog", "one picture")
    PIL.Image.fromarray(np.full((9, 9), 60000, np.uint16)).save(dog / "2.png")
    no("2.png", "8 bits")
    (dog / "2.png").write_bytes(b"no picture")
    no("2.png cannot be read as a picture: ")
    picture(dog.with_name("train") / "1.png"), picture(dog.with_name(".dog") / "1.png"), picture(dog.with_name("d\nog") / "1.png")
    no(r"'.dog', 'd\nog', 'train' cannot be")


def test_pairs_are_names_numbers_or_concepts():
    classes = ["red-disc", "red-ring", "blue-disc", "blue-ring"]
    assert train.parse_pairs(["red-disc:blue-ring"], classes) == train.parse_pairs(["0:3"], classes) == {0: 3}
    assert train.parse_pairs(["red:blue"], classes) == {0: 2, 1: 3} and train.parse_pairs(["disc:ring"], classes) == {0: 1, 2: 3}
    assert train.parse_pairs(["0:3", "red-ring:blue-disc", "0:3"], classes) == {0: 3, 1: 2}
    assert train.parse_pairs(["truck:car"], ["car", "fire-truck", "truck"]) == {2: 0}  # a class before a concept
    assert train.parse_pairs(["2:1"], ["1", "2"]) == {1: 0}  # a name before a number


def test_figures_are_their_definitions():
    def gaussian(count, mean=0.0, seed=0):
        return mean + images(count, seed, shape=(3,)).double()

    real, fake, p, k = gaussian(30) @ gaussian(3, seed=5), gaussian(20, 1, seed=1), gaussian(20).softmax(1), 3
    w = torch.arange(30).double() % 3  # the first does not count, the third counts twice as much as the second
    mean, covariance = w @ real / w.sum(), real.T.cov(aweights=w)
    root = torch.linalg.matrix_norm(torch.linalg.cholesky(covariance).T @ torch.linalg.cholesky(fake.T.cov()), "nuc")
    slow = (mean - fake.mean(0)).square().sum() + covariance.trace() + fake.T.cov().trace() - 2 * root
    assert train.frechet_distance(real, fake, w) == pytest.approx(slow.item(), rel=1e-9)
    assert 0 <= train.frechet_distance(real, real.flip(0)) < 1e-9 < train.frechet_distance(gaussian(4), gaussian(4, 1))

    def share_inside(points, members):
        radius = [sorted((m - o).norm().item() for o in members)[k] for m in members]
        return np.mean([any((p - m).norm().item() <= r for m, r in zip(members, radius)) for p in points])

    assert train.precision_recall(real, fake) == pytest.approx((share_inside(fake, real), share_inside(real, fake)))
    assert train.precision_recall(real, real.flip(0)) == (1, 1)
    assert train.precision_recall(real, real[:1] + 1e-3 * gaussian(20)) == (1, pytest.approx(0, abs=0.05))  # a collapsed one
    assert train.precision_recall(gaussian(4), gaussian(4)) == (1, 1) and train.inception_score(torch.eye(4)) == pytest.approx(4)
    slow = np.mean([sum(x * math.log(x / m) for x, m in zip(row, p.mean(0).tolist())) for row in p.tolist()])
    assert train.inception_score(p) == pytest.approx(math.exp(slow))
    for few, metric in itertools.product([(real[:3], fake), (real, fake[:3])], [train.frechet_distance, train.precision_recall]):
        with pytest.raises(ValueError):
            metric(*few)


class Reader:
    """A classifier that reads the class off the first value of a picture, and the features off the next three."""

    def predict(self, images):
        pixels = images.flatten(1).double()
        return pixels[:, 1:4], 0.98 * nn.functional.one_hot(pixels[:, 0].long().clamp(max=4), 5).double() + 0.004


def test_measure_reports_each_figure_over_its_own_labels_in_whatever_order_the_classes_are(monkeypatch):
    monkeypatch.setattr(train, "precision_recall", lambda real, fake: (len(real), fake.sum().item()))
    for sampler in ("generate", "sample_ddim"):  # a network draws by net(noise, c, steps)
        monkeypatch.setattr(train, sampler, lambda net, schedule, noise, c, steps=1: net(noise, c, steps))
    real, drawn = torch.randint(256, (2, 40, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    drawn[:, 0, 0, 0] = torch.tensor([1] * 7 + [0] * 2 + [3] + [1] * 9 + [2] + [2] * 10 + [1] * 10)  # what they are seen as
    labels, real_labels = torch.arange(4).repeat_interleave(10), torch.arange(40) % 7 % 5  # 11, 11, 6, 6 and 6 real pictures
    data, pairs = train.Data([*"abcde"], real, None, real, real_labels, False), {0: 1, 3: 1}  # b covers two, and counts twice
    seen, real_features, (features, probabilities) = [], Reader().predict(real)[0], Reader().predict(drawn)
    retained, balanced = (labels == 1) | (labels == 2), torch.tensor([0, 10 / 11, 10 / 6, 0, 0])[real_labels]
    draw = lambda *asked: seen.append((*asked, torch.is_grad_enabled())) or train.to_float(drawn[: len(asked[1])])  # noqa: E731
    assert (figures := train.measure(data, Reader(), real_features, pairs, draw, labels, 7)) == {
        "unlearning_accuracy": pytest.approx(18 / 20), "cover_share": pytest.approx(17 / 20),
        "retain_accuracy": pytest.approx(19 / 20), "precision": 23, "recall": features[retained].sum().item(),
        "class_accuracy": {"a": pytest.approx(0.2), "b": pytest.approx(0.9), "c": 1, "d": 0},
        "forget_histogram": pytest.approx({"a": 0.1, "b": 0.85, "c": 0, "d": 0.05, "e": 0}),
        "forget_entropy": pytest.approx(-0.984 * math.log(0.984) - 4 * 0.004 * math.log(0.004)),
        "frechet_distance": pytest.approx(train.frechet_distance(real_features, features[retained], balanced)),
        "cover_frechet_distance": pytest.approx(train.frechet_distance(real_features[real_labels == 1], features[~retained])),
        "inception_score": train.inception_score(probabilities[retained]), "network_evaluations": 7, "images": 40,
    }  # fmt: skip
    few = train.measure(data, Reader(), real_features, pairs, draw, labels[:13], seed=1, curve=True)
    assert few["frechet_distance"] is few["recall"] is None and few["cover_frechet_distance"] and few["network_evaluations"] == 1
    for (noise, c, *how), (count, seed, steps) in zip(seen, ((40, 0, 7), (13, 1, 1))):  # how: steps, with gradient
        assert torch.equal(noise, data.fixed_noise(count, seed)) and torch.equal(c, labels[:count]) and how == [steps, False]
    order = torch.tensor([3, 0, 4, 1, 2])  # class i is at place order[i] now
    data.classes, data.test_labels = ["abcde"[i] for i in order.argsort()], order[real_labels]
    drawn[:, 0, 0, 0] = order[drawn[:, 0, 0, 0].long()]
    again = train.measure(data, Reader(), real_features, {3: 0, 1: 0}, draw, order[labels], 7)
    assert {key: pytest.approx(value) for key, value in again.items()} == figures


def test_steps_to_forget_needs_forgetting_that_lasts():
    rows = [(1, 0, 0.9), (1, 0.95, 0.98), (0.9, 0.95, 0.98), (1, 0.95, 0.95), (0.95, 0.9, 0.97), (1, 1, 0.98)]
    curve = [dict(step=10 + i, unlearning_accuracy=u, cover_share=c, retain_accuracy=r) for i, (u, c, r) in enumerate(rows)]
    assert [train.steps_to_forget(curve[:end]) for end in range(7)] == [None, None, 11, None, 13, 14, 14]


def loop(out, total, step, *flags, net=None, **more):
    """train.train with these steps of 8 images, in an empty run folder."""
    settings, data = load(*TINY, *flags, "--out", out)
    train.open_folder("pretrain", settings, data)
    parts = {"net": net or nn.Linear(1, 1)}
    return train.train(settings, data, "teacher", total, 8, step, parts, {"weights": parts["net"]}, **more)


@pytest.mark.parametrize("flags, due", [("--bf16 --save-every 0", [*range(4, 65, 4), 65]), ("--save-every 20", [20, 40, 60, 65])])
def test_the_loop_logs_looks_and_saves_when_told_or_once_a_minute(tmp_path, monkeypatch, capsys, flags, due):
    clock, steps, looks, saves, write = itertools.count(0, 2), [], [], [], train.write

    def step():
        assert torch.is_autocast_enabled("cpu") == ("--bf16" in flags) and torch.get_autocast_dtype("cpu") == torch.bfloat16
        steps.append(len(steps) + 1.0)
        return {"loss": torch.tensor(steps[-1])}

    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))  # every step takes two seconds
    monkeypatch.setattr(train.time, "monotonic", lambda: 20 * len(steps))  # or twenty
    monkeypatch.setattr(train, "write", lambda path, x: (path.name == "resume.pt" and saves.append(len(steps)), write(path, x)))
    loop(tmp_path, 65, step, *flags.split(), look=lambda done: looks.append(done) or [{"looked": done}], looks=[7, 65])
    log = read(tmp_path / "log.jsonl")
    assert "teacher 3/65  loss 2  4 images/s  2:04 left\n" in capsys.readouterr().out
    assert looks == [0, 7, 65] == [line["looked"] for line in log if "looked" in line] and log[0]["stage"] == "teacher"
    expected = [(s, s - 1, 4.0, 2.0 * (65 - s)) for s in range(3, 65, 3)] + [(65, 64.5, 4.0, 0)]
    assert [tuple(line.values())[1:] for line in log if "loss" in line] == expected and not train.stopping["looping"]
    assert saves == due and not (tmp_path / "resume.pt").exists() and read(tmp_path / "teacher.pt")["seconds"] == 130


@pytest.mark.parametrize("loss, weight, word", [(math.nan, 0.0, "loss is not finite at"), (0.0, math.inf, "a weight is not")])
def test_what_is_not_finite_stops_the_run_with_advice_and_is_not_saved(tmp_path, capsys, loss, weight, word):
    net = nn.Linear(1, 1)
    with pytest.raises(SystemExit) as stop:
        loop(tmp_path, 3, lambda: {"loss": net.weight.detach().fill_(weight).isnan().sum() + loss}, net=net)
    assert stop.value.code == 2 and word in capsys.readouterr().err and not (tmp_path / "teacher.pt").exists()


def test_unlearning_gives_every_flag_to_pecker():
    flags = "--forget red:blue --keep 0.3 --mask random --mask-every 3 --xi 2 --forget-weight 4 --retain-weight 5 --lr 6".split()
    flags += "--fake-score-lr 7 --batch-size 300 --ddim-steps 9 --seed 10 --ema-half-life 2 --t-max 99".split()
    settings, data = load(*TINY, *flags)
    pecker = train.make_pecker(settings, data, train.make_network(settings, data))
    names = "keep mask_kind mask_every xi forget_weight retain_weight batch_size ddim_steps num_forget_images decay t_max"
    assert [getattr(pecker, name) for name in names.split()] == [0.3, "random", 3, 2, 4, 5, 300, 9, 600, 0.5**0.5, 99]
    assert pecker.generator_optimizer.param_groups[0]["lr"] == 6 and pecker.fake_score_optimizer.param_groups[0]["lr"] == 7


def test_one_command_leaves_everything_in_the_run_folder(whole):
    products = {"classifier.pt": {"weights"}, "teacher.pt": {"weights"}, "generator.pt": {"average", "raw"}}
    assert {*os.listdir(whole)} == {"settings.json", "log.jsonl", "metrics.json", "before_after.png", "trajectory.png", *products}
    assert all(set(read(whole / name)) - {"seconds"} == keys for name, keys in products.items())
    log = read(whole / "log.jsonl")
    assert [*log[0]["seconds"]] == ["classifier", "teacher", "pecker", "evaluate"] and min(log[0]["seconds"].values()) >= 0
    steps = {part: [line["step"] for line in log if "seconds_left" in line and line["stage"] == part] for part in train.PRODUCTS}
    assert steps == {"classifier": [*range(2, 45, 2), 45], "teacher": [*range(1, 22)], "pecker": [*range(1, 11)]}
    curve = [(line["step"], line["weights"], line["images"]) for line in log if "weights" in line]
    assert curve == [*itertools.product(range(11), ("average", "raw"), [100 + 9 * 20])]
    about = (metrics := read(whole / "metrics.json")).pop("settings")
    assert train.read_settings(whole)["flags"] == vars(train.parse_args([*TINY, "--out", str(whole)])[1])
    evaluations = {"teacher": (2, 30), "teacher_one_step": (1, 30), "generator": (1, 30), "generator_raw": (1, 30)}
    assert {name: (row["network_evaluations"], row["images"]) for name, row in metrics.items()} == evaluations
    assert {*about["seconds"]} == {*log[0]["seconds"]} and min(about["seconds"].values()) > 0 and "\n" not in about["commit"]
    assert [about[key] for key in "classifier_features real_images teacher_seed".split()] == [16, 2000, 0]


def test_the_numbers_of_a_small_run_are_those_recorded_here(whole):
    """Not a truth but a guard of the recipe: after a wanted change of it, write down the new ones."""
    numbers = {
        "classifier 45": 1.555, "teacher 1": 0.0722, "teacher 21": 0.1056, "pecker 1": 33.18, "pecker 10": 50.1,
        "settings classifier_accuracy": 0.633, "teacher frechet_distance": 5.481, "generator frechet_distance": 5.697,
    }  # fmt: skip
    found = {f"{one['stage']} {one['step']}": [*one.values()][2] for one in read(whole / "log.jsonl") if "seconds_left" in one}
    found |= {f"{name} {key}": value for name, row in read(whole / "metrics.json").items() for key, value in row.items()}
    assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=0.02)


def test_a_finished_run_is_not_run_again_and_other_images_are_only_printed_or_sampled(out):
    train.write_json(out / "settings.json", read(out / "settings.json") | {"commit": "then"})
    before = {path: path.read_bytes() for path in out.iterdir() if path.name != "metrics.json"}
    assert run(*TINY, "--save-every", 9, "--out", out)[0] == 0 and before == {path: path.read_bytes() for path in before}
    before = (out / "metrics.json").read_bytes()
    status, printed, _ = run("evaluate", "--out", out, "--images", 4, "--device", "cpu")
    assert status == 0 and "40 images" in printed and (out / "metrics.json").read_bytes() == before and b'"then"' in before
    for count in (3, 2):  # the second time fewer, and no old ones left
        assert run("sample", "--out", out, "--images", count, "--device", "cpu")[0] == 0
    _, data, _, _, generators = train.load_run(out, "cpu")
    for label, name in enumerate(data.classes):
        drawn = generate(generators["average"], NoiseSchedule(), data.fixed_noise(2, label), torch.full((2,), label))
        found = [np.array(PIL.Image.open(path)) for path in sorted((out / "samples" / name).iterdir())]
        assert np.array_equal(np.stack(found), (drawn.detach() * 127.5 + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1))


def test_pictures_show_what_their_names_say(out, monkeypatch):
    settings, data, classifier, teacher, generators = train.load_run(out, "cpu")
    (noise, c), shown = (data.fixed_noise(30, seed=2), torch.arange(10).repeat(3)), {}
    monkeypatch.setattr(train, "save_picture", lambda path, *shows: shown.update({path.name: shows}))
    train.evaluate(settings, data, classifier, teacher, generators)
    [(rows, *names)] = shown.values()
    expected = train.draw_pictures(teacher, noise, c, 2), train.draw_pictures(generators["average"], noise, c)
    assert torch.equal(rows.flatten(0, 1), torch.cat(expected)) and names == [["teacher"] * 3 + ["PECKER"] * 3, data.classes]
    pixels = torch.from_numpy(np.array(PIL.Image.open(out / "trajectory.png")))[-72:-8, -720:]  # the last row: ten squares of 64
    last = pixels.unflatten(1, (10, 72))[::8, :, :64:8].permute(1, 3, 0, 2)  # each eighth pixel: as the network drew them
    assert torch.equal(last, train.draw_pictures(generators["raw"], data.fixed_noise(10, seed=1), 0 * c[:10]))


def test_a_folder_binds_stage_by_stage_and_keeps_its_precision(tmp_path):
    out = tmp_path / "out"
    assert run("pretrain", *TINY, "--bf16", "--forget", "?", "--out", out)[0] == 0 and not (out / "generator.pt").exists()
    assert run("unlearn", "--out", out, "--keep", 0.25, *ONE_STEP[:8])[0] == 0
    flags = train.read_settings(out)["flags"]
    assert (flags["keep"], flags["width"], flags["bf16"], flags["steps"]) == (0.25, 4, True, 1)
    refused([*TINY, "--out", out], "--keep 0.25 (now 0.5)", "--steps 1 (now 10)", folder=out)
    assert run("pretrain", "--out", out, *TINY[: TINY.index("--steps")])[0] == 0  # PECKER's flags are the folder's
    for name, *words in (("classifier.pt", "made from"), ("generator.pt", "--pretrain-steps 21 (now 9)", "--keep 0.25")):
        (out / name).rename(out / "resume.pt")  # in the end: stopped while PECKER was trained
        refused([*TINY, "--out", out, "--pretrain-steps", 9], *words, folder=out)


@pytest.mark.parametrize("flags", "--keep 0.25,--seed 1,--width 8,--forget 1:2,--classifier-steps 9,--no-flip,--bf16".split(","))
def test_other_settings_than_the_folders_are_refused_naming_them(whole, flags):
    for argv in ([*TINY, "--out", whole], ["evaluate", "--out", whole], ["unlearn", "--teacher", whole, "--out", whole]):
        refused([*argv, "--device", "cpu", *flags.split()], flags.split()[0].replace("no-", ""), "another --out", folder=whole)


def test_runs_share_a_teacher_by_copying_it(whole, out, tmp_path):
    sfd, moved, products = tmp_path / "sfd", tmp_path / "moved", ("classifier.pt", "teacher.pt")
    share = ["unlearn", "--teacher", whole, *ONE_STEP]
    refused([*share, "--out", sfd, "--width", 8], "--width 4 (now 8)", folder=tmp_path)
    refused(share, "--teacher needs --out", folder=tmp_path)
    assert run(*share, "--out", sfd)[0] == 0 and {line["stage"] for line in read(sfd / "log.jsonl")} == {"estimate", "pecker"}
    assert all((sfd / name).read_bytes() == (whole / name).read_bytes() for name in products)
    sfd.rename(moved)
    assert run("evaluate", "--out", moved, "--device", "cpu", "--images", 2)[0] == 0
    about = read(moved / "metrics.json")["settings"]
    assert (about["flags"]["forget"], about["flags"]["seed"], about["teacher_seed"]) == (["red:blue"], 3, 0)
    torch.save(read(out / "teacher.pt") | {"seconds": 0}, out / "teacher.pt")
    refused(["unlearn", "--teacher", out, "--out", moved, *ONE_STEP], "from another teacher", folder=tmp_path)
    train.write_json(out / "settings.json", read(out / "settings.json") | {"pictures": 9})
    refused(["evaluate", "--out", out], "the pictures 9", folder=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "runs code", "of another network", "no dict"])
@pytest.mark.parametrize("name", "classifier.pt teacher.pt generator.pt resume.pt settings.json metrics.json log.jsonl".split())
def test_damaged_files_and_those_of_another_network_are_refused(name, damage, out, monkeypatch):
    monkeypatch.chdir(out)
    if name == "resume.pt":
        (out / "generator.pt").rename(out / name)
    other = (out / ("teacher.pt" if name == "classifier.pt" else "classifier.pt")).read_bytes()
    contents = {"runs code": b"cos\nmkdir\n(S'it ran'\ntR.", "no dict": b"[]\n", "of another network": other}
    (out / name).write_bytes(contents.get(damage, other[:100]) + b"\n" * (name == "log.jsonl"))  # half a line is none
    refused([*TINY, "--out", out], name, folder=out)


def test_a_run_that_was_stopped_again_and_again_ends_like_one_that_never_was(whole, tmp_path, monkeypatch):
    """By kill -9, within a step, by Ctrl-C and SIGTERM in every stage: products, log and figures are the same, bit for bit."""
    command, out = [sys.executable, HERE / "train.py", *TINY, "--out"], tmp_path / "stopped"
    process = subprocess.Popen([*command, out], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    next(line for line in process.stdout if line.startswith("classifier 18/"))
    process.kill()
    assert process.wait() == -signal.SIGKILL and (out / "resume.pt").exists()
    begun, events, statuses = itertools.count(1), itertools.cycle([signal.SIGINT, GeneratorExit, signal.SIGTERM]), []

    def counted(step, *args):
        event = next(events) if next(begun) % 15 == 0 else None
        if event is GeneratorExit:
            raise event
        os.kill(os.getpid(), event or 0)
        return step(*args)

    monkeypatch.setattr(train, "descend", functools.partial(counted, train.descend))
    monkeypatch.setattr(train.Pecker, "step", lambda self, step=train.Pecker.step: counted(step, self))
    for _ in range(30):
        with contextlib.suppress(GeneratorExit):
            status, printed, _ = run(*TINY, "--out", out)
            assert status == 0 or "the same command continues" in printed
            statuses.append(status)
            if status == 0:
                break
    assert set(statuses) == {130, 143, 0} and {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    timeless = lambda values: values | dict.fromkeys(("images_per_second", "seconds_left", "seconds", "settings"))  # noqa: E731
    assert [*map(timeless, read(out / "log.jsonl"))] == [*map(timeless, read(whole / "log.jsonl"))]
    for name in ("classifier.pt", "teacher.pt", "generator.pt", "metrics.json"):
        assert_close(timeless(read(out / name)), timeless(read(whole / name)), rtol=0, atol=0)
    assert (out / "trajectory.png").read_bytes() == (whole / "trajectory.png").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_loop_ends_the_program_at_once_and_while_looking_saves_first(number, tmp_path, monkeypatch):
    kill = lambda at: [] if at == 0 else os.kill(os.getpid(), number) or []  # noqa: E731
    monkeypatch.setattr(train, "load_data", kill)
    status, _, said = run(*TINY, "--out", tmp_path / "out")
    assert status == 128 + number and said.count("\n") == 1 and not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(train, "main", lambda _: loop(tmp_path, 9, lambda: {}, "--save-every", 100, look=kill, looks=[3]))
    assert run()[0] == 128 + number and read(tmp_path / "resume.pt")["done"] == 3


def test_a_full_disk_stops_the_run_with_advice_and_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", mock.Mock(side_effect=OSError(28, "No space left on device")))
    refused([*TINY, "--out", tmp_path], "No space left", "make room", folder=tmp_path)


def test_the_readmes_own_network_works_and_its_commands_are_accepted():
    text, names = (HERE / "README.md").read_text(encoding="utf-8"), {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["pictures"].shape == (4, 3, 16, 16) and names["pecker"].steps == 3
    commands = re.findall(r"^    (?:.*&& )?python train\.py([^#\n]*)", text, re.MULTILINE)
    assert len(commands) >= 5 and all(train.make_parser().parse_args(argv.split()) for argv in commands)
