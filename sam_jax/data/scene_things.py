"""Objects for procedural scenes: trees of parts, each with an outline and a surface.

A node's mask is all that is visible of it and of the nodes under it, so a tree gives the whole,
its parts and their parts. Every function here takes `rng` and `surface`, a function that gives the
next random `Style` of the scene, and returns the root of one object in a frame of about -1..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from sam_jax.data import scene_shapes as shapes
from sam_jax.data.scene_shapes import Path, Shape
from sam_jax.data.scene_textures import Style

Surface = Callable[[], Style]


@dataclass
class Node:
    """One part: its outline in its own frame, its surface, and how it sits in its parent's frame.

    `behind` draws it before its parent, `clip` cuts it off at its parent's outline, and
    `is_mask` False keeps it from being a mask of its own. `shape` None groups its children.
    """

    shape: Shape | None
    style: Style | None = None
    at: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    behind: bool = False
    clip: bool = False
    is_mask: bool = True
    children: list[Node] = field(default_factory=list)

    def matrix(self) -> np.ndarray:
        """float [2, 2], from this node's frame to its parent's, without the offset `at`."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]]) * self.scale


def simple(rng: np.random.Generator, surface: Surface) -> Node:
    """A blob, polygon, ellipse, rectangle or star, sometimes with spots or a label on it."""
    node = Node(_simple_shape(rng), surface())
    if rng.random() < 0.3:
        spot = surface()
        for _ in range(int(rng.integers(1, 5))):
            radius = rng.uniform(0.1, 0.3)
            at = tuple(rng.uniform(-0.55, 0.55, 2))
            shape = shapes.blob(rng) if rng.random() < 0.5 else shapes.ellipse()
            node.children.append(Node(shape, spot, at, (radius, radius), clip=True))
    return node


def thin(rng: np.random.Generator, surface: Surface) -> Node:
    """A bar, a ring or a string."""
    kind = rng.integers(3)
    if kind == 0:
        return Node(shapes.rectangle(1, rng.uniform(0.02, 0.12), 0.03), surface())
    if kind == 1:
        return Node(shapes.ring(rng), surface())
    return Node(shapes.string(rng, rng.uniform(0.02, 0.12)), surface())


def text(rng: np.random.Generator, surface: Surface) -> Node:
    """A word of made-up letters, half of the time on a board."""
    count = int(rng.integers(2, 7))
    ink = replace(surface(), outline=0.0)
    step, width = 1.8 / count, rng.uniform(0.15, 0.4)
    word = Node(None)
    for k in range(count):
        at = (-0.9 + (k + 0.5) * step, 0.0)
        size = (0.4 * step, 0.4 * step * rng.uniform(1, 1.6))
        word.children.append(Node(shapes.letter(rng, width), ink, at, size))
    if rng.random() < 0.5:
        board = shapes.rectangle(1, min(1, 0.55 * step * 1.8 + 0.08), rng.choice((0, 0.08)))
        return Node(board, surface(), children=[word])
    return word


def creature(rng: np.random.Generator, surface: Surface) -> Node:
    """A body with a head (eyes, ears), limbs (feet), perhaps a tail and spots."""
    skin, other = surface(), surface()
    limb_style = skin if rng.random() < 0.6 else other
    body = Node(shapes.blob(rng, 0.15), skin, scale=(0.62, rng.uniform(0.3, 0.5)))
    body.children = [
        Node(shapes.blob(rng), other, tuple(rng.uniform(-0.6, 0.6, 2)), (r, r), clip=True)
        for r in rng.uniform(0.12, 0.35, int(rng.integers(0, 4)))
    ]
    legs = int(rng.integers(2, 7))
    root = Node(None, children=[body])
    radius, length = rng.uniform(0.05, 0.12), rng.uniform(0.35, 0.75)
    for x in np.linspace(-0.45, 0.45, legs) + rng.normal(0, 0.05, legs):
        end = (x + rng.normal(0, 0.15), 0.2 + length)
        foot = Node(shapes.ellipse(1.6, 1), other, end, (radius, radius))
        limb = shapes.capsule((x, 0.1), end, radius * 1.3, radius * 0.8)
        front = bool(rng.random() < 0.3)
        node = Node(limb, _varied(limb_style, rng), behind=not front, children=[foot])
        root.children.insert(len(root.children) if front else 0, node)
    if rng.random() < 0.6:
        tail = [Path(shapes.string(rng, 0)[0].points * 0.35 + (-0.75, -0.1), 0.1)]
        root.children.insert(0, Node(tail, limb_style))
    root.children.append(_head(rng, skin, other))
    return root


def vehicle(rng: np.random.Generator, surface: Surface) -> Node:
    """A body with a cabin (windows), wheels (hubs), lights and a door."""
    paint, glass, dark = surface(), surface(), surface()
    root = Node(None)
    cabin = Node(
        [Path(np.array([[-0.55, 0], [-0.35, -0.42], [0.3, -0.42], [0.6, 0]]))],
        _varied(paint, rng),
    )
    for x in (-0.25, 0.2)[: int(rng.integers(1, 3))]:
        cabin.children.append(Node(shapes.rectangle(0.17, 0.13, 0.04, x, -0.2), glass))
    body = Node(shapes.rectangle(1, 0.24, 0.1, 0, 0.2), paint)
    if rng.random() < 0.6:
        door = Node(shapes.rectangle(0.18, 0.2, 0.03, 0.05, 0.2), _varied(paint, rng))
        door.children.append(Node(shapes.rectangle(0.05, 0.02, 0, 0.13, 0.12), dark))
        body.children.append(door)
    for x in (-0.94, 0.94):
        body.children.append(Node(shapes.ellipse(0.07, 0.08, x, 0.15), surface(), clip=True))
    root.children = [cabin, body]
    radius = rng.uniform(0.16, 0.26)
    hub = surface()
    for x in np.linspace(-0.62, 0.62, int(rng.integers(2, 4))):
        centre = Node(shapes.ellipse(), hub, scale=(0.45, 0.45))
        root.children.append(
            Node(shapes.ellipse(), dark, (x, 0.44), (radius, radius), children=[centre])
        )
    return root


def house(rng: np.random.Generator, surface: Surface) -> Node:
    """Walls with windows (panes) and a door, and a roof with a chimney."""
    wall, frame = surface(), surface()
    walls = Node(shapes.rectangle(0.8, 0.6, 0, 0, 0.4), wall)
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    kind = window(rng, frame, surface())
    for x in np.linspace(-0.56, 0.56, columns):
        for y in np.linspace(0.0, 0.35, rows):
            size = (0.5 / columns, 0.32 / (rows + 1))
            walls.children.append(replace(kind, at=(x, y), scale=size))
    door = Node(shapes.rectangle(0.13, 0.22, rng.choice((0, 0.1)), 0.1, 0.8), frame, clip=True)
    door.children.append(Node(shapes.ellipse(0.03, 0.03, 0.18, 0.8), surface()))
    walls.children.append(door)
    roof = Node([Path(np.array([[-0.95, -0.18], [rng.uniform(-0.4, 0.4), -0.9], [0.95, -0.18]]))])
    roof.style = surface()
    chimney = Node(shapes.rectangle(0.09, 0.25, 0, 0.5, -0.6), wall, behind=True)
    return Node(None, children=[chimney, walls, roof])


def window(rng: np.random.Generator, frame: Style, glass: Style) -> Node:
    """A window of 1 to 6 panes in a frame that fills -1..1."""
    node = Node(shapes.rectangle(1, 1, rng.choice((0, 0, 0.3))), frame)
    columns, rows = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    for x in (np.arange(columns) + 0.5) * 2 / columns - 1:
        for y in (np.arange(rows) + 0.5) * 2 / rows - 1:
            pane = shapes.rectangle(0.82 / columns, 0.84 / rows)
            node.children.append(Node(pane, glass, (x, y), clip=True))
    return node


def plant(rng: np.random.Generator, surface: Surface) -> Node:
    """A flower or a tree: stem, leaves, and a head of petals or a ragged crown."""
    green, root = surface(), Node(None)
    lean = rng.normal(0, 0.15)
    stem = np.array([[lean, 1.0], [rng.normal(0, 0.1), 0.4], [0.0, -0.35]])
    width = rng.uniform(0.03, 0.16)
    root.children.append(Node([Path(shapes.rounded(stem, 3, closed=False), width)], surface()))
    for _ in range(int(rng.integers(0, 5))):
        angle, y = rng.uniform(-0.6, 0.6) + np.pi * rng.integers(2), rng.uniform(0, 0.8)
        at = (0.25 * np.cos(angle), y + 0.25 * np.sin(angle))
        leaf = Node(shapes.ellipse(0.28, 0.1), _varied(green, rng), at, angle=angle)
        root.children.append(leaf)
    if rng.random() < 0.5:
        petals, colour = int(rng.integers(4, 10)), surface()
        head = Node(None, at=(0.0, -0.5))
        for angle in np.arange(petals) * 2 * np.pi / petals:
            at = (0.28 * np.cos(angle), 0.28 * np.sin(angle))
            petal = shapes.ellipse(0.22, 0.8 / petals)
            head.children.append(Node(petal, _varied(colour, rng), at, angle=angle))
        head.children.append(Node(shapes.ellipse(0.15, 0.15), surface()))
    else:
        crown = []
        for _ in range(int(rng.integers(5, 14))):
            x, y, r = rng.normal(0, 0.28), rng.normal(0, 0.22), rng.uniform(0.15, 0.4)
            crown.append(Path(shapes.blob(rng, 0.4)[0].points * r + (x, y)))
        head = Node(crown, green, at=(0.0, -0.45))
    root.children.append(head)
    return root


def vessel(rng: np.random.Generator, surface: Surface) -> Node:
    """A bottle or cup: a turned profile with a cap, a label (letters) or a handle."""
    heights = np.linspace(-0.7, 1, 7)
    radii = np.clip(np.cumsum(rng.normal(0, 0.12, 7)) + rng.uniform(0.2, 0.5), 0.12, 0.7)
    right = np.stack([radii, heights], 1)
    profile = np.concatenate([right, right[::-1] * (-1, 1)])
    glass = surface()
    root = Node(None)
    if rng.random() < 0.4:
        handle = shapes.ellipse(0.35, 0.3) + [Path(shapes.ellipse(0.24, 0.2)[0].points, fill=False)]
        root.children.append(Node(handle, glass, (radii[3], 0.1)))
    body = Node([Path(shapes.rounded(profile, 1))], glass)
    if rng.random() < 0.6:
        label = Node(shapes.rectangle(0.9, rng.uniform(0.15, 0.3), 0, 0, 0.35), surface())
        label.clip = True
        word = text(rng, surface)
        label.children = [replace(word, at=(0, 0.35), scale=(0.35, 0.35))] if word.shape else []
        body.children.append(label)
    root.children.append(body)
    top = radii[0] + rng.uniform(-0.03, 0.06)
    if rng.random() < 0.6:
        root.children.append(Node(shapes.rectangle(top, 0.12, 0.04, 0, -0.75), surface()))
    else:
        hole = Node(shapes.ellipse(0.8, 0.75), surface())
        at, size = (0.0, -0.68), (top, 0.3 * top)
        root.children.append(Node(shapes.ellipse(), _varied(glass, rng), at, size, children=[hole]))
    return root


def panel(rng: np.random.Generator, surface: Surface) -> Node:
    """A device, shelf or crate: a board with a grid of similar keys, books or boxes."""
    node = Node(shapes.rectangle(1, rng.uniform(0.4, 1), rng.choice((0, 0.1, 0.2))), surface())
    ry = float(np.abs(node.shape[0].points[:, 1]).max())
    columns, rows = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    same, gap = rng.random() < 0.5, rng.uniform(0.6, 0.95)
    style, outline = surface(), _simple_shape(rng) if rng.random() < 0.4 else None
    for x in (np.arange(columns) + 0.5) * 1.8 / columns - 0.9:
        for y in (np.arange(rows) + 0.5) * 1.8 * ry / rows - 0.9 * ry:
            size = (gap * 0.9 / columns, gap * 0.9 * ry / rows)
            key_style = _varied(style, rng) if same else surface()
            node.children.append(Node(outline or shapes.rectangle(1, 1), key_style, (x, y), size))
    return node


def sign(rng: np.random.Generator, surface: Surface) -> Node:
    """A disc, target, clock or face: shapes within a shape."""
    outer = shapes.ellipse() if rng.random() < 0.6 else shapes.polygon(rng)
    node = root = Node(outer, surface())
    for _ in range(int(rng.integers(1, 4))):
        size = rng.uniform(0.5, 0.85)
        inner = Node(outer if rng.random() < 0.6 else _simple_shape(rng), surface())
        inner.scale, inner.angle = (size, size), rng.choice((0, rng.uniform(0, np.pi)))
        node.children.append(inner)
        node = inner
    if rng.random() < 0.5:
        root.children.append(Node(shapes.letter(rng, 0.3), surface(), scale=(0.3, 0.3)))
    return root


# (function, how often) for mixed scenes
THINGS = (
    (simple, 0.26),
    (thin, 0.1),
    (text, 0.06),
    (creature, 0.13),
    (vehicle, 0.07),
    (house, 0.06),
    (plant, 0.09),
    (vessel, 0.09),
    (panel, 0.07),
    (sign, 0.07),
)


def _simple_shape(rng: np.random.Generator) -> Shape:
    kind = rng.integers(6)
    if kind == 0:
        return shapes.polygon(rng)
    if kind == 1:
        return shapes.ellipse(1, rng.uniform(0.3, 1))
    if kind == 2:
        return shapes.rectangle(1, rng.uniform(0.3, 1), rng.choice((0, 0.1, 0.4)))
    if kind == 3:
        return shapes.star(rng)
    return shapes.blob(rng, rng.uniform(0.05, 0.6))


def _head(rng: np.random.Generator, skin: Style, other: Style) -> Node:
    radius = rng.uniform(0.2, 0.38)
    at = (rng.uniform(0.5, 0.7), rng.uniform(-0.5, -0.2))
    head = Node(shapes.blob(rng, 0.1), _varied(skin, rng), at, (radius, radius))
    eyes = np.linspace(-0.35, 0.35, int(rng.integers(1, 3)))
    for x in eyes:
        pupil = Node(shapes.ellipse(), skin, scale=(0.5, 0.5))
        head.children.append(Node(shapes.ellipse(), other, (x, -0.2), (0.2, 0.2), children=[pupil]))
    if rng.random() < 0.6:
        mouth = shapes.ellipse(0.4, rng.uniform(0.08, 0.25), 0, 0.45)
        head.children.append(Node(mouth, other, clip=True))
    for side in (-1, 1):
        if rng.random() < 0.7:
            ear = Node(shapes.polygon(rng, 3), skin, (0.55 * side, -0.8), (0.4, 0.5), behind=True)
            head.children.append(ear)
    return head


def _varied(style: Style, rng: np.random.Generator) -> Style:
    """The same material elsewhere: another place of its texture, slightly other brightness."""
    colours = np.frombuffer(style.palette, np.uint8).astype(np.float32) * rng.uniform(0.8, 1.2)
    palette = np.clip(colours, 0, 255).astype(np.uint8).tobytes()
    return replace(style, palette=palette, offset=(float(rng.random()), float(rng.random())))
