"""The network: a class-conditional DDPM UNet that predicts noise (Ho et al. 2020, arXiv 2006.11239, appendix B).

    noisy (B, C, H, W)  ->  first convolution
      -> one stage per entry of `multipliers`: `blocks` x [residual block (+ attention)]; H, W halve between stages
      -> middle: residual block, attention, residual block
      -> the stages backwards: (blocks + 1) x [join a saved activation, residual block (+ attention)]; H, W double between
      -> normalise, last convolution, + noisy  ->  eps (B, C, H, W)

The time t and the label c enter every residual block through one vector: embedding(t) + table[c].
The `+ noisy` at the end is not in DDPM. The best linear guess of the noise is the input times 0.88 to 1.25 (for pictures of
variance 0.2 and t > 60), so that the network only has to find what is not noise. Without it, small networks draw pictures with
drifting brightness and leftover grain (experiments/README.md, difference 12).
Nothing in here is specific to PECKER: any module called as net(noisy, t, c) can take this one's place.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

torch.backends.cuda.enable_cudnn_sdp(False)  # in bfloat16 on H100s its gradients are reported to be NaN


def zero(module):
    """Zero the parameters, so that a residual block starts as its shortcut and the network as eps = noisy."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels):
    """GroupNorm with gcd(32, channels / 4) groups: DDPM's 32 for multiples of 128 channels, fewer in a thin network.

    A group of one channel would erase the mean of that channel, hence the brightness of the picture.
    """
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


class TimeEmbedding(nn.Module):
    """Timesteps t (B,), integers -> (B, 4 * width): sines and cosines of `width / 2` frequencies each, then an MLP."""

    def __init__(self, width):
        super().__init__()
        frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))  # 1 down to 10000^(2/width - 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    def forward(self, t):
        angles = t[:, None] * self.frequencies  # (B, width / 2), radians
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResidualBlock(nn.Module):
    """x (B, in_channels, H, W), embedding (B, E) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels, out_channels, embedding_size, dropout):
        super().__init__()
        self.first = nn.Sequential(group_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, out_channels))
        self.second = nn.Sequential(
            group_norm(out_channels), nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, embedding):
        h = self.first(x) + self.embed(embedding)[:, :, None, None]
        return self.shortcut(x) + self.second(h)


class Attention(nn.Module):
    """Self-attention over the H * W positions, one head as in DDPM. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H * W, 3 * C)
        q, k, v = (part[:, None] for part in qkv.chunk(3, dim=2))  # each (B, 1 head, H * W, C)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, H * W, C)
        return x + self.project(h.transpose(1, 2).reshape(B, C, H, W))


class UNet(nn.Module):
    """Predicted noise of a noisy image, called as net(noisy, t, c).

    noisy (B, in_channels, S, S) float, S = image_size; t (B,) integer timesteps; c (B,) long labels, 0..num_classes-1;
    returns eps, shaped like noisy. width=128, multipliers=(1, 2, 2, 2), blocks=2, attention at 16, dropout 0.1 at image_size 32
    has the layers of DDPM's for CIFAR-10, but for the label and the sum with the input (35.7 million weights; SFD's: 38.6).
    patch = 2 lets it see squares of 2 x 2 pixels as channels, at a quarter of the cost: for small budgets. A resolution is a
    number of such squares a side; attention_resolutions that no stage has are ignored.
    ValueError if width is no multiple of 4 or image_size cannot be divided by patch and halved once per later multiplier.
    """

    def __init__(
        self, image_size, num_classes, width=128, multipliers=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,), dropout=0.1,
        in_channels=3, *, patch=1,
    ):  # fmt: skip
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width must be a positive multiple of 4, not {width}")
        if image_size % (patch * 2 ** (len(multipliers) - 1)):
            raise ValueError(f"image_size {image_size} cannot be divided by {patch} and halved {len(multipliers) - 1} times")
        embedding_size = 4 * width
        self.embed_time = TimeEmbedding(width)
        self.embed_class = nn.Embedding(num_classes, embedding_size)  # the only way in for the label
        self.first = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(in_channels * patch**2, width, 3, padding=1))

        def stage_block(in_channels, out_channels, resolution):
            attend = resolution in attention_resolutions
            block = ResidualBlock(in_channels, out_channels, embedding_size, dropout)
            return nn.ModuleList([block, Attention(out_channels) if attend else nn.Identity()])

        channels, resolution = width, image_size // patch
        saved = [channels]  # channels of every activation kept for the way up
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                resolution //= 2
                saved.append(channels)
            for _ in range(blocks):
                self.down.append(stage_block(channels, multiplier * width, resolution))
                channels = multiplier * width
                saved.append(channels)

        self.middle = nn.ModuleList([
            ResidualBlock(channels, channels, embedding_size, dropout),
            Attention(channels),
            ResidualBlock(channels, channels, embedding_size, dropout),
        ])  # fmt: skip

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage_block(channels + saved.pop(), multiplier * width, resolution))
                channels = multiplier * width
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)))
                resolution *= 2

        last = zero(nn.Conv2d(channels, in_channels * patch**2, 3, padding=1))
        self.last = nn.Sequential(group_norm(channels), nn.SiLU(), last, nn.PixelShuffle(patch))

    def forward(self, noisy, t, c):
        embedding = self.embed_time(t) + self.embed_class(c)  # (B, 4 * width)
        x = self.first(noisy)
        saved = [x]
        for layer in self.down:
            if isinstance(layer, nn.ModuleList):
                block, attention = layer
                x = attention(block(x, embedding))
            else:
                x = layer(x)  # half the resolution
            saved.append(x)

        before, attention, after = self.middle
        x = after(attention(before(x, embedding)), embedding)

        for layer in self.up:
            if isinstance(layer, nn.ModuleList):
                block, attention = layer
                x = attention(block(torch.cat([x, saved.pop()], dim=1), embedding))
            else:
                x = layer(x)  # twice the resolution
        return self.last(x) + noisy  # float32 also under autocast, as noisy is
