"""How fast is a step, where does its time go, and how much memory does it need?

    python -m experiments.bench                               # half a minute; at least three rounds
    python -m experiments.bench --data cifar10 --width 128    # the flags of train.py

Times parts of a step in turns and prints medians. The networks are untrained and the pictures random: --data chooses a preset.
"""

import dataclasses
import sys
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import train
from pecker import NoiseSchedule, noise_prediction_loss

try:
    import resource
except ImportError:  # not on Windows
    resource = None

PEAK_BF16 = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}  # dense FLOP/s on the data sheets


def random_data(settings):
    """Random pictures of ten classes, of the right shape."""
    shape = 1000, 1 if settings.data == "fashion" else 3, settings.image_size, settings.image_size
    images = torch.randint(256, shape, dtype=torch.uint8).to(settings.device)
    labels = torch.arange(10, device=settings.device).repeat(100)
    return train.Data([f"class{label}" for label in range(10)], images, labels, images, labels)


def make_pretraining_step(settings, data):
    net, schedule = train.make_network(settings, data), NoiseSchedule().to(settings.device)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def step():
        loss = noise_prediction_loss(net, schedule, *data.batch(settings.pretrain_batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak_memory(device):
    """Bytes, or None where that is not known."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv, seconds=30):
    _, settings = train.parse_args(argv)
    settings = dataclasses.replace(settings, forget=("0:1",), ddim_steps=1)
    data = random_data(settings)
    with train.explained("these flags do not go together", "see python train.py --help"):
        net = train.make_network(settings, data)
        variants = {"kept": dict(mask_every=0), "refreshed": dict(mask_every=1), "SFD": dict(mask="none", forget_weight=0.01)}
        peckers = {name: train.make_pecker(dataclasses.replace(settings, **flags), data, net) for name, flags in variants.items()}
    pecker, B = peckers["kept"], settings.batch_size
    retain, forget = pecker.draw_labels(pecker.retained, B), pecker.draw_labels(pecker.forgotten, B)
    timed = {
        "pretraining step": make_pretraining_step(settings, data),
        "SFD step (no mask, weight 0.01)": peckers["SFD"].step,
        "PECKER step, mask kept": pecker.step,
        "PECKER step, mask refreshed": peckers["refreshed"].step,
        "  steps 2-3, fake score": lambda: pecker.update_fake_score(retain, forget),
        "  step 4, mask": peckers["refreshed"].make_mask,
        "  steps 5-6, generator": lambda: pecker.update_generator(retain, forget),
    }
    wait = getattr(torch, settings.device).synchronize
    times, begin = {name: [] for name in timed}, time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times["pretraining step"]) < 3:
        for name, call in timed.items():
            wait()
            start = time.perf_counter()
            with torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16, cache_enabled=False):
                call()
            wait()
            times[name].append(time.perf_counter() - start)
    median = {name: float(np.median(values[1:])) for name, values in times.items()}  # the first round also warms up
    with FlopCounterMode(display=False) as flops:
        pecker.step()

    where = train.environment(settings)
    print(f"{where['device']}, {where['threads']} threads; medians of {len(times['pretraining step']) - 1} rounds")
    for name, value in median.items():
        images = settings.pretrain_batch_size if name == "pretraining step" else 2 * B
        print(f"{name:<34}{1000 * value:10.1f} ms{images / value:10.0f} images/s")
    step, refreshed = median["PECKER step, mask kept"], median["PECKER step, mask refreshed"]
    for name, ratio in {
        "PECKER step, mask refreshed / SFD step": refreshed / median["SFD step (no mask, weight 0.01)"],
        "PECKER step, mask refreshed / pretraining step": refreshed / median["pretraining step"],
    }.items():
        print(f"{name:<56}{ratio:.3f}")
    rate = flops.get_total_flops() / step
    peak = next((value for name, value in PEAK_BF16.items() if name in where["device"]), None)
    print(f"FLOP/s of a PECKER step  {rate:.3g}" + (f", {rate / peak:.1%} of the device's dense bfloat16 peak" if peak else ""))
    if memory := peak_memory(settings.device):
        print(f"peak memory of all this, more than one run needs  {memory / 2**30:.2f} GiB")


if __name__ == "__main__":
    train.run_program(main)
