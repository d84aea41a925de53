"""BlurHash: a picture in some thirty characters, which clients show until the picture itself has arrived.

Written for the separate process: the packages that do this are unmaintained. Format: https://blurha.sh
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#$%*+,-.:;=?@[]^_{|}~"
# The hash has a few waves in each direction, so more pixels than these would not change it.
_PIXELS_ACROSS = 32
_LONG_SIDE, _SHORT_SIDE = 4, 3  # waves

Colour = tuple[float, float, float]


def blurhash_of(image: Image.Image) -> str:
    """Returns the BlurHash of a decoded image."""
    across, down = (_LONG_SIDE, _SHORT_SIDE) if image.width >= image.height else (_SHORT_SIDE, _LONG_SIDE)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:  # as on a white page
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image.alpha_composite(layer)
    small = image.convert("RGB").resize((_PIXELS_ACROSS, _PIXELS_ACROSS), Image.Resampling.BOX)
    data = small.tobytes()
    pixels = [_LINEAR[value] for value in data]
    rows = [pixels[at : at + 3 * _PIXELS_ACROSS] for at in range(0, len(pixels), 3 * _PIXELS_ACROSS)]
    factors = [factor for j in range(down) for factor in _factors_of(rows, across, j)]
    return _encode(factors, across, down)


def _factors_of(rows: Sequence[Sequence[float]], across: int, j: int) -> list[Colour]:
    """Returns how much of each wave is in the picture, of those with `j` half waves from top to bottom."""
    weights = _wave(j, len(rows))
    summed = [sum(map(float.__mul__, weights, column)) for column in zip(*rows, strict=True)]
    found: list[Colour] = []
    for i in range(across):
        wave = _wave(i, _PIXELS_ACROSS)
        scale = (1 if i == j == 0 else 2) / (_PIXELS_ACROSS * len(rows))
        red, green, blue = (scale * sum(map(float.__mul__, wave, summed[channel::3])) for channel in range(3))
        found.append((red, green, blue))
    return found


def _wave(frequency: int, length: int) -> list[float]:
    return [math.cos(math.pi * frequency * at / length) for at in range(length)]


def _encode(factors: Sequence[Colour], across: int, down: int) -> str:
    mean, waves = factors[0], factors[1:]
    largest = max((abs(value) for wave in waves for value in wave), default=0.0)
    quantised = max(0, min(82, math.floor(largest * 166 - 0.5)))
    parts = [_base_83(across - 1 + (down - 1) * 9, 1), _base_83(quantised, 1)]
    red, green, blue = map(_to_srgb, mean)
    parts.append(_base_83((red << 16) + (green << 8) + blue, 4))
    for wave in waves:
        number = 0
        for value in wave:
            relative = value / ((quantised + 1) / 166)
            root = math.copysign(math.sqrt(abs(relative)), relative)
            number = number * 19 + max(0, min(18, math.floor(root * 9 + 9.5)))
        parts.append(_base_83(number, 2))
    return "".join(parts)


def _base_83(number: int, length: int) -> str:
    return "".join(_DIGITS[number // 83**place % 83] for place in range(length - 1, -1, -1))


def _to_linear(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


_LINEAR = [_to_linear(value) for value in range(256)]


def _to_srgb(value: float) -> int:
    share = max(0.0, min(1.0, value))
    if share <= 0.0031308:
        return int(share * 12.92 * 255 + 0.5)
    return int((1.055 * share ** (1 / 2.4) - 0.055) * 255 + 0.5)
