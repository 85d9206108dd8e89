"""Drawn scenes whose objects can be told apart by words: colour, texture, shape, size and place.

The words and what is true of what are in `descriptions`; here are the pictures.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from sam_jax.data import scene_shapes as shapes
from sam_jax.data.descriptions import (
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Attributes,
    located,
    phrase,
    unique_phrase,
)
from sam_jax.data.scene_camera import mildly_photographed
from sam_jax.data.scene_layouts import Canvas, background, draw, new_canvas, shadow
from sam_jax.data.scene_shapes import Path, Shape
from sam_jax.data.scene_textures import Style, ramp
from sam_jax.data.scene_things import Node
from sam_jax.data.sources import Record
from sam_jax.ops import rle as rle_ops

PHRASES = 4  # tried for each object; those that come twice are told once
MOST_OBJECTS = 6
MIN_VISIBLE = 0.75  # share of an object that others and the picture's edge leave visible

SIDES = {"small": (0.1, 0.14), "large": (0.25, 0.36)}
"""Square root of a whole object's area, as a share of the picture's side."""

HUES = {  # hue in degrees, saturation and value (brightness), each from .. to
    "red": ((-8, 6), (0.8, 1.0), (0.65, 0.95)),
    "green": ((100, 145), (0.6, 1.0), (0.4, 0.75)),
    "blue": ((210, 238), (0.7, 1.0), (0.55, 0.95)),
    "yellow": ((50, 58), (0.75, 1.0), (0.88, 1.0)),
    "orange": ((24, 34), (0.88, 1.0), (0.92, 1.0)),
    "purple": ((272, 292), (0.55, 0.9), (0.45, 0.75)),
    "pink": ((322, 338), (0.42, 0.6), (0.93, 1.0)),
    "brown": ((18, 28), (0.6, 0.8), (0.3, 0.45)),
    "black": ((0, 360), (0.0, 0.2), (0.03, 0.12)),
    "white": ((0, 360), (0.0, 0.04), (0.94, 1.0)),
}
"""The shades that an object of a colour is painted in, before light and noise."""

_GROUND = ((0, 360), (0.0, 0.22), (0.3, 0.72))  # likewise of backgrounds: dull, neither end
_CONTRAST = 75.0  # wanted between an object and its ground: distance of their RGB colours
# How much of white or black is mixed into a colour for its patterns' second tone; white elsewhere.
_TO_WHITE = {"orange": (0.55, 0.65), "pink": (0.7, 0.8), "black": (0.4, 0.5)}
_TO_BLACK = {"yellow": (0.5, 0.65), "white": (0.5, 0.6)}
_PLAN = 96  # pixels of the side of the plan on which places are tried
_TRIES = 20


class DescribedScenes:
    """A source of drawn scenes with phrases for each of their objects.

    Two to six objects on a quiet ground, with moderate overlap; many differ from another one by
    one or two attributes only. A mask is the visible part of an object; they come from back to
    front. Record i depends on (seed, i, size, places) and on nothing else. Beside what every
    source gives (`sam_jax.data.sources`), a record has

        "attributes": a list of `Attributes`, one a mask, all true of it
        "descriptions": a list of tuples of str, one a mask: different phrases, all true of it,
          though perhaps of others too
        "unique": a list, one a mask: a phrase that is true of it and of no other, or None

    Phrases with a place in them hold for the whole picture, unmirrored; where it is mirrored or
    cut, or an object is seen by itself, `places` False leaves them out.
    """

    def __init__(
        self, length: int = 100_000, size: int = 256, seed: int = 0, *, places: bool = True
    ):
        """
        Args:
          length: number of scenes.
          size: height and width in pixels.
          seed: of everything random.
          places: whether objects have, and phrases tell, places; the pictures are the same.

        Raises:
          ValueError: a length below 1, or a size below 128, where patterns could not be seen.
        """
        if length < 1 or size < 128:
            raise ValueError(
                f"length must be at least 1 and size at least 128, got {length} and {size}"
            )
        self.length, self.size, self.seed, self.places = length, size, seed, places

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        shown = f"length={self.length}, size={self.size}, seed={self.seed}, places={self.places}"
        return f"DescribedScenes({shown})"

    def __getitem__(self, index: int) -> Record:
        """Scene `index`; IndexError beyond the length."""
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in 0..{self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, int(index)])
        canvas = new_canvas(self.size)
        grounds = _paint_ground(canvas, rng)
        things: list[_Thing] = []
        while len(things) < 2:  # nearly always once
            things = _arranged(rng)
        shadows, labels = rng.random() < 0.4, []
        for thing in things:
            matrix, offset = thing.matrix * self.size, thing.centre_xy * self.size
            side = float(np.sqrt(abs(np.linalg.det(matrix))))
            surface = _surface(thing.attributes, side, grounds, rng)
            node = Node(_OUTLINES[thing.attributes.shape], surface)
            if shadows:
                shadow(canvas, node, matrix, offset, rng)
            labels += draw(canvas, node, matrix, offset)
        image = np.array(mildly_photographed(canvas.image, rng))
        scene = [thing.attributes for thing in things]
        if self.places:
            centres = [_centroid(canvas.labels == label) for label in labels]
            scene = [located(*one) for one in zip(scene, centres, strict=True)]
        return {
            "image": image,
            "rles": rle_ops.encode_groups(canvas.labels, [[label] for label in labels]),
            "name": f"described:{self.seed}:{index}",
            "attributes": scene,
            "descriptions": [_different_phrases(one, rng) for one in scene],
            "unique": [unique_phrase(scene, i, rng) for i in range(len(scene))],
        }


@dataclass(frozen=True)
class _Thing:
    """An object to be drawn: float [2, 2] and [2] from its outline's frame to 0..1 (x, y)."""

    attributes: Attributes
    matrix: np.ndarray
    centre_xy: np.ndarray


def _arranged(rng: np.random.Generator) -> list[_Thing]:
    """Up to six objects, from back to front, each visible enough; what finds no room is left out.

    Objects of one colour do not touch: where one ends could not be seen.
    """
    things: list[_Thing] = []
    visible: list[np.ndarray] = []  # bool [PLAN, PLAN], what is left of each
    needed: list[float] = []  # pixels of the plan
    for _ in range(int(rng.integers(2, MOST_OBJECTS + 1))):
        attributes = _attributes([thing.attributes for thing in things], rng)
        matrix = _pose(attributes, rng)
        need = MIN_VISIBLE * abs(np.linalg.det(matrix)) * _PLAN**2
        margin = 0.06 + rng.uniform(0, 0.5) * np.sqrt(abs(np.linalg.det(matrix)))
        for _ in range(_TRIES):
            thing = _Thing(attributes, matrix, rng.uniform(margin, 1 - margin, 2))
            cover = _cover(thing)
            left = [seen & ~cover for seen in visible]
            if cover.sum() < need or any(
                seen.sum() < enough for seen, enough in zip(left, needed, strict=True)
            ):
                continue
            alike = [
                seen
                for other, seen in zip(things, visible, strict=True)
                if other.attributes.colour == attributes.colour
            ]
            if alike and (np.any(alike, 0) & ndimage.binary_dilation(cover, iterations=2)).any():
                continue
            things.append(thing)
            visible, needed = [*left, cover], [*needed, need]
            break
    return things


def _attributes(earlier: Sequence[Attributes], rng: np.random.Generator) -> Attributes:
    """Random ones, half of the time but for one or two those of an earlier object."""
    new = {
        "colour": str(rng.choice(COLOURS)),
        "texture": str(rng.choice(TEXTURES, p=(0.4, 0.2, 0.2, 0.2))),
        "shape": str(rng.choice(SHAPES)),
        "size": str(rng.choice(SIZES)),
    }
    if not earlier or rng.random() < 0.5:
        return Attributes(**new)
    changed = rng.choice(list(new), int(rng.integers(1, 3)), replace=False)
    like = earlier[rng.integers(len(earlier))]
    return replace(like, **{str(kind): new[str(kind)] for kind in changed})


def _pose(attributes: Attributes, rng: np.random.Generator) -> np.ndarray:
    """float [2, 2]: size, a turn that the shape stays itself under, a slight stretch."""
    side, turn = rng.uniform(*SIDES[attributes.size]), _TURNS.get(attributes.shape, np.pi)
    angle, stretch = rng.uniform(-turn, turn), np.exp(rng.uniform(-0.07, 0.07))
    cos, sin = np.cos(angle), np.sin(angle)
    return side * np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / stretch])


def _cover(thing: _Thing) -> np.ndarray:
    """bool [PLAN, PLAN]: where the object lies in the plan."""
    cover = np.zeros((_PLAN, _PLAN), bool)
    outline = _OUTLINES[thing.attributes.shape]
    outline = shapes.placed(outline, thing.matrix * _PLAN, thing.centre_xy * _PLAN)
    raster = shapes.rasterise(outline, _PLAN, _PLAN)
    if raster is not None:
        alpha, _, x, y = raster
        cover[y : y + alpha.height, x : x + alpha.width] = np.asarray(alpha) >= 128
    return cover


def _paint_ground(canvas: Canvas, rng: np.random.Generator) -> list[np.ndarray]:
    """Paints a dull background of one to four regions; returns their colours, float [3]."""
    colours = [_shade(_GROUND, rng) for _ in range(2)]

    def surface() -> Style:
        colour = colours[rng.integers(2)]
        spread = rng.uniform(0.03, 0.15)
        return Style(
            palette=ramp([colour * (1 - spread), colour * (1 + spread)]),
            pattern=str(rng.choice(("flat", "noise", "wood"), p=(0.25, 0.55, 0.2))),
            noise=int(rng.integers(14)),  # but for the pebbles, which look like objects
            scale=float(np.exp(rng.uniform(-1.2, 0.7))) * 256 / canvas.image.width,
            period=float(rng.uniform(0.04, 0.15)) * canvas.image.width,
            angle=float(rng.uniform(0, np.pi)),
            offset=(float(rng.random()), float(rng.random())),
            shade=float(rng.choice((0, rng.uniform(0.1, 0.3)))),
        )

    background(canvas, surface, rng)
    return colours


def _surface(
    attributes: Attributes, side: float, grounds: Sequence[np.ndarray], rng: np.random.Generator
) -> Style:
    """The surface of an object of `side` pixels (root of its area) on grounds of these colours."""
    shades = [_shade(HUES[attributes.colour], rng) for _ in range(8)]
    contrast = [min(np.linalg.norm(shade - ground) for ground in grounds) for shade in shades]
    enough = [k for k, value in enumerate(contrast) if value >= _CONTRAST]
    colour = shades[enough[0] if enough else int(np.argmax(contrast))]
    pattern, share, repeats = _PATTERNS[attributes.texture]
    stops = _tones(colour, rng.uniform(0.03, 0.1))
    if share:
        stops[round(256 * share) :] = _tones(_second(colour, attributes.colour, rng), 0.05)[
            round(256 * share) :
        ]
    repeats = rng.uniform(*repeats) * (1.0 if attributes.size == "small" else rng.uniform(1, 1.6))
    return Style(
        palette=ramp(stops),
        pattern=pattern,
        noise=int(rng.integers(3, 10)),
        scale=float(np.exp(rng.uniform(-1.0, 0.5))),
        period=side / repeats,
        angle=float(rng.choice((0, np.pi / 4, np.pi / 2, rng.uniform(0, np.pi)))),
        grain=float(rng.uniform(0, 0.08)),
        offset=(float(rng.random()), float(rng.random())),
        shade=float(rng.choice((0, rng.uniform(0.05, 0.15)))),
        rim=float(rng.choice((0, rng.uniform(0.1, 0.25)))),
        outline=float(rng.choice((0, 0, rng.uniform(0.7, 1.5)))),
    )


def _shade(hues: tuple, rng: np.random.Generator) -> np.ndarray:
    """A colour out of ranges as those of HUES, float [3] in 0..255."""
    hue, saturation, value = (rng.uniform(*limits) for limits in hues)
    return 255 * np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))


def _second(colour: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """The other tone of a pattern: the same colour, much darker or much lighter."""
    if name in _TO_BLACK:
        return colour * (1 - rng.uniform(*_TO_BLACK[name]))
    return colour + (255 - colour) * rng.uniform(*_TO_WHITE.get(name, (0.45, 0.6)))


def _tones(colour: np.ndarray, spread: float) -> np.ndarray:
    """float [256, 3]: the colour, from somewhat darker to somewhat lighter."""
    return np.clip(np.linspace(1 - spread, 1 + spread, 256)[:, None] * colour, 0, 255)


def _centroid(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of a mask bool [H, W], each in 0..1 of the picture."""
    y, x = np.nonzero(mask)
    return (float(x.mean()) + 0.5) / mask.shape[1], (float(y.mean()) + 0.5) / mask.shape[0]


def _different_phrases(attributes: Attributes, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrase(attributes, rng) for _ in range(PHRASES)))


def _regular(corners: int, inner: float | None = None) -> np.ndarray:
    """float [K, 2]: corners on a circle, the first at the top; with others between for a star."""
    count = corners if inner is None else 2 * corners
    angles = np.arange(count) * (2 * np.pi / count) - np.pi / 2
    radius = np.where(np.arange(count) % 2, 1.0 if inner is None else inner, 1.0)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _unit(*points: np.ndarray) -> Shape:
    """An outline, with a hole if there are two, of area 1 around its centroid."""
    area, moment = 0.0, np.zeros(2)
    for curve, sign in zip(points, (1, -1), strict=False):
        following = np.roll(curve, -1, 0)
        cross = curve[:, 0] * following[:, 1] - curve[:, 1] * following[:, 0]
        turn = sign * np.sign(cross.sum())
        area += turn * cross.sum() / 2
        moment += turn * (cross[:, None] * (curve + following)).sum(0) / 6
    return [
        Path((curve - moment / area) / np.sqrt(area), fill=not number)
        for number, curve in enumerate(points)
    ]


_ARM = 0.34  # half the width of a cross's arms, as a share of its half side
_OUTLINES: dict[str, Shape] = {
    "circle": _unit(_regular(32)),
    "square": _unit(_regular(4) @ np.array([[1, 1], [-1, 1]])),
    "triangle": _unit(_regular(3)),
    "star": _unit(_regular(5, 0.45)),
    "ring": _unit(_regular(32), 0.55 * _regular(32)),
    "cross": _unit(
        np.array(
            [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
            + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
        )
    ),
    "heart": _unit(_heart()),
    "diamond": _unit(_regular(4) * (0.62, 1)),
}
# The most that a shape is turned, radians, where more would make it another or look odd.
_TURNS = {"square": 0.25, "diamond": 0.2, "heart": 0.4, "cross": 0.3}
# Texture: pattern, where in the palette the second tone begins (0: none) and how many periods fit
# in the root of the area of a small object.
_PATTERNS = {
    "plain": ("noise", 0.0, (1, 1)),
    "striped": ("wave", 0.655, (3.0, 3.6)),
    "dotted": ("spots", 0.66, (2.8, 3.4)),
    "checked": ("check", 0.5, (1.8, 2.4)),
}
