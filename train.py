"""Everything around the method: data, classifier and metrics, stages, checkpoints, command line.

    python train.py                                       # embedded shapes: train a teacher, forget red-disc, measure
    python train.py --forget red:blue --out runs/red      # forget a concept: every red-X is covered by blue-X
    python train.py unlearn --mask none --forget-weight 0.01 --teacher runs/shapes --out runs/sfd     # SFD, same teacher
    python train.py --data cifar10                        # CIFAR-10, for one CUDA GPU
    python train.py --data FOLDER --forget cat:dog        # own images: FOLDER/train/<class>/*, FOLDER/test/<class>/*
    python train.py sample --out runs/shapes              # PNG files for pytorch-fid or clean-fid
    python train.py compare --out runs/compare            # which part of the method does what
    python train.py relearn --out runs/shapes             # how soon the class comes back
    python train.py bench                                 # where the time of a step goes
"""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import functools
import io
import json
import math
import os
import platform
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.utils.flop_counter
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_pil_image

from pecker import NoiseSchedule, Pecker, generate, noise_prediction_loss, saliency_mask, sample_ddim
from unet import UNet

# In this file, from top to bottom: data; the classifier and what is measured with it; the run folder (checkpoints, log,
# pictures, the training loop that all stages share); the stages; the experiments compare and relearn; bench; the command line.

FORMAT = 1  # of checkpoints; counted up when an old one can no longer be read


def fail(message):
    """End the program: one sentence on stderr that says what to give instead, exit status 2."""
    print(f"train.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def nearest(word, known):
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


# ---------------------------------------------------------------------------------------------------------------------
# Data: one uint8 tensor on the device; [-1, 1] inside networks
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Data:
    classes: list  # of names
    images: torch.Tensor  # (N, 3, S, S) uint8, to train on
    labels: torch.Tensor  # (N,) long
    test_images: torch.Tensor  # to measure with
    test_labels: torch.Tensor
    flip: bool = True  # whether the mirror image of an example is an example of the same class

    def batch(self, size):
        """Random images, (size, 3, S, S) float in [-1, 1], mirrored half of the time if that makes sense; labels (size,)."""
        chosen = torch.randint(len(self.images), (size,), device=self.images.device)
        x = to_float(self.images[chosen])
        if self.flip:
            x = torch.where(torch.rand(size, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
        return x, self.labels[chosen]

    def fixed_noise(self, count, seed):
        """(count, 3, S, S) ~ N(0, 1): the same for the same seed, on every device."""
        noise = torch.randn(count, *self.images.shape[1:], generator=torch.Generator().manual_seed(seed))
        return noise.to(self.images.device)


def to_float(images):
    return images.float() / 127.5 - 1


def to_uint8(x):
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


COLOURS = {"red": (0.9, 0.15, 0.15), "blue": (0.15, 0.25, 0.9)}
SHAPES = ("disc", "ring", "cross", "bars", "triangle")


def draw_shapes(per_class, seed, size=16):
    """The embedded data set: red and blue shapes on grey, (10 * per_class, 3, size, size) uint8, and labels.

    Position, size, colour and background vary. A pixel is covered where the signed distance to the edge is negative.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(COLOURS) * len(SHAPES)), per_class)
    number = functools.partial(rng.uniform, size=(len(labels), 1, 1))
    unit = size / 16
    rows, columns = np.mgrid[:size, :size]
    x, y = columns - number(6.5 * unit, 8.5 * unit), rows - number(6.5 * unit, 8.5 * unit)  # (N, size, size), from the centre
    r = number(5.0 * unit, 6.5 * unit)  # half the height of the shape
    radius, across, along = np.hypot(x, y), abs(x), abs(y)
    distance = np.choose(
        (labels % len(SHAPES))[:, None, None],
        [
            radius - r,
            abs(radius - 0.75 * r) - 0.25 * r,
            np.maximum(np.minimum(across, along) - 0.3 * r, np.maximum(across, along) - r),
            np.maximum(abs(along - 0.65 * r) - 0.35 * r, across - r),
            np.maximum(y - 0.8 * r, 0.894 * across - 0.447 * (y + r)),
        ],
    )
    covered = np.clip(0.5 - distance, 0, 1)[:, None]  # (N, 1, size, size)
    colour = np.array(list(COLOURS.values()))[labels // len(SHAPES)] + rng.uniform(-0.1, 0.1, (len(labels), 3))
    background = rng.uniform(0.4, 0.6, (len(labels), 1, 1, 1))
    images = covered * colour[:, :, None, None] + (1 - covered) * background
    return torch.from_numpy((images * 255).round().clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


def load_image(path, size):
    """A picture file of any mode -> (3, size, size) uint8: the central square, resized."""
    try:
        with torchvision.utils.Image.open(path) as picture:  # Pillow, which torchvision brings along
            if picture.mode.startswith("I"):  # 16-bit grey, which convert() would cut off at 255
                image = (pil_to_tensor(picture).int() // 257).expand(3, -1, -1)
                if not 0 <= image.min() <= image.max() <= 255:
                    raise ValueError("more than 16 bits a pixel")
                image = image.to(torch.uint8)
            elif picture.mode == "F":
                raise ValueError("pixels are not whole numbers")
            else:
                image = pil_to_tensor(picture.convert("RGB"))
    except Exception as error:  # PIL raises many kinds
        fail(f"{path} cannot be read as a picture ({error}): repair or remove it")
    return resize(center_crop(image, [min(image.shape[1:])]), [size, size], antialias=True)


def load_folder(path, size):
    """PATH/train/<class>/* and PATH/test/<class>/*, or PATH/<class>/* of which every tenth image is kept for testing."""
    root = Path(path)
    if not root.is_dir():
        fail(f"--data {path} is neither shapes, cifar10, stl10 nor a folder: give one of these{nearest(path, ('shapes', 'cifar10', 'stl10'))}")
    split = (root / "train").is_dir() and any(path.is_dir() for path in (root / "train").iterdir())  # no class named train
    sets = []
    for part in [root / "train", root / "test"] if split else [root]:
        try:
            listing = torchvision.datasets.ImageFolder(part)
        except (FileNotFoundError, OSError) as error:
            fail(f"{part} must hold one folder of pictures per class ({str(error).splitlines()[0]})")
        images = torch.stack([load_image(file, size) for file, _ in listing.samples])
        sets.append((listing.classes, images, torch.tensor(listing.targets)))
    if len(sets) == 1:
        classes, images, labels = sets[0]
        test, rng = torch.zeros(len(labels), dtype=torch.bool), torch.Generator().manual_seed(0)
        for label, name in enumerate(classes):
            members = torch.nonzero(labels == label)[:, 0]
            if len(members) < 2:
                fail(f"class {name} in {root} has one picture: give at least two, one is kept for testing")
            test[members[torch.randperm(len(members), generator=rng)[::10]]] = True
        sets = [(classes, images[~test], labels[~test]), (classes, images[test], labels[test])]
    (classes, images, labels), (test_classes, test_images, test_labels) = sets
    if classes != test_classes:
        fail(f"{root}/train and {root}/test have different classes: give both the same folders")
    return Data(classes, images, labels, test_images, test_labels)


def load_torchvision(name, folder, size):
    """CIFAR-10 or STL-10 through torchvision, downloaded if need be."""
    try:
        if name == "cifar10":
            sets = [torchvision.datasets.CIFAR10(folder, train=train, download=True) for train in (True, False)]
            images = [torch.from_numpy(s.data).permute(0, 3, 1, 2) for s in sets]
            labels = [torch.tensor(s.targets) for s in sets]
        else:
            sets = [torchvision.datasets.STL10(folder, split=split, download=True) for split in ("train", "test")]
            images = [torch.from_numpy(s.data) for s in sets]
            labels = [torch.from_numpy(s.labels).long() for s in sets]
    except (OSError, RuntimeError) as error:
        archive = {"cifar10": "cifar-10-python.tar.gz", "stl10": "stl10_binary.tar.gz"}[name]
        fail(f"{name} could not be downloaded or read ({error}): put {archive} into {folder}, or name its folder by --data-dir")
    images = [resize(part, [size, size], antialias=True) for part in images]
    return Data(list(sets[0].classes), images[0], labels[0], images[1], labels[1])


def load_data(args):
    if args.data == "shapes":
        classes = [f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES]
        data = Data(classes, *draw_shapes(1000, 0, args.image_size), *draw_shapes(200, 1, args.image_size))
    elif args.data in ("cifar10", "stl10"):
        data = load_torchvision(args.data, args.data_dir, args.image_size)
    else:
        data = load_folder(args.data, args.image_size)
    if len(data.classes) < 2:
        fail(f"--data {args.data} has {len(data.classes)} class: give at least two, one to forget and one to retain")
    on_device = {name: value.to(args.device) for name, value in vars(data).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(data, flip=args.flip, **on_device)


def parse_pairs(words, classes):
    """["A:B", ...] -> {label of A: label of B}. A and B are class names, numbers, or concepts.

    A concept is a part of hyphenated names: red:blue covers every red-X by blue-X, disc:ring every X-disc by X-ring. What
    is itself the name of a class is no concept, and where names are numbers, numbers are names.
    """
    pairs = {}
    for word in words:
        forget, colon, cover = word.partition(":")
        if not (forget and colon and cover):
            fail(f"--forget {word} is not of the form A:B (forget A, draw B instead): give for example {classes[0]}:{classes[1]}")
        concept = [] if forget in classes else [name for name in classes if forget in name.split("-")]
        renamed = ["-".join(cover if part == forget else part for part in name.split("-")) for name in concept]
        found = {find_class(a, classes): find_class(b, classes) for a, b in zip(concept or [forget], renamed or [cover])}
        for label, cover_label in found.items():
            if pairs.setdefault(label, cover_label) != cover_label:
                fail(f"--forget gives {classes[label]} two covers, {classes[pairs[label]]} and {classes[cover_label]}: give one")
    return pairs


def find_class(word, classes):
    if word in classes:
        return classes.index(word)
    if word.isdecimal() and int(word) < len(classes) and not any(name.isdecimal() for name in classes):
        return int(word)
    fail(f"--forget: there is no class {word}{nearest(word, classes)}; give a name of {', '.join(classes)} or a number 0..{len(classes) - 1}")


# ---------------------------------------------------------------------------------------------------------------------
# The classifier, which only measures, and what is measured with it
# ---------------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> logits (B, num_classes); features() -> (B, 4 * width)."""

    def __init__(self, num_classes, width):
        super().__init__()

        def block(before, after):
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

        self.features = nn.Sequential(
            *block(3, width), *block(width, width), nn.MaxPool2d(2),
            *block(width, 2 * width), *block(2 * width, 2 * width), nn.MaxPool2d(2),
            *block(2 * width, 4 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.last = nn.Linear(4 * width, num_classes)

    def forward(self, x):
        return self.last(self.features(x))

    @torch.no_grad()
    def judge(self, images):
        """uint8 images (N, 3, S, S) -> features (N, 4 * width), class probabilities (N, num_classes), both on the CPU.

        There, because metrics want float64, which not every device has.
        """
        self.eval()
        features = torch.cat([self.features(to_float(part)) for part in images.split(500)])
        return features.cpu(), self.last(features).softmax(dim=1).cpu()


def frechet_distance(real, fake):
    """|mean difference|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)) of two sets of features (N, D), (M, D). Heusel et al. 2017.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric R C_f R, R = C_r^(1/2).
    ValueError with fewer images than features, where the covariance would be singular.
    """
    real, fake = real.double(), fake.double()
    if min(len(real), len(fake)) <= real.shape[1]:
        raise ValueError(f"{min(len(real), len(fake))} images are too few for {real.shape[1]} features: give more images")
    covariance_real, covariance_fake = real.T.cov(), fake.T.cov()
    values, vectors = torch.linalg.eigh(covariance_real)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariance_fake @ root).clamp(min=0).sqrt().sum()
    difference = (real.mean(0) - fake.mean(0)).square().sum()
    return (difference + covariance_real.trace() + covariance_fake.trace() - 2 * overlap).clamp(min=0).item()


def inception_score(probabilities):
    """exp(mean KL(p(y|x) || p(y))) over all images at once, (N, num_classes) -> 1..num_classes. Salimans et al. 2016."""
    p = probabilities.double()
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp().item()


def precision_recall(real, fake, k=3):
    """Features (N, D), (M, D) -> share of fake images among the real ones, share of real among the fake. 1904.06991.

    A point is among a set if it is nearer to some member than that member's k-th nearest neighbour in the set.
    """

    def share_inside(points, members):
        inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for some in members.split(1000):
            radius = torch.cdist(some, members).kthvalue(k + 1, dim=1).values  # the nearest one is the point itself
            inside |= (torch.cdist(points, some) <= radius).any(dim=1)
        return inside.double().mean().item()

    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision and recall need more than {k} images of each kind")
    return share_inside(fake, members=real), share_inside(real, members=fake)


@torch.no_grad()
def measure(data, classifier, real_features, pairs, draw, labels, network_evaluations, seed=0, curve=False):
    """Draw an image for each of `labels` (N,) by draw(noise, c) and report on them; see README for every field.

    real_features: classifier.judge(data.test_images)[0], made once. The noise is fixed by `seed`. A figure that needs
    more images than there are is None. curve: leave out what takes long, precision and recall.
    """
    noise = data.fixed_noise(len(labels), seed)
    images = torch.cat([to_uint8(draw(n, c)) for n, c in zip(noise.split(250), labels.split(250))])
    features, probabilities = classifier.judge(images)
    guess, labels, test_labels = probabilities.argmax(dim=1), labels.cpu(), data.test_labels.cpu()

    forgotten = torch.isin(labels, torch.tensor(list(pairs)))
    cover_of = torch.tensor([pairs.get(label, label) for label in range(len(data.classes))])
    share = lambda condition: condition.double().mean().item()  # noqa: E731
    retained_real = real_features[~torch.isin(test_labels, torch.tensor(list(pairs)))]
    cover_real = torch.cat([real_features[test_labels == cover] for cover in pairs.values()])  # as often as it is drawn
    histogram = guess[forgotten].bincount(minlength=len(data.classes)) / forgotten.sum()

    def if_enough(metric, *sets):
        try:
            return metric(*sets)
        except ValueError:
            return None

    neighbours = None if curve else if_enough(precision_recall, retained_real, features[~forgotten])
    precision, recall = neighbours or (None, None)
    return {
        "unlearning_accuracy": share(guess[forgotten] != labels[forgotten]),
        "cover_share": share(guess[forgotten] == cover_of[labels[forgotten]]),
        "retain_accuracy": share(guess[~forgotten] == labels[~forgotten]),
        "forget_histogram": dict(zip(data.classes, histogram.tolist())),
        "forget_entropy": torch.special.entr(probabilities[forgotten]).sum(1).mean().item(),
        "frechet_distance": if_enough(frechet_distance, retained_real, features[~forgotten]),
        "inception_score": inception_score(probabilities[~forgotten]),
        "precision": precision,
        "recall": recall,
        "cover_frechet_distance": if_enough(frechet_distance, cover_real, features[forgotten]),
        "network_evaluations": network_evaluations,
        "images": len(labels),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The run folder: checkpoints, log, pictures
# ---------------------------------------------------------------------------------------------------------------------

# The flags that a stage's result depends on. Other flags (device, how often to save, ...) may change while it runs.
DATA_FLAGS = ("data", "image_size", "flip", "seed")
STAGE_FLAGS = {
    "classifier": (*DATA_FLAGS, "classifier_width", "classifier_steps"),
    "teacher": (
        *DATA_FLAGS, "width", "multipliers", "blocks", "attention", "dropout", "pretrain_steps", "pretrain_batch_size", "pretrain_lr",
    ),
    "pecker": (
        *DATA_FLAGS, "forget", "mask", "keep", "mask_every", "forget_weight", "retain_weight", "xi", "steps", "batch_size", "lr",
        "fake_score_lr", "ema_half_life", "ddim_steps",
    ),
}  # fmt: skip


def variant(args, **changed):
    """The arguments with some of them changed."""
    return argparse.Namespace(**vars(args) | changed)


def settings_of(args, stage):
    return {flag: getattr(args, flag) for flag in STAGE_FLAGS[stage]}


def write(path, content):
    """Replace the file `path` by these bytes or leave it as it was: never half of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    write(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def save_checkpoint(path, content):
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write(path, buffer.getbuffer())


def load_checkpoint(path, stage):
    """The dict in a checkpoint of this stage, on the CPU. weights_only: a pickle that wants to run code is refused."""
    if not path.exists():
        what = {"teacher": "pretrain", "classifier": "pretrain", "pecker": "unlearn"}[stage]
        fail(f"{path} is missing: run `python train.py {what}` for this folder first, or name another by --out or --teacher")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["stage"], saved["format"]
        if not {"settings", "classes", "step", "seconds", "random_state"} | ({"teacher"} if stage == "pecker" else set()) <= saved.keys():
            raise KeyError
    except PermissionError:
        raise
    except Exception as error:  # torch raises many kinds
        fail(f"{path} is not a readable checkpoint ({type(error).__name__}): delete it and run again, or give another --out")
    if found != (stage, FORMAT):
        fail(f"{path} is a checkpoint of {found[0]}, format {found[1]}, not {stage}, format {FORMAT}: give another --out")
    return saved


def check_same(path, saved, settings):
    changed = [flag for flag, value in settings.items() if saved["settings"].get(flag) != value]
    if changed:
        was = ", ".join(f"--{flag.replace('_', '-')} {saved['settings'].get(flag)} (now {settings[flag]})" for flag in changed)
        fail(f"{path} was made with {was}: use the same flags to continue, or give another --out for a new run")


def fingerprint(net):
    """A number that tells two sets of weights apart."""
    return functools.reduce(lambda crc, w: zlib.crc32(w.detach().cpu().contiguous().numpy().tobytes(), crc), net.parameters(), 0)


def log(args, **fields):
    with open(args.out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def read_log(folder, stage):
    """The lines of a stage; a last line that a killed run left unfinished is passed over."""
    path = folder / "log.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return [line for line in lines if stage is None or line["stage"] == stage]


def forget_log_after(folder, stage, step):
    """Drop what a stage logged after its last checkpoint, which it is about to do again."""
    lines = [line for line in read_log(folder, None) if line["stage"] != stage or line.get("step", 0) <= step and step]
    write(folder / "log.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def random_state(device):
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def caught_signals():
    """Ctrl-C and SIGTERM inside are written into the list that this gives, for the loop to stop at a good moment."""
    caught = []
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resume(args, stage, path, parts, settings, extra):
    """Load a checkpoint into the parts and the random state; the steps done and the seconds that they took."""
    saved = load_checkpoint(path, stage)
    check_same(path, saved, settings)
    if saved.get("teacher_weights") != extra.get("teacher_weights"):
        fail(f"{path} was made from another teacher than that in {args.teacher}: give that one by --teacher, or another --out")
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (KeyError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        fail(f"{path} does not fit this network ({type(error).__name__}): delete it and run again, or give another --out")
    set_random_state(saved["random_state"], args.device)
    return saved["step"], saved["seconds"]


def out_of_memory(error):
    """Whether it is so, on any device; torch has no one class for it."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def train(args, stage, total, parts, step, images_per_step, watch=lambda done: None, watched=(), **extra):
    """Call step() until `total` steps are done, from the last checkpoint on; log, save and watch on the way.

    parts: {name: anything with state_dict and load_state_dict}, all that step() changes. step() returns {name: loss}.
    watch(done): called before the first step and after the `watched` ones; what it takes does not count as training time.
    Continuing equals never having stopped: weights and curves are the same bit for bit on the CPU.
    extra: entries of the checkpoint. Returns the seconds that the steps took.
    """
    path, settings = args.out / f"{stage}.pt", settings_of(args, stage)
    done, seconds = resume(args, stage, path, parts, settings, extra) if path.exists() else (0, 0.0)
    if done == total:
        print(f"{stage}: {path} is finished", flush=True)
        return seconds
    forget_log_after(args.out, stage, done)
    if done == 0:
        watch(done)
    else:
        print(f"{stage}: continues {path} at step {done}", flush=True)

    sums, count, last_save = {}, 0, time.monotonic()
    with caught_signals() as caught:
        while done < total:
            begin = time.perf_counter()
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                losses = step()
            done, count = done + 1, count + 1
            sums = {name: sums.get(name, 0) + loss for name, loss in losses.items()}  # on the device: no waiting for it
            log_now = done % max(1, total // 20) == 0 or done == total
            due = done % args.save_every == 0 if args.save_every else time.monotonic() - last_save > 60
            save_now = due or done == total
            if log_now or save_now or done in watched:
                means = {name: (value / count).item() for name, value in sums.items()}
                refuse_infinite(stage, means, done - count + 1, done)
            seconds += time.perf_counter() - begin
            if log_now:
                show_progress(args, stage, done, total, seconds, images_per_step, means)
                sums, count = {}, 0
            if done in watched:
                watch(done)
            if save_now or caught:
                progress = {"stage": stage, "settings": settings, "classes": args.classes, "step": done, "seconds": seconds} | extra
                state = {name: part.state_dict() for name, part in parts.items()}
                refuse_infinite(stage, {"a weight": sum(w.sum().item() for w in floats_in(state))}, done, done)
                save_checkpoint(path, progress | state | {"random_state": random_state(args.device)})
                last_save = time.monotonic()
            if caught:
                print(f"{stage}: stopped and saved at step {done}; the same command continues", flush=True)
                raise SystemExit(128 + caught[0])
    return seconds


def floats_in(state):
    """All float tensors in nested dicts and lists."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list):
        return [tensor for part in state for tensor in floats_in(part)]
    return [state] if isinstance(state, torch.Tensor) and state.is_floating_point() else []


def refuse_infinite(stage, means, first, last):
    for name, value in means.items():
        if not math.isfinite(value):
            advice = {"pecker": "a lower --lr, --fake-score-lr or --xi", "teacher": "a lower --pretrain-lr", "classifier": "other pictures"}
            fail(f"{stage}: {name} is not finite in steps {first} to {last}; the last checkpoint is kept. Try {advice[stage]} and another --out")


def show_progress(args, stage, done, total, seconds, images_per_step, means):
    speed, left = images_per_step * done / seconds, (total - done) * seconds / done
    log(args, stage=stage, step=done, **means, images_per_second=round(speed, 1), seconds_left=round(left, 1))
    text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
    print(f"{stage} {done}/{total}  {text}  {speed:.0f} images/s  {int(left) // 60}:{int(left) % 60:02} left", flush=True)


def save_picture(path, rows, row_names, column_names):
    """rows (R, C, 3, S, S) uint8 -> a PNG with a name above each column and before each row."""
    R, C, _, S, _ = rows.shape
    scale = max(1, 64 // S)
    high, wide = S * scale + 8, max(S * scale + 8, 7 * max(map(len, column_names)))  # of a tile, with its margin
    left, top, sides = 7 * max(map(len, row_names)) + 12, 20, wide - S * scale
    big = F.interpolate(rows.cpu().flatten(0, 1), scale_factor=scale)
    grid = torchvision.utils.make_grid(F.pad(big, (sides // 2, sides - sides // 2, 0, 8), value=255), nrow=C, padding=0)
    picture = to_pil_image(F.pad(grid, (left, 0, top, 0), value=255))
    pen = torchvision.utils.ImageDraw.Draw(picture)  # of Pillow, which torchvision brings along
    for c, name in enumerate(column_names):
        pen.text((left + (c + 0.5) * wide - pen.textlength(name) / 2, 4), name, fill="black")
    for r, name in enumerate(row_names):
        pen.text((4, top + r * high + S * scale / 2 - 6), name, fill="black")
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    write(path, buffer.getbuffer())


# ---------------------------------------------------------------------------------------------------------------------
# The stages
# ---------------------------------------------------------------------------------------------------------------------


def train_classifier(args, data):
    """The classifier in eval mode, and the seconds that its training took. It never sees a generated image."""
    torch.manual_seed(args.seed)
    classifier = Classifier(len(data.classes), args.classifier_width).to(args.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    lr_schedule = OneCycleLR(optimizer, max_lr=5e-3, total_steps=args.classifier_steps)
    shift = torchvision.transforms.v2.RandomCrop(args.image_size, padding=args.image_size // 8, padding_mode="reflect")

    def step():
        classifier.train()
        x, c = data.batch(128)
        x = shift(x) + 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)  # judge shapes, not grain
        loss = F.cross_entropy(classifier(x).float(), c, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_schedule.step()
        return {"loss": loss.detach()}

    parts = {"net": classifier, "optimizer": optimizer, "lr_schedule": lr_schedule}
    seconds = train(args, "classifier", args.classifier_steps, parts, step, 128)
    return classifier.eval(), seconds


def make_network(args, num_classes):
    network = UNet(
        args.image_size, num_classes, args.width, args.multipliers, args.blocks, args.attention, args.dropout,
    )  # fmt: skip
    return network.to(args.device, memory_format=torch.channels_last)


def make_teacher_step(args, data, net, noise_schedule):
    """One step of training the DDPM (Eq. 8), and the parts that it changes."""
    ema, average = AveragedModel(net), get_ema_multi_avg_fn(0.5 ** (20 / args.pretrain_steps))  # half-life: 5 % of the run
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    # Warm-up and cosine. 0.11: torch divides by pct_start * total_steps - 1, which 0.1 would make zero for ten steps.
    lr_schedule = OneCycleLR(optimizer, args.pretrain_lr, total_steps=args.pretrain_steps, pct_start=0.11, cycle_momentum=False)
    if args.compile:
        net.compile()

    def step():
        x, c = data.batch(args.pretrain_batch_size)
        loss = noise_prediction_loss(net, noise_schedule, x, c)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_schedule.step()
        average(list(ema.module.parameters()), list(net.parameters()), None)  # unlike update_parameters(), waits for nothing
        return {"loss": loss.detach()}

    return step, {"net": net, "ema": ema, "optimizer": optimizer, "lr_schedule": lr_schedule}


def train_teacher(args, data):
    """The DDPM, with the moving average of its weights, and the seconds that its training took."""
    torch.manual_seed(args.seed)
    step, parts = make_teacher_step(args, data, make_network(args, len(data.classes)), NoiseSchedule().to(args.device))
    counts = dict(zip(data.classes, data.labels.bincount(minlength=len(data.classes)).tolist()))
    show = lambda done: log(args, stage="teacher", step=done, labels=counts)  # noqa: E731  who never saw a class can't forget it
    seconds = train(args, "teacher", args.pretrain_steps, parts, step, args.pretrain_batch_size, watch=show)
    return parts["ema"].module.eval(), seconds


def make_pecker(args, data, teacher):
    pecker = Pecker(
        teacher, NoiseSchedule().to(args.device), args.pairs, len(data.classes), data.images.shape[1:],
        retain_weight=args.retain_weight, forget_weight=args.forget_weight, xi=args.xi, keep=args.keep, mask=args.mask,
        mask_every=args.mask_every, lr=args.lr, fake_score_lr=args.fake_score_lr, batch_size=args.batch_size,
        ema=0.5 ** (1 / args.ema_half_life), ddim_steps=args.ddim_steps, seed=args.seed,
    )  # fmt: skip
    if args.compile:
        for net in (pecker.teacher, pecker.fake_score, pecker.generator):
            net.compile()
    return pecker


def unlearn(args, data, classifier, teacher):
    """Algorithm 1 with its curve in log.jsonl and its picture. Returns the Pecker and the seconds that its steps took."""
    pecker = make_pecker(args, data, teacher)
    forgotten, looks = list(args.pairs), {*range(0, args.steps, max(1, args.steps // 50)), args.steps}
    real_features, _ = classifier.judge(data.test_images)
    # Images a class: about a hundred of the forgotten classes, and of the retained ones twice what the Frechet distance needs.
    few, many = max(1, 100 // len(forgotten)), max(20, 2 * real_features.shape[1] // (len(data.classes) - len(forgotten)) + 1)
    counts = torch.tensor([few if label in forgotten else many for label in range(len(data.classes))])
    labels = torch.arange(len(data.classes)).repeat_interleave(counts).to(args.device)

    # The forgotten class with fixed noise at eight points of the run, most of them early: the paper's Figure 2.
    points = sorted({round(args.steps * (i / 7) ** 2) for i in range(8)})
    columns = torch.tensor(forgotten, device=args.device).repeat(10)[:10]
    noise = data.fixed_noise(10, seed=1)
    album = nn.Module()
    album.register_buffer("frames", torch.zeros(len(points), 10, *data.images.shape[1:], dtype=torch.uint8))

    def watch(done):
        nets = {"ema": pecker.ema.module, "raw": pecker.generator}
        if done in looks:
            for name, net in nets.items():
                draw = functools.partial(generate, net, pecker.schedule)
                report = measure(data, classifier, real_features, args.pairs, draw, labels, 1, seed=1, curve=True)
                keys = ("unlearning_accuracy", "cover_share", "retain_accuracy", "frechet_distance")
                log(args, stage="pecker", step=done, weights=name, images=len(labels), **{key: report[key] for key in keys})
        if done in points:
            with torch.no_grad():
                album.frames[points.index(done)] = to_uint8(generate(pecker.generator, pecker.schedule, noise, columns))

    seconds = train(
        args, "pecker", args.steps, {"pecker": pecker, "album": album}, pecker.step, 2 * args.batch_size, watch, looks | set(points),
        teacher=os.path.relpath(args.teacher, args.out), teacher_weights=fingerprint(teacher),
    )  # fmt: skip
    names = [data.classes[label] for label in columns]
    save_picture(args.out / "trajectory.png", album.frames, [f"step {point}" for point in points], names)
    return pecker, seconds


def steps_to_forget(args, weights):
    """The first logged step from which on the class stays forgotten: unlearning accuracy >= 0.95 and cover share >= 0.90,
    with the retain accuracy within 2 points of its last value. None if there is no such step."""
    curve = [line for line in read_log(args.out, "pecker") if line.get("weights") == weights]
    first = None
    for line in reversed(curve):
        near = abs(line["retain_accuracy"] - curve[-1]["retain_accuracy"]) <= 0.02
        if not (line["unlearning_accuracy"] >= 0.95 and line["cover_share"] >= 0.90 and near):
            break
        first = line["step"]
    return first


def evaluate(args, data, classifier, teacher, pecker, seconds):
    """metrics.json, before_after.png and the table of what was reached."""
    schedule, begin = pecker.schedule, time.perf_counter()
    labels = torch.arange(len(data.classes), device=args.device).repeat_interleave(args.images)
    real_features, probabilities = classifier.judge(data.test_images)
    report = functools.partial(measure, data, classifier, real_features, args.pairs, labels=labels)
    ddim = functools.partial(sample_ddim, teacher, schedule, steps=args.ddim_steps)
    one_step = {"teacher_one_step": teacher, "generator": pecker.ema.module, "generator_raw": pecker.generator}
    metrics = {"teacher": report(ddim, network_evaluations=args.ddim_steps)}
    for name, net in one_step.items():
        metrics[name] = report(functools.partial(generate, net, schedule), network_evaluations=1)
    metrics["generator"]["steps_to_forget"] = steps_to_forget(args, "ema")
    metrics["generator_raw"]["steps_to_forget"] = steps_to_forget(args, "raw")
    settings = {
        "classifier_accuracy": (probabilities.argmax(1) == data.test_labels.cpu()).double().mean().item(),
        "classifier_features": real_features.shape[1], "real_images": len(data.test_labels),
        "seconds": seconds | {"evaluate": time.perf_counter() - begin}, **environment(args),
        "flags": settings_of(args, "teacher") | settings_of(args, "pecker"),
    }  # fmt: skip
    write_json(args.out / "metrics.json", {"settings": settings, **metrics})

    label_list = [*args.pairs, *args.pairs.values(), *range(len(data.classes))]
    columns = sorted(list(dict.fromkeys(label_list))[:10])  # where there are more classes: those that matter most
    noise = data.fixed_noise(3 * len(columns), seed=2)
    c = torch.tensor(columns, device=args.device).repeat(3)
    with torch.no_grad():
        rows = torch.cat([to_uint8(ddim(noise, c)), to_uint8(generate(pecker.ema.module, schedule, noise, c))])
    rows = rows.view(6, len(columns), *rows.shape[1:])
    save_picture(args.out / "before_after.png", rows, ["teacher"] * 3 + ["PECKER"] * 3, [data.classes[label] for label in columns])
    return {"settings": settings, **metrics}


def mean_and_spread(values):
    """[numbers or None] -> "mean ± standard deviation" of those that are there, with their count if some are missing."""
    there = [value for value in values if value is not None]
    mean = f"{np.mean(there):.4g}" if there else "-"
    spread = f" ± {np.std(there, ddof=1):.2g}" if len(there) > 1 else ""
    return mean + spread + (f" ({len(there)}/{len(values)})" if 0 < len(there) < len(values) else "")


def mean_and_interval(values):
    """[numbers or None] -> "mean ± half of the 95 % confidence interval of the mean" (Student's t) of those that are there."""
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return "-"
    t = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)[min(len(there), 10) - 2]  # for 2, 3, ..., 10 values; a little wide for more
    return f"{np.mean(there):+.3g} ± {t * np.std(there, ddof=1) / math.sqrt(len(there)):.2g}"


def print_rows(title, rows, columns, show=mean_and_spread):
    """rows {name: {key: [a value per seed]}}, columns {key: text}: a table, by default of means and standard deviations."""
    width = max(map(len, [*rows, title])) + 2
    print("\n" + title.ljust(width) + "".join(text.rjust(20) for text in columns.values()))
    for name, row in rows.items():
        print(name.ljust(width) + "".join(show(row[key]).rjust(20) for key in columns))


ROWS = {
    "unlearning_accuracy": "unlearning accuracy (higher is better)",
    "cover_share": "cover share (higher)",
    "retain_accuracy": "retain accuracy (higher)",
    "frechet_distance": "Frechet distance, retained (lower)",
    "inception_score": "Inception-style score, retained (higher)",
    "precision": "precision, retained (higher)",
    "recall": "recall, retained (higher)",
    "cover_frechet_distance": "Frechet distance to cover (lower)",
    "forget_entropy": "entropy at forgotten labels, nats (lower)",
    "network_evaluations": "network evaluations per image",
    "images": "images",
    "steps_to_forget": "steps to forget",
}


def print_metrics(args, metrics):
    print(f"\n{args.data}: forget {' '.join(args.forget)}; classifier {metrics['settings']['classifier_accuracy']:.4f} on real images")
    columns = ("teacher", "teacher_one_step", "generator", "generator_raw")
    rows = {text: {name: [metrics[name].get(key)] for name in columns} for key, text in ROWS.items()}
    print_rows("", rows, dict(zip(columns, columns)))
    print(f"Results, pictures and log: {args.out}")


def write_samples(args, data, pecker):
    """--images PNG files per class into samples/<class>/, drawn by the moving average of the generator."""
    for label, name in enumerate(data.classes):
        folder = args.out / "samples" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        c = torch.full((args.images,), label, device=args.device)
        noise = data.fixed_noise(args.images, args.seed + label)
        with torch.no_grad():
            draws = [generate(pecker.ema.module, pecker.schedule, n, k) for n, k in zip(noise.split(250), c.split(250))]
        for number, image in enumerate(to_uint8(torch.cat(draws))):
            to_pil_image(image.cpu()).save(folder / f"{number:05}.png")
    print(f"{args.images} pictures of each class are in {args.out / 'samples'}")


# ---------------------------------------------------------------------------------------------------------------------
# Experiments: which part of the method does what, and what a stranger can bring back
# ---------------------------------------------------------------------------------------------------------------------

METHODS = {
    f"{mask}, weight {weight}": dict(mask=mask, forget_weight=weight) for weight in (1.0, 0.01) for mask in ("saliency", "random", "none")
} | {
    "saliency once, weight 1.0": dict(mask="saliency", forget_weight=1.0, mask_every=0),
    "copied row": dict(mask="none", forget_weight=0.0),  # distilled without forgetting; see copy_cover_rows
}  # fmt: skip
COMPARED = {
    "steps_to_forget": "steps to forget", "milliseconds_per_step": "ms a step", "unlearning_accuracy": "unlearning",
    "cover_share": "cover share", "retain_accuracy": "retain", "frechet_distance": "Frechet", "cover_frechet_distance": "Frechet cover",
    "frechet_wobble": "Frechet wobble",
}  # fmt: skip


def copy_cover_rows(net, pairs):
    """The trivial baseline: the forgotten label's row of the class embedding becomes the cover's. No training at all."""
    net = copy.deepcopy(net)
    [table] = [module for module in net.modules() if isinstance(module, nn.Embedding)]
    with torch.no_grad():
        for forget, cover in pairs.items():
            table.weight[forget] = table.weight[cover]
    return net


def chosen_methods(args):
    return [name for name in METHODS if any(word in name for word in args.methods or [""])]


def compare(args, data):
    """Every method with every seed from one teacher; compare.json and its table."""
    classifier, teacher, _ = stage_pretrain(args, data)
    real_features, _ = classifier.judge(data.test_images)
    labels = torch.arange(len(data.classes), device=args.device).repeat_interleave(args.images)
    schedule = NoiseSchedule().to(args.device)
    judge = functools.partial(measure, data, classifier, real_features, args.pairs, labels=labels)
    teachers = {  # judged alike, though nothing is forgotten: what the others must be seen beside
        f"teacher, DDIM {args.ddim_steps}": judge(
            functools.partial(sample_ddim, teacher, schedule, steps=args.ddim_steps), network_evaluations=args.ddim_steps
        ),
        "teacher, one step": judge(functools.partial(generate, teacher, schedule), network_evaluations=1),
    }
    rows, masks = {name: {key: [report.get(key)] for key in COMPARED} for name, report in teachers.items()}, []
    for name in chosen_methods(args):
        flags = METHODS[name]
        rows[name] = {key: [] for key in COMPARED}
        for seed in range(args.seeds):
            folder = args.out / "compare" / f"{name.replace(', weight ', '-').replace(' ', '-')}-seed{seed}"
            one = variant(args, **flags, seed=seed, out=folder)
            print(f"\n{name}, seed {seed}", flush=True)
            pecker, seconds = unlearn(one, data, classifier, teacher)
            net, steps = pecker.ema.module, steps_to_forget(one, "ema")
            if name == "copied row":
                net, steps = copy_cover_rows(net, args.pairs), 0
            report = judge(functools.partial(generate, net, pecker.schedule), network_evaluations=1)
            report |= {"steps_to_forget": steps, "milliseconds_per_step": 1000 * seconds / args.steps, "frechet_wobble": wobble(one)}
            for key, values in rows[name].items():
                values.append(report[key])
            if name == "saliency, weight 1.0":
                masks.append(describe_masks(pecker))
    write_json(args.out / "compare.json", {"methods": rows, "masks": masks, "flags": settings_of(args, "pecker"), **environment(args)})
    print_rows(f"{args.seeds} seeds, mean ± std", rows, COMPARED)
    if minus := differences(rows):
        print_rows("difference, same seed, mean ± 95 % interval", minus, COMPARED, mean_and_interval)
    for key in masks[0] if masks else ():
        if key != "kept_per_layer":
            print(f"mask: {key.replace('_', ' ')} {mean_and_spread([mask[key] for mask in masks])}")


def wobble(args):
    """How unsteady a run is: the standard deviation of the Frechet distance of its raw weights along its second half."""
    late = [line for line in read_log(args.out, "pecker") if line.get("weights") == "raw" and line["step"] > args.steps / 2]
    distances = [line["frechet_distance"] for line in late]
    return None if None in distances else float(np.std(distances))


def differences(rows):
    """What the mask does: the saliency mask minus its controls, seed by seed, in the form of `rows`."""
    found = {}
    for weight in ("weight 1.0", "weight 0.01"):
        for control in ("random", "none"):
            one, other = rows.get(f"saliency, {weight}"), rows.get(f"{control}, {weight}")
            if one and other:
                minus = lambda a, b: None if None in (a, b) else a - b  # noqa: E731
                found[f"saliency - {control}, {weight}"] = {key: [*map(minus, one[key], other[key])] for key in one}
    return found


def describe_masks(pecker):
    """Is the mask signal or noise, and is it about the forgotten class? Overlaps (intersection over union) of two masks.

    Both from images of the forgotten classes, no image in common; or one of them from images of the retained classes. By
    chance two masks that keep a share k overlap by k / (2 - k). For the teacher's weights and for the generator's.
    """
    half = pecker.num_forget_images // 2
    c = pecker.draw_labels(pecker.retained, half)
    x = sample_ddim(pecker.teacher, pecker.schedule, pecker.draw_noise(half), c, pecker.ddim_steps)
    sets = [*zip(pecker.forget_images.split(half), pecker.forget_labels.split(half)), (x, c)]
    report = {"overlap_by_chance": pecker.keep / (2 - pecker.keep)}
    for name, net in (("teacher", pecker.teacher), ("generator", pecker.generator)):
        for count in sorted({min(pecker.batch_size, half), half}):
            net.requires_grad_(True)
            losses = [noise_prediction_loss(net, pecker.schedule, x[:count], c[:count]) for x, c in sets]
            masks = [saliency_mask(torch.autograd.grad(loss, list(net.parameters())), pecker.keep) for loss in losses]
            net.requires_grad_(net is pecker.generator)
            report[f"overlap_{name}_{count}_images"] = overlap(masks[0], masks[1])
            report[f"overlap_{name}_{count}_images_of_retained_classes"] = overlap(masks[0], masks[-1])
    names = [name for name, _ in pecker.generator.named_parameters()]
    report["kept_per_layer"] = {name: m.double().mean().item() for name, m in zip(names, pecker.mask)}
    return report


def overlap(first, second):
    """Intersection over union of two masks, each a list of bool tensors."""
    shared = sum((a & b).sum().item() for a, b in zip(first, second))
    return shared / max(1, sum((a | b).sum().item() for a, b in zip(first, second)))


def relearn(args, data):
    """From each forgetful network, fine-tune as a DDPM and count the steps until the class is back; relearn.json and a table."""
    classifier, teacher, pecker, _ = stage_unlearn(args, data)
    retained = ~torch.isin(data.labels, pecker.forgotten)
    keep_only = lambda chosen: dataclasses.replace(data, images=data.images[chosen], labels=data.labels[chosen])  # noqa: E731

    retrained, _ = train_teacher(variant(args, out=args.out / "relearn" / "retrained"), keep_only(retained))
    plain = variant(args, **METHODS["copied row"], out=args.out / "relearn" / "plain")
    copied = copy_cover_rows(unlearn(plain, data, classifier, teacher)[0].ema.module, args.pairs)

    nets = {"PECKER": pecker.ema.module, "copied row": copied, "retrained teacher": retrained}
    path = args.out / "relearn.json"
    settings = {"limit": args.relearn_steps, "images": args.relearn_images, "weights": [*map(fingerprint, nets.values())]}
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = saved["rows"] if {key: saved.get(key) for key in settings} == settings else {}
    for name, net in nets.items():
        for tuned in ("all weights", "class embedding", "all, retained images"):
            row = rows.setdefault(f"{name}; {tuned}", {"ddim": [], "one_step": []})
            for seed in range(len(row["ddim"]), args.seeds):
                torch.manual_seed(seed)
                forgotten = torch.nonzero(~retained)[torch.randperm((~retained).sum().item())[: args.relearn_images], 0]
                known = keep_only(retained if "retained" in tuned else forgotten)
                back = steps_until_back(args, known, classifier, pecker, net, only_embedding=tuned == "class embedding")
                print(f"{name}; {tuned}; seed {seed}: back after steps {back}", flush=True)
                for key, values in row.items():
                    values.append(back[key])
                write_json(path, settings | {"rows": rows, **environment(args)})
    rows = {name: {key: values[: args.seeds] for key, values in row.items()} for name, row in rows.items()}
    print_rows(f"steps until back, {args.seeds} seeds", rows, {"ddim": f"DDIM {args.ddim_steps}", "one_step": "one step"})


def steps_until_back(args, known, classifier, pecker, net, only_embedding):
    """Fine-tune a copy by Eq. 8 on `known`; the first step at which half of 50 images at forgotten labels are called so.

    Returns {"ddim": step or None, "one_step": step or None}; looks every 2 steps, up to --relearn-steps.
    """
    net = copy.deepcopy(net).requires_grad_(not only_embedding).eval()
    [table] = [module for module in net.modules() if isinstance(module, nn.Embedding)]
    table.requires_grad_(True)
    lr = 0.05 if only_embedding else args.pretrain_lr / 10  # entries of the table are of size 1, an attacker would use it
    optimizer = torch.optim.Adam([w for w in net.parameters() if w.requires_grad], lr=lr)
    c = pecker.forgotten.repeat(50)[:50]
    noise = known.fixed_noise(50, seed=3)
    back = {"ddim": None, "one_step": None}
    for step in range(args.relearn_steps + 1):
        if step % 2 == 0:
            drawn = {"ddim": sample_ddim(net, pecker.schedule, noise, c, args.ddim_steps)}
            with torch.no_grad():
                drawn["one_step"] = generate(net, pecker.schedule, noise, c)
            for way, x in drawn.items():
                if back[way] is None and (classifier.judge(to_uint8(x))[1].argmax(1) == c.cpu()).double().mean() >= 0.5:
                    back[way] = step
        if None not in back.values():
            break
        loss = noise_prediction_loss(net, pecker.schedule, *known.batch(args.pretrain_batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return back


# ---------------------------------------------------------------------------------------------------------------------
# How fast: parts of a step, and what their network passes alone would take
# ---------------------------------------------------------------------------------------------------------------------

PEAK_BF16 = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}  # dense FLOP/s on the data sheets


def bare_passes(pecker, noisy, t, c):
    """The passes through networks that one step without a mask refresh needs, on 2 B images, and nothing else."""
    with torch.no_grad():
        pecker.generator(noisy, t, c)
    fake_weights = list(pecker.fake_score.requires_grad_(True).parameters())
    torch.autograd.grad(pecker.fake_score(noisy, t, c).sum(), fake_weights)
    pecker.fake_score.requires_grad_(False)
    B = pecker.batch_size
    halves = [pecker.generator(*half) for half in zip(noisy.split(B), t.split(B), c.split(B))]
    x = noisy.clone().requires_grad_()
    [gradient] = torch.autograd.grad(pecker.teacher(x, t, c).sum() + pecker.fake_score(x, t, c).sum(), x)
    for half, part in zip(halves, gradient.split(B)):
        torch.autograd.grad(half, pecker.weights, part)


def bare_mask(pecker, noisy, t, c):
    """The one forward and backward pass, on B images, that a mask refresh needs."""
    B = pecker.batch_size
    torch.autograd.grad(pecker.generator(noisy[:B], t[:B], c[:B]).sum(), pecker.weights)


def bench(args, data, seconds=30):
    """Times the parts of a step in turns, for about half a minute, and prints medians; the networks are untrained."""
    net, noise_schedule = make_network(args, len(data.classes)), NoiseSchedule().to(args.device)
    pretrain_step = make_teacher_step(variant(args, pretrain_steps=10**9), data, copy.deepcopy(net), noise_schedule)[0]
    peckers = {}
    for name, flags in {"PECKER": {"mask_every": 0}, "refresh": {"mask_every": 1}, "SFD": {"mask": "none", "forget_weight": 0.01}}.items():
        peckers[name] = make_pecker(variant(args, **{"ddim_steps": 1} | flags), data, net)
        peckers[name].step()
    pecker = peckers["PECKER"]
    noisy, t = pecker.draw_noise(2 * args.batch_size), pecker.draw_times(2 * args.batch_size, pecker.t_min, pecker.t_max)
    retain, forget = (pecker.draw_labels(labels, args.batch_size) for labels in (pecker.retained, pecker.forgotten))
    passes = (pecker, noisy, t, torch.cat([retain, forget]))
    timed = {
        "pretraining step": pretrain_step,
        "SFD step (no mask, weight 0.01)": peckers["SFD"].step,
        "PECKER step, mask kept": pecker.step,
        "PECKER step, mask refreshed": peckers["refresh"].step,
        "  steps 2-3, fake score": lambda: pecker.update_fake_score(retain, forget),
        "  step 4, mask": peckers["refresh"].make_mask,
        "  steps 5-6, generator": lambda: pecker.update_generator(retain, forget),
        "network passes of a step, bare": lambda: bare_passes(*passes),
        "network passes of a mask, bare": lambda: bare_mask(*passes),
    }
    images = dict.fromkeys(timed, 2 * args.batch_size) | {"pretraining step": args.pretrain_batch_size}
    wait = getattr(torch, args.device.type).synchronize
    times, begin = {name: [] for name in timed}, time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times["pretraining step"]) < 3:
        for name, call in timed.items():
            wait()
            start = time.perf_counter()
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                call()
            wait()
            times[name].append(time.perf_counter() - start)
    median = {name: float(np.median(values[1:])) for name, values in times.items()}
    with torch.utils.flop_counter.FlopCounterMode(display=False) as flops:
        pecker.step()
    print(f"{environment(args)['device']}, {torch.get_num_threads()} threads; medians of {len(times['pretraining step']) - 1} rounds")
    for name, value in median.items():
        print(f"{name:<34}{1000 * value:10.1f} ms{images[name] / value:10.0f} images/s")
    step, refreshed, bare = (median[name] for name in ("PECKER step, mask kept", "PECKER step, mask refreshed", "network passes of a step, bare"))
    for name, ratio in {
        "PECKER step, mask kept / its bare network passes": step / bare,
        "PECKER step, mask refreshed / its bare network passes": refreshed / (bare + median["network passes of a mask, bare"]),
        "PECKER step, mask refreshed / SFD step": refreshed / median["SFD step (no mask, weight 0.01)"],
        "PECKER step, mask refreshed / pretraining step": refreshed / median["pretraining step"],
    }.items():
        print(f"{name:<56}{ratio:.3f}")
    rate, peak = flops.get_total_flops() / step, next((v for k, v in PEAK_BF16.items() if k in environment(args)["device"]), None)
    print(f"FLOP/s of a PECKER step  {rate:.3g}" + (f", {rate / peak:.1%} of the device's dense bfloat16 peak" if peak else ""))
    if args.device.type == "cuda":
        print(f"peak memory of all this, more than one run needs  {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------

# Defaults. The paper's or SFD's where a flag means the same at every scale; the rest belongs together for one kind of data:
# shapes for two CPU cores and minutes, the others for one CUDA GPU.
EVERYWHERE = dict(flip=True, mask="saliency", keep=0.5, mask_every=1, forget_weight=1.0, retain_weight=1.0, xi=1.2, seed=0)
PRESETS = {
    "shapes": EVERYWHERE | dict(
        image_size=16, forget=["red-disc:blue-disc"], width=16, multipliers=[1, 2, 2], blocks=1, attention=[4], dropout=0.0,
        classifier_width=16, classifier_steps=200, pretrain_steps=1000, pretrain_batch_size=64, pretrain_lr=4e-3,
        steps=150, batch_size=32, lr=3e-4, fake_score_lr=6e-4, ema_half_life=10.0, ddim_steps=20, images=100,
    ),
    "cifar10": EVERYWHERE | dict(
        image_size=32, forget=["0:1"], width=64, multipliers=[1, 2, 2, 2], blocks=2, attention=[16], dropout=0.0,
        classifier_width=64, classifier_steps=6000, pretrain_steps=40000, pretrain_batch_size=256, pretrain_lr=1e-3,
        steps=4000, batch_size=128, lr=5e-5, fake_score_lr=1e-4, ema_half_life=200.0, ddim_steps=50, images=1000,
    ),
}  # fmt: skip
PRESETS["stl10"] = PRESETS["cifar10"] | dict(image_size=64, multipliers=[1, 2, 2, 2, 2], batch_size=64, pretrain_batch_size=128)
PRESETS["folder"] = PRESETS["cifar10"]


def number(kind, low, high):
    """An argparse type: an int or float in [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number, not {text}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low}, {high}], not {text}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    def parse_args(self, argv):
        for flag in [word.partition("=")[0] for word in argv if word.startswith("--")]:
            if flag not in self._option_string_actions:
                self.error(f"there is no flag {flag}{nearest(flag, self._option_string_actions)}")
        if argv and not argv[0].startswith("-") and argv[0] not in STAGES:
            self.error(f"there is no stage {argv[0]}{nearest(argv[0], STAGES)}")
        return super().parse_args(argv)

    def error(self, message):
        fail(f"{message}; see python train.py --help")


def make_parser():
    """The flags. None of those that a result depends on has its default here: see parse_args."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    positive, share, weight = number(int, 1, 10**8), number(float, 0, 1), number(float, 0, 1e6)
    size, few = number(int, 1, 10**5), number(int, 1, 16)  # what must fit into memory

    def add(group, flag, text, **kind):
        by_value = {}  # the presets that have it
        for name, values in PRESETS.items():
            by_value.setdefault(in_words(values[flag]), []).append(name)
        defaults = "; ".join(f"{value} for {', '.join(names)}" for value, names in by_value.items())
        defaults = defaults if len(by_value) > 1 else next(iter(by_value))
        group.add_argument("--" + flag.replace("_", "-"), help=f"{text} (default: {defaults})", **kind)

    parser.add_argument("stage", nargs="?", choices=STAGES, default="all", metavar="STAGE", help=" | ".join(STAGES) + " (default: all)")
    group = parser.add_argument_group("data and forgetting")
    group.add_argument("--data", type=lambda text: str(Path(text)), help="shapes, cifar10, stl10, or a folder of pictures (default: shapes)")
    group.add_argument("--data-dir", type=Path, default=Path("data"), help="where cifar10 and stl10 lie or go (default: %(default)s)")
    add(group, "image_size", "pixels a side", type=number(int, 4, 1024))
    add(group, "flip", "train also on mirror images; not for letters or digits", action=argparse.BooleanOptionalAction)
    add(group, "forget", "A:B, forget class or concept A and draw B instead", nargs="+", metavar="A:B")
    group = parser.add_argument_group("classifier, which only measures")
    add(group, "classifier_width", "channels of its first layer, a quarter of its features", type=number(int, 1, 1024))
    add(group, "classifier_steps", "training steps, of 128 images", type=positive)
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", type=Path, metavar="FOLDER", help="take teacher and classifier from this run folder (default: that of --out)")
    add(group, "width", "channels of the network's first stage", type=number(int, 4, 1024))
    add(group, "multipliers", "channels of each stage over --width", type=few, nargs="+")
    add(group, "blocks", "residual blocks a stage", type=few)
    add(group, "attention", "resolutions with self-attention", type=size, nargs="*")
    add(group, "dropout", "dropout while the teacher is trained", type=share)
    add(group, "pretrain_steps", "training steps", type=positive)
    add(group, "pretrain_batch_size", "images a step", type=size)
    add(group, "pretrain_lr", "highest learning rate", type=weight)
    group = parser.add_argument_group("PECKER")
    add(group, "mask", "what the forget gradient may change: m_s in Eq. 10", choices=("saliency", "random", "none"))
    add(group, "keep", "share of the weights in the mask", type=share)
    add(group, "mask_every", "steps between two masks, 0: one for all time", type=number(int, 0, 10**8))
    add(group, "forget_weight", "mu in Eq. 3, 4; SFD is 0.01 with --mask none", type=weight)
    add(group, "retain_weight", "lambda in Eq. 3, 4", type=weight)
    add(group, "xi", "xi in Eq. 7; if pictures turn to noise, try less", type=number(float, -100, 100))
    add(group, "steps", "steps of Algorithm 1", type=positive)
    add(group, "batch_size", "retained images a step, and as many forgotten ones", type=size)
    add(group, "lr", "learning rate of the generator; paper: 1e-5 for 50,000 steps", type=weight)
    add(group, "fake_score_lr", "learning rate of the fake score; paper: 1e-5", type=weight)
    add(group, "ema_half_life", "steps in which the moving average forgets half of the past", type=number(float, 1e-3, 1e9))
    group = parser.add_argument_group("measuring")
    add(group, "ddim_steps", "network evaluations for one picture by the teacher", type=number(int, 1, 1000))
    add(group, "images", "pictures drawn of each class", type=size)
    group.add_argument("--seeds", type=positive, default=5, help="runs of each method in compare and relearn (default: %(default)s)")
    group.add_argument("--methods", nargs="+", metavar="WORD", help="compare only methods with one of these words (default: all)")
    group.add_argument("--relearn-images", type=positive, default=100, help="real images of the class to relearn from (default: %(default)s)")
    group.add_argument("--relearn-steps", type=positive, default=100, help="fine-tuning steps after which to give up (default: %(default)s)")
    group = parser.add_argument_group("running")
    group.add_argument("--out", type=Path, help="run folder (default: runs/DATA)")
    add(group, "seed", "of everything but the data", type=number(int, 0, 2**31))
    group.add_argument("--device", help="cuda, cpu or mps (default: cuda if there is one, else cpu)")
    group.add_argument("--save-every", type=number(int, 0, 10**8), default=0, help="steps between checkpoints, 0: one a minute (default: 0)")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="networks in bfloat16, losses in float32 (default: on cuda)")
    group.add_argument("--compile", action="store_true", help="torch.compile the networks, which first takes minutes; not measured on cuda")
    return parser


def in_words(value):
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def parse_args(argv):
    """The command line; a flag that is not given has the value of the finished run that the stage reads, or the preset's."""
    args = make_parser().parse_args(argv)
    if args.stage == "compare" and (args.mask, args.forget_weight) != (None, None):
        fail("compare runs every --mask and --forget-weight: leave them out, choose by --methods")
    found = {}
    if args.stage in READERS:  # these change nothing: they follow the run
        args.out = args.out or Path("runs", Path(args.data or "shapes").resolve().name)
        saved = load_checkpoint(args.out / "pecker.pt", "pecker")
        args.teacher = args.teacher or args.out / saved["teacher"]
        found = {flag: saved["settings"][flag] for flag in STAGE_FLAGS["pecker"]}
    if args.teacher:
        for stage in ("classifier", "teacher"):
            settings = load_checkpoint(args.teacher / f"{stage}.pt", stage)["settings"]
            found |= {flag: settings[flag] for flag in STAGE_FLAGS[stage] if flag != "seed"}
            args.teacher_seed = settings["seed"]
    for flag, value in found.items():
        given = getattr(args, flag)
        if given not in (None, value):
            made = args.out if args.stage in READERS and flag in STAGE_FLAGS["pecker"] else args.teacher
            fail(f"--{flag.replace('_', '-')} {in_words(given)} does not fit {made}, made with {in_words(value)}: leave it out")
    args.data = args.data or found.get("data", "shapes")
    for flag, value in (PRESETS.get(args.data, PRESETS["folder"]) | found).items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    args.out = args.out or Path("runs", Path(args.data).resolve().name)
    if not args.teacher:
        args.teacher, args.teacher_seed = args.out, args.seed
    args.device = find_device(args.device)
    args.bf16 = args.device.type == "cuda" if args.bf16 is None else args.bf16
    return args


def find_device(name):
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(1, device=name).device
        if device.type not in ("cuda", "cpu", "mps"):
            raise ValueError
        return device
    except Exception:  # torch raises many kinds
        fail(f"--device {name} is not available here: give cpu" + (" or cuda" if torch.cuda.is_available() else ""))


def environment(args):
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {"device": f"{args.device} ({name})", "threads": torch.get_num_threads(), "versions": versions | {"numpy": np.__version__}}


def check_run(args, classes):
    """Everything that can be refused is refused here, before the run folder is touched."""
    args.classes, args.pairs = classes, parse_pairs(args.forget, classes)
    try:  # the networks' and the method's own conditions
        with torch.device("meta"):
            UNet(args.image_size, len(classes), args.width, args.multipliers, args.blocks, args.attention)
        Pecker(nn.Linear(1, 1), NoiseSchedule(), args.pairs, len(classes), (3, args.image_size, args.image_size))
    except ValueError as error:
        fail(f"{error}")
    if not chosen_methods(args):
        fail(f"--methods {in_words(args.methods)} chooses none: give words of {'; '.join(METHODS)}")
    if args.stage == "bench":
        return
    if args.stage in ("unlearn", *READERS) or args.teacher != args.out:
        needed = ["classifier", "teacher"] + (["pecker"] if args.stage in READERS else [])
    else:
        needed = []
    for stage, total in (("classifier", args.classifier_steps), ("teacher", args.pretrain_steps), ("pecker", args.steps)):
        path = (args.out if stage == "pecker" else args.teacher) / f"{stage}.pt"
        if path.exists() or stage in needed:
            saved = load_checkpoint(path, stage)
            if saved["classes"] != classes:
                fail(f"{path} was trained on the classes {', '.join(saved['classes'])}: give the same --data or another --out")
            if stage == "pecker" or args.teacher == args.out:
                check_same(path, saved, settings_of(args, stage))
            if stage in needed and saved["step"] < total:
                fail(f"{path} is unfinished, at step {saved['step']} of {total}: run the command that made it once more")


def main(argv):
    args = parse_args(argv)
    data = load_data(args)
    check_run(args, data.classes)
    if args.stage == "bench":
        return bench(args, data)
    if args.stage not in READERS:
        args.out.mkdir(parents=True, exist_ok=True)
        flags = {flag: str(value) if isinstance(value, Path | torch.device) else value for flag, value in vars(args).items()}
        write_json(args.out / "args.json", flags | environment(args))
    STAGES[args.stage](args, data)


def stage_pretrain(args, data):
    """Classifier, teacher and the seconds that each took; trained in, or read from, the folder --teacher."""
    home = variant(args, out=args.teacher, seed=args.teacher_seed)
    classifier, seconds = train_classifier(home, data)
    teacher, more_seconds = train_teacher(home, data)
    return classifier, teacher, {"classifier": seconds, "teacher": more_seconds}


def stage_unlearn(args, data):
    classifier, teacher, seconds = stage_pretrain(args, data)
    pecker, more_seconds = unlearn(args, data, classifier, teacher)
    return classifier, teacher, pecker, seconds | {"pecker": more_seconds}


def stage_evaluate(args, data):
    print_metrics(args, evaluate(args, data, *stage_unlearn(args, data)))


def stage_sample(args, data):
    write_samples(args, data, stage_unlearn(args, data)[2])


STAGES = {
    "all": stage_evaluate, "pretrain": stage_pretrain, "unlearn": stage_unlearn, "evaluate": stage_evaluate, "sample": stage_sample,
    "compare": compare, "relearn": relearn, "bench": bench,
}  # fmt: skip
READERS = ("evaluate", "sample", "relearn")  # stages that need a finished run


def stop(number, _):
    """What Ctrl-C and SIGTERM do outside train(), where there is nothing to save."""
    print("train.py: stopped; the same command continues", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        main(sys.argv[1:])
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail("there is not enough memory: give smaller --batch-size, --pretrain-batch-size, --images, --image-size or --width, and another --out")
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror}; give another --out or make room, then run the same command again")
