"""Every command and every code block of the README and the guides runs."""

import contextlib
import dataclasses
import functools
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import hurried
from tests.documents import DOCUMENTS, ROOT, blocks

pytestmark = pytest.mark.optimised  # the masks of a whole photo take longer than compiling
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SMALL = {
    "train --config configs/finetune.py": "--stages.0.steps 1 --stages.0.batch-size 2",
    "train --config configs/scratch.py": "--data-root none --photos --stages.0.steps 1 "
    "--stages.1.steps 0 --stages.2.steps 0 --stages.0.image-size 128 --stages.0.batch-size 1",
    "train --config configs/text.py": "--stages.0.steps 1 --stages.1.steps 0 --stages.2.steps 0 "
    "--stages.0.batch-size 2 --text.scenes 4 --validation.drawn 1",
    "train.contrastive": "--steps 2 --text-steps 2 --batch-size 8 --scenes 4 --tested 2",
    "evaluate text": "--data drawn:2",
    "generate": "--points-per-side 4",
    "--stage automatic": "--preset default --pred-iou-thresh 0 --stability-score-thresh 0",
}
"""What makes a command that holds these words take seconds, put behind it."""
SERVERS = re.compile(r"sam-jax annotate photos( --stage semi-automatic)?|python -m http.server .*")
"""Commands that go on until they are stopped."""
WORDS = ("a", "the", "red", "cup")


def code(block):
    return block.language == "python"


def test_every_block_is_code_or_commands_or_says_why_it_is_not_run():
    assert len(BLOCKS) > 30
    assert {block.language for block in BLOCKS} <= {"python", "sh", "", "text"}
    reasons = {block.reason for block in BLOCKS if block.reason}
    assert all(len(reason) > 10 for reason in reasons)


def test_each_of_the_six_readers_has_a_guide():
    names = {document.stem for document in DOCUMENTS[1:]}
    assert names == {
        *("photo", "research", "pytorch", "training", "annotating", "paper", "cloud_tpu")
    }
    readme = DOCUMENTS[0].read_text()
    assert all(f"(docs/{name}.md)" in readme for name in names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    headings = {}
    for target in DOCUMENTS + [ROOT / "CONTRIBUTING.md"]:
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        headings[target] = {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
        }
    words = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", words):
        if link.startswith("http"):
            continue
        path, _, part = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name}: {link}"
        assert not part or part in headings[target], f"{document.name}: {link}"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """From a document to the folder that its blocks run in, one after the other."""
    return functools.cache(lambda document: _furnished(tmp_path_factory.mktemp(document.stem)))


def _furnished(place):
    """The folder with what the documents take for granted."""
    photo = Image.open(files("sam_jax.assets") / "photo.jpg").convert("RGB")
    photo.save(place / "photo.jpg")
    (place / "photos").mkdir()
    for name in ("one", "two"):
        photo.resize((300, 200)).save(place / "photos" / f"{name}.jpg")
    for name, count in (("train", 6), ("val", 2)):
        _scenes(place / "data" / name, count)
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, place / name)
    return place


def _scenes(folder, count):
    from sam_jax.data.described import DescribedScenes
    from sam_jax.ops.rle import decode

    folder.mkdir(parents=True)
    for k in range(count):
        record = DescribedScenes(count, 128)[k]
        labels = np.zeros(record["image"].shape[:2], np.uint8)
        for number, rle in enumerate(record["rles"], 1):
            labels[decode(rle)] = number
        (folder / "images").mkdir(exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(record["image"]).save(folder / "images" / f"{k}.jpg")
        Image.fromarray(labels).save(folder / "masks" / f"{k}.png")


def _made(place, text):
    """Makes the checkpoints that a block names, random ones of the released shapes."""
    import jax

    from sam_jax.checkpoint.load import Sam, save
    from sam_jax.models.config import VIT_B
    from sam_jax.models.sam import SamModel, init

    pth = place / "sam_vit_b_01ec64.pth"
    if pth.name in text and not pth.exists():
        variables = init(VIT_B, jax.random.key(0))
        save(Sam(SamModel(VIT_B), variables, VIT_B, "vit_b"), pth)
    if "M.safetensors" in text and not (place / "M.safetensors").exists():
        from tests.clips import word_clip
        from tests.small import CONFIG, small_sam

        clip = word_clip(WORDS)
        model = small_sam(CONFIG.replace(text_width=clip.config.embed_dim))
        save(dataclasses.replace(model, text=clip.text_tower()), place / "M.safetensors")


WITH_PYTHON = [
    document
    for document in DOCUMENTS
    if any(code(block) and not block.reason for block in blocks(document))
]


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_run_one_after_the_other(document, places, monkeypatch):
    place = places(document)
    found = [block for block in blocks(document) if code(block) and not block.reason]
    monkeypatch.chdir(place)
    image = np.asarray(Image.open("photo.jpg"))
    names = {"np": np, "image": image, "photo": image, "photo1": image, "photo2": image[:200]}
    for block in found:
        _made(place, block.text)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, block.name, "exec"), names)


COMMANDS = [block for block in BLOCKS if block.language in ("sh", "") and not block.reason]


@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_commands_run(block, places):
    place = places(block.document)
    for command in block.commands:
        if command.startswith("pip install"):
            continue  # the gate installs the package in environments of their own
        _made(place, command)
        program, small = command, [more for words, more in SMALL.items() if words in command]
        run(f"{program} {' '.join(small)}".strip(), place, bool(SERVERS.fullmatch(command)))


def run(command, place, server=False):
    """Runs a command where the package is at hand; a server is stopped once it answers."""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
    }
    if "-m train" in command:  # compiling takes longer than the few steps
        environment |= hurried()
    command = command.replace("sam-jax ", f"{sys.executable} -m sam_jax ", 1)
    if server and "annotate" in command:
        command += " --port 0 --no-browser"
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    process = subprocess.Popen(
        words,
        cwd=place,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if server:
        with process.stdout:
            for line in process.stdout:
                if "http" in line.lower():
                    break
            for _ in range(30):  # one that comes while it starts may be too early
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert process.wait(2) in (0, 130, -signal.SIGINT), command
                    break
            assert process.poll() is not None, f"{command} goes on"
        return
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, f"{command}\n{said[-3000:]}"
