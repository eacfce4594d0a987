"""PECKER: A Precisely Efficient Critical Knowledge Erasure Recipe For Machine Unlearning in Diffusion Models.

arXiv 2604.05634 ("the paper"). It puts the saliency mask of SalUn (2310.12508) on Score Forgetting Distillation
(SFD, 2409.11219), which is Score identity Distillation (SiD, 2404.04057) with a changed label. Noise: DDPM (2006.11239).

A frozen *teacher* can draw the class that must go. A *generator* learns to draw in one evaluation what the teacher draws, but
a *cover* class wherever the forgotten class is asked for. A *fake score* network keeps up with what the generator draws.
All three are the same network and start from the teacher's weights; no real image is needed.

Algorithm 1, one iteration:
    1. draw labels: `retain` from the retained classes, `forget` from the forgotten ones; draw fresh noise
    2. the generator draws images for both, in one evaluation
    3. fake score: one Adam step on denoising those images                                          (Eq. 3)
    4. when due: saliency of the generator's weights for the forgotten class, and the mask from it  (Eq. 8-10)
    5. the generator draws fresh images; how far are they from what the teacher would draw?         (Eq. 4, 7)
    6. one Adam step on  retain gradient + mask * forget gradient;  update the moving average

    paper            here                        shape           meaning
    phi, psi, theta  teacher, fake_score,        networks        net(noisy, t, c) -> eps: images, timesteps and labels
                     generator                                   (B, C, H, W), (B,), (B,) -> predicted noise (B, C, H, W)
    c_r, c_f, c_o    retain, forget, cover       (B,)            retained, forgotten and cover labels
    alpha_t          alpha                       (T,)            sqrt(prod(1 - beta)), the signal left at time t
    sigma_t          sigma                       (T,)            sqrt(1 - alpha_t^2), the noise at time t
    z_t              noisy                       (B, C, H, W)    alpha_t x + sigma_t noise
    x, x_r, x_f      x                           (B, C, H, W)    images, in [-1, 1] if real, unbounded if generated
    x_phi, x_psi     x0_teacher, x0_fake         (B, C, H, W)    clean images estimated from noisy ones    (Eq. 1, 2)
    t_min, t_max     t_min, t_max                numbers         t_min <= t < t_max, the noise on generated images
    t_init           t_init                      number          the time at which the generator works
    lambda, mu       retain_, forget_weight      numbers         weights of the two terms                  (Eq. 3, 4)
    xi               xi                          number          weighs Q^2 against Q (x0_fake - x)           (Eq. 7)
    D_f              forget_images               (N, C, H, W)    images of the forgotten classes              (Eq. 9)
    g_s, m_s, gamma  saliency, mask, threshold   as the weights  gradient; where it is largest; how large (Eq. 9, 10)
"""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# --- Noise, and the network that predicts it (DDPM) ------------------------------------------------------------------


class NoiseSchedule(nn.Module):
    """DDPM's linear schedule. Buffers alpha, sigma: (T,) float32, T = steps; t = 0 is almost clean, t = T-1 almost noise.

    alpha_t^2 = prod_{s <= t} (1 - beta_s), sigma_t^2 = 1 - alpha_t^2, beta linear. DDPM, section 2 and 4.
    """

    def __init__(self, steps=1000, beta_start=1e-4, beta_end=0.02):
        super().__init__()
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        alpha_squared = torch.cumprod(1 - beta, dim=0)
        self.register_buffer("alpha", alpha_squared.sqrt().float())
        self.register_buffer("sigma", (1 - alpha_squared).sqrt().float())

    def add_noise(self, x, t, noise):
        """z_t = alpha_t x + sigma_t noise. x, noise (B, C, H, W), t (B,) long -> (B, C, H, W). Before Eq. 1."""
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1).to(x.dtype), self.sigma[t].view(-1, 1, 1, 1).to(x.dtype)
        return alpha * x + sigma * noise

    def predict_x0(self, noisy, t, eps):
        """x = (z_t - sigma_t eps) / alpha_t, the clean image if the noise is eps. Shapes as add_noise. Eq. 1, 2."""
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1).to(noisy.dtype), self.sigma[t].view(-1, 1, 1, 1).to(noisy.dtype)
        return (noisy - sigma * eps) / alpha


def noise_error(net, schedule, x, c, t, noise):
    """(noise - net(z_t, t, c))^2 for every pixel. x, noise (B, C, H, W), c, t (B,) long -> (B, C, H, W). Inside Eq. 8."""
    return (noise - net(schedule.add_noise(x, t, noise), t, c)).square()


def noise_prediction_loss(net, schedule, x, c, t=None, noise=None):
    """L_MSE = E_{t, noise} ||noise - net(z_t, t, c)||^2, mean over batch and pixels -> scalar. Eq. 8; trains the teacher.

    x (B, C, H, W) in [-1, 1], c (B,) long. If not given, t (B,) is drawn from 0..T-1 and noise from N(0, I).
    """
    if t is None:
        t = torch.randint(len(schedule.alpha), (len(x),), device=x.device)
    if noise is None:
        noise = torch.randn_like(x)
    return noise_error(net, schedule, x, c, t, noise).mean()


# --- Two ways to draw images -----------------------------------------------------------------------------------------


def generate(generator, schedule, noise, c, t_init=440):
    """One network evaluation: noise (B, C, H, W) ~ N(0, I), labels c (B,) -> images (B, C, H, W), not clamped.

    z = sigma_init noise,  x = (z - sigma_init generator(z, t_init, c)) / alpha_init. SFD, section 3; Alg. 1, steps 2, 5.
    """
    t = torch.full((len(noise),), t_init, device=noise.device)
    noisy = schedule.sigma[t_init] * noise  # z of a grey image: zero signal, noise of time t_init
    return schedule.predict_x0(noisy, t, generator(noisy, t, c))


@torch.no_grad()
def sample_ddim(net, schedule, noise, c, steps):
    """`steps` network evaluations: noise (B, C, H, W) ~ N(0, I), labels c (B,) -> clean images (B, C, H, W) in [-1, 1].

    Not in the paper. SFD's authors judge the teacher by 1000 steps; DDIM (2010.02502, Eq. 12, eta = 0) needs few.
    Times T-1, T-1 - T/steps, ..., rounded down; at each, x0 is clamped and eps fitted to it. ValueError unless 1 <= steps <= T.
    """
    T = len(schedule.alpha)
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be in 1..{T}, not {steps}")
    times = [T * (steps - i) // steps - 1 for i in range(steps)]  # t = T-1, ..., T/steps - 1
    noisy = noise
    for now, then in zip(times, times[1:] + [None]):
        t = torch.full((len(noise),), now, device=noise.device)
        # Clamping matters near t = T-1: there alpha is 0.006, so x0 carries the network's error 157 times enlarged.
        x0 = schedule.predict_x0(noisy, t, net(noisy, t, c)).clamp(-1, 1)
        if then is not None:
            eps = (noisy - schedule.alpha[now] * x0) / schedule.sigma[now]  # the noise that fits the clamped image
            noisy = schedule.alpha[then] * x0 + schedule.sigma[then] * eps
    return x0


# --- The two ideas: distillation loss and saliency mask --------------------------------------------------------------


def distillation_loss(x0_teacher, x0_fake, x, xi):
    """Descending it moves the generator's images x to the teacher's. (B, C, H, W) each -> scalar, may be negative. Eq. 7.

        Q = x0_teacher - x0_fake
        w = 1 / max(mean_{C,H,W} |x0_teacher - x|, 1e-5)       a number per image, without gradient
        L = sum_{C,H,W} w [ (1 - xi) Q^2 + Q (x0_fake - x) ]   mean over the batch

    Paper: weight omega_t alpha_t^2 / sigma_t^4. Here: w. Because: SiD's omega_t is w sigma_t^4 / alpha_t^2, and w is left.
    """
    w = 1 / (x0_teacher - x).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5).detach()
    Q = x0_teacher - x0_fake
    return (w * ((1 - xi) * Q.square() + Q * (x0_fake - x))).sum(dim=(1, 2, 3)).mean()


def saliency_mask(gradients, keep):
    """m_s = 1(|g_s| >= threshold): where the largest gradients are. List of tensors -> list of bool tensors. Eq. 10.

    ONE threshold over all tensors together, the one that keeps round(keep * N) of the N entries if no two are equal;
    entries equal to the threshold are all kept. keep = 0 keeps none, keep = 1 all. ValueError if keep is not in [0, 1].
    Paper: no value for the threshold. Here: a share to keep, 0.5 by default. Because: SalUn takes the median.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be in [0, 1], not {keep}")
    saliency = torch.cat([gradient.detach().flatten() for gradient in gradients]).abs()  # (N,)
    kept = round(keep * len(saliency))
    if kept == 0:
        return [torch.zeros_like(gradient, dtype=torch.bool) for gradient in gradients]
    threshold = saliency.topk(kept, sorted=False).values.min()  # a selection: no full sort, no copy to the host
    return [gradient.detach().abs() >= threshold for gradient in gradients]


# --- Algorithm 1 -----------------------------------------------------------------------------------------------------


class Pecker:
    """The networks and one iteration of Algorithm 1. ValueError for arguments that contradict each other.

    teacher        net(noisy, t, c) -> eps, trained with noise_prediction_loss. It is copied, never changed; in fake score
                   and generator all parameters are trained, also those that the teacher keeps fixed.
    schedule       the NoiseSchedule it was trained with; networks are compared at its times t_min <= t < t_max
    pairs          {forgotten label: its cover label}; one class, several or a whole concept are the same to the code
    num_classes    labels are 0..num_classes-1; those not forgotten are retained.     image_shape: (C, H, W)
    batch_size     images per iteration of the retained classes, and as many again of the forgotten ones
    retain_weight  lambda_psi = lambda_theta in Eq. 3, 4.     forget_weight: mu_psi = mu_theta
    xi             Q^2 has the weight 1 - xi in Eq. 7. If the images turn to noise, try 1.0.     lr, fake_score_lr: learning rates
    mask           "saliency": Eq. 10; "random": as many entries, chosen by chance; "none": all entries.
                   mask="none" with forget_weight=0.01 is SFD without dropout.     keep: share of weights in the mask, in [0, 1]
    mask_every     a new mask every so many iterations; 1: as in the paper; 0: one for all time, before the generator's first step
    grad_clip      every entry of a gradient is clipped to [-grad_clip, grad_clip].     ema: the average's decay, in [0, 1)
    ddim_steps     network evaluations per image of D_f, of which there are num_forget_images, at least batch_size
    seed           of everything drawn by chance; torch's global state is neither read nor changed

    Results: `generator` and `ema`, its moving average, for generate() with this t_init. In torch.autocast: cache_enabled=False.
    """

    def __init__(
        self, teacher, schedule, pairs, num_classes, image_shape, *, retain_weight=1.0, forget_weight=1.0, xi=1.2,
        keep=0.5, mask="saliency", mask_every=1, lr=1e-5, fake_score_lr=1e-5, batch_size=128, t_min=38, t_init=440,
        t_max=712, grad_clip=1.0, ema=0.9999, ddim_steps=50, num_forget_images=256, seed=0,
    ):  # fmt: skip
        T, pairs = len(schedule.alpha), {int(forget): int(cover) for forget, cover in pairs.items()}  # also from tensors
        if not 0 < len(pairs) < num_classes:
            raise ValueError(f"{len(pairs)} of {num_classes} classes to forget: give at least one and retain at least one")
        if outside := [label for label in (*pairs, *pairs.values()) if not 0 <= label < num_classes]:
            raise ValueError(f"label {outside[0]} is out of range: give labels in 0..{num_classes - 1}")
        for forget, cover in pairs.items():
            if cover in pairs:
                raise ValueError(f"label {cover} covers {forget} but is forgotten itself: give a retained class as cover")
        if mask not in ("saliency", "random", "none"):
            raise ValueError(f'mask must be "saliency", "random" or "none", not "{mask}"')
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must be in [0, 1], not {keep}")
        if mask_every < 0 or not 0 <= ema < 1 or not 1 <= batch_size <= num_forget_images:
            raise ValueError("mask_every must be 0 or more, ema in [0, 1), batch_size 1 or more, num_forget_images no less")
        if not (0 <= t_min < t_max <= T and 0 <= t_init < T and 1 <= ddim_steps <= T):
            raise ValueError(f"times must satisfy 0 <= t_min < t_max <= {T}, 0 <= t_init < {T} and 1 <= ddim_steps <= {T}")

        device = next(teacher.parameters()).device
        # eval() switches dropout off: the images are always fresh, so there is nothing to overfit.
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.fake_score = copy.deepcopy(teacher).eval().requires_grad_(False)  # except while it is trained
        self.generator = copy.deepcopy(teacher).eval().requires_grad_(True)
        self.ema = copy.deepcopy(teacher).eval().requires_grad_(False)  # the generator's moving average

        # Paper: "Adam, lr 1e-5". Here: also beta1 = 0, as in SFD, and no weight decay. Because: momentum would move a weight by
        # forget gradients from before it left the mask, and decay moves every weight.
        adam = dict(betas=(0.0, 0.999), weight_decay=0.0, fused=True)
        self.weights = list(self.generator.parameters())  # gradients, mask and optimiser all follow this one list
        self.generator_optimizer = torch.optim.Adam(self.weights, lr=lr, **adam)
        self.fake_score_optimizer = torch.optim.Adam(self.fake_score.parameters(), lr=fake_score_lr, **adam)

        self.schedule, self.image_shape, self.device, self.decay = schedule, tuple(image_shape), device, ema
        self.retain_weight, self.forget_weight, self.xi, self.grad_clip = retain_weight, forget_weight, xi, grad_clip
        self.mask_kind, self.keep, self.mask_every, self.num_forget_images = mask, keep, mask_every, num_forget_images
        self.batch_size, self.ddim_steps, self.t_min, self.t_init, self.t_max = batch_size, ddim_steps, t_min, t_init, t_max
        self.forgotten = torch.tensor(sorted(pairs), device=device)
        self.retained = torch.tensor([label for label in range(num_classes) if label not in pairs], device=device)
        self.cover_of = torch.tensor([pairs.get(label, label) for label in range(num_classes)], device=device)
        self.mask = None  # one bool tensor per weight tensor, once step 4 has run
        self.forget_images = self.forget_labels = None  # D_f, once step 4 has needed it
        self.steps = 0
        self.rng = torch.Generator(device).manual_seed(seed)

    def draw_labels(self, labels, count):  # -> (count,)
        return labels[torch.randint(len(labels), (count,), generator=self.rng, device=self.device)]

    def draw_times(self, count, low, high):  # -> (count,), each in low, ..., high - 1
        return torch.randint(low, high, (count,), generator=self.rng, device=self.device)

    def draw_noise(self, count):  # -> (count, C, H, W)
        return torch.randn(count, *self.image_shape, generator=self.rng, device=self.device, dtype=self.weights[0].dtype)

    def step(self):
        """Algorithm 1, once -> scalars: fake_score_retain_loss, ..._forget_loss (Eq. 3), retain_loss, forget_loss (Eq. 4)."""
        retain = self.draw_labels(self.retained, self.batch_size)  # step 1
        forget = self.draw_labels(self.forgotten, self.batch_size)
        log = self.update_fake_score(retain, forget)  # steps 2, 3
        due = self.mask_kind != "none" and self.mask_every and self.steps % self.mask_every == 0
        if due or self.mask is None:
            self.mask = self.make_mask()  # step 4
        log |= self.update_generator(retain, forget)  # steps 5, 6
        with torch.no_grad():  # average = decay * average + (1 - decay) * weights, all tensors in one call
            torch._foreach_lerp_(list(self.ema.parameters()), self.weights, 1 - self.decay)
        self.steps += 1
        return log

    def update_fake_score(self, retain, forget):
        """Labels (B,), (B,). Steps 2, 3: one Adam step on Eq. 3, the error in denoising the generator's images.

        retain_weight * L(x_r) + forget_weight * L(x_f), L the noise error: sum over pixels, mean over images.
        Paper: a time weight on the error of x0, not given. Here: (alpha / sigma)^2, which makes it the error of the noise.
        Because: such an error trained the teacher, where the fake score starts.
        """
        log = {}
        self.fake_score.requires_grad_(True).zero_grad()  # an interrupted step may have left one
        for term, c, term_weight in (("retain", retain, self.retain_weight), ("forget", forget, self.forget_weight)):
            with torch.no_grad():  # here the generator only draws
                x = generate(self.generator, self.schedule, self.draw_noise(len(c)), c, self.t_init)
            t = self.draw_times(len(c), self.t_min, self.t_max)
            error = noise_error(self.fake_score, self.schedule, x, c, t, self.draw_noise(len(c)))
            loss = error.sum(dim=(1, 2, 3)).mean()
            (term_weight * loss).backward()  # adds to the gradient of the term before
            log[f"fake_score_{term}_loss"] = loss.detach()
        nn.utils.clip_grad_value_(self.fake_score.parameters(), self.grad_clip)
        self.fake_score_optimizer.step()
        self.fake_score_optimizer.zero_grad()
        self.fake_score.requires_grad_(False)
        return log

    def make_mask(self):
        """Step 4: one bool tensor per weight tensor, True where the forget gradient may act. Eq. 8-10."""
        if self.mask_kind == "none":
            return [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights]
        if self.mask_kind == "random":
            chance = [torch.rand(weight.shape, generator=self.rng, device=self.device) for weight in self.weights]
            return saliency_mask(chance, self.keep)
        return saliency_mask(self.saliency(), self.keep)

    def saliency(self):
        """g_s = gradient of L_MSE(generator; D_f), a tensor per weight tensor, from a random batch of D_f. Eq. 9.

        Paper: "dataset to forget", yet "data-free". Here: D_f is what the teacher draws when asked for the forgotten
        classes, drawn once. Because: it needs no data, and it stays on target while the generator drifts to the cover.
        """
        if self.forget_images is None:
            self.forget_labels = self.draw_labels(self.forgotten, self.num_forget_images)
            parts = zip(self.draw_noise(self.num_forget_images).split(self.batch_size), self.forget_labels.split(self.batch_size))
            self.forget_images = torch.cat([sample_ddim(self.teacher, self.schedule, *part, self.ddim_steps) for part in parts])
        chosen = torch.randperm(self.num_forget_images, generator=self.rng, device=self.device)[: self.batch_size]
        x, c = self.forget_images[chosen], self.forget_labels[chosen]
        t = self.draw_times(len(x), 0, len(self.schedule.alpha))
        loss = noise_prediction_loss(self.generator, self.schedule, x, c, t, self.draw_noise(len(x)))
        return torch.autograd.grad(loss, self.weights, materialize_grads=True)  # zeros for a weight that takes no part

    def update_generator(self, retain, forget):
        """Labels (B,), (B,). Steps 5, 6: one Adam step on  retain_weight * grad L_retain + mask * forget_weight * grad L_forget.

        L_retain: generator and teacher are asked for the same label. L_forget: the teacher for the cover instead. Eq. 4, 7.
        Term by term, to save memory. Above 32 images the teacher's activations are not kept but made again: a quarter less of it.
        """
        log, gradients = {}, []
        twice = dict(use_reentrant=False, preserve_rng_state=False)  # no dropout, so that nothing random must be the same
        teacher = self.teacher if len(retain) <= 32 else lambda *given: checkpoint(self.teacher, *given, **twice)
        terms = ("retain", retain, retain, self.retain_weight), ("forget", forget, self.cover_of[forget], self.forget_weight)
        for term, c_fake, c_teacher, term_weight in terms:
            x = generate(self.generator, self.schedule, self.draw_noise(len(c_fake)), c_fake, self.t_init)
            t = self.draw_times(len(x), self.t_min, self.t_max)
            noisy = self.schedule.add_noise(x, t, self.draw_noise(len(x)))
            x0_teacher = self.schedule.predict_x0(noisy, t, teacher(noisy, t, c_teacher))
            x0_fake = self.schedule.predict_x0(noisy, t, self.fake_score(noisy, t, c_fake))
            loss = distillation_loss(x0_teacher, x0_fake, x, self.xi)
            # To the weights, through x itself AND through `noisy`: both x0 depend on it, and the frozen networks pass it on.
            gradients.append(torch.autograd.grad(term_weight * loss, self.weights, materialize_grads=True))
            log[f"{term}_loss"] = loss.detach()
        for weight, g_retain, g_forget, m in zip(self.weights, *gradients, self.mask, strict=True):
            weight.grad = torch.empty_like(weight).copy_(g_retain + m * g_forget)  # in its strides, as the fused Adam expects
        nn.utils.clip_grad_value_(self.weights, self.grad_clip)
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()
        return log

    MODULES = ("fake_score", "generator", "ema", "fake_score_optimizer", "generator_optimizer")
    VALUES = ("mask", "forget_images", "forget_labels", "steps")

    def state_dict(self):
        """Everything that changes, not copied. A Pecker with the same arguments that loads it continues bit for bit."""
        state = {name: getattr(self, name).state_dict() for name in self.MODULES}
        return state | {name: getattr(self, name) for name in self.VALUES} | {"rng": self.rng.get_state()}

    def load_state_dict(self, state):
        """Continue from a state_dict(), at its learning rates. KeyError, ValueError, RuntimeError if the networks do not fit."""
        for name in self.MODULES:
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))  # optimisers would share its tensors
        for name in self.VALUES:
            value = state[name]
            value = [m.to(self.device) for m in value] if isinstance(value, list) else value
            setattr(self, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)
        self.rng.set_state(state["rng"].cpu())
