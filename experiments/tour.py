"""The whole method in three minutes' reading: a network learns to draw ten shapes, then forgets one of them.

    python -m experiments.tour        # about 3 minutes on two CPU cores

It leaves runs/tour.png, a column a class: three rows by the teacher, three by PECKER. Red discs have become blue discs.
"""

from pathlib import Path

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.utils import save_image

from pecker import NoiseSchedule, Pecker, generate, noise_prediction_loss, sample_ddim
from train import draw_shapes, to_float
from unet import UNet

RED_DISC, BLUE_DISC = 0, 5  # of the ten classes: disc, ring, cross, bars, triangle in red, then in blue


def main(teacher_steps=1000, pecker_steps=150):
    torch.manual_seed(0)
    images, labels = draw_shapes(per_class=1000, seed=0)  # (10000, 3, 16, 16) and (10000,)

    # The teacher, an ordinary diffusion model: it is shown noisy pictures with their labels, and learns to predict the noise.
    # Whoever knows the noise knows the picture, so it can start from pure noise and clean it step by step.
    schedule = NoiseSchedule()
    teacher = UNet(16, num_classes=10, width=16, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(4,), dropout=0.0)
    optimizer = torch.optim.Adam(teacher.parameters())
    learning_rate = OneCycleLR(optimizer, max_lr=4e-3, total_steps=teacher_steps)
    for step in range(teacher_steps):
        chosen = torch.randint(len(images), (64,))
        loss = noise_prediction_loss(teacher, schedule, to_float(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learning_rate.step()
        if step % 100 == 0:
            print(f"teacher, step {step}: error of the predicted noise {loss.item():.3f}", flush=True)

    # The generator starts as the teacher and learns, without real pictures, to draw in one evaluation what that draws in 20.
    # A third network, the fake score, learns all along what the generator draws; where the teacher differs is the way to go.
    # For a red disc the teacher is asked for a blue one; this part may change only the weights that matter most for red discs.
    pecker = Pecker(
        teacher, schedule, pairs={RED_DISC: BLUE_DISC}, num_classes=10, image_shape=(3, 16, 16), batch_size=32,
        lr=3e-4, fake_score_lr=3e-4, forget_weight=0.1, t_max=400, ema=0.5 ** (1 / 20), ddim_steps=20, num_forget_images=64,
    )  # fmt: skip
    for _ in range(pecker_steps):
        pecker.step()

    noise, c = torch.randn(30, 3, 16, 16), torch.arange(10).repeat(3)  # three rows of the ten classes
    rows = torch.cat([sample_ddim(teacher, schedule, noise, c, steps=20), generate(pecker.ema, schedule, noise, c).detach()])
    Path("runs").mkdir(exist_ok=True)
    save_image(F.interpolate(rows, scale_factor=4), "runs/tour.png", nrow=10, normalize=True, value_range=(-1, 1))


if __name__ == "__main__":
    main()
