"""Surfaces for procedural scenes: a field of 8-bit values painted with a palette of 256 colours.

Everything works on 8-bit arrays. Noise comes from a small bank that is made once from a fixed
seed; regular patterns are sums of two wrapping 8-bit ramps, which costs almost nothing.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

_SIDE = 512  # side of a noise field in the bank; fields tile
_NOISES = 10  # fractal noises in the bank, from rough to smooth; special fields follow them
_TURN = 256  # one period of the 8-bit phases

_GREY_LEVELS = np.arange(256)
_WAVE = (127.5 + 127.5 * np.cos(_GREY_LEVELS * 2 * np.pi / _TURN)).astype(np.uint8)
_BAND = np.where(_GREY_LEVELS < 128, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Style:
    """A surface.

    Attributes:
      palette: 768 bytes, 256 RGB colours from the darkest to the brightest.
      pattern: "flat", "noise", "wave", "band", "check", "dots" (square ones), "spots" (round
        bumps, for palettes with a step), "wood" or "photo".
      noise: which field of the bank (or which photograph).
      scale: bank pixels for each pixel; large values make fine grain.
      period: of regular patterns, pixels.
      angle: of regular patterns, radians.
      warp: how far noise bends regular patterns, periods.
      grain: share of noise mixed into regular patterns, 0..1.
      offset: where in the bank the field begins, 0..1.
      shade: how much a linear gradient darkens the far side, 0..1.
      rim: how much the outline is darkened, as on a round body, 0..1.
      outline: width of a dark line around the shape, pixels; 0 for none.
    """

    palette: bytes
    pattern: str = "noise"
    noise: int = 0
    scale: float = 1.0
    period: float = 16.0
    angle: float = 0.0
    warp: float = 0.0
    grain: float = 0.2
    offset: tuple[float, float] = (0.0, 0.0)
    shade: float = 0.0
    rim: float = 0.0
    outline: float = 0.0


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """float [3] in 0..255; earth, leaf and sky hues come more often than the others."""
    hue = rng.random()
    if rng.random() < 0.5:
        hue = rng.choice((0.07, 0.1, 0.28, 0.58)) + rng.normal() * 0.03
    colour = colorsys.hsv_to_rgb(hue % 1, rng.beta(1.1, 1.8), rng.uniform(0.12, 1.0))
    return 255 * np.array(colour)


def ramp(stops: Sequence[np.ndarray]) -> bytes:
    """A palette through the given colours, float [3] in 0..255, at equal distances."""
    stops = np.asarray(stops, np.float64)
    at = np.linspace(0, 255, len(stops))
    channels = [np.interp(_GREY_LEVELS, at, stops[:, c]) for c in range(3)]
    return np.clip(np.stack(channels, 1), 0, 255).astype(np.uint8).tobytes()


def random_style(
    rng: np.random.Generator,
    tones: Sequence[np.ndarray] = (),
    photos: int = 0,
) -> Style:
    """A random surface.

    Args:
      rng: everything random.
      tones: colours of the scene, float [3] in 0..255, that half of the surfaces are close to.
      photos: number of photographs that can serve as surfaces.
    """
    if len(tones) and rng.random() < 0.6:
        base = tones[rng.integers(len(tones))] + rng.normal(0, 14, 3)
    else:
        base = random_colour(rng)
    spread = rng.choice((0.06, 0.15, 0.3, 0.55))
    stops = [base * (1 - spread), base, base + (255 - base) * spread]
    if rng.random() < 0.25:
        stops[rng.integers(3)] = random_colour(rng)
    pattern = rng.choice(
        ("flat", "noise", "wave", "band", "check", "dots", "wood"),
        p=(0.24, 0.4, 0.07, 0.09, 0.04, 0.07, 0.09),
    )
    if photos and rng.random() < 0.35:
        pattern = "photo"
    return Style(
        palette=ramp(stops),
        pattern=str(pattern),
        noise=int(rng.integers(photos if pattern == "photo" else len(bank()))),
        scale=float(np.exp(rng.uniform(-1.2, 1.2))),
        period=float(np.exp(rng.uniform(1.2, 3.7))),
        angle=float(rng.choice((0, np.pi / 2, rng.uniform(0, np.pi)))),
        warp=float(rng.choice((0, 0, rng.uniform(0, 1.5)))),
        grain=float(rng.uniform(0, 0.5)),
        offset=(float(rng.random()), float(rng.random())),
        shade=float(rng.choice((0, rng.uniform(0.1, 0.6)))),
        rim=float(rng.choice((0, rng.uniform(0.2, 0.7)))),
        outline=float(rng.choice((0, 0, 0, rng.uniform(0.7, 2.5)))),
    )


def paint(style: Style, width: int, height: int, photos: Sequence[Image.Image] = ()) -> Image.Image:
    """A patch of the surface as an RGB image of width x height pixels, without its shading."""
    if style.pattern == "photo" and photos:
        return _window(photos[style.noise % len(photos)], style, width, height)
    patch = field(style, width, height)
    patch.putpalette(style.palette)  # turns a grey image into one of palette indices
    return patch.convert("RGB")


def field(style: Style, width: int, height: int) -> Image.Image:
    """The grey values of a surface, 8-bit, width x height pixels."""
    if style.pattern == "noise":
        return _window(bank()[style.noise % len(bank())], style, width, height)
    smooth = _window(bank()[style.noise % _NOISES], style, width, height)
    if style.pattern in ("flat", "photo"):
        return Image.blend(Image.new("L", smooth.size, 128), smooth, 1 / 8)
    along = _phase(style, width, height, 0.0)
    bend = 2.5 if style.pattern == "wood" else style.warp
    if bend:
        shift = np.asarray(smooth).astype(np.uint16) * int(bend * 256) >> 8
        along = along + shift.astype(np.uint8)
    if style.pattern == "band":
        values = _BAND[along]
    elif style.pattern in ("wave", "wood"):
        values = _WAVE[along]
    else:
        across = _phase(style, width, height, np.pi / 2)
        if style.pattern == "check":
            values = _BAND[along] ^ _BAND[across]
        elif style.pattern == "spots":
            values = _WAVE[along] // 2 + _WAVE[across] // 2
        else:
            values = _BAND[255 - np.minimum(_WAVE[along], _WAVE[across])]
    pattern = Image.fromarray(np.ascontiguousarray(values))
    return Image.blend(pattern, smooth, style.grain)


def shading(style: Style, alpha: Image.Image) -> Image.Image | None:
    """Grey factors (255 keeps) for a shape's patch: gradient and dark rim; None for no shading."""
    width, height = alpha.size
    if max(width, height) < 8 or (style.shade == 0 and style.rim == 0):
        return None
    light = None
    if style.shade:
        cos, sin = np.cos(style.angle), np.sin(style.angle)
        x, y = np.linspace(-1, 1, width) * cos, np.linspace(-1, 1, height) * sin
        depth = (x[None, :] + y[:, None]).astype(np.float32) * (127.5 / 1.42) + 127.5
        light = Image.fromarray((255 - style.shade * depth).astype(np.uint8))
    if style.rim:
        inner = rim_light(alpha, style.rim)
        light = inner if light is None else ImageChops.multiply(light, inner)
    return light


def rim_light(alpha: Image.Image, strength: float) -> Image.Image:
    """255 in the middle of a shape, falling towards its outline by `strength` (0..1)."""
    width, height = alpha.size
    small = alpha.resize((max(2, min(12, width // 3)), max(2, min(12, height // 3))))
    padded = Image.new("L", (small.width + 2, small.height + 2))
    padded.paste(small, (1, 1))
    soft = padded.resize(
        (width, height), Image.Resampling.BICUBIC, box=(1, 1, small.width + 1, small.height + 1)
    )
    return Image.blend(Image.new("L", soft.size, 255), soft, strength)


@lru_cache(maxsize=1)
def bank() -> tuple[Image.Image, ...]:
    """Tiling 8-bit noise fields, always the same: fractal ones first, then special ones."""
    rng = np.random.default_rng(20230405)
    fields = [_fractal(rng, slope) for slope in np.linspace(0.6, 2.4, _NOISES)]
    fields += [np.abs(_fractal(rng, slope).astype(np.int16) - 128) * 2 for slope in (1.3, 1.9)]
    fields += [_fractal(rng, 1.2, stretch) for stretch in ((1, 9), (7, 1))]
    fields += [_pebbles(rng, count) for count in (150, 600, 2500)]
    return tuple(Image.fromarray(np.clip(f, 0, 255).astype(np.uint8)) for f in fields)


def _fractal(
    rng: np.random.Generator, slope: float, stretch: tuple[int, int] = (1, 1)
) -> np.ndarray:
    """Noise whose amplitude falls with frequency to the power of `slope`, uint8 [side, side]."""
    fy = np.fft.fftfreq(_SIDE)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(_SIDE)[None, :] * stretch[1]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((_SIDE, _SIDE))) / radius**slope
    return _stretched(np.fft.irfft2(spectrum, s=(_SIDE, _SIDE)))


def _pebbles(rng: np.random.Generator, count: int) -> np.ndarray:
    """Distance to the nearest of `count` random points: a pattern of cells, uint8."""
    free = np.ones((_SIDE, _SIDE), bool)
    free[rng.integers(_SIDE, size=count), rng.integers(_SIDE, size=count)] = False
    tiled = np.tile(free, (2, 2))
    distance = ndimage.distance_transform_edt(tiled)
    half = _SIDE // 2
    return _stretched(-np.roll(distance[half : half + _SIDE, half : half + _SIDE], half, (0, 1)))


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _window(source: Image.Image, style: Style, width: int, height: int) -> Image.Image:
    """A window of a bank field or photograph, resized to width x height."""
    scale = min(style.scale, source.width / width, source.height / height)
    w, h = min(width * scale, source.width), min(height * scale, source.height)  # rounding
    x, y = style.offset[0] * (source.width - w), style.offset[1] * (source.height - h)
    return source.resize(
        (width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h), reducing_gap=2.0
    )


def _phase(style: Style, width: int, height: int, turn: float) -> np.ndarray:
    """Phase of a plane wave, uint8 [height, width], 256 to a period."""
    angle = style.angle + turn
    step = _TURN / style.period
    x = (np.arange(width) * (step * np.cos(angle)) + 256 * style.offset[0]) % _TURN
    y = (np.arange(height) * (step * np.sin(angle)) + 256 * style.offset[1]) % _TURN
    return x.astype(np.uint8)[None, :] + y.astype(np.uint8)[:, None]
