"""How long do the parts of a step take, and how much memory does it need?

    python -m experiments.bench                               # less than a minute
    python -m experiments.bench --data cifar10 --width 128    # the flags of train.py

Prints medians. The networks are untrained, and no pictures are needed: --data chooses a preset. SFD is all but step 4.
"""

import sys

import numpy as np
import torch

import train


def main(argv, rounds=5):
    _, settings = train.parse_args([*argv, "--forget", "0:1", "--ddim-steps", "1"])
    shape = 1, 1 if settings.data == "fashion" else 3, settings.image_size, settings.image_size
    data = train.Data([*"abcdefghij"], torch.zeros(shape, dtype=torch.uint8, device=settings.device), None, None, None)
    pecker = train.make_pecker(settings, data, train.make_network(settings, data))
    retain, forget = (pecker.draw_labels(labels, settings.batch_size) for labels in (pecker.retained, pecker.forgotten))
    timed = {
        "a step of PECKER": pecker.step,
        "  steps 2-3, fake score": lambda: pecker.update_fake_score(retain, forget),
        "  step 4, mask": pecker.make_mask,
        "  steps 5-6, generator": lambda: pecker.update_generator(retain, forget),
    }
    print(f"{settings.batch_size} + {settings.batch_size} pictures, {train.environment(settings)}")
    for name, call in timed.items():
        call = torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16, cache_enabled=False)(call)
        print(f"{name:<26}{1000 * np.median([train.seconds_of(settings, call, 1) for _ in range(rounds)]):10.1f} ms")
    if settings.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        import resource  # not on Windows

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{'peak memory':<26}{memory / 2**30:10.2f} GiB")


if __name__ == "__main__":
    train.run_program(main)
