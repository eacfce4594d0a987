"""What must be true of PECKER. Each test is named after the truth that it states; run them by `python -m pytest`."""

import copy
import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import train
from pecker import NoiseSchedule, Pecker, distillation_loss, generate, noise_prediction_loss, saliency_mask, sample_ddim
from unet import UNet

HERE = Path(__file__).parent
SHAPE = (2, 4, 4)  # (C, H, W) of the images in most tests
CLASSES = 5


class ConvNet(nn.Module):
    """The smallest network that PECKER can work with: anything called as net(noisy, t, c) will do."""

    def __init__(self, classes=CLASSES, channels=SHAPE[0], width=4):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.table = nn.Embedding(classes, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy, t, c):
        embedding = self.table(c) + (t / 1000)[:, None]
        return self.last(torch.tanh(self.first(noisy) + embedding[:, :, None, None]))


def make_pecker(teacher=None, pairs={0: 1}, **flags):
    torch.manual_seed(0)
    teacher = teacher or ConvNet()
    defaults = dict(batch_size=3, lr=1e-3, fake_score_lr=1e-3, ema=0.9, ddim_steps=4, num_forget_images=8)
    return Pecker(teacher, NoiseSchedule(), pairs, CLASSES, SHAPE, **defaults | flags)


def weights(net):
    return [weight.detach().clone() for weight in net.parameters()]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def images(count, seed=0, shape=SHAPE):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


# --- the noise schedule ----------------------------------------------------------------------------------------------


def test_schedule_is_ddpms_and_float32():
    schedule, product = NoiseSchedule(), 1.0
    assert schedule.alpha.shape == schedule.sigma.shape == (1000,) and schedule.alpha.dtype == torch.float32
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert math.isclose(schedule.alpha[t].item(), math.sqrt(product), rel_tol=1e-6)
        assert math.isclose(schedule.sigma[t].item(), math.sqrt(1 - product), rel_tol=1e-6)
    snr = (schedule.alpha / schedule.sigma).square()
    assert abs(schedule.alpha[440] - 0.3711) < 1e-4 and abs(schedule.sigma[440] - 0.9286) < 1e-4
    assert abs(snr[38] - 53) < 0.5 and abs(snr[711] - 0.0059) < 1e-4
    short = NoiseSchedule(steps=10, beta_start=0.1, beta_end=0.2)
    assert len(short.alpha) == 10 and math.isclose(short.alpha[0].item(), math.sqrt(0.9), rel_tol=1e-6)


def test_schedule_buffers_move_with_the_module():
    assert {name for name, _ in NoiseSchedule().named_buffers()} == {"alpha", "sigma"}


def test_add_noise_mixes_by_the_time_of_each_image():
    schedule, x, noise, t = NoiseSchedule(), images(3), images(3, 1), torch.tensor([0, 440, 999])
    noisy = schedule.add_noise(x, t, noise)
    for i in range(3):
        assert torch.allclose(noisy[i], schedule.alpha[t[i]] * x[i] + schedule.sigma[t[i]] * noise[i])


def test_predict_x0_undoes_add_noise():
    schedule, x, noise, t = NoiseSchedule(), images(3), images(3, 1), torch.tensor([0, 440, 900])
    assert torch.allclose(schedule.predict_x0(schedule.add_noise(x, t, noise), t, noise), x, atol=1e-4)


# --- noise-prediction loss, Eq. 8 ------------------------------------------------------------------------------------


def test_noise_prediction_loss_is_the_mean_squared_error_of_the_noise():
    net, schedule, x, noise = ConvNet(), NoiseSchedule(), images(4), images(4, 1)
    t, c = torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 3])
    total = 0.0
    for i in range(4):
        noisy = schedule.alpha[t[i]] * x[i] + schedule.sigma[t[i]] * noise[i]
        total += (noise[i] - net(noisy[None], t[i : i + 1], c[i : i + 1])[0]).square().sum().item()
    loss = noise_prediction_loss(net, schedule, x, c, t, noise)
    assert loss.shape == () and math.isclose(loss.item(), total / x.numel(), rel_tol=1e-5)


def test_noise_prediction_loss_draws_every_time_and_standard_noise():
    seen = {}

    def net(noisy, t, c):
        seen.update(noisy=noisy, t=t)
        return torch.zeros_like(noisy)

    x = torch.zeros(20000, 1, 2, 2)
    loss = noise_prediction_loss(net, NoiseSchedule(), x, torch.zeros(20000, dtype=torch.long))
    assert seen["t"].min() == 0 and seen["t"].max() == 999 and abs(seen["t"].float().mean() - 499.5) < 10
    assert abs(loss - 1) < 0.02  # E noise^2
    assert abs(seen["noisy"].square().mean() - NoiseSchedule().sigma.square().mean()) < 0.02


# --- drawing images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_init", [440, 300])
def test_generate_is_one_evaluation_at_t_init_from_scaled_noise(t_init):
    schedule, noise, c, calls = NoiseSchedule(), 3 * images(2), torch.tensor([1, 2]), []

    def net(noisy, t, c):
        calls.append((noisy, t, c))
        return 0.1 * noisy

    x = generate(net, schedule, noise, c, t_init) if t_init != 440 else generate(net, schedule, noise, c)
    [(noisy, t, labels)] = calls
    alpha, sigma = schedule.alpha[t_init], schedule.sigma[t_init]
    assert torch.allclose(noisy, sigma * noise) and t.tolist() == [t_init] * 2 and torch.equal(labels, c)
    assert torch.allclose(x, (sigma * noise - sigma * 0.1 * noisy) / alpha, rtol=1e-5) and x.abs().max() > 1  # not clamped


def test_generate_has_a_gradient_and_ddim_has_none():
    net, schedule, c = ConvNet(), NoiseSchedule(), torch.tensor([0, 1])
    assert generate(net, schedule, images(2), c).requires_grad and not sample_ddim(net, schedule, images(2), c, 2).requires_grad


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_ddim_ends_at_the_only_image_there_is(steps):
    schedule, target, times = NoiseSchedule(), images(2).clamp(-1, 1), []

    def perfect(noisy, t, c):  # the noise, if all images are `target`
        times.append(t[0].item())
        return (noisy - schedule.alpha[t[0]] * target) / schedule.sigma[t[0]]

    x = sample_ddim(perfect, schedule, images(2, 1), torch.zeros(2, dtype=torch.long), steps)
    assert torch.allclose(x, target, atol=1e-3)
    assert len(times) == steps and times[0] == 999 and times == sorted(set(times), reverse=True)


def test_ddim_follows_the_probability_flow_of_gaussian_data():
    schedule, spread = NoiseSchedule(), 0.2

    def perfect(noisy, t, c):  # E[noise | noisy] if pixels are N(0, spread^2)
        alpha, sigma = schedule.alpha[t[0]], schedule.sigma[t[0]]
        return sigma * noisy / (alpha**2 * spread**2 + sigma**2)

    noise = images(64)
    x = sample_ddim(perfect, schedule, noise, torch.zeros(64, dtype=torch.long), 500)
    assert torch.allclose(x, spread * noise, atol=0.02)


def test_ddim_clamps_its_estimates_and_keeps_the_noise_that_fits_them():
    schedule, noise, seen = NoiseSchedule(), images(1), []

    def net(noisy, t, c):
        seen.append(noisy)
        return torch.zeros_like(noisy)  # x0 = noisy / alpha is far outside [-1, 1]

    x = sample_ddim(net, schedule, noise, torch.tensor([0]), 2)
    x0 = (noise / schedule.alpha[999]).clamp(-1, 1)
    eps = (noise - schedule.alpha[999] * x0) / schedule.sigma[999]
    assert torch.allclose(seen[1], schedule.alpha[499] * x0 + schedule.sigma[499] * eps, atol=1e-6)
    assert x.abs().max() <= 1


@pytest.mark.parametrize("steps", [0, 1001])
def test_ddim_refuses_an_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match="steps"):
        sample_ddim(ConvNet(), NoiseSchedule(), images(1), torch.tensor([0]), steps)


# --- distillation loss, Eq. 7 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("xi", [0.0, 1.0, 1.2])
def test_distillation_loss_is_equation_7(xi):
    teacher, fake, x = images(3, 1).double(), images(3, 2).double(), images(3, 3).double()
    total = 0.0
    for i in range(3):
        w = 1 / max(np.mean([abs(a - b) for a, b in zip(teacher[i].flatten().tolist(), x[i].flatten().tolist())]), 1e-5)
        for p, f, g in zip(teacher[i].flatten().tolist(), fake[i].flatten().tolist(), x[i].flatten().tolist()):
            total += w * ((1 - xi) * (p - f) ** 2 + (p - f) * (f - g)) / 3
    assert math.isclose(distillation_loss(teacher, fake, x, xi).item(), total, rel_tol=1e-9)


def test_distillation_loss_has_no_gradient_through_its_weight():
    teacher, fake, x = (images(2, seed).double().requires_grad_() for seed in (1, 2, 3))
    w = 1 / (teacher - x).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    by_hand = (w * (-0.2 * (teacher - fake) ** 2 + (teacher - fake) * (fake - x))).sum() / 2
    expected = torch.autograd.grad(by_hand, [teacher, fake, x])
    found = torch.autograd.grad(distillation_loss(teacher, fake, x, 1.2), [teacher, fake, x])
    assert all(torch.allclose(a, b) for a, b in zip(expected, found))


def test_distillation_loss_stays_finite_where_teacher_and_image_agree():
    x, fake = images(2), images(2, 1)
    assert math.isclose(distillation_loss(x, fake, x, 1.0).item(), -1e5 * (x - fake).square().sum().item() / 2, rel_tol=1e-4)


# --- saliency mask, Eq. 10 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.013, 0.25, 0.5, 0.9, 1.0])
def test_mask_keeps_the_largest_entries_over_all_tensors_together(keep):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(7, 11)) * 100, rng.normal(size=(3,)), rng.normal(size=(2, 5, 5)) * 0.01]
    masks = saliency_mask([torch.from_numpy(a) for a in arrays], keep)
    flat = np.abs(np.concatenate([a.ravel() for a in arrays]))
    kept = set(np.argsort(-flat)[: round(keep * len(flat))])
    assert np.flatnonzero(np.concatenate([m.numpy().ravel() for m in masks])).tolist() == sorted(kept)
    assert [m.shape for m in masks] == [a.shape for a in arrays] and all(m.dtype == torch.bool for m in masks)


def test_mask_keeps_all_entries_equal_to_the_threshold():
    [mask] = saliency_mask([torch.tensor([1.0, -2.0, 2.0, 2.0, 0.0])], 0.2)
    assert mask.tolist() == [False, True, True, True, False]


def test_mask_of_a_network_larger_than_quantile_can_take():
    gradient = torch.randperm(17_000_000, generator=torch.Generator().manual_seed(0)).float()  # exact up to 2^24
    masks = saliency_mask(list(gradient.split(9_000_000)), 0.75)
    assert abs(sum(m.sum().item() for m in masks) - 12_750_000) <= 1


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan])
def test_mask_refuses_a_share_outside_0_to_1(keep):
    with pytest.raises(ValueError, match="keep"):
        saliency_mask([torch.ones(3)], keep)
    with pytest.raises(ValueError, match="keep"):
        make_pecker(keep=keep)


# --- Algorithm 1 against a slow version ------------------------------------------------------------------------------


def record_draws(pecker):
    """Write down everything that the next step draws by chance."""
    draws = {"labels": [], "times": [], "noise": []}
    for name, drawn in draws.items():
        method = getattr(pecker, f"draw_{name}")
        setattr(pecker, f"draw_{name}", lambda *a, method=method, drawn=drawn: drawn.append(method(*a)) or drawn[-1])
    return draws


def adam_first_step(weight, gradient, clip):
    """lr = 1e-3, beta1 = 0, eps = 1, so that the size of a gradient shows in the step and not only its sign."""
    gradient = gradient.clamp(-clip, clip)
    return weight - 1e-3 * gradient / (gradient.abs() + 1)


def slow_step(pecker, draws, pairs, retain_weight, forget_weight, xi, clip):
    """One iteration, image by image, from the paper's formulas. Returns the new weights of fake score and generator."""
    schedule = NoiseSchedule()
    alpha, sigma = schedule.alpha, schedule.sigma
    retain, forget = draws["labels"][:2]
    labels, B = [*retain.tolist(), *forget.tolist()], len(retain)
    draw_noise, fake_noise, retain_noise, forget_noise, loss_noise = draws["noise"][:2] + draws["noise"][-3:]
    fake_times, loss_times = draws["times"][0], draws["times"][-1]
    teacher, fake, generator = copy.deepcopy(pecker.teacher), copy.deepcopy(pecker.fake_score), copy.deepcopy(pecker.generator)
    for net in (teacher, fake, generator):
        net.requires_grad_(True)

    def ask(net, noisy, t, label):
        return net(noisy[None], torch.tensor([t]), torch.tensor([label]))[0]

    def draw(noise, label):
        z = sigma[440] * noise
        return (z - sigma[440] * ask(generator, z, 440, label)) / alpha[440]

    loss = 0.0  # Eq. 3
    for i, label in enumerate(labels):
        x, t = draw(draw_noise[i], label).detach(), fake_times[i].item()
        error = (fake_noise[i] - ask(fake, alpha[t] * x + sigma[t] * fake_noise[i], t, label)).square().sum() / B
        loss = loss + (retain_weight if i < B else forget_weight) * error
    gradients = torch.autograd.grad(loss, list(fake.parameters()))
    fake_weights = [adam_first_step(w.detach(), g, clip) for w, g in zip(fake.parameters(), gradients)]
    for w, new in zip(fake.parameters(), fake_weights):
        w.data = new

    terms = [0.0, 0.0]  # Eq. 4, 7
    for i, label in enumerate(labels):
        x = draw((retain_noise if i < B else forget_noise)[i % B], label)
        t, noise = loss_times[i].item(), loss_noise[i]
        z = alpha[t] * x + sigma[t] * noise
        x_teacher = (z - sigma[t] * ask(teacher, z, t, pairs.get(label, label))) / alpha[t]
        x_fake = (z - sigma[t] * ask(fake, z, t, label)) / alpha[t]
        w = 1 / (x_teacher - x).abs().mean().detach()
        Q = x_teacher - x_fake
        terms[i // B] = terms[i // B] + w * ((1 - xi) * Q * Q + Q * (x_fake - x)).sum() / B
    parameters = list(generator.parameters())
    g_retain = torch.autograd.grad(terms[0], parameters, retain_graph=True)
    g_forget = torch.autograd.grad(terms[1], parameters)
    gradients = [retain_weight * r + m * forget_weight * f for r, f, m in zip(g_retain, g_forget, pecker.mask)]
    return fake_weights, [adam_first_step(w.detach(), g, clip) for w, g in zip(parameters, gradients)]


@pytest.mark.parametrize(
    "flags",
    [
        dict(mask="none", forget_weight=0.01),
        dict(mask="saliency", keep=0.3, grad_clip=1e6),
        dict(mask="random", keep=0.3, forget_weight=0.5, retain_weight=2.0, xi=1.0, grad_clip=0.02),
    ],
    ids=["SFD", "PECKER", "random mask"],
)
def test_step_equals_the_formulas_written_out(flags):
    pairs, flags = {0: 1, 3: 2}, dict(retain_weight=1.0, forget_weight=1.0, xi=1.2, grad_clip=1.0) | flags
    pecker = make_pecker(pairs=pairs, **flags)
    for optimizer in (pecker.fake_score_optimizer, pecker.generator_optimizer):
        optimizer.param_groups[0]["eps"] = 1.0
    before, draws = copy.deepcopy(pecker), record_draws(pecker)
    pecker.step()
    before.mask = pecker.mask
    expected = slow_step(before, draws, pairs, flags["retain_weight"], flags["forget_weight"], flags["xi"], flags["grad_clip"])
    for net, new_weights in zip((pecker.fake_score, pecker.generator), expected):
        for new, expect, old in zip(weights(net), new_weights, weights(before.teacher)):
            assert torch.allclose((new - old) / 1e-3, (expect - old) / 1e-3, rtol=2e-3, atol=2e-3)


def test_defaults_are_those_of_the_paper_and_of_sfd():
    pecker = Pecker(ConvNet(), NoiseSchedule(), {0: 1}, CLASSES, SHAPE)
    found = {name: getattr(pecker, name) for name in ("retain_weight", "forget_weight", "xi", "keep", "mask_every", "batch_size")}
    assert found == dict(retain_weight=1.0, forget_weight=1.0, xi=1.2, keep=0.5, mask_every=1, batch_size=128)
    assert (pecker.mask_kind, pecker.t_min, pecker.t_init, pecker.t_max, pecker.grad_clip) == ("saliency", 38, 440, 712, 1.0)
    for optimizer in (pecker.generator_optimizer, pecker.fake_score_optimizer):
        group = optimizer.param_groups[0]
        assert isinstance(optimizer, torch.optim.Adam)
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-5, (0.0, 0.999), 0.0)


def test_networks_are_compared_at_times_from_t_min_to_below_t_max():
    pecker = make_pecker(batch_size=500, mask="none", t_min=38, t_max=44)
    draws = record_draws(pecker)
    pecker.step()
    assert all(set(t.tolist()) == {38, 39, 40, 41, 42, 43} for t in draws["times"]) and len(draws["times"]) == 2


def test_labels_are_drawn_from_all_retained_and_all_forgotten_classes():
    pecker = make_pecker(pairs={0: 1, 3: 1}, batch_size=300, mask="none")
    draws = record_draws(pecker)
    pecker.step()
    retain, forget = draws["labels"]
    assert len(retain) == len(forget) == 300 and set(retain.tolist()) == {1, 2, 4} and set(forget.tolist()) == {0, 3}


def test_frozen_networks_get_no_gradient_and_do_not_move():
    pecker = make_pecker()
    teacher = weights(pecker.teacher)
    pecker.update_fake_score(torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert same(weights(pecker.generator), teacher)  # step 3 leaves the generator alone
    fake_score = weights(pecker.fake_score)
    assert not same(fake_score, teacher)
    pecker.mask = pecker.make_mask()
    pecker.update_generator(torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert same(weights(pecker.fake_score), fake_score) and same(weights(pecker.teacher), teacher)
    for net in (pecker.teacher, pecker.fake_score):
        assert all(w.grad is None and not w.requires_grad for w in net.parameters())


def test_the_generator_draws_for_the_fake_score_without_building_a_graph():
    pecker, recording = make_pecker(mask="none"), []
    pecker.generator.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    pecker.update_fake_score(torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert recording == [False]


@pytest.mark.parametrize("blocked", ["teacher", "fake_score"])
def test_gradient_runs_through_the_inputs_of_both_frozen_networks(blocked):
    moved = []
    for block in (False, True):
        pecker = make_pecker(mask="none")
        if block:
            net = getattr(pecker, blocked)
            net.forward = lambda noisy, t, c, forward=net.forward: forward(noisy.detach(), t, c)
        pecker.mask = pecker.make_mask()
        pecker.update_generator(torch.tensor([1, 2]), torch.tensor([0, 0]))
        moved.append(weights(pecker.generator))
    assert not same(*moved)


def test_a_network_of_another_precision_keeps_it():
    pecker = make_pecker(ConvNet().double())
    pecker.step()
    assert all(w.dtype == torch.float64 for w in pecker.ema.module.parameters())
    net = small_unet().double()
    assert net(images(1, shape=(3, 8, 8)).double(), torch.tensor([3]), torch.tensor([0])).dtype == torch.float64


def test_dropout_is_off():
    class Dropping(ConvNet):
        def forward(self, noisy, t, c):
            assert not self.training
            return super().forward(noisy, t, c)

    make_pecker(Dropping().train()).step()


def test_the_callers_teacher_is_left_alone():
    teacher = ConvNet()
    before = weights(teacher)
    make_pecker(teacher).step()
    assert same(weights(teacher), before) and teacher.training and all(w.requires_grad for w in teacher.parameters())


def test_a_frozen_teacher_gives_a_trainable_generator():
    pecker = make_pecker(ConvNet().requires_grad_(False))
    pecker.step()
    assert not same(weights(pecker.generator), weights(pecker.teacher))


# --- the mask at work ------------------------------------------------------------------------------------------------


def test_weights_outside_the_mask_stay_equal_bit_for_bit_without_a_retain_gradient():
    pecker = make_pecker(retain_weight=0.0, keep=0.4, mask_every=0)
    before = weights(pecker.generator)
    for _ in range(3):
        pecker.step()
    moved = [a != b for a, b in zip(weights(pecker.generator), before)]
    assert not any((m & ~inside).any() for m, inside in zip(moved, pecker.mask)) and sum(m.sum() for m in moved) > 0


def test_the_retain_gradient_is_not_masked():
    pecker = make_pecker(keep=0.0)
    before = weights(pecker.generator)
    pecker.step()
    assert (weights(pecker.generator)[0] != before[0]).float().mean() > 0.5


@pytest.mark.parametrize(
    "first, second",
    [
        (dict(mask="none", forget_weight=0.0), dict(mask="saliency", keep=0.0)),
        (dict(mask="none"), dict(mask="saliency", keep=1.0)),
    ],
    ids=["a mask of zeros removes the forget term", "a mask of ones is no mask"],
)
def test_limits_of_the_mask(first, second):
    steps = []
    for flags in (first, second):
        pecker = make_pecker(**flags)
        pecker.mask = pecker.make_mask()
        pecker.rng.manual_seed(1)
        pecker.update_generator(torch.tensor([1, 2]), torch.tensor([0, 0]))
        steps.append(weights(pecker.generator))
    assert same(*steps)


@pytest.mark.parametrize("kind, share", [("saliency", 0.3), ("random", 0.3), ("none", 1.0)])
def test_mask_has_the_density_asked_for_and_a_tensor_for_every_weight(kind, share):
    pecker = make_pecker(mask=kind, keep=0.3, pairs={label: 4 for label in range(4)})
    pecker.step()
    assert [m.shape for m in pecker.mask] == [w.shape for w in pecker.generator.parameters()]
    total = sum(m.numel() for m in pecker.mask)
    assert abs(sum(m.sum().item() for m in pecker.mask) - share * total) <= 1


def test_random_masks_differ_from_draw_to_draw():
    pecker = make_pecker(mask="random")
    assert not same(pecker.make_mask(), pecker.make_mask())


def test_saliency_is_the_gradient_of_the_generators_loss_on_forget_images():
    pecker = make_pecker(mask="saliency")
    for _ in range(2):
        pecker.step()  # so that the generator is no longer the teacher
    drawn, state = record_draws(pecker), pecker.rng.get_state()
    found = pecker.saliency()
    pecker.rng.set_state(state)
    chosen = torch.randperm(pecker.num_forget_images, generator=pecker.rng)[:3]
    [t], [noise] = drawn["times"], drawn["noise"]
    x, c = pecker.forget_images[chosen], pecker.forget_labels[chosen]
    loss = noise_prediction_loss(pecker.generator, pecker.schedule, x, c, t, noise)
    assert same(found, torch.autograd.grad(loss, list(pecker.generator.parameters())))


def test_saliency_uses_all_times():
    pecker = make_pecker(batch_size=2000, num_forget_images=2000)
    draws = record_draws(pecker)
    pecker.saliency()
    assert draws["times"][-1].min() < 10 and draws["times"][-1].max() > 990


def test_forget_images_are_drawn_once_by_the_teacher_at_forgotten_labels():
    pecker = make_pecker(pairs={0: 1, 3: 2}, num_forget_images=20)
    draws = record_draws(pecker)
    pecker.step()
    x, labels = pecker.forget_images, pecker.forget_labels
    noise = next(n for n in draws["noise"] if len(n) == 20)
    assert set(labels.tolist()) == {0, 3} and len(x) == 20
    assert torch.allclose(x, sample_ddim(pecker.teacher, pecker.schedule, noise, labels, 4), atol=1e-5)
    pecker.step()
    assert pecker.forget_images is x


@pytest.mark.parametrize("every, refreshed", [(0, [0]), (1, [0, 1, 2, 3]), (2, [0, 2])])
def test_mask_is_refreshed_every_so_many_steps(every, refreshed):
    pecker, made = make_pecker(mask_every=every), []
    make_mask = pecker.make_mask
    pecker.make_mask = lambda: made.append(pecker.steps) or make_mask()
    for _ in range(4):
        pecker.step()
    assert made == refreshed


def test_the_mask_is_made_between_the_two_updates():
    pecker = make_pecker()
    update_fake_score, make_mask, update_generator = pecker.update_fake_score, pecker.make_mask, pecker.update_generator
    order = []
    pecker.update_fake_score = lambda *a: order.append("fake score") or update_fake_score(*a)
    pecker.make_mask = lambda: order.append("mask") or make_mask()
    pecker.update_generator = lambda *a: order.append("generator") or update_generator(*a)
    pecker.step()
    assert order == ["fake score", "mask", "generator"]


def test_controls_need_no_forget_images():
    for kind in ("none", "random"):
        pecker = make_pecker(mask=kind)
        pecker.step()
        assert pecker.forget_images is None


# --- moving average, stopping and continuing, arguments --------------------------------------------------------------


def test_moving_average_follows_the_generator_and_starts_at_the_teacher():
    pecker = make_pecker(ema=0.9)
    expected = weights(pecker.teacher)
    for _ in range(3):
        pecker.step()
        expected = [0.9 * e + 0.1 * w for e, w in zip(expected, weights(pecker.generator))]
    assert all(torch.allclose(e, w, atol=1e-6) for e, w in zip(expected, weights(pecker.ema.module)))
    assert not same(weights(pecker.ema.module), weights(pecker.generator))


@pytest.mark.parametrize("kind", ["saliency", "random", "none"])
def test_continuing_equals_never_having_stopped(kind, tmp_path):
    whole, first = make_pecker(mask=kind, mask_every=2), make_pecker(mask=kind, mask_every=2)
    for _ in range(5):
        whole.step()
    for _ in range(3):  # stops between two refreshes of the mask
        first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_pecker(mask=kind, mask_every=2, seed=9)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.step()
    for name in ("generator", "fake_score", "ema"):
        assert same(weights(getattr(whole, name)), weights(getattr(second, name)))
    assert same(whole.mask, second.mask) and whole.steps == second.steps == 5


def test_a_step_neither_reads_nor_changes_torchs_global_random_state():
    results = []
    for seed in (1, 2):
        pecker = make_pecker()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        pecker.step()
        assert torch.equal(state, torch.get_rng_state())
        results.append(weights(pecker.generator))
    assert same(*results)


def test_seed_changes_the_run():
    first, second = make_pecker(seed=1), make_pecker(seed=2)
    first.step(), second.step()
    assert not same(weights(first.generator), weights(second.generator))


@pytest.mark.parametrize(
    "pairs, word",
    [
        ({0: 0}, "forgotten itself"), ({0: 1, 1: 2}, "forgotten itself"), ({0: 5}, "out of range"), ({-1: 2}, "out of range"),
        ({}, "at least one"), ({label: 0 for label in range(5)}, "retain"),
    ],
)  # fmt: skip
def test_impossible_pairs_are_refused_with_advice(pairs, word):
    with pytest.raises(ValueError, match=word):
        make_pecker(pairs=pairs)


@pytest.mark.parametrize("flags", [dict(mask="best"), dict(mask_every=-1), dict(batch_size=0), dict(t_min=800), dict(t_init=1000)])
def test_impossible_arguments_are_refused(flags):
    with pytest.raises(ValueError):
        make_pecker(**flags)


def test_step_reports_the_four_losses_as_tensors_without_gradient():
    log = make_pecker().step()
    assert set(log) == {"fake_score_retain_loss", "fake_score_forget_loss", "retain_loss", "forget_loss"}
    assert all(value.shape == () and not value.requires_grad for value in log.values())


def test_pecker_forgets_where_the_exact_denoiser_is_known():
    """All images of class c are one grey, table[c]; the exact denoiser with that table to train is teacher and generator."""

    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.tensor([-0.5, 0.0, 0.5]))
            self.schedule = NoiseSchedule()

        def forward(self, noisy, t, c):
            alpha, sigma = self.schedule.alpha[t].view(-1, 1, 1, 1), self.schedule.sigma[t].view(-1, 1, 1, 1)
            return (noisy - alpha * self.table[c].view(-1, 1, 1, 1)) / sigma

    pecker = Pecker(Exact(), NoiseSchedule(), {0: 2}, 3, (1, 2, 2), lr=0.02, fake_score_lr=0.05, batch_size=16, mask="none", ema=0.9)
    for _ in range(150):
        pecker.step()
    drawn = generate(pecker.ema.module, pecker.schedule, images(3, shape=(1, 2, 2)), torch.tensor([0, 1, 2])).mean(dim=(1, 2, 3))
    assert torch.allclose(drawn, torch.tensor([0.5, 0.0, 0.5]), atol=0.15)


# --- the network -----------------------------------------------------------------------------------------------------


def small_unet(**flags):
    torch.manual_seed(0)
    return UNet(**dict(image_size=8, num_classes=3, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0.0) | flags)


def shaken(net):
    """With its zero-initialised layers filled, as training would."""
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    return net


def test_unet_maps_images_to_images_of_the_same_shape():
    for size, channels in ((8, 3), (16, 1)):
        net = small_unet(image_size=size, in_channels=channels)
        eps = net(torch.randn(2, channels, size, size), torch.tensor([0, 999]), torch.tensor([0, 2]))
        assert eps.shape == (2, channels, size, size) and eps.dtype == torch.float32


def test_unet_of_the_paper_has_35_to_40_million_parameters():
    with torch.device("meta"):
        net = UNet(32, 10, width=128, multipliers=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,), dropout=0.1)
    assert 35e6 < sum(w.numel() for w in net.parameters()) < 40e6


def test_unet_starts_at_zero():
    assert small_unet()(torch.randn(2, 3, 8, 8), torch.tensor([0, 999]), torch.tensor([0, 2])).abs().max() == 0


def test_unet_sees_time_and_label_and_the_label_only_through_one_table():
    net, x = shaken(small_unet()), torch.randn(1, 3, 8, 8)
    [table] = [module for module in net.modules() if isinstance(module, nn.Embedding)]
    ask = lambda t, c: net(x, torch.tensor([t]), torch.tensor([c]))  # noqa: E731
    assert not torch.allclose(ask(5, 0), ask(6, 0), atol=1e-5) and not torch.allclose(ask(5, 0), ask(5, 1), atol=1e-3)
    table.weight.data[1] = table.weight.data[0]
    assert torch.equal(ask(5, 0), ask(5, 1))


def test_unet_skip_is_a_share_of_the_input_that_depends_on_time_alone():
    net, x = shaken(small_unet()), torch.randn(3, 3, 8, 8)
    for weight in net.last.parameters():
        nn.init.zeros_(weight)
    share = net(x, torch.tensor([5, 5, 900]), torch.tensor([0, 1, 1])) / x
    assert torch.allclose(share, share[:, :1, :1, :1].expand_as(share), rtol=1e-4)
    assert torch.isclose(share[0, 0, 0, 0], share[1, 0, 0, 0]) and not torch.isclose(share[1, 0, 0, 0], share[2, 0, 0, 0])


def test_unet_time_embedding_is_sines_and_cosines():
    embed = small_unet().embed_time
    embed.mlp = nn.Identity()
    t = torch.tensor([0, 7, 999])
    for i, row in enumerate(embed(t)):
        angles = [t[i].item() * 10000 ** (-k / 4) for k in range(4)]
        expected = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        assert torch.allclose(row, expected, atol=1e-4)


def test_unet_attention_is_softmax_over_all_positions():
    attention = shaken(next(m for m in small_unet().modules() if type(m).__name__ == "Attention"))
    C = attention.norm.num_channels
    x = torch.randn(1, C, 2, 2)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2)[0].split(C)  # each (C, 4)
    mixed = torch.stack([(torch.softmax(q[:, i] @ k / math.sqrt(C), 0) * v).sum(1) for i in range(4)], 1)
    assert torch.allclose(attention(x), x + attention.project(mixed.view(1, C, 2, 2)), atol=1e-5)


def test_unet_has_attention_at_the_given_resolutions_and_in_the_middle():
    count = lambda **flags: sum(type(m).__name__ == "Attention" for m in small_unet(**flags).modules())  # noqa: E731
    assert count(attention_resolutions=()) == 1 and count(attention_resolutions=(4,)) == 4 and count(attention_resolutions=(8, 4)) == 7


def test_unet_dropout_works_in_training_only():
    net, ask = shaken(small_unet(dropout=0.5)), (torch.randn(2, 3, 8, 8), torch.tensor([3, 4]), torch.tensor([0, 1]))
    assert torch.equal(net.eval()(*ask), net(*ask)) and not torch.equal(net.train()(*ask), net(*ask))


@pytest.mark.parametrize("flags", [dict(width=6), dict(image_size=9)])
def test_unet_refuses_sizes_that_do_not_divide(flags):
    with pytest.raises(ValueError):
        small_unet(**flags)


# --- metrics ---------------------------------------------------------------------------------------------------------


def gaussian(count, mean, spread, seed):
    return mean + spread * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).double()


def test_frechet_distance_of_a_set_to_itself_is_zero_in_any_order():
    a = gaussian(50, 0, torch.tensor([1.0, 2.0, 3.0]), 0)
    assert train.frechet_distance(a, a) < 1e-9 and train.frechet_distance(a, a.flip(0)) < 1e-9


def test_frechet_distance_has_the_closed_form_of_gaussians():
    mean, s1, s2 = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])
    rotation = torch.linalg.qr(gaussian(3, 0, 1, 9))[0]
    found = train.frechet_distance(gaussian(200000, 0, s1, 1) @ rotation, (mean + gaussian(200000, 0, s2, 2)) @ rotation)
    assert math.isclose(found, (mean.square().sum() + (s1 - s2).square().sum()).item(), rel_tol=0.02)


def test_frechet_distance_refuses_fewer_images_than_features():
    with pytest.raises(ValueError, match="too few"):
        train.frechet_distance(gaussian(3, 0, 1, 0), gaussian(100, 0, 1, 1))


def test_a_collapsed_generator_has_high_precision_and_low_recall():
    real, collapsed = gaussian(300, 0, 1, 0), gaussian(300, 0, 0.01, 1)
    precision, recall = train.precision_recall(real=real, fake=collapsed)
    assert precision > 0.95 and recall < 0.05
    assert train.precision_recall(real=collapsed, fake=real) == (recall, precision)
    assert train.precision_recall(real=real, fake=real) == (1.0, 1.0)


def test_precision_and_recall_follow_their_definition():
    real, fake, k = gaussian(30, 0, 1, 0), gaussian(20, 1, 1, 1), 3

    def share(points, members):
        radius = [sorted((m - o).norm().item() for o in members)[k] for m in members]
        return np.mean([any((p - m).norm().item() <= r for m, r in zip(members, radius)) for p in points])

    assert train.precision_recall(real, fake) == pytest.approx((share(fake, real), share(real, fake)))


def test_inception_score_is_the_number_of_classes_that_are_drawn_clearly():
    sure = torch.eye(4).repeat(5, 1)
    assert math.isclose(train.inception_score(sure), 4) and math.isclose(train.inception_score(sure[:1]), 1)
    assert math.isclose(train.inception_score(torch.full((9, 4), 0.25)), 1)
    p = torch.rand(20, 4).softmax(1)
    assert math.isclose(train.inception_score(p), train.inception_score(p.flip(0)), rel_tol=1e-9)


class Judge:
    """A classifier that reads the class off the first pixel: value 0..4 of the uint8 image."""

    def judge(self, images):
        guess = images[:, 0, 0, 0].long()
        return images[:, :, 0, 0].double(), 0.98 * nn.functional.one_hot(guess, CLASSES).double() + 0.004


def test_measure_reports_each_share_over_its_own_labels():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    drawn = torch.tensor([1] * 7 + [0] * 2 + [3] + [1] * 9 + [2] + [2] * 10)

    def draw(noise, c):
        assert torch.equal(c, labels)
        return drawn.view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 127.5 - 1

    nothing = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    data = train.Data(list("abcde"), nothing, None, nothing, torch.arange(1, 5), False)
    report = train.measure(data, Judge(), torch.zeros(4, 3).double(), {0: 1}, draw, labels, 7)
    assert report["unlearning_accuracy"] == pytest.approx(0.8) and report["cover_share"] == pytest.approx(0.7)
    assert report["retain_accuracy"] == pytest.approx(19 / 20)
    assert report["forget_histogram"] == pytest.approx({"a": 0.2, "b": 0.7, "c": 0, "d": 0.1, "e": 0})
    assert report["forget_entropy"] == pytest.approx(-0.984 * math.log(0.984) - 4 * 0.004 * math.log(0.004))
    assert (report["network_evaluations"], report["images"]) == (7, 30)


def test_a_cover_of_several_classes_counts_as_often_as_it_is_drawn():
    class Spread:
        def judge(self, images):
            label = images[:, 0, 0, 0].double()[:, None]
            features = 5 * label + torch.randn(len(label), 2, generator=torch.Generator().manual_seed(0)).double()
            return features, nn.functional.one_hot(label[:, 0].long(), CLASSES).double()

    pairs, labels = {0: 1, 2: 1, 3: 4}, torch.arange(CLASSES).repeat_interleave(300)
    real = (labels[:, None, None, None] * torch.ones(3, 2, 2)).to(torch.uint8)
    data = train.Data(list("abcde"), real, labels, real, labels)
    draw = lambda noise, c: train.to_float(real[[300 * pairs.get(label, label) for label in c.tolist()]])  # noqa: E731
    report = train.measure(data, Spread(), Spread().judge(real)[0], pairs, draw, labels, 1)
    assert report["cover_share"] == 1 and report["cover_frechet_distance"] < 0.1


def test_pictures_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(train.to_uint8(train.to_float(pixels)), pixels)
    assert train.to_float(pixels).min() == -1 and train.to_float(pixels).max() == 1
    assert train.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_steps_to_forget_needs_forgetting_that_lasts(tmp_path):
    args = train.argparse.Namespace(out=tmp_path)
    rows = [(1.0, 0.0, 0.9), (1.0, 0.95, 0.98), (0.9, 0.95, 0.98), (1.0, 0.95, 0.9), (0.96, 0.91, 0.97), (1.0, 1.0, 0.98)]
    for step, (unlearning, cover, retain) in enumerate(rows):
        train.log(args, stage="pecker", step=step, weights="ema", unlearning_accuracy=unlearning, cover_share=cover, retain_accuracy=retain)
    assert train.steps_to_forget(args, "ema") == 4 and train.steps_to_forget(args, "raw") is None
    train.log(args, stage="pecker", step=6, weights="ema", unlearning_accuracy=0.5, cover_share=1.0, retain_accuracy=0.98)
    assert train.steps_to_forget(args, "ema") is None


# --- data ------------------------------------------------------------------------------------------------------------


def load(*argv):
    """What `python train.py ...` would work on."""
    args = train.parse_args(["pretrain", "--device", "cpu", *map(str, argv)])
    return args, train.load_data(args)


def test_mirror_images_are_a_flag():
    for flag, kinds in (("--flip", 2), ("--no-flip", 1)):
        data = load("--image-size", 8, flag)[1]
        data.images, data.labels = data.images[:1], data.labels[:1]
        assert len(torch.unique(data.batch(50)[0], dim=0)) == kinds


def test_embedded_shapes_are_seeded_varied_and_complete():
    (first, labels), (again, _), (other, _) = (train.draw_shapes(20, seed) for seed in (0, 0, 1))
    assert first.shape == (200, 3, 16, 16) and first.dtype == torch.uint8 and labels.bincount().tolist() == [20] * 10
    assert torch.equal(first, again) and not torch.equal(first, other)
    for label in range(10):
        assert len(torch.unique(first[labels == label], dim=0)) == 20
    red, blue = first[labels < 5].float().mean(dim=(0, 2, 3)), first[labels >= 5].float().mean(dim=(0, 2, 3))
    assert red[0] > red[2] + 20 and blue[2] > blue[0] + 20


def test_mirroring_keeps_the_class_of_every_shape():
    x, labels = train.draw_shapes(400, 0)
    for label in range(10):
        mean = x[labels == label].float().mean(0)
        assert (mean - mean.flip(2)).abs().max() < 20


def test_cifar10_is_read_in_its_own_format(tmp_path, monkeypatch):
    folder, rng, listing = tmp_path / "cifar-10-batches-py", np.random.default_rng(0), {}
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        listing[name] = batch
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[f"data_batch_{i}", None] for i in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    _, data = load("--data", "cifar10", "--data-dir", tmp_path)
    assert data.images.shape == (20, 3, 32, 32) and data.test_images.shape == (4, 3, 32, 32) and data.classes == list("abcdefghij")
    assert torch.equal(data.images[0], torch.from_numpy(listing["data_batch_1"]["data"][0].reshape(3, 32, 32)))
    assert data.labels[:4].tolist() == [0, 1, 2, 9]


def test_stl10_is_read_in_its_own_format_and_resized(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part, value in (("train", 50), ("test", 100)):
        (folder / f"{part}_X.bin").write_bytes(np.full((3, 3, 96, 96), value, np.uint8).tobytes())
        (folder / f"{part}_y.bin").write_bytes(np.array([1, 10, 2], np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    (folder / "fold_indices.txt").write_text("")
    _, data = load("--data", "stl10", "--data-dir", tmp_path)
    assert data.images.shape == (3, 3, 64, 64) and data.images.unique().tolist() == [50] and data.labels.tolist() == [0, 9, 1]
    assert data.test_images.unique().tolist() == [100]


@pytest.mark.parametrize("name, archive", [("cifar10", "cifar-10-python.tar.gz"), ("stl10", "stl10_binary.tar.gz")])
def test_without_a_network_one_sentence_says_where_to_put_the_files(name, archive, tmp_path, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(getattr(torchvision.datasets, name.upper()), "download", offline)
    refused(capsys, ["--data", name, "--data-dir", str(tmp_path)], archive)


def picture(path, mode="RGB", size=(20, 12), colour=None):
    """Write a picture file of any mode; PIL comes with torchvision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((size[1], size[0], 3), 100 if colour is None else colour, np.uint8)
    torchvision.transforms.functional.to_pil_image(array).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes with names that need care, in every mode that people have."""
    for name, colour in (("café au lait", 200), ("tea", 50)):
        for i, mode in enumerate(["RGB", "L", "P", "RGBA", "RGB"] * 4):
            picture(tmp_path / "photos" / name / f"{i:02}.png", mode, size=(20 + i, 12), colour=colour)
    return tmp_path / "photos"


def test_image_folder_of_any_mode_and_size_becomes_squares(folder):
    (folder / "tea" / "notes.txt").write_text("not a picture")
    _, data = load("--data", folder, "--image-size", 8)
    assert data.classes == ["café au lait", "tea"] and data.images.shape == (36, 3, 8, 8) and data.test_images.shape == (4, 3, 8, 8)
    assert data.labels.bincount().tolist() == [18, 18] and data.test_labels.bincount().tolist() == [2, 2]
    means = [data.images[data.labels == label].float().mean() for label in (0, 1)]
    assert abs(means[0] - 200) < 2 and abs(means[1] - 50) < 2
    assert torch.equal(load("--data", folder, "--image-size", 8)[1].images, data.images)  # the split is always the same


def test_16_bit_and_very_long_pictures_are_converted(tmp_path):
    for name in "ab":
        for number in range(2):
            picture(tmp_path / name / f"{number}.png", size=(3000, 2))
        torchvision.utils.Image.fromarray(np.full((9, 9), 60000, np.uint16)).save(tmp_path / name / "2.png")
    _, data = load("--data", tmp_path, "--image-size", 8)
    assert sorted(torch.cat([data.images, data.test_images]).unique().tolist()) == [100, 60000 // 257]


def test_image_folder_with_train_and_test_keeps_them_apart(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in "ab":
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.jpg", colour=100 if part == "train" else 200)
    _, data = load("--data", tmp_path, "--image-size", 8)
    assert len(data.images) == 6 and len(data.test_images) == 4 and data.images.max() < 150 < data.test_images.min()


def test_pairs_are_names_numbers_or_concepts():
    classes = [f"{colour}-{shape}" for colour in ("red", "blue") for shape in ("disc", "ring")]
    assert train.parse_pairs(["red-disc:blue-ring"], classes) == train.parse_pairs(["0:3"], classes) == {0: 3}
    assert train.parse_pairs(["red:blue"], classes) == {0: 2, 1: 3}
    assert train.parse_pairs(["disc:ring"], classes) == {0: 1, 2: 3}
    assert train.parse_pairs(["0:3", "red-ring:blue-disc"], classes) == {0: 3, 1: 2}
    assert train.parse_pairs(["truck:car"], ["car", "fire-truck", "truck"]) == {2: 0}  # a class before a concept
    assert train.parse_pairs(["2:1"], ["1", "2"]) == {1: 0}  # a name before a number


def test_a_concept_must_have_a_cover_for_each_of_its_classes(capsys):
    with pytest.raises(SystemExit):
        train.parse_pairs(["red:blue"], ["red-disc", "red-ring", "blue-disc"])
    assert "there is no class blue-ring" in capsys.readouterr().err


# --- the command line ------------------------------------------------------------------------------------------------

TINY = (
    "--device cpu --width 4 --multipliers 1 --blocks 1 --attention --image-size 8 --classifier-width 4 --classifier-steps 60 "
    "--pretrain-steps 60 --pretrain-batch-size 4 --steps 20 --batch-size 2 --ddim-steps 2 --images 3 --save-every 2"
).split()


def command(*argv, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, HERE / "train.py", *map(str, argv)], text=True, env=environment, cwd=HERE, **kwargs)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The run folder of one whole tiny job, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    process = command(*TINY, "--out", out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return out, printed


def test_one_command_leaves_everything_in_the_run_folder(finished):
    out, printed = finished
    names = {"args.json", "log.jsonl", "classifier.pt", "teacher.pt", "pecker.pt", "metrics.json", "before_after.png", "trajectory.png"}
    assert {path.name for path in out.iterdir()} == names
    args, metrics = (json.loads((out / name).read_text()) for name in ("args.json", "metrics.json"))
    assert args["steps"] == 20 and args["mask"] == "saliency" and args["versions"]["torch"] == torch.__version__
    keys = {"unlearning_accuracy", "cover_share", "retain_accuracy", "forget_histogram", "forget_entropy", "network_evaluations", "images"}
    keys |= {"frechet_distance", "inception_score", "precision", "recall", "cover_frechet_distance"}
    for name, evaluations in (("teacher", 2), ("teacher_one_step", 1), ("generator", 1), ("generator_raw", 1)):
        assert keys <= set(metrics[name]) and metrics[name]["network_evaluations"] == evaluations and metrics[name]["images"] == 30
    assert {"classifier_accuracy", "seconds", "device", "versions"} <= set(metrics["settings"])
    assert set(metrics["settings"]["seconds"]) == {"classifier", "teacher", "pecker", "evaluate"}
    assert "unlearning accuracy" in printed and printed.splitlines()[-1].endswith(str(out))
    for name in ("before_after.png", "trajectory.png"):
        assert min(torchvision.datasets.folder.pil_loader(out / name).size) > 100


def test_log_has_the_labels_the_losses_and_the_curve(finished):
    lines = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"classifier", "teacher", "pecker"}
    [labels] = [line["labels"] for line in lines if "labels" in line]
    assert len(labels) == 10 and set(labels.values()) == {1000}  # the teacher saw every class
    assert [line["step"] for line in lines if line["stage"] == "teacher"] == list(range(0, 61, 3))
    curve = [line["step"] for line in lines if line.get("weights") == "ema"]
    assert curve == list(range(21))


def run(capsys, *argv):
    """train.py in this process; returns what it printed."""
    train.main([*map(str, argv)])
    return capsys.readouterr().out


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_stage_is_not_run_again(finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished[0].glob("*.pt")}
    assert "is finished" in run(capsys, *TINY, "--out", finished[0])
    assert before == {path.name: path.stat().st_mtime_ns for path in finished[0].glob("*.pt")}


def test_runs_can_share_a_teacher_and_evaluate_finds_it(finished, tmp_path, capsys):
    flags = ["--steps", 2, "--batch-size", 2, "--ddim-steps", 2, "--images", 3, "--device", "cpu"]
    run(capsys, "unlearn", "--teacher", finished[0], "--out", tmp_path / "sfd", "--mask", "none", "--forget", "red:blue", *flags)
    assert {path.name for path in (tmp_path / "sfd").iterdir()} == {"args.json", "log.jsonl", "pecker.pt", "trajectory.png"}
    with pytest.raises(SystemExit):  # a folder belongs to the weights of its teacher
        saved = torch.load(tmp_path / "sfd" / "pecker.pt", weights_only=True)
        torch.save(saved | {"teacher_weights": 0}, tmp_path / "other.pt")
        (tmp_path / "other").mkdir(), (tmp_path / "other.pt").rename(tmp_path / "other" / "pecker.pt")
        run(capsys, "evaluate", "--out", tmp_path / "other", "--teacher", finished[0], "--device", "cpu")
    assert "made from another teacher" in capsys.readouterr().err
    (tmp_path / "sfd").rename(tmp_path / "renamed")
    run(capsys, "evaluate", "--out", tmp_path / "renamed", "--device", "cpu", "--images", 2)
    metrics = json.loads((tmp_path / "renamed" / "metrics.json").read_text())
    assert metrics["settings"]["flags"]["forget"] == ["red:blue"] and metrics["generator"]["images"] == 20


def test_sample_writes_the_generators_pictures_by_class(finished, capsys):
    before = set(finished[0].iterdir())
    for count in (3, 2):  # the second time fewer, and no old ones left
        run(capsys, "sample", "--out", finished[0], "--device", "cpu", "--images", count)
    pngs = sorted((finished[0] / "samples").glob("*/*.png"))
    assert len(pngs) == 20 and pngs[0].parent.name == "blue-bars" and torchvision.datasets.folder.pil_loader(pngs[0]).size == (8, 8)
    for path in [*pngs, *(finished[0] / "samples").iterdir(), finished[0] / "samples"]:
        path.unlink() if path.is_file() else path.rmdir()
    assert set(finished[0].iterdir()) == before


def test_compare_and_relearn_write_their_tables(finished, tmp_path, capsys):
    out, flags = tmp_path / "run", ["--device", "cpu", "--steps", 2, "--batch-size", 2, "--ddim-steps", 2, "--images", 3, "--seeds", 2]
    run(capsys, "compare", "--teacher", finished[0], "--out", out, "--methods", "saliency, weight 1", "copied", *flags)
    compared = json.loads((out / "compare.json").read_text())
    lengths = {name: {len(values) for values in row.values()} for name, row in compared["methods"].items()}
    assert lengths == {"teacher, DDIM 2": {1}, "teacher, one step": {1}, "saliency, weight 1.0": {2}, "copied row": {2}}
    assert len(compared["masks"]) == 2
    assert all(0 < value <= 1 for name, value in compared["masks"][0].items() if name.startswith("overlap"))
    again = run(capsys, "compare", "--teacher", finished[0], "--out", out, "--methods", "saliency, weight 1", *flags)
    assert again.count("pecker.pt is finished") == 2  # continues where it stopped
    run(capsys, "unlearn", "--teacher", finished[0], "--out", out, *flags)
    run(capsys, "relearn", "--out", out, "--device", "cpu", "--seeds", 1, "--relearn-steps", 2)
    rows = json.loads((out / "relearn.json").read_text())["rows"]
    assert len(rows) == 9 and all(set(row) == {"ddim", "one_step"} for row in rows.values())
    again = run(capsys, "relearn", "--out", out, "--device", "cpu", "--seeds", 2, "--relearn-steps", 2)
    assert again.count("seed 1: back") == 9 and "seed 0: back" not in again  # continues where it stopped


def test_the_difference_between_methods_is_taken_seed_by_seed():
    rows = {"saliency, weight 1.0": {"a": [3, 5, None]}, "none, weight 1.0": {"a": [1, 4, 2]}, "copied row": {"a": [0, 0, 0]}}
    assert train.differences(rows) == {"saliency - none, weight 1.0": {"a": [2, 1, None]}}
    assert train.mean_and_interval([2, 1, None]) == "+1.5 ± 6.4"  # 12.71 * (1 / sqrt 2) / sqrt 2
    assert train.mean_and_interval([2, None]) == "-"


def test_the_trivial_baseline_draws_the_cover_exactly():
    net, c = shaken(small_unet()), torch.tensor([0, 1, 2])
    copied, x = train.copy_cover_rows(net, {0: 2}), torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    forgotten, kept, cover = copied(x, torch.zeros(3), c)
    before = net(x, torch.zeros(3), c)
    assert torch.equal(forgotten, cover) and torch.equal(kept, before[1]) and not torch.equal(before[0], before[2])


def test_relearning_is_noticed_at_once_where_nothing_was_forgotten():
    class Knows:
        def judge(self, images):
            return None, nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 2).float()

    args = train.argparse.Namespace(pretrain_lr=1e-3, relearn_steps=2, ddim_steps=2, device="cpu", pretrain_batch_size=2)
    known = train.Data(["a", "b"], torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), None, None, False)
    pecker = train.argparse.Namespace(forgotten=torch.tensor([0]), schedule=NoiseSchedule())
    assert train.steps_until_back(args, known, Knows(), pecker, small_unet(), False) == {"ddim": 0, "one_step": 0}


def test_overlap_of_masks_is_intersection_over_union():
    masks = [[torch.tensor([True, True, False]), torch.tensor([flag])] for flag in (True, False)]
    assert train.overlap(masks[0], masks[1]) == pytest.approx(2 / 3) and train.overlap(masks[1], masks[1]) == 1
    assert train.overlap([~m for m in masks[1]], [torch.zeros_like(m) for m in masks[1]]) == 0


def test_masks_are_described_layer_by_layer_and_beside_chance():
    pecker = make_pecker(num_forget_images=6)
    pecker.step()
    report = train.describe_masks(pecker)
    assert report["overlap_by_chance"] == pytest.approx(1 / 3)
    assert all(0 < report[f"overlap_{net}_3_images{of}"] <= 1 for net in ("teacher", "generator") for of in ("", "_of_retained_classes"))
    assert all(not w.requires_grad for w in pecker.teacher.parameters()) and all(w.requires_grad for w in pecker.weights)
    assert set(report["kept_per_layer"]) == {name for name, _ in pecker.generator.named_parameters()}


def test_bench_prints_parts_and_ratios(capsys):
    args, data = load(*TINY)
    args.pairs = {0: 5}
    train.bench(args, data, seconds=0.1)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("pretraining step", "mask refreshed / SFD step", "images/s", "FLOP/s"))


def final_weights(out):
    loaded = [torch.load(out / f"{stage}.pt", weights_only=True) for stage in ("classifier", "teacher", "pecker")]
    tensors = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            [collect(v) for k, v in value.items() if k != "settings"]
        elif isinstance(value, list):
            [collect(v) for v in value]

    collect(loaded)
    return tensors


def test_a_run_that_was_stopped_ends_like_one_that_never_was(finished, tmp_path):
    """Stopped in every stage; log and all tensors of all checkpoints are the same, bit for bit."""
    out = tmp_path / "stopped"
    stops = [("classifier 3/", signal.SIGTERM), ("teacher 3/", signal.SIGKILL), ("pecker 3/", signal.SIGKILL), ("pecker 9/", signal.SIGTERM)]
    for wanted, number in [*stops, (None, None)]:
        process = command(*TINY, "--out", out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in process.stdout:
            if wanted and line.startswith(wanted):
                process.send_signal(number)
                break
        rest = process.stdout.read()
        assert process.wait() == (0 if wanted is None else -9 if number == signal.SIGKILL else 143), rest
        assert wanted is None or number == signal.SIGKILL or "the same command continues" in rest
    assert same(final_weights(out), final_weights(finished[0]))
    timeless = lambda line: {k: v for k, v in json.loads(line).items() if k not in ("images_per_second", "seconds_left")}  # noqa: E731
    logs = [[timeless(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (out, finished[0])]
    curve = lambda log: [line for line in log if "weights" in line]  # noqa: E731
    assert curve(logs[0]) == curve(logs[1]) and [(x["stage"], x.get("step")) for x in logs[0]] == [(x["stage"], x.get("step")) for x in logs[1]]


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(capsys, argv, word):
    """One sentence on stderr that has this word, exit status 2."""
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and word in error and error.startswith("train.py: ") and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "argv, word",
    [
        ("--forget red-disk:blue-disc", "did you mean red-disc"), ("--forget red-disc", "A:B"), ("--forget 0:0", "forgotten itself"),
        ("--forget 0:99", "no class 99"), ("--forget red:blue blue:red", "retain"), ("--keep 1.5", "[0, 1]"), ("--keep nan", "[0, 1]"),
        ("--steps 0", "--steps"), ("--steps 1e3", "must be a whole number"), ("--lr -1", "--lr"), ("--xi inf", "--xi"), ("--mask best", "--mask"),
        ("--device tpu9", "--device"), ("--data nowhere", "nowhere"), ("--width 6", "multiple of 4"), ("--image-size 10", "halved"),
        ("trian", "trian"), ("--nonsense=1", "--nonsense"), ("unlearn", "pretrain"), ("evaluate", "unlearn"), ("sample", "unlearn"),
        ("--teacher nowhere", "nowhere"), ("--ddim-steps 1001", "1000"), ("--stepz 3", "did you mean --steps"), ("unlern", "mean unlearn"),
        ("--data cifar", "mean cifar10"), ("--forget 0:5 red-disc:blue-ring", "two covers"), ("compare --methods best", "--methods"), ("compare --mask none", "leave them out"),
        ("--images 1e9", "--images"), ("--device meta", "--device meta"), ("--mask-every " + "9" * 400, "--mask-every"), ("--data shape", "mean shapes"),
        ("--batch-size 1000000000", "--batch-size"),
    ],
)  # fmt: skip
def test_bad_flags_are_refused_with_advice_before_anything_is_written(argv, word, tmp_path, capsys):
    refused(capsys, [*argv.split(), "--out", tmp_path / "out"], word)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none(tmp_path, capsys):
    refused(capsys, ["--device", "cuda", "--out", tmp_path], "give cpu")


def test_bad_image_folders_are_refused_with_the_name_of_the_file(folder, tmp_path, capsys):
    out = ["--out", tmp_path / "out", "--image-size", 8]
    (tmp_path / "empty").mkdir()
    refused(capsys, ["--data", tmp_path / "empty", *out], "one folder of pictures per class")
    picture(tmp_path / "one" / "cat" / "1.png"), picture(tmp_path / "one" / "cat" / "2.png")
    refused(capsys, ["--data", tmp_path / "one", *out], "at least two")
    picture(tmp_path / "one" / "dog" / "1.png")
    refused(capsys, ["--data", tmp_path / "one", *out], "dog")
    (folder / "tea" / "broken.png").write_bytes(b"no picture")
    refused(capsys, ["--data", folder, *out], "broken.png")
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_are_refused_and_left_alone(finished, tmp_path, capsys):
    out, good = tmp_path / "run", finished[0]

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    whole = torch.load(good / "teacher.pt", weights_only=True)
    for content, word in (
        ((good / "teacher.pt").read_bytes()[:-1000], "not a readable checkpoint"),
        (b"", "not a readable checkpoint"),
        (pickle.dumps(Runs(), protocol=2), "not a readable checkpoint"),
        ((good / "classifier.pt").read_bytes(), "classifier"),
        (whole | {"format": 0}, "format"),
        (whole | {"classes": ["a", "b"]}, "classes"),
        ({key: value for key, value in whole.items() if key != "settings"}, "not a readable checkpoint"),
    ):
        out.mkdir(exist_ok=True)
        torch.save(content, out / "teacher.pt") if isinstance(content, dict) else (out / "teacher.pt").write_bytes(content)
        before = files(out)
        refused(capsys, [*TINY, "--out", out], word)
        assert files(out) == before and not (tmp_path / "it ran").exists()
    torch.save(whole | {"net": {}}, out / "teacher.pt")
    refused(capsys, [*TINY, "--out", out], "does not fit this network")


def test_changed_flags_are_refused_naming_them(finished, capsys):
    before = files(finished[0])
    refused(capsys, [*TINY, "--out", finished[0], "--keep", 0.25], "--keep 0.5 (now 0.25)")
    refused(capsys, [*TINY, "--out", finished[0], "--pretrain-lr", 1], "--pretrain-lr")
    refused(capsys, ["unlearn", "--teacher", finished[0], "--out", finished[0] / "x", "--width", 8], "--width")
    refused(capsys, ["unlearn", "--teacher", finished[0], "--out", finished[0] / "x", "--data", "cifar10"], "--data")
    assert files(finished[0]) == before


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*TINY, "--out", str(tmp_path / "run"), "--pretrain-lr", "1e6"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "teacher: loss is not finite in steps" in error and "--pretrain-lr" in error


def test_a_signal_that_comes_while_a_curve_is_measured_saves_too(tmp_path, capsys):
    (args, _), net = load(*TINY, "--save-every", 1000), nn.Linear(1, 1)
    args.out, args.classes = tmp_path, []
    with pytest.raises(SystemExit) as stop:
        kill = lambda done: done and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        train.train(args, "teacher", 9, {"net": net}, lambda: {"loss": torch.zeros(())}, 1, watch=kill, watched={3})
    assert stop.value.code == 128 + signal.SIGTERM and torch.load(tmp_path / "teacher.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_a_teacher_can_be_trained_for_any_number_of_steps(steps):
    args, data = load(*TINY, "--pretrain-steps", steps)
    step, parts = train.make_teacher_step(args, data, train.make_network(args, 10), NoiseSchedule())
    for _ in range(steps):
        assert step()["loss"].isfinite()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, capsys):
    (args, _), net = load(*TINY), nn.Linear(1, 1)

    def step():  # its loss is that of the weights before it
        nn.init.constant_(net.weight, math.nan)
        return {"loss": torch.zeros(())}

    args.out, args.classes = tmp_path, []
    with pytest.raises(SystemExit):
        train.train(args, "teacher", 1, {"net": net}, step, 1)
    assert "a weight is not finite" in capsys.readouterr().err and not (tmp_path / "teacher.pt").exists()


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX's")
def test_a_full_disk_stops_the_run_and_leaves_whole_files(tmp_path):
    import resource

    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
    process = command(*TINY, "--out", tmp_path / "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit)
    _, error = process.communicate()
    assert process.returncode == 2 and error.count("\n") == 1 and "make room" in error
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"args.json", "log.jsonl", "classifier.pt"}


# --- the README ------------------------------------------------------------------------------------------------------


def test_the_readmes_own_network_works():
    code = (HERE / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["pictures"].shape == (4, 3, 16, 16) and names["pecker"].steps == 3


def test_the_readmes_commands_are_accepted():
    lines = (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("python train.py")[1].split("#")[0].split() for line in lines if line.startswith("    ") and "python train.py" in line]
    assert len(commands) >= 10
    for argv in commands:
        train.make_parser().parse_args(argv)


# --- bugs on purpose -------------------------------------------------------------------------------------------------

MUTANTS = r"""
pecker.py | alpha_squared.sqrt().float()) ==> alpha_squared.float())
pecker.py | (1 - alpha_squared).sqrt().float() ==> (1 - alpha_squared.sqrt()).float()
pecker.py | beta_end=0.02 ==> beta_end=0.01
pecker.py | return alpha * x + sigma * noise ==> return sigma * x + alpha * noise
pecker.py | return alpha * x + sigma * noise ==> return alpha * x - sigma * noise
pecker.py | (noisy - sigma * eps) / alpha ==> (noisy - sigma * eps) / sigma
pecker.py | (noisy - sigma * eps) / alpha ==> noisy - sigma * eps
pecker.py | (noise - net(schedule ==> (noise + net(schedule
pecker.py | t, c)).square() ==> t, c)).abs()
pecker.py | torch.randint(len(schedule.alpha), (len(x),) ==> torch.randint(1, len(schedule.alpha) // 2, (len(x),)
pecker.py | noise = torch.randn_like(x) ==> noise = torch.rand_like(x)
pecker.py | noise_error(net, schedule, x, c, t, noise).mean() ==> noise_error(net, schedule, x, c, t, noise).sum()
pecker.py | t_init=440): ==> t_init=400):
pecker.py | noisy = schedule.sigma[t_init] * noise ==> noisy = noise
pecker.py | noisy = schedule.sigma[t_init] * noise ==> noisy = schedule.sigma[t_init] / schedule.alpha[t_init] * noise
pecker.py | predict_x0(noisy, t, generator(noisy, t, c)) ==> predict_x0(noisy, t, generator(noisy, t, c)).clamp(-1, 1)
pecker.py | // steps - 1 for i ==> // steps for i
pecker.py | net(noisy, t, c)).clamp(-1, 1) ==> net(noisy, t, c))
pecker.py | (noisy - schedule.alpha[now] * x0) / schedule.sigma[now] ==> net(noisy, t, c)
pecker.py | schedule.alpha[then] * x0 + schedule.sigma[then] * eps ==> schedule.alpha[then] * x0 + schedule.sigma[now] * eps
pecker.py | .clamp(min=1e-5).detach() ==> .clamp(min=1e-5)
pecker.py | .clamp(min=1e-5).detach() ==> .detach()
pecker.py | w = 1 / (x0_teacher - x).abs() ==> w = 1 / (x0_fake - x).abs()
pecker.py | .abs().mean(dim=(1, 2, 3), keepdim=True) ==> .abs().mean()
pecker.py | Q = x0_teacher - x0_fake\n    loss ==> Q = x0_fake - x0_teacher\n    loss
pecker.py | (1 - xi) * Q.square() ==> (1 + xi) * Q.square()
pecker.py | (1 - xi) * Q.square() ==> (1 - 1.2) * Q.square()
pecker.py | Q * (x0_fake - x)) ==> Q * (x0_teacher - x))
pecker.py | return loss.sum(dim=(1, 2, 3)).mean() ==> return loss.mean()
pecker.py | if not 0 <= keep <= 1:\n        raise ==> if False:\n        raise
pecker.py | for gradient in gradients]).abs()  # (N,) ==> for gradient in gradients])  # (N,)
pecker.py | saliency.topk(kept, ==> saliency.topk(kept - 1,
pecker.py | saliency.topk(kept, ==> saliency.topk(len(saliency) - kept,
pecker.py | sorted=False).values.min() ==> sorted=False).values.max()
pecker.py | gradient.detach().abs() >= threshold ==> gradient.detach().abs() < threshold
pecker.py | gradient.detach().abs() >= threshold ==> gradient.detach().abs() > threshold
pecker.py | gradient.detach().abs() >= threshold ==> gradient.detach().abs() >= gradient.abs().median()
pecker.py | copy.deepcopy(teacher).eval().requires_grad_(True) ==> copy.deepcopy(teacher).requires_grad_(True)
pecker.py | self.teacher = copy.deepcopy(teacher) ==> self.teacher = teacher
pecker.py | copy.deepcopy(teacher).eval().requires_grad_(True) ==> copy.deepcopy(teacher).eval()
pecker.py | self.average(averaged, self.weights, ==> self.average(averaged, list(self.fake_score.parameters()),
pecker.py | self.average(averaged, self.weights, ==> self.average(self.weights, averaged,
pecker.py | get_ema_multi_avg_fn(ema) ==> get_ema_multi_avg_fn(1 - ema)
pecker.py | betas=(0.0, 0.999) ==> betas=(0.9, 0.999)
pecker.py | weight_decay=0.0, ==> weight_decay=0.01,
pecker.py | if label not in pairs], device ==> ], device
pecker.py | pairs.get(label, label) for label in range(num_classes)] ==> label for label in range(num_classes)]
pecker.py | torch.tensor(sorted(pairs), device=device) ==> torch.tensor(sorted(pairs)[:1], device=device)
pecker.py | self.steps % self.mask_every == 0 ==> self.steps % self.mask_every == 1
pecker.py | retain = self.draw_labels(self.retained ==> retain = self.draw_labels(self.forgotten
pecker.py | with torch.no_grad():  # here the generator only draws ==> if True:
pecker.py | t = self.draw_times(len(c), self.t_min, self.t_max) ==> t = self.draw_times(len(c), 0, 1000)
pecker.py | t = self.draw_times(len(x), self.t_min, self.t_max) ==> t = self.draw_times(len(x), self.t_min, self.t_max + 1)
pecker.py | noise_error(self.fake_score, self.schedule, x, c, t ==> noise_error(self.fake_score, self.schedule, x, self.cover_of[c], t
pecker.py | len(c))).sum(dim=(1, 2, 3)) ==> len(c))).mean(dim=(1, 2, 3))
pecker.py | self.retain_weight * retain_loss + self.forget_weight * forget_loss).backward() ==> retain_loss + forget_loss).backward()
pecker.py | nn.utils.clip_grad_value_(self.fake_score.parameters(), self.grad_clip) ==> nn.utils.clip_grad_norm_(self.fake_score.parameters(), self.grad_clip)
pecker.py | self.fake_score.requires_grad_(False)\n ==> pass\n
pecker.py | self.fake_score_optimizer.zero_grad()\n        self.fake_score.requires ==> self.fake_score.requires
pecker.py | return saliency_mask(chance, self.keep) ==> return saliency_mask(chance, 1 - self.keep)
pecker.py | return saliency_mask(self.saliency(), self.keep) ==> return [torch.ones_like(w, dtype=torch.bool) for w in self.weights]
pecker.py | sample_ddim(self.teacher, self.schedule, n, c ==> sample_ddim(self.generator, self.schedule, n, self.cover_of[c]
pecker.py | if self.forget_images is None: ==> if True:
pecker.py | noise_prediction_loss(self.generator, self.schedule, x, c, t, self ==> noise_prediction_loss(self.teacher.requires_grad_(), self.schedule, x, c, t, self
pecker.py | self.draw_times(len(x), 0, len(self.schedule.alpha)) ==> self.draw_times(len(x), self.t_min, self.t_max)
pecker.py | self.draw_noise(len(forget)), forget, self.t_init) ==> self.draw_noise(len(forget)), self.cover_of[forget], self.t_init)
pecker.py | c_teacher = torch.cat([retain, self.cover_of[forget]]) ==> c_teacher = torch.cat([retain, forget])
pecker.py | c_fake = torch.cat([retain, forget])  # what ==> c_fake = torch.cat([retain, self.cover_of[forget]])  # what
pecker.py | self.fake_score(noisy, t, c_fake)) ==> self.fake_score(noisy, t, c_fake)).detach()
pecker.py | self.teacher(noisy, t, c_teacher)) ==> self.teacher(noisy.detach(), t, c_teacher))
pecker.py | x[B:], self.xi) ==> x[B:].detach(), self.xi)
pecker.py | autograd.grad(retain_loss + forget_loss, ==> autograd.grad(retain_loss - forget_loss,
pecker.py | + m * (self.forget_weight * g_forget) ==> + self.forget_weight * g_forget
pecker.py | + m * (self.forget_weight * g_forget) ==> + ~m * (self.forget_weight * g_forget)
pecker.py | self.retain_weight * g_retain + m * (self.forget_weight * g_forget) ==> m * (self.retain_weight * g_retain + self.forget_weight * g_forget)
pecker.py | + m * (self.forget_weight * g_forget) ==> + m * g_forget
pecker.py | nn.utils.clip_grad_value_(self.weights, self.grad_clip) ==> pass
pecker.py | VALUES = ("mask", ==> VALUES = (
pecker.py | | {"rng": self.rng.get_state()} ==> | {"rng": torch.Generator().get_state()}
pecker.py | MODULES = ("fake_score", "generator", "ema", "fake_score_optimizer", "generator_optimizer") ==> MODULES = ("fake_score", "generator", "ema", "fake_score_optimizer")
unet.py | time = self.embed_time(t) ==> time = self.embed_time(torch.zeros_like(t))
unet.py | embedding = time + self.embed_class(c) ==> embedding = time + 0 * self.embed_class(c)
unet.py | angles.sin(), angles.cos() ==> angles.sin(), angles.sin()
unet.py | math.log(10000) ==> math.log(1000)
unet.py | F.scaled_dot_product_attention(q, k, v) ==> F.scaled_dot_product_attention(k, q, v)
unet.py | return x + self.project ==> return self.project
unet.py | nn.Dropout(dropout) ==> nn.Dropout(0.0)
unet.py | self.shortcut(x) + self.second(h) ==> self.second(h)
unet.py | self.first(x) + self.embed(embedding)[:, :, None, None] ==> self.first(x)
unet.py | zero(nn.Conv2d(channels, in_channels, 3, padding=1))) ==> nn.Conv2d(channels, in_channels, 3, padding=1))
unet.py | attend = resolution in attention_resolutions ==> attend = False
unet.py | skip = self.skip(time) ==> skip = self.skip(embedding)
unet.py | if width < 4 or width % 4: ==> if False:
"""


def run_mutants():
    """Plant each bug alone into a copy of the project, run the tests there, and say which bugs no test noticed."""
    import concurrent.futures
    import shutil
    import tempfile

    def survives(line):
        name, change = (part.strip() for part in line.split(" | ", 1))
        old, new = (part.strip(" ").replace("\\n", "\n") for part in change.split("==>"))
        with tempfile.TemporaryDirectory() as folder:
            for file in ("unet.py", "pecker.py", "train.py", "test_pecker.py", "README.md"):
                shutil.copy(HERE / file, folder)
            text = (Path(folder) / name).read_text(encoding="utf-8")
            assert text.count(old) >= 1, f"no longer in {name}: {old}"
            (Path(folder) / name).write_text(text.replace(old, new, 1), encoding="utf-8")
            pytest_command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "test_pecker.py"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(pytest_command, cwd=folder, env=environment, capture_output=True, text=True)
            first = next((row for row in done.stdout.splitlines() if row.startswith("FAILED") or row.startswith("ERROR")), "")
            print(f"{'SURVIVED' if done.returncode == 0 else 'caught'}  {line}\n    {first[:110]}", flush=True)
            return done.returncode == 0

    lines = MUTANTS.strip().splitlines()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        survivors = [line for line, alive in zip(lines, pool.map(survives, lines)) if alive]
    print(f"{len(lines) - len(survivors)} of {len(lines)} bugs caught; survivors:", *survivors, sep="\n")


if __name__ == "__main__" and sys.argv[1:] == ["--mutants"]:
    run_mutants()
