"""One run from top to bottom: settings -> data -> classifier -> teacher -> PECKER -> figures; see main() at the end.

    python train.py                                       # embedded shapes: train a teacher, forget red-disc, measure
    python train.py --forget red:blue --out runs/red      # forget a concept: every red-X is covered by blue-X
    python train.py unlearn --mask none --forget-weight 0.01 --teacher runs/shapes --out runs/sfd     # SFD, same teacher
    python train.py --data cifar10                        # CIFAR-10, at full size on a CUDA GPU, at a small one elsewhere
    python train.py --data FOLDER --forget cat:dog        # own images: FOLDER/train/<class>/*, FOLDER/test/<class>/*
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import gzip
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_pil_image

from pecker import NoiseSchedule, Pecker, generate, noise_prediction_loss, sample_ddim
from unet import UNet

# --- settings: a field is a flag of the command line -----------------------------------------------------------------

# The stages of a run, the file that each leaves and the networks in it.
PRODUCTS = {"classifier": ("classifier.pt", "weights"), "teacher": ("teacher.pt", "weights")}
PRODUCTS["pecker"] = ("generator.pt", "average", "raw")
# A command runs this slice of the stages; it needs the product of each stage before.
COMMANDS = {"all": slice(0, 3), "pretrain": slice(0, 2), "unlearn": slice(2, 3), "evaluate": slice(3, 3), "sample": slice(3, 3)}


def flag(default, group, text, limits=None, **argparse_arguments):
    """A field of Settings. limits: lowest and highest number."""
    return dataclasses.field(default=default, metadata=dict(group=group, help=text, limits=limits, argparse=argparse_arguments))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are for shapes and two CPU cores; experiments/README.md says where they differ from the paper, and why."""

    data: str = flag("shapes", "data", "shapes, fashion, cifar10, stl10, or a folder of pictures", type=lambda at: str(Path(at)))
    size: str = flag(None, "data", "small: two CPU cores; full: a CUDA GPU (default: full on CUDA)", choices=("small", "full"))
    image_size: int = flag(16, "data", "pixels a side", (4, 1024))
    flip: bool = flag(None, "data", "train also on mirror images; not for letters or digits (default: if there are colours)")
    classifier_width: int = flag(16, "classifier", "channels of its first layer, a quarter of its features", (1, 1024))
    classifier_steps: int = flag(200, "classifier", "training steps, of 128 images", (1, 10**8))
    width: int = flag(16, "teacher", "channels of the network's first stage", (4, 1024))
    multipliers: tuple = flag((1, 2, 2), "teacher", "channels of each stage over --width", (1, 16), nargs="+")
    patch: int = flag(1, "teacher", "side of the squares of pixels that the network sees as one", (1, 8))
    blocks: int = flag(1, "teacher", "residual blocks a stage", (1, 16))
    attention: tuple = flag((4,), "teacher", "resolutions, in patches a side, with self-attention", (1, 1024), nargs="*")
    pretrain_steps: int = flag(1000, "teacher", "training steps", (1, 10**8))
    pretrain_batch_size: int = flag(64, "teacher", "images a step", (1, 10**5))
    pretrain_lr: float = flag(4e-3, "teacher", "highest learning rate", (0, 1e6))
    forget: tuple = flag(("red-disc:blue-disc",), "pecker", "forget class or concept A, draw B instead", nargs="+", metavar="A:B")
    mask: str = flag("saliency", "pecker", "what forgetting may change: m_s in Eq. 10", choices=("saliency", "random", "none"))
    keep: float = flag(0.5, "pecker", "share of the weights in the mask", (0, 1))
    mask_every: int = flag(1, "pecker", "a new mask every so many steps, 0: one for all time", (0, 10**8))
    forget_weight: float = flag(0.1, "pecker", "mu in Eq. 3, 4; paper: 1.0; SFD: 0.01 with --mask none", (0, 1e6))
    retain_weight: float = flag(1.0, "pecker", "lambda in Eq. 3, 4", (0, 1e6))
    xi: float = flag(1.2, "pecker", "xi in Eq. 7; if pictures turn to noise, try less", (-100, 100))
    t_max: int = flag(400, "pecker", "networks are compared at times from 38 to below this; SFD: 712", (39, 1000))
    steps: int = flag(150, "pecker", "steps of Algorithm 1", (1, 10**8))
    batch_size: int = flag(32, "pecker", "retained images a step, and as many forgotten ones", (1, 10**5))
    lr: float = flag(3e-4, "pecker", "learning rate of the generator; paper: 1e-5 for 50,000 steps", (0, 1e6))
    fake_score_lr: float = flag(3e-4, "pecker", "learning rate of the fake score; paper: 1e-5", (0, 1e6))
    ema_half_life: float = flag(20.0, "pecker", "half-life of the moving average, in steps", (1e-3, 1e9))
    ddim_steps: int = flag(20, "pecker", "network evaluations for one picture by the teacher", (1, 1000))
    seed: int = flag(0, "run", "of weights, batches and noise; pictures to measure with are always the same", (0, 2**31))
    bf16: bool = flag(None, "precision", "networks in bfloat16 (default: on CUDA cards from compute capability 8.0 on)")
    images: int = flag(100, "place", "pictures drawn of each class, to measure or as samples", (1, 10**5))
    teacher: Path = flag(None, "place", "take classifier and teacher from this run folder", metavar="FOLDER")
    out: Path = flag(None, "place", "run folder (default: runs/DATA)", metavar="FOLDER")
    data_dir: Path = flag(Path("data"), "place", "where the data sets of torchvision lie or go", metavar="FOLDER")
    device: str = flag(None, "place", "(default: cuda if there is one, else cpu)", choices=("cuda", "cpu", "mps"))
    save_every: int = flag(0, "place", "steps between two saves of the progress, 0: one a minute", (0, 10**8))


def pecker_steps(steps, width):
    """The flags that go with so many steps of PECKER and so wide a network; for 50,000 of width 128 a rate of 5.8e-6."""
    rate = float(f"{3e-4 * math.sqrt(150 / steps * 16 / width):.2g}")
    return dict(steps=steps, lr=rate, fake_score_lr=rate, ema_half_life=round(steps / 7.5, 1))


FULL = dict(
    image_size=32, forget=("airplane:automobile",), width=64, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,),
    classifier_width=64, classifier_steps=6000, pretrain_steps=40000, pretrain_batch_size=256, pretrain_lr=1e-3,
    forget_weight=1.0, t_max=712, batch_size=128, ddim_steps=50, images=1000, **pecker_steps(4000, 64),
)  # fmt: skip
SMALL = FULL | dict(
    width=48, patch=2, multipliers=(1, 2, 2), blocks=1, attention=(8,), classifier_width=24, classifier_steps=3000,
    pretrain_steps=12000, pretrain_batch_size=64, pretrain_lr=2e-3, batch_size=32, ddim_steps=20, images=200,
    **pecker_steps(600, 48),
)  # fmt: skip
FASHION = dict(image_size=28, forget=("sneaker:bag",), attention=(7,))
STL10 = dict(image_size=64, forget=("airplane:car",))
PRESETS = {  # what differs from the defaults, which are for shapes
    ("fashion", "small"): SMALL | FASHION | dict(multipliers=(1, 2), classifier_steps=9000, pretrain_steps=4000),
    ("fashion", "full"): FULL | FASHION | dict(multipliers=(1, 2, 2), pretrain_steps=20000) | pecker_steps(2000, 64),
    ("cifar10", "small"): SMALL,
    ("cifar10", "full"): FULL,
    ("stl10", "small"): SMALL | STL10,
    ("stl10", "full"): FULL | STL10 | dict(multipliers=(1, 2, 2, 2, 2), batch_size=64, pretrain_batch_size=128),
}
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
SHARED = ("data", "classifier", "teacher")  # groups of settings that go with a teacher from one run folder to another
GROUP_OF = {name: field.metadata["group"] for name, field in FIELDS.items()}


def fail(message):
    """End the program: one sentence on stderr that says what to give instead, exit status 2."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def explained(what, advice):
    """An error inside ends the program in one sentence; torch and PIL raise many kinds of them."""
    try:
        yield
    except torch.OutOfMemoryError:  # of a GPU: run_program() knows better what to do
        raise
    except Exception as error:
        fail(f"{what}: {(str(error) or type(error).__name__).splitlines()[0]}: {advice}")


def in_words(value):
    words = {"True": "on", "False": "off", "None": "not given"}
    return " ".join(words.get(str(one), str(one)) for one in (value if isinstance(value, tuple | list) else [value]))


def make_parser():
    """The fields of Settings as flags. What is not given is left out: it comes from a run folder or the preset."""
    rule = "\nDefaults below are those of shapes; PRESETS in train.py has those of the others. A folder of pictures has those of"
    rule += "\ncifar10, but its steps are multiplied by sqrt(pictures / 60000), and are 300 or more."
    parser = argparse.ArgumentParser(description=__doc__ + rule, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = lambda message: fail(f"{message}; see python train.py --help")
    text = "all: the whole run (default); pretrain: classifier and teacher; unlearn: PECKER; evaluate: figures; sample: pictures"
    parser.add_argument("command", nargs="?", default="all", help=text)
    groups = {group: parser.add_argument_group(group) for group in dict.fromkeys(GROUP_OF.values())}
    for name, field in FIELDS.items():
        group, text, limits, more = field.metadata.values()
        if field.default is not None:
            text += f" (default: {in_words(field.default)})"
        kind = (int if limits else str) if field.type is tuple else field.type
        how = dict(action=argparse.BooleanOptionalAction) if kind is bool else dict(type=kind)
        groups[group].add_argument("--" + name.replace("_", "-"), help=text, **how | more)
    return parser


def parse_args(argv):
    """The command line -> command, Settings. What is not given comes from the folder of --teacher (groups data, classifier,
    teacher), from the run folder (what the command does not decide), else from the preset. Both folders give size, data_dir."""
    if any(re.fullmatch("(--[a-z0-9-]+=)?", one) for one in argv):  # it would be the current folder
        fail("an argument is empty: give a value, or leave its flag out")
    given = vars(make_parser().parse_args(argv))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = given.setdefault("device", "cuda" if there["cuda"] else "cpu")
    if not there[device]:
        fail(f"--device {device} is not available here: give cpu")
    fast = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)  # older cards claim bfloat16, and fail or crawl
    if given.get("teacher") and not given.get("out"):
        fail("--teacher needs --out, a run folder for what is made of it")
    if given["command"] not in COMMANDS:  # argparse would look here first, and find the value of a misspelt flag
        fail(f"there is no command {given['command']}: give one of {', '.join(COMMANDS)}")
    command, found = given.pop("command"), {"data": "shapes", "size": "full" if device == "cuda" else "small", "bf16": fast}
    # Groups of settings that this command decides; the others are its run folder's, so that pretrain leaves PECKER's flags alone.
    decided = {*[*PRODUCTS][COMMANDS[command]], *(("data", "run", "place") if COMMANDS[command].start == 0 else ())}
    for name, value in given.items():
        values, limits = value if isinstance(value, list) else [value], FIELDS[name].metadata["limits"]
        if limits and not all(limits[0] <= one <= limits[1] for one in values):  # refuses NaN too
            fail(f"--{name.replace('_', '-')} must be in [{limits[0]}, {limits[1]}], not {in_words(values)}")
        given[name] = FIELDS[name].type(value)
    given.setdefault("out", Path("runs", Path(given.get("data", "shapes")).resolve().name))
    for folder, groups in (given["out"], {*GROUP_OF.values()} - decided), (given.get("teacher"), SHARED):
        flags = read_settings(folder)["flags"].items()
        found |= {name: value for name, value in flags if GROUP_OF[name] in groups or name in ("size", "data_dir")}
    known = found | {"teacher": None, "save_every": 0} | given
    known |= {"size": "small"} if known["data"] == "shapes" else {}  # it has one
    if device == "cuda" and known["bf16"] and not fast and COMMANDS[command].start < 3:
        fail("--bf16 needs a CUDA card of compute capability 8.0 or more: give --no-bf16, or go on where it began")
    own = known["data"] not in ("shapes", *SOURCES)
    preset = PRESETS.get(("cifar10" if own else known["data"], known["size"]), {})
    if own:  # fewer pictures need fewer steps; photographs do not bear the rates of less than 300
        folders = os.walk(known["data"], followlinks=True)
        pictures = sum(torchvision.datasets.folder.is_image_file(name) for *_, names in folders for name in names)
        share = math.sqrt(pictures / 60000)
        steps = {key: max(300, round(share * preset[key])) for key in ("classifier_steps", "pretrain_steps", "steps")}
        preset = preset | steps | pecker_steps(steps["steps"], known.get("width", preset["width"]))
    return command, Settings(**preset | known)


# --- data: one uint8 tensor on the device; [-1, 1] inside networks ---------------------------------------------------


@dataclasses.dataclass
class Data:
    classes: list  # of names
    images: torch.Tensor  # (N, C, S, S) uint8, to train on
    labels: torch.Tensor  # (N,) long
    test_images: torch.Tensor  # to measure with
    test_labels: torch.Tensor
    flip: bool = True  # whether the mirror image of an example is an example of the same class

    def batch(self, size):
        """Random images, (size, C, S, S) float in [-1, 1], mirrored half of the time if that makes sense; labels (size,)."""
        chosen = torch.randint(len(self.images), (size,), device=self.images.device)
        x = to_float(self.images[chosen])
        if self.flip:
            x = torch.where(torch.rand(size, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
        return x, self.labels[chosen]

    def fixed_noise(self, count, seed):
        """(count, C, S, S) ~ N(0, 1): the same for the same seed, on every device."""
        return torch.randn(count, *self.images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(self.images.device)


def to_float(images):
    """uint8, 0..255 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


COLOURS = {"red": (0.9, 0.15, 0.15), "blue": (0.15, 0.25, 0.9)}
SHAPES = ("disc", "ring", "cross", "bars", "triangle")


def draw_shapes(per_class, seed, size=16):
    """Red and blue shapes on grey, of varied place, size and colours -> (10 * per_class, 3, size, size) uint8, labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(COLOURS) * len(SHAPES)), per_class)
    vary = functools.partial(rng.uniform, size=(len(labels), 1, 1))
    rows, columns = np.mgrid[:size, :size] * 16 / size  # a sixteenth of the picture is 1
    x, y = columns - vary(6.5, 8.5), rows - vary(6.5, 8.5)  # (N, size, size), from the centre
    r = vary(5.0, 6.5)  # about half the height of the shape
    radius, across, along = np.hypot(x, y), abs(x), abs(y)
    distances = [  # of each pixel to the edge; it is covered where that is negative
        radius - r,
        abs(radius - 0.75 * r) - 0.25 * r,
        np.maximum(np.minimum(across, along) - 0.3 * r, np.maximum(across, along) - r),
        np.maximum(abs(along - 0.65 * r) - 0.35 * r, across - r),
        np.maximum(y - 0.8 * r, 0.894 * across - 0.447 * (y + r)),
    ]
    distance = np.choose((labels % len(SHAPES))[:, None, None], distances)
    covered = np.clip(0.5 - distance * size / 16, 0, 1)[:, None]  # (N, 1, size, size)
    colour = np.array(list(COLOURS.values()))[labels // len(SHAPES)] + rng.uniform(-0.1, 0.1, (len(labels), 3))
    background = rng.uniform(0.4, 0.6, (len(labels), 1, 1, 1))
    images = covered * colour[:, :, None, None] + (1 - covered) * background
    return torch.from_numpy((images * 255).round().clip(0, 255).astype(np.uint8)), torch.from_numpy(labels).long()


# The data sets of torchvision, and what their second argument says of the part to train on and the part to test with.
SOURCES = {"cifar10": (torchvision.datasets.CIFAR10, True, False), "stl10": (torchvision.datasets.STL10, "train", "test")}
SOURCES["fashion"] = (torchvision.datasets.FashionMNIST, True, False)


def read_picture(path):
    """A picture file with 8 bits a channel -> PIL picture; how ImageFolder reads."""
    with explained(f"{path} cannot be read as a picture", "convert, repair or remove it"), Image.open(path) as picture:
        if picture.mode[0] in "IF":
            raise ValueError("it has more than 8 bits a channel")
        return ImageOps.exif_transpose(picture).convert("RGB")


def load_data(settings):
    """The Data that the settings name, on their device; one channel if all pictures are grey."""
    size, name = settings.image_size, settings.data
    square = lambda one: resize(center_crop(pil_to_tensor(one), [min(one.size)]), [size, size], antialias=True)  # noqa: E731
    if name == "shapes":
        classes = [f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES]
        loaded = [draw_shapes(1000, 0, size), draw_shapes(200, 1, size)]
    else:
        with explained(f"--data {name}", f"give shapes, {', '.join(SOURCES)} (files in --data-dir) or a folder of classes"):
            if name in SOURCES:
                for packed in Path(settings.data_dir, "FashionMNIST", "raw").glob("*.gz"):  # torchvision knows only its own
                    if not packed.with_suffix("").exists():
                        write(packed.with_suffix(""), lambda file: file.write(gzip.decompress(packed.read_bytes())))
                source, *parts = SOURCES[name]
                sets = [source(settings.data_dir, part, transform=square, download=True) for part in parts]
                classes = [one.lower().replace(" ", "-").replace("/", "-") for one in sets[0].classes]  # fit for files, flags
            else:
                parts = [Path(name, "train"), Path(name, "test" if Path(name, "test").is_dir() else "val")]
                parts = parts if all(part.is_dir() for part in parts) else [name]
                sets = [torchvision.datasets.ImageFolder(part, transform=square, loader=read_picture) for part in parts]
                classes = sets[0].classes
            if len(classes) < 2 or sets[0].classes != sets[-1].classes:
                raise ValueError("it has only one class, or train and test have different classes")
            if strange := [one for one in classes if one == "train" or one[0] == "." or not one.isprintable()]:
                raise ValueError(f"{', '.join(map(repr, strange))} cannot be a class")
        loaded = [(torch.stack(images), torch.tensor(labels)) for images, labels in (zip(*part) for part in sets)]
        if all(torch.equal(images, images[:, :1].expand_as(images)) for images, _ in loaded):  # grey
            loaded = [(images[:, :1].contiguous(), labels) for images, labels in loaded]
    if len(loaded) == 1:  # a folder without train/ and test/: a random tenth of each class is for testing
        [(images, labels)], rng = loaded, torch.Generator().manual_seed(0)
        members = [torch.nonzero(labels == label)[:, 0] for label in range(len(classes))]
        test = torch.cat([some[torch.randperm(len(some), generator=rng)[::10]] for some in members])
        train = torch.ones(len(labels), dtype=torch.bool).index_fill(0, test, False)
        loaded = [(images[train], labels[train]), (images[test], labels[test])]
    for label, name in enumerate(classes):
        if any(label not in labels for _, labels in loaded):
            fail(f"class {name} of --data {settings.data} has one picture: give at least two, one is kept for testing")
    flip = loaded[0][0].shape[1] > 1 if settings.flip is None else settings.flip
    return Data(classes, *(x.to(settings.device) for part in loaded for x in part), flip)


def parse_pairs(words, classes):
    """("A:B", ...) -> {label of A: label of B}: class names, numbers, or concepts: red:blue covers every red-X by blue-X.

    SystemExit, after one sentence, if there is no such class or one has two covers.
    """
    numbers = {} if any(map(str.isdecimal, classes)) else {str(label): label for label in range(len(classes))}
    labels, pairs = numbers | {name: label for label, name in enumerate(classes)}, {}
    for word in words:
        with explained(f"--forget {word}", f"give A:B, forget A and draw B instead, of {', '.join(labels)}"):
            forget, cover = word.split(":")
            concept = [] if forget in labels else [name for name in classes if forget in name.split("-")]
            for name in concept or [forget]:
                other = "-".join(cover if part == forget else part for part in name.split("-")) if concept else cover
                if not {name, other} <= labels.keys():
                    raise ValueError(f"there is no class {name if name not in labels else other}")
                if pairs.setdefault(labels[name], labels[other]) != labels[other]:
                    raise ValueError(f"{name} has two covers")
    return pairs


# --- the classifier, which only measures, and what is measured with it -----------------------------------------------


class Classifier(nn.Sequential):
    """(B, C, S, S) in [-1, 1] -> features (B, 4 * width) -> logits (B, num_classes)."""

    def __init__(self, channels, num_classes, width):
        super().__init__()
        layers, widths = [], (channels, width, width, 2 * width, 2 * width, 4 * width)
        for i in range(5):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (i in (1, 3))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(4 * width, num_classes)

    @torch.no_grad()
    def predict(self, images):
        """uint8 (N, C, S, S) -> features (N, 4 * width), probabilities (N, num_classes), on the CPU: metrics want float64."""
        self.eval()
        features = torch.cat([self.features(to_float(part)) for part in images.split(500)])
        return features.cpu(), self.last(features).softmax(dim=1).cpu()


def frechet_distance(real, fake, sample_weights=None):
    """|mean difference|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)) of two sets of features (N, D), (M, D). Heusel et al. 2017.

    sample_weights (N,): how much each real image counts, 0: not at all. ValueError unless there are more images than features,
    lest a covariance is singular.
    """
    w = torch.ones_like(real[:, 0]) if sample_weights is None else sample_weights
    real, fake, w = real[w > 0].double(), fake.double(), w[w > 0].double()
    if min(len(real), len(fake)) <= real.shape[1]:
        raise ValueError(f"{min(len(real), len(fake))} images are too few for {real.shape[1]} features: give more images")
    covariance_real, covariance_fake = real.T.cov(aweights=w), fake.T.cov()
    # The trace of the root is the sum of the roots of the eigenvalues of C_r C_f, which are real and not below zero.
    overlap = torch.linalg.eigvals(covariance_real @ covariance_fake).real.clamp(min=0).sqrt().sum()
    difference = (w @ real / w.sum() - fake.mean(0)).square().sum()
    return (difference + covariance_real.trace() + covariance_fake.trace() - 2 * overlap).clamp(min=0).item()


def inception_score(probabilities):
    """exp(mean KL(p(y|x) || p(y))) over all images at once, (N, num_classes) -> 1..num_classes. Salimans et al. 2016."""
    p = probabilities.double()
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp().item()


def precision_recall(real, fake, k=3):
    """Features (N, D), (M, D) -> share of fake images among the real ones, share of real among fake. Kynkäänniemi et al. 2019.

    ValueError unless there are more than k images of each kind.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision and recall need more than {k} images of each kind")

    def share_inside(points, members):  # of those nearer to some member than its k-th nearest neighbour among the members
        parts = [torch.cdist(part, members).kthvalue(k + 1, dim=1).values for part in members.split(1000)]
        radius = torch.cat(parts)  # the nearest one is the point itself
        inside = [(torch.cdist(part, members) <= radius).any(dim=1) for part in points.split(1000)]
        return torch.cat(inside).double().mean().item()

    real, fake = real.double(), fake.double()
    return share_inside(fake, members=real), share_inside(real, members=fake)


@torch.no_grad()
def draw_pictures(net, noise, c, steps=None):
    """(N, C, S, S), (N,) -> uint8 (N, C, S, S), by DDIM in so many steps or in one evaluation; in parts that fit into memory."""
    draw, schedule = functools.partial(sample_ddim, steps=steps) if steps else generate, NoiseSchedule().to(noise.device)
    parts = zip(noise.split(250), c.split(250))
    return torch.cat([((draw(net, schedule, *part) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for part in parts])


def measure(data, classifier, real_features, pairs, net, labels, steps=None, seed=0, curve=False):
    """Draw an image for each of `labels` (N,), see draw_pictures -> {figure: value}; experiments/README.md explains them.

    real_features: classifier.predict(data.test_images)[0]. A figure that needs more images than there are is None, and with
    `curve` what takes long: precision and recall. `seed` fixes the noise. At least one label is forgotten and one retained.
    """
    features, probabilities = classifier.predict(draw_pictures(net, data.fixed_noise(len(labels), seed), labels, steps))
    guess, labels, test_labels = probabilities.argmax(dim=1), labels.cpu(), data.test_labels.cpu()

    cover_of = torch.tensor([pairs.get(label, label) for label in range(len(data.classes))])
    forgotten = cover_of[labels] != labels
    retained_real = real_features[cover_of[test_labels] == test_labels]
    histogram = guess[forgotten].bincount(minlength=len(data.classes)) / forgotten.sum()
    share = lambda condition: condition.double().mean().item()  # noqa: E731

    def frechet(drawn, asked):  # each real class counts as often as it is in the labels `asked`
        asked_counts, real_counts = (c.bincount(minlength=len(data.classes)) for c in (asked, test_labels))
        with contextlib.suppress(ValueError):  # too few images: None
            return frechet_distance(real_features, drawn, (asked_counts / real_counts)[test_labels])

    precision = recall = None
    with contextlib.suppress(ValueError):
        precision, recall = (None, None) if curve else precision_recall(retained_real, features[~forgotten])
    return {
        "unlearning_accuracy": share(guess[forgotten] != labels[forgotten]),
        "cover_share": share(guess[forgotten] == cover_of[labels[forgotten]]),
        "retain_accuracy": share(guess[~forgotten] == labels[~forgotten]),
        "class_accuracy": {data.classes[i]: share(guess[labels == i] == i) for i in labels.unique().tolist()},
        "forget_histogram": dict(zip(data.classes, histogram.tolist())),
        "forget_entropy": torch.special.entr(probabilities[forgotten]).sum(1).mean().item(),
        "frechet_distance": frechet(features[~forgotten], labels[~forgotten]),
        "inception_score": inception_score(probabilities[~forgotten]),
        "precision": precision,
        "recall": recall,
        "cover_frechet_distance": frechet(features[forgotten], cover_of[labels[forgotten]]),
        "network_evaluations": steps or 1,
        "images": len(labels),
    }


# --- the run folder: settings.json, a product for each finished stage, resume.pt, log.jsonl, pictures ----------------


def write(path, content):
    """Replace the file `path` by what content(file) writes, or leave it as it was: never half of it."""
    temporary, buffer = path.with_name(path.name + ".tmp"), io.BytesIO()
    content(buffer)
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, *values, indent=1):
    """A file of one value, or without `indent` of any number, one a line."""
    lines = [json.dumps(value, indent=indent, default=str) + "\n" for value in values]
    write(path, lambda file: file.write("".join(lines).encode()))


def environment(settings):
    device = torch.cuda.get_device_name() if settings.device == "cuda" else settings.device
    versions, commit = {library.__name__: library.__version__ for library in (torch, torchvision, np)}, ""
    with contextlib.suppress(OSError):  # there may be no git
        git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions, "commit": commit}


def read_settings(folder):
    """What settings.json says, with its flags as Settings has them; no flags if there is no folder, or no run in it."""
    if folder is None or not any(folder.glob("*.pt")):
        return {"flags": {}}
    path = folder / "settings.json"
    with explained(path, "it is damaged or of another version: give another --out"):
        saved = json.loads(path.read_text(encoding="utf-8"))
        values = {name: saved["flags"][name] for name in FIELDS}
        flags = {name: value if value is None else FIELDS[name].type(value) for name, value in values.items()}
        return saved | {"flags": flags, "classes": list(saved["classes"]), "teacher_seed": int(saved["teacher_seed"])}


def load_product(folder, stage, settings, data):
    """The networks of a finished stage, {their key in the file: network in eval mode}, or None if there is no such file."""
    file, *keys = PRODUCTS[stage]
    if not (folder / file).exists():
        return None
    nets = {key: (make_classifier if stage == "classifier" else make_network)(settings, data).eval() for key in keys}
    with explained(f"{folder / file} is damaged or does not belong here", "delete it, or give another --out"):
        saved = torch.load(folder / file, map_location="cpu", weights_only=True)  # a pickle that wants to run code is refused
        for key, net in nets.items():
            net.load_state_dict(saved[key])
    return nets


def open_folder(command, settings, data):
    """Refuse what does not fit; then make the run folder, whole by itself: with classifier and teacher of --teacher."""
    home, out, now, seed = settings.teacher or settings.out, settings.out, vars(settings), settings.seed
    made = [(out / file).exists() for file, *_ in PRODUCTS.values()]
    if made[-1] and not all(made):
        fail(f"{out} lacks a file that its generator was made from: give another --out")
    # A group named like a stage binds from the stage's first file on (product or resume.pt); "place" never does.
    begun = [*PRODUCTS][: max(i * there for i, there in enumerate(made, 1)) + (out / "resume.pt").exists()]
    about = {"classes": data.classes, "pictures": len(data.images)}
    for folder, groups in (out if begun else None, ("data", "run", "precision", *begun)), (settings.teacher, SHARED):
        found = read_settings(folder)
        seed = found.get("teacher_seed", seed)
        flags = {name: value for name, value in found["flags"].items() if GROUP_OF[name] in groups}
        both = {f"--{name.replace('_', '-')}": (value, now[name]) for name, value in flags.items()}
        both |= {f"the {name}": (found.get(name, value), value) for name, value in about.items()}
        if {now["data"], *both.get("--data", ())}.isdisjoint(("shapes", *SOURCES)):  # own pictures may have moved
            both.pop("--data", None)
        words = [f"{name} {in_words(was)} (now {in_words(new)})" for name, (was, new) in both.items() if was != new]
        if words:
            fail(f"{folder} was made with {', '.join(words)}: give the same to continue, or another --out for a new run")
    needed = [*PRODUCTS][: max(COMMANDS[command].start, 2 * bool(settings.teacher))]
    for stage, (file, *_) in PRODUCTS.items():
        folder, earlier = (out, "unlearn") if stage == "pecker" else (home, "pretrain")
        if not load_product(folder, stage, settings, data) and stage in needed:
            fail(f"{folder / file} is missing: run `python train.py {earlier}` for its folder to the end, or give another folder")
        if (out / file).exists() and (out / file).read_bytes() != (folder / file).read_bytes():
            fail(f"{out} was made from another {stage} than {folder / file}: leave --teacher out, or give another --out")
    with explained("these flags do not go together", "see python train.py --help"):
        network = make_network(settings, data)
        if command != "pretrain":
            make_pecker(settings, data, network)
    read_log(out)
    if not all(made):  # settings.json stays that of the code which made the last product
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "settings.json", {"teacher_seed": seed, "flags": now} | about | environment(settings))
        for name in ("classifier.pt", "teacher.pt") if settings.teacher else ():
            write(out / name, lambda file: file.write((home / name).read_bytes()))


def read_log(folder):
    path = folder / "log.jsonl"
    with explained(f"{path} is damaged", "give another --out"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # without half a line at the end
        return [{"stage": line["stage"]} | line for line in map(json.loads, lines)]


def save_picture(path, rows, row_names, column_names):
    """rows (R, K, C, S, S) uint8 -> a PNG with a name above each of the K columns and before each of the R rows."""
    size, longest = rows.shape[-1], max(map(len, column_names))
    tile, left, top = size * math.ceil(max(64, 7 * longest) / size), 7 * max(map(len, row_names)) + 12, 20  # a letter: 7 pixels
    tiles = F.interpolate(rows.cpu().flatten(0, 1), tile)
    grid = torchvision.utils.make_grid(tiles, nrow=rows.shape[1], padding=8, pad_value=255)
    picture = to_pil_image(F.pad(grid, (left, 0, top, 0), value=255))
    pen = ImageDraw.Draw(picture)
    for column, name in enumerate(column_names):
        pen.text((left + 8 + column * (tile + 8) + (tile - pen.textlength(name)) / 2, 10), name, fill="black")
    for row, name in enumerate(row_names):
        pen.text((8, top + 8 + row * (tile + 8) + tile / 2 - 6), name, fill="black")
    write(path, functools.partial(picture.save, format="png"))


# --- the stages, and the one training loop of them all ---------------------------------------------------------------

stopping = {"looping": False, "signal": None}


def on_signal(number, _):
    """The one handler of Ctrl-C and SIGTERM: the loop is told, and saves before it ends; elsewhere the program ends at once."""
    stopping["signal"] = number
    if not stopping["looping"]:
        print("stopped; the same command continues", file=sys.stderr)
        raise SystemExit(128 + number)


def seconds_of(settings, call, times):
    """How long so many calls will take, from the second, as the first also prepares what the others use; or from a slow first."""
    for _ in range(2):
        begin = time.perf_counter()
        call()
        getattr(torch, settings.device).synchronize()
        if (seconds := time.perf_counter() - begin) > 10:
            break
    return times * seconds


def train(settings, data, stage, total, images_per_step, step, parts, nets, look=lambda done: (), looks=()):
    """The networks of a stage {key: network in eval mode}: loaded if it is finished, else trained from resume.pt on.

    step() -> {name: loss} changes the parts {name: what has a state_dict}; nets are the product. look(done) -> log lines is
    called before the first step and after those in `looks`. Continuing equals never having stopped, bit for bit on the CPU.
    Without settings.out two steps are timed and nothing is written: {key: seconds that the stage would take}.
    """
    # No cache: older torch would take a cast made under no_grad where a gradient is wanted, and the weight would get none.
    step = torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16, cache_enabled=False)(step)
    if settings.out is None:
        return dict.fromkeys(nets, seconds_of(settings, step, total) + seconds_of(settings, lambda: [*look(0)], len(looks)))
    if finished := load_product(settings.out, stage, settings, data):
        print(f"{stage}: finished", flush=True)
        return finished
    path, earlier = settings.out / "resume.pt", [line for line in read_log(settings.out) if line["stage"] != stage]
    backend = torch if settings.device == "cpu" else getattr(torch, settings.device)  # has the random state of the steps
    done, seconds, history, sums = 0, 0.0, [], {}
    if path.exists():
        with explained(f"{path} is damaged or of another device", "continue where it began, delete it, or give another --out"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["stage"] == stage:
                done, seconds, history, sums = (saved[name] for name in ("done", "seconds", "history", "sums"))
                for name, part in parts.items():
                    part.load_state_dict(saved[name])
                backend.set_rng_state(saved["random_state"])
                print(f"{stage}: continues at step {done} of {total}", flush=True)

    def record(*lines):
        history.extend({"stage": stage} | line for line in lines)
        write_json(settings.out / "log.jsonl", *earlier, *history, indent=None)

    record(*(look(0) if done == 0 else ()))  # also drops the lines after the step from which the run continues
    log_every, last_save = max(1, total // 20), time.monotonic()
    while done < total:
        stopping["looping"] = True
        begin, done = time.perf_counter(), done + 1
        losses = step()
        sums = {name: sums.get(name, 0) + loss for name, loss in losses.items()}  # on the device: no waiting for it
        log_now = done % log_every == 0 or done == total
        save_now = done % settings.save_every == 0 if settings.save_every else time.monotonic() - last_save > 60
        if log_now or save_now or done in looks or stopping["signal"]:
            means = {name: (value / ((done - 1) % log_every + 1)).item() for name, value in sums.items()}
            if wrong := [name for name, mean in means.items() if not math.isfinite(mean)]:
                fail(f"{stage}: {wrong[0]} is not finite at step {done}: give lower learning rates and another --out")
        seconds += time.perf_counter() - begin
        if log_now:
            speed, left = images_per_step * done / seconds, (total - done) * seconds / done
            record({"step": done} | means | {"images_per_second": round(speed, 1), "seconds_left": round(left, 1)})
            text = "  ".join(f"{name} {mean:.4g}" for name, mean in means.items())
            left = f"{int(left) // 60}:{int(left) % 60:02} left"
            print(f"{stage} {done}/{total}  {text}  {speed:.0f} images/s  {left}", flush=True)
            sums = {}
        if done in looks:
            record(*look(done))
        if save_now or done == total or stopping["signal"]:
            state = {"stage": stage, "done": done, "seconds": seconds, "history": history, "sums": sums}
            state |= {name: part.state_dict() for name, part in parts.items()} | {"random_state": backend.get_rng_state()}
            write(path, functools.partial(torch.save, state))
            last_save = time.monotonic()
            stopping["looping"] = False  # what comes from here to the next step ends the program at once: all is saved
            if stopping["signal"]:
                print(f"{stage}: stopped and saved at step {done}; the same command continues", flush=True)
                raise SystemExit(128 + stopping["signal"])
    weights = {key: {name: weight.cpu() for name, weight in net.eval().state_dict().items()} for key, net in nets.items()}
    if not all(weight.isfinite().all() for net in weights.values() for weight in net.values()):
        fail(f"{stage}: a weight is not finite after the last step: give lower learning rates and another --out")
    write(settings.out / PRODUCTS[stage][0], functools.partial(torch.save, weights | {"seconds": seconds}))
    path.unlink()
    return nets


def make_classifier(settings, data):
    classifier = Classifier(data.images.shape[1], len(data.classes), settings.classifier_width)
    return classifier.to(data.images.device, memory_format=torch.channels_last)


def make_network(settings, data):
    shape = settings.width, settings.multipliers, settings.blocks, settings.attention
    network = UNet(settings.image_size, len(data.classes), *shape, 0.0, data.images.shape[1], patch=settings.patch)
    return network.to(data.images.device, memory_format=torch.channels_last)


def descend(loss, optimizer, lr_schedule):
    """One step down the gradient of a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    lr_schedule.step()
    return {"loss": loss.detach()}


def train_classifier(settings, data):
    """The classifier, in eval mode. It never sees a generated image."""
    torch.manual_seed(settings.seed)
    classifier = make_classifier(settings, data)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    lr_schedule = OneCycleLR(optimizer, max_lr=5e-3, total_steps=settings.classifier_steps)
    size, most = settings.image_size, settings.image_size // 8

    def step():
        x, c = data.batch(128)
        rows, columns = torch.randint(2 * most + 1, (2, len(x)), device=x.device)  # every picture is shifted on its own
        windows = F.pad(x, [most] * 4, mode="reflect").unfold(2, size, 1).unfold(3, size, 1)  # (B, C, shifts, shifts, S, S)
        x = windows[torch.arange(len(x), device=x.device), :, rows, columns]
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)  # judge shapes, not grain
        return descend(F.cross_entropy(classifier.train()(x).float(), c, label_smoothing=0.05), optimizer, lr_schedule)

    parts = {"net": classifier, "optimizer": optimizer, "lr_schedule": lr_schedule}
    return train(settings, data, "classifier", settings.classifier_steps, 128, step, parts, {"weights": classifier})["weights"]


def train_teacher(settings, data):
    """The DDPM (Eq. 8): a moving average of its weights, half-life 5 % of the run, in eval mode."""
    torch.manual_seed(settings.seed)
    net, noise_schedule = make_network(settings, data), NoiseSchedule().to(settings.device)
    average, decay = copy.deepcopy(net).requires_grad_(False), 0.5 ** (20 / settings.pretrain_steps)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    # Warm-up and cosine. 0.11: torch divides by pct_start * total_steps - 1, which 0.1 would make zero for ten steps.
    lr_schedule = OneCycleLR(optimizer, settings.pretrain_lr, settings.pretrain_steps, pct_start=0.11, cycle_momentum=False)

    def step():
        loss = noise_prediction_loss(net, noise_schedule, *data.batch(settings.pretrain_batch_size))
        losses = descend(loss, optimizer, lr_schedule)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        return losses

    parts = {"net": net, "average": average, "optimizer": optimizer, "lr_schedule": lr_schedule}
    images, nets = settings.pretrain_batch_size, {"weights": average}
    return train(settings, data, "teacher", settings.pretrain_steps, images, step, parts, nets)["weights"]


def make_pecker(settings, data, teacher):
    flags = {name: value for name, value in vars(settings).items() if name in Pecker.__init__.__kwdefaults__}
    flags |= {"ema": 0.5 ** (1 / settings.ema_half_life), "num_forget_images": max(256, 2 * settings.batch_size)}
    pairs, schedule = parse_pairs(settings.forget, data.classes), NoiseSchedule().to(settings.device)
    return Pecker(teacher, schedule, pairs, len(data.classes), data.images.shape[1:], **flags)


def unlearn(settings, data, classifier, teacher):
    """Algorithm 1, its curve in log.jsonl and its picture -> the generators {"average": network, "raw": network}."""
    pecker, pairs = make_pecker(settings, data, teacher), parse_pairs(settings.forget, data.classes)
    nets, real_features = {"average": pecker.ema, "raw": pecker.generator}, classifier.predict(data.test_images)[0]
    # A hundred or so images of the forgotten classes in all, and at least twice what the Frechet distance needs of the retained.
    few, many = max(1, 100 // len(pairs)), max(20, 2 * real_features.shape[1] // (len(data.classes) - len(pairs)) + 1)
    labels = torch.cat((pecker.forgotten.repeat(few), pecker.retained.repeat(many))).sort().values
    looks = sorted({*range(0, settings.steps, max(1, settings.steps // 50)), settings.steps})
    # The forgotten class from fixed noise at eight of these points, most of them early.
    points = sorted({looks[round((len(looks) - 1) * (i / 7) ** 2)] for i in range(8)})
    noise, columns = data.fixed_noise(10, seed=1), torch.tensor([*pairs], device=settings.device).repeat(10)[:10]
    names = [data.classes[label] for label in columns]
    kept = ("unlearning_accuracy", "cover_share", "retain_accuracy", "frechet_distance", "images")
    album = nn.Module()
    album.register_buffer("frames", torch.zeros(len(points), *noise.shape, dtype=torch.uint8))

    def look(done):
        for weights, net in nets.items():
            figures = measure(data, classifier, real_features, pairs, net, labels, seed=1, curve=True)
            yield {"step": done, "weights": weights} | {key: figures[key] for key in kept}
        if done in points:
            album.frames[points.index(done)] = draw_pictures(pecker.generator, noise, columns).cpu()
        if done == settings.steps:
            save_picture(settings.out / "trajectory.png", album.frames, [f"step {point}" for point in points], names)

    parts = {"pecker": pecker, "album": album}
    return train(settings, data, "pecker", settings.steps, 2 * settings.batch_size, pecker.step, parts, nets, look, looks)


def steps_to_forget(curve):
    """The first step of a curve, log lines of one kind of weights, from which on the class stays forgotten, or None.

    Forgotten: unlearning accuracy >= 0.95, cover share >= 0.90, retain accuracy within 2 points of its last value.
    """
    near = lambda line: abs(line["retain_accuracy"] - curve[-1]["retain_accuracy"]) <= 0.02  # noqa: E731
    good = [line["unlearning_accuracy"] >= 0.95 and line["cover_share"] >= 0.90 and near(line) for line in curve]
    return next((line["step"] for i, line in enumerate(curve) if all(good[i:])), None)


def evaluate(settings, data, classifier, teacher, generators):
    """Prints what was reached, steps_to_forget from log.jsonl; writes metrics.json, before_after.png, not over other --images."""
    begin, pairs = time.perf_counter(), parse_pairs(settings.forget, data.classes)
    real_features, probabilities = classifier.predict(data.test_images)
    labels = torch.arange(len(data.classes), device=settings.device).repeat_interleave(settings.images)
    path = settings.out / "metrics.json"
    with explained(f"{path} is damaged", "delete it, or give another --out"):
        images = json.loads(path.read_text(encoding="utf-8"))["generator"]["images"] if path.exists() else len(labels)
    measured = functools.partial(measure, data, classifier, real_features, pairs, labels=labels)
    metrics = {"teacher": measured(net=teacher, steps=settings.ddim_steps), "teacher_one_step": measured(net=teacher)}
    for name, weights in {"generator": "average", "generator_raw": "raw"}.items():
        curve = [line for line in read_log(settings.out) if line.get("weights") == weights]
        metrics[name] = measured(net=generators[weights]) | {"steps_to_forget": steps_to_forget(curve)}

    accuracy = (probabilities.argmax(1) == data.test_labels.cpu()).double().mean().item()
    print(f"\n{settings.data}: forget {in_words(settings.forget)}; {len(labels)} images; classifier {accuracy:.4f} on real ones")
    print(" " * 24 + "".join(name.rjust(18) for name in metrics))
    for key, value in metrics["generator"].items():
        if not isinstance(value, dict):
            values = [row.get(key) for row in metrics.values()]
            print(key.replace("_", " ").ljust(24) + "".join(f"{'-' if one is None else f'{one:.4g}':>18}" for one in values))
    if images != len(labels):
        print(f"{path} has another --images: nothing is written; delete it to replace it")
        return

    seconds = {stage: torch.load(settings.out / file, weights_only=True)["seconds"] for stage, (file, *_) in PRODUCTS.items()}
    seconds["evaluate"] = time.perf_counter() - begin
    about = {"classifier_accuracy": accuracy, "classifier_features": real_features.shape[1], "real_images": len(data.test_labels)}
    about |= {"seconds": seconds, "flags": {name: value for name, value in vars(settings).items() if GROUP_OF[name] != "place"}}
    metrics["settings"] = json.loads((settings.out / "settings.json").read_text("utf-8")) | about
    # A column a class; where there are too many, those that matter. Three rows before and three after, from the same noise.
    columns = sorted([*dict.fromkeys([*pairs, *pairs.values(), *range(len(data.classes))])][:10])
    noise, c = data.fixed_noise(3 * len(columns), seed=2), torch.tensor(columns, device=settings.device).repeat(3)
    rows = draw_pictures(teacher, noise, c, settings.ddim_steps), draw_pictures(generators["average"], noise, c)
    rows = torch.cat(rows).unflatten(0, (6, len(columns)))
    row_names, column_names = ["teacher"] * 3 + ["PECKER"] * 3, [data.classes[label] for label in columns]
    save_picture(settings.out / "before_after.png", rows, row_names, column_names)
    write_json(path, metrics)
    print(f"Results, pictures and log: {settings.out}")


def write_samples(settings, data, generators):
    """--images PNG files per class into samples/<class>/, drawn by the moving average of the generator."""
    for label, name in enumerate(data.classes):
        folder = settings.out / "samples" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        noise = data.fixed_noise(settings.images, settings.seed + label)
        c = torch.full((settings.images,), label, device=settings.device)
        for i, picture in enumerate(draw_pictures(generators["average"], noise, c).cpu()):
            to_pil_image(picture).save(folder / f"{i:05}.png")
    print(f"{settings.images} pictures of each class are in {settings.out / 'samples'}")


# --- the way of the data ---------------------------------------------------------------------------------------------


def estimate(command, settings, data):
    """Prints and logs how long the stages that are missing will take on this machine, from two steps on throwaway copies."""
    stages = [stage for stage in [*PRODUCTS][COMMANDS[command]] if not (settings.out / PRODUCTS[stage][0]).exists()]
    if not stages or (settings.out / "resume.pt").exists():
        return
    steps = {name: max(2, getattr(settings, name)) for name in ("classifier_steps", "pretrain_steps")}  # as two are timed
    throwaway = dataclasses.replace(settings, **steps, ddim_steps=1, out=None)  # train() then gives seconds instead of networks
    seconds = {}
    with torch.random.fork_rng(devices=[]):
        classifier, net = make_classifier(settings, data), make_network(settings, data)
        calls = {"classifier": lambda: train_classifier(throwaway, data), "teacher": lambda: train_teacher(throwaway, data)}
        calls["pecker"] = lambda: unlearn(throwaway, data, classifier, net)["raw"]
        batches = settings.images * len(data.classes) * (settings.ddim_steps + 3) / 50
        calls["evaluate"] = lambda: seconds_of(settings, lambda: draw_pictures(net, *data.batch(50)), batches)
        print("This will take about", end="", flush=True)
        for stage in stages + ["evaluate"] * (command == "all"):  # said one by one: at size full on a CPU a step takes a minute
            seconds[stage] = round(calls[stage](), 1)
            print(f" {seconds[stage] / 60:.1f} minutes for {stage},", end="", flush=True)
    print(f" {sum(seconds.values()) / 60:.1f} in all", flush=True)
    write_json(settings.out / "log.jsonl", *read_log(settings.out), {"stage": "estimate", "seconds": seconds}, indent=None)


def load_run(folder, device=None):
    """A finished run -> settings, data, classifier, teacher, {"average": network, "raw": network}: how experiments start.

    Networks are in eval mode, on `device` (default: cuda if there is one). SystemExit if the folder is not a finished run.
    """
    _, settings = parse_args(["evaluate", "--out", str(folder)] + (["--device", device] if device else []))
    data = load_data(settings)
    open_folder("evaluate", settings, data)
    classifier, teacher, generators = (load_product(settings.out, stage, settings, data) for stage in PRODUCTS)
    return settings, data, classifier["weights"], teacher["weights"], generators


def main(argv):
    command, settings = parse_args(argv)
    data = load_data(settings)
    open_folder(command, settings, data)
    estimate(command, settings, data)
    # All go through train(): a finished stage is loaded, a stopped one continues; open_folder() has refused what lacks one.
    classifier = train_classifier(settings, data)
    teacher = train_teacher(settings, data)
    if command != "pretrain":
        generators = unlearn(settings, data, classifier, teacher)
    if command in ("all", "evaluate"):
        evaluate(settings, data, classifier, teacher, generators)
    if command == "sample":
        write_samples(settings, data, generators)


def run_program(main):
    """Call main(argv); a signal, a full disk and too little memory end it in one sentence, without a traceback."""
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    with contextlib.suppress(AttributeError):  # a notebook's has no such method
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of classes that a terminal cannot show
    try:
        main(sys.argv[1:])
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}; make room or give another --out, then run it again")
    except (MemoryError, RuntimeError) as error:  # torch has no one class for a lack of memory, nor one sentence
        if not isinstance(error, MemoryError) and not re.search("(out of|can't|not enough).* memory|ALLOC.*FAILED", str(error)):
            raise
        fail("not enough memory: give smaller --batch-size, --pretrain-batch-size, --images or --width, and another --out")


if __name__ == "__main__":
    run_program(main)
