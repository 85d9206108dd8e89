"""The notebooks run from top to bottom, with the bundled model, on a CPU."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import hurried

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]

SHORTER = {
    "fine_tune": {
        'MODEL, STEPS = "tiny", 60': 'MODEL, STEPS = "tiny", 4',
        ", 40, seed=1)": ", 6, seed=1)",
    },
    "train_on_tpu": {},
}
"""The notebooks that train, and what is put for their words here, so that minutes do."""


def sources(path, kind):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_there_is_one_for_each_task():
    wanted = ["automatic_masks", "convert_and_check", "evaluate", "fine_tune", "predict"]
    assert NAMES == [*wanted, "train_on_tpu"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_each_installs_itself_finds_the_device_and_names_what_vit_h_needs(path):
    code, words = "\n".join(sources(path, "code")), "\n".join(sources(path, "markdown"))
    assert "%pip install" in code and "jax.devices()" in code and "show(" in code
    assert "**For ViT-H" in words
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "saved with outputs"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    # A clone of its own, beside which nothing is written to.
    for name in ("colab", "configs", "convert", "sam_jax", "train", "pyproject.toml", "README.md"):
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if path.stem in SHORTER:  # compiling takes longer than its few steps
        for name, value in hurried().items():
            monkeypatch.setenv(name, value)
    book = nbformat.read(tmp_path / "colab" / path.name, as_version=4)
    for words, fewer in SHORTER.get(path.stem, {}).items():
        cells = [cell for cell in book.cells if words in cell.source]
        assert len(cells) == 1, f"{words!r} is in {len(cells)} cells"
        cells[0].source = cells[0].source.replace(words, fewer)
    client = nbclient.NotebookClient(
        book, timeout=900, resources={"metadata": {"path": str(tmp_path / "colab")}}
    )
    client.execute()
    outputs = [out for cell in book.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs), "no picture was shown"
    text = "".join(out.get("text", "") for out in outputs)
    failed = re.findall(r"^.*(?:Traceback|: error:|No module named).*$", text, re.MULTILINE)
    assert not failed, text[-2000:]
    if os.environ.get("SAM_JAX_KEEP_NOTEBOOKS"):
        nbformat.write(book, Path(os.environ["SAM_JAX_KEEP_NOTEBOOKS"]) / path.name)
