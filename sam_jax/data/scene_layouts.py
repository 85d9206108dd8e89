"""Procedural scenes: a canvas that keeps track of what is visible, and ways to fill it.

Scenes are painted from back to front. Every painted part gets a label, and what is painted later
overwrites it both in the picture and in the label map, so occlusion is right by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from sam_jax.data import scene_shapes as shapes
from sam_jax.data.scene_shapes import Path
from sam_jax.data.scene_textures import (
    Style,
    paint,
    ramp,
    random_colour,
    random_style,
    shading,
)
from sam_jax.data.scene_things import THINGS, Node, simple, window

_COVERED = 128  # a pixel belongs to a part that covers at least half of it


@dataclass
class Canvas:
    """A picture being painted.

    Attributes:
      image: RGB, size x size pixels.
      labels: uint16 [size, size], which part is visible; 0 is what no part covers.
      groups: for each mask the labels it is made of.
      photos: photographs that serve as surfaces.
      count: labels given so far.
    """

    image: Image.Image
    labels: np.ndarray
    photos: Sequence[Image.Image] = ()
    groups: list[list[int]] = field(default_factory=list)
    count: int = 0


def new_canvas(size: int, photos: Sequence[Image.Image] = ()) -> Canvas:
    """An empty canvas of size x size pixels."""
    return Canvas(Image.new("RGB", (size, size)), np.zeros((size, size), np.uint16), photos)


def draw(
    canvas: Canvas,
    node: Node,
    matrix: np.ndarray,
    offset: np.ndarray,
    within: tuple[Image.Image, int, int] | None = None,
) -> list[int]:
    """Paints a tree of parts and adds its masks.

    Args:
      canvas: painted on.
      node: the tree.
      matrix: float [2, 2], from the frame around `node` to pixels.
      offset: float [2], pixels (x, y) of that frame's origin.
      within: coverage of the parent and its top left pixel, for parts that are cut off by it.

    Returns:
      The labels given to the node and everything under it.
    """
    offset = matrix @ np.asarray(node.at) + offset
    matrix = matrix @ node.matrix()
    labels: list[int] = []
    for child in node.children:
        if child.behind:
            labels += draw(canvas, child, matrix, offset)
    own = None
    if node.shape:
        own = _paint_node(canvas, node, matrix, offset, within)
        if own is None and within is not None and node.clip:
            return labels
        if own is not None:
            labels.append(canvas.count)
    for child in node.children:
        if not child.behind:
            labels += draw(canvas, child, matrix, offset, own or within)
    if node.is_mask and labels:
        canvas.groups.append(labels)
    return labels


def _paint_node(
    canvas: Canvas,
    node: Node,
    matrix: np.ndarray,
    offset: np.ndarray,
    within: tuple[Image.Image, int, int] | None,
) -> tuple[Image.Image, int, int] | None:
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    outline = min(node.style.outline, 0.08 * scale)
    outline = outline if outline >= 0.5 else 0.0
    raster = shapes.rasterise(
        shapes.placed(node.shape, matrix, offset), *canvas.image.size, outline=outline
    )
    if raster is None:
        return None
    alpha, edge, x, y = raster
    if node.clip and within is not None:
        parent, px, py = within
        box = (x - px, y - py, x - px + alpha.width, y - py + alpha.height)
        alpha = ImageChops.multiply(alpha, parent.crop(box))
    rgb = paint(node.style, alpha.width, alpha.height, canvas.photos)
    light = shading(node.style, alpha)
    if edge is not None:
        dark = Image.blend(Image.new("L", edge.size, 255), ImageChops.invert(edge), 7 / 8)
        light = dark if light is None else ImageChops.multiply(light, dark)
    if light is not None:
        rgb = ImageChops.multiply(rgb, Image.merge("RGB", (light, light, light)))
    canvas.image.paste(rgb, (x, y), alpha)
    canvas.count += 1
    part = canvas.labels[y : y + alpha.height, x : x + alpha.width]
    part[np.asarray(alpha) >= _COVERED] = canvas.count
    return alpha, x, y


def shadow(
    canvas: Canvas, node: Node, matrix: np.ndarray, offset: np.ndarray, rng: np.random.Generator
) -> None:
    """A soft shadow of a tree, cast to one side; paints no labels."""
    zoom, size = 8, canvas.image.width
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    shift = rng.normal(0, 0.12, 2) * scale
    small = Image.new("L", (size // zoom + 1, size // zoom + 1))
    _silhouette(small, node, matrix / zoom, (offset + shift) / zoom)
    box = small.getbbox()
    if box is None:
        return
    small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.5)))
    margin = 6
    x0, y0 = max(0, box[0] - margin), max(0, box[1] - margin)
    x1, y1 = min(size // zoom, box[2] + margin), min(size // zoom, box[3] + margin)
    if x1 <= x0 or y1 <= y0:
        return
    full = ((x1 - x0) * zoom, (y1 - y0) * zoom)
    alpha = small.resize(full, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    strength = rng.uniform(0.25, 0.7)
    alpha = alpha.point([int(v * strength) for v in range(256)])
    canvas.image.paste((0, 0, 0), (x0 * zoom, y0 * zoom), alpha)


def _silhouette(small: Image.Image, node: Node, matrix: np.ndarray, offset: np.ndarray) -> None:
    offset = matrix @ np.asarray(node.at) + offset
    matrix = matrix @ node.matrix()
    if node.shape:
        raster = shapes.rasterise(shapes.placed(node.shape, matrix, offset), *small.size)
        if raster is not None:
            alpha, _, x, y = raster
            small.paste(255, (x, y), alpha)
    else:  # children of an outlined part seldom reach beyond it
        for child in node.children:
            _silhouette(small, child, matrix, offset)


def background(canvas: Canvas, surface: Callable[[], Style], rng: np.random.Generator) -> None:
    """Fills the canvas with one surface, or with two to four regions that are masks."""
    size = canvas.image.width
    base = replace(surface(), rim=0.0, outline=0.0)
    light = Image.new("L", (size, size), 255)
    canvas.image.paste(paint(base, size, size, canvas.photos))
    if base.shade:
        shade = shading(base, light)
        canvas.image = ImageChops.multiply(canvas.image, Image.merge("RGB", (shade,) * 3))
    if rng.random() < 0.5:
        return
    first = [0]
    for _ in range(int(rng.choice((1, 1, 2, 3)))):
        height, tilt = rng.uniform(0.2, 0.9) * size, rng.normal(0, 0.15) * size
        knots = np.linspace(-0.1, 1.1, int(rng.integers(2, 8)))
        bumps = rng.normal(0, rng.choice((0, 0.02, 0.06)), len(knots))
        line = np.stack([knots, height / size + tilt / size * (knots - 0.5) + bumps], 1) * size
        line = shapes.rounded(line, 2, closed=False) if rng.random() < 0.6 else line
        below = np.concatenate([line, [[1.1 * size, 1.3 * size], [-0.1 * size, 1.3 * size]]])
        style = replace(surface(), rim=0.0, outline=0.0)
        if rng.random() < 0.25:  # a wall rather than a ground
            below = below[:, ::-1]
        draw(canvas, Node([Path(below)], style), np.eye(2), np.zeros(2))
    canvas.groups.append(first)


def mixed_things(canvas: Canvas, surface: Callable[[], Style], rng: np.random.Generator) -> None:
    """Different objects of all sizes, some of them repeated, the larger ones further back."""
    size = canvas.image.width
    makers, odds = zip(*THINGS, strict=True)
    placements = []
    for _ in range(int(rng.integers(3, 13))):
        node = makers[rng.choice(len(makers), p=odds)](rng, surface)
        radius = size * float(np.clip(np.exp(rng.normal(-1.75, 0.65)), 0.03, 0.55))
        copies = int(rng.integers(2, 7)) if rng.random() < 0.2 else 1
        for _ in range(copies):
            own = radius * rng.uniform(0.7, 1.3) if copies > 1 else radius
            placements.append((node, min(own, 0.25 * size) if copies > 1 else own))
    order = np.argsort([-radius * rng.uniform(0.4, 1.6) for _, radius in placements])
    shadows = rng.random() < 0.5
    taken = np.full((1, 2), 10.0)
    for k in order:
        node, radius = placements[k]
        matrix = _pose(rng, radius, rng.choice((0.0, 0.25, 3.0), p=(0.45, 0.35, 0.2)))
        tries = rng.uniform(0.02, 0.98, (3, 2))  # the emptiest of three places
        best = np.linalg.norm(tries[:, None] - taken, axis=2).min(1).argmax()
        taken = np.concatenate([taken, tries[best : best + 1]])
        offset = tries[best] * size
        if shadows:
            shadow(canvas, node, matrix, offset, rng)
        draw(canvas, node, matrix, offset)


def pile(canvas: Canvas, surface: Callable[[], Style], rng: np.random.Generator) -> None:
    """Many objects of one or two kinds on top of each other: pebbles, leaves, boxes, tins."""
    size = canvas.image.width
    makers = [makers for makers, _ in THINGS if makers.__name__ in ("sign", "vessel", "panel")]
    count = int(np.exp(rng.uniform(np.log(10), np.log(50))))
    radius = size * np.sqrt(rng.uniform(0.5, 1.3) / (np.pi * count))
    kinds = []
    for _ in range(int(rng.integers(1, 4))):
        maker = simple if rng.random() < 0.7 else makers[rng.integers(len(makers))]
        kinds.append(maker(rng, surface))
    styles = [surface() for _ in range(int(rng.integers(1, 6)))]
    shadows = rng.random() < 0.6 and count < 30
    for _ in range(count):
        node = kinds[rng.integers(len(kinds))]
        if node.shape:
            node = replace(node, style=styles[rng.integers(len(styles))])
        matrix = _pose(rng, radius * float(np.exp(rng.normal(0, 0.25))), 3.0)
        offset = rng.uniform(0, 1, 2) * size
        if shadows:
            shadow(canvas, node, matrix, offset, rng)
        draw(canvas, node, matrix, offset)


def facade(canvas: Canvas, surface: Callable[[], Style], rng: np.random.Generator) -> None:
    """A building with rows of windows, seen at a slant, and a few things in front of it."""
    size = canvas.image.width
    wall = replace(surface(), rim=0.0)
    building = Node(shapes.rectangle(1, 1), wall)
    columns, rows = int(rng.integers(2, 9)), int(rng.integers(2, 7))
    frame, glass, lit = (replace(surface(), rim=0.0) for _ in range(3))
    kinds = [window(rng, frame, glass), window(rng, frame, lit)]
    wide, high = rng.uniform(0.25, 0.42, 2)
    for row, y in enumerate((np.arange(rows) + 0.5) * 2 / rows - 1):
        if rng.random() < 0.25:
            band = shapes.rectangle(1, 0.12 / rows, 0, 0, y + 0.85 / rows)
            building.children.append(Node(band, frame, clip=True))
        if row == rows - 1 and rng.random() < 0.6:
            shop = surface()
            for x in (np.arange(3) + 0.5) * 2 / 3 - 1:
                pane = Node(shapes.rectangle(0.28, 0.8 / rows), shop, (x, y))
                building.children.append(pane)
            continue
        for x in (np.arange(columns) + 0.5) * 2 / columns - 1:
            if rng.random() < 0.93:
                kind = kinds[int(rng.random() < 0.2)]
                scale = (wide * 2 / columns, high * 2 / rows)
                building.children.append(replace(kind, at=(x, y), scale=scale))
    rx, ry = rng.uniform(0.3, 0.75, 2) * size
    slant = np.array([[rx, 0], [rng.normal(0, 0.15) * rx, ry]])
    slant[0, 1] = rng.normal(0, 0.08) * ry
    draw(canvas, building, slant, rng.uniform(0.35, 0.65, 2) * size)
    makers, odds = zip(*THINGS, strict=True)
    for _ in range(int(rng.integers(0, 5))):
        node = makers[rng.choice(len(makers), p=odds)](rng, surface)
        offset = rng.uniform((0, 0.5), (1, 1.05)) * size
        draw(canvas, node, _pose(rng, size * rng.uniform(0.05, 0.22), 0.1), offset)


def crowd(canvas: Canvas, surface: Callable[[], Style], rng: np.random.Generator) -> None:
    """Many small round bodies on an even ground, as under a microscope, some with a nucleus."""
    size = canvas.image.width
    ground, body = random_colour(rng) * 0.5 + 110, random_colour(rng) * 0.7
    if rng.random() < 0.45:  # fluorescence: light bodies on black
        ground, body = rng.uniform(0, 25, 3), np.maximum(random_colour(rng), rng.uniform(60, 160))
    if rng.random() < 0.5:
        ground, body = np.full(3, ground.mean()), np.full(3, body.mean())
    noise = Style(ramp([ground * 0.85, ground * 1.15]), "noise", int(rng.integers(4, 10)))
    canvas.image.paste(paint(replace(noise, scale=rng.uniform(0.3, 1.0)), size, size))
    rim = rng.choice((0.0, rng.uniform(0.1, 0.5)))
    styles = []
    for gain in rng.uniform(0.65, 1.15, 6):
        tone = ground + (body - ground) * gain
        stops = [tone * 0.85 + ground * 0.15, tone, tone * 1.1]
        place = (float(rng.random()), float(rng.random()))
        styles.append(Style(ramp(stops), "noise", int(rng.integers(3, 9)), offset=place, rim=rim))
    kinds = [shapes.blob(rng, rng.uniform(0.05, 0.3)) for _ in range(6)]
    count = int(np.exp(rng.uniform(np.log(8), np.log(110))))
    radius = size * np.sqrt(rng.uniform(0.05, 0.6) / (np.pi * count))
    radius = float(np.clip(radius, 5, 0.12 * size))
    centres = rng.uniform(0, 1, (int(rng.integers(1, 8)), 2))
    spread, inner = rng.choice((0.08, 0.2, 3.0)), rng.random() < 0.3
    dark = replace(styles[0], palette=ramp([tone * 0.5, tone * 0.7]))
    for _ in range(count):
        at = centres[rng.integers(len(centres))] + rng.normal(0, spread, 2)
        node = Node(kinds[rng.integers(6)], styles[rng.integers(6)])
        if inner:
            nucleus = Node(kinds[rng.integers(6)], dark, tuple(rng.normal(0, 0.2, 2)), (0.4, 0.4))
            node.children.append(nucleus)
        matrix = _pose(rng, radius * float(np.exp(rng.normal(0, 0.25))), 3.0)
        draw(canvas, node, matrix, (at % 1.0) * size)


# (function, how often)
LAYOUTS = ((mixed_things, 0.52), (pile, 0.14), (facade, 0.14), (crowd, 0.2))


def compose(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints one random scene."""
    tones = [random_colour(rng) for _ in range(int(rng.integers(2, 6)))]

    def surface() -> Style:
        return random_style(rng, tones, len(canvas.photos))

    fill, odds = zip(*LAYOUTS, strict=True)
    layout = fill[rng.choice(len(fill), p=odds)]
    if layout is not crowd:  # which has a ground of its own
        background(canvas, surface, rng)
    if rng.random() < 0.2:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.5, 4.0))
        canvas.image = canvas.image.filter(blur)
    layout(canvas, surface, rng)


def _pose(rng: np.random.Generator, radius: float, turn: float) -> np.ndarray:
    """float [2, 2]: scale to `radius` pixels, a random mirror and a turn of +-`turn` radians."""
    angle = rng.uniform(-turn, turn) if turn else 0.0
    cos, sin = np.cos(angle), np.sin(angle)
    mirror = rng.choice((-1.0, 1.0))
    return radius * np.array([[cos * mirror, -sin], [sin * mirror, cos]])
