"""Imports go one way: each room of the house may use those that it is allowed to, and no other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "ops": set(),
    "models": {"ops"},
    "checkpoint": {"models", "ops"},
    "data": {"ops"},
    # data.images alone: whoever takes a photo has to read it.
    "inference": {"checkpoint", "models", "ops", "data.images"},
    "training": {"models", "ops"},
    "evaluation": {"inference", "checkpoint", "models", "ops", "data"},
    "engine": {"inference", "checkpoint", "models", "ops", "data"},
}
LEAVES = {"ahead", "compiling", "storage"}  # these import nothing of the package
EXTRAS = {
    "optax": {"training"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"evaluation"},
    "tokenizers": {"inference"},
    "flax": {"models"},
    "cv2": {"evaluation"},
    "faster_coco_eval": {"evaluation"},
    "h5py": {"data"},
    "starlette": {"engine"},
    "uvicorn": {"engine"},
    "torch": set(),
    "tensorflow": set(),
    "transformers": set(),
}


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files():
    return sorted((ROOT / "sam_jax").rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below(path):
    parts = path.relative_to(ROOT / "sam_jax").parts
    room = parts[0] if len(parts) > 1 else None
    for name in imported(path):
        head, *rest = name.split(".")
        assert head not in ("train", "convert", "configs", "tests"), f"{path} imports {name}"
        if head in EXTRAS:
            assert room in EXTRAS[head], f"{path} imports {name}"
        if head != "sam_jax" or room is None or not rest or rest[0] in {room, *LEAVES}:
            continue
        allowed = any(
            ".".join(rest[: len(a.split("."))]) == a or a.startswith(f"{'.'.join(rest)}.")
            for a in ROOMS[room]
        )
        assert allowed, f"{room} must not import {name} ({path})"


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_leaf_imports_nothing_of_the_package(name):
    names = imported(ROOT / "sam_jax" / f"{name}.py")
    assert not [n for n in names if n.split(".")[0] == "sam_jax"]


def test_every_room_has_a_rule():
    rooms = {p.name for p in (ROOT / "sam_jax").iterdir() if (p / "__init__.py").is_file()}
    assert rooms - {"assets"} <= set(ROOMS)


def test_importing_the_package_loads_no_extra_and_no_jax():
    code = (
        f"import sys, sam_jax; print([m for m in {sorted([*EXTRAS, 'jax'])!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
