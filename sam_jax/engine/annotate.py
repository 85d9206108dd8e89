"""Masks by hand with the model's help, on a page in the browser (the paper's data engine).

    sam-jax annotate FOLDER                          assisted: clicks, boxes, brush and eraser
    sam-jax annotate FOLDER --stage semi-automatic   confident masks first, people add the rest
    sam-jax annotate FOLDER --stage automatic        everything by the generator; no page
    sam-jax annotate FOLDER --export coco --out DIR  what is there, in another form

Masks are kept in FOLDER/sam_jax_store (--store) as events that are only ever appended. Training
takes that folder as data: `python -m train --config configs/finetune.py --data-root FOLDER
--photos sam_jax_store 1.0`. The page then reads the new weights where --model points to their file
(its button "Reload model").

The page is served to this computer only. Another address (--host) needs a token, which is in the
link that is printed; one of the tool's own making, or --token.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

STORE = "sam_jax_store"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax annotate`."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the photographs; sub-folders too")
    add("--store", metavar="DIR", help=f"where masks are kept (default FOLDER/{STORE})")
    names = "tiny, mobile_sam, vit_b, vit_l, vit_h, or a file"
    add("--model", default="tiny", metavar="NAME", help=names)
    add(
        "--stage",
        default="assisted",
        choices=("assisted", "semi-automatic", "automatic"),
        help="see above (default assisted)",
    )
    add("--preset", default="sa1b", metavar="NAME", help="of the automatic stage (default sa1b)")
    add(
        "--pred-iou-thresh",
        type=float,
        metavar="X",
        help="masks that no person draws must have a predicted IoU above this (default 0.92, "
        "automatic: the preset's); lower it for a model that is not sure of itself yet",
    )
    add(
        "--stability-score-thresh",
        type=float,
        metavar="X",
        help="and at least this stability (default 0.96, automatic: the preset's)",
    )
    add(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to serve to (default this computer)"
    )
    add("--port", type=int, default=8321, metavar="N", help="0: any that is free (default 8321)")
    add("--token", metavar="TEXT", help="that the page is opened with, for another --host")
    add("--no-browser", action="store_true", help="do not open the page")
    add("--export", choices=("sa1b", "coco", "png"), help="write what is there to --out, no page")
    add("--out", metavar="DIR", help="where --export writes to")
    add("--ledger", action="store_true", help="print what has been done as JSON, no page")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax annotate`.

    Raises:
      ValueError: no such folder, no photos in it, a store of another folder, or no such model.
    """
    from sam_jax.data.store import Store

    folder = Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder of photographs, got {folder}")
    store = Store(args.store or folder / STORE, folder)
    if not store.names():
        raise ValueError(f"folder: no photos in {folder}")
    for where, why in store.damage.items():
        print(f"skipped {where}: {why}")
    if args.ledger:
        import json

        from sam_jax.engine.ledger import figures

        print(json.dumps(figures(store), indent=1))
    elif args.export:
        from sam_jax.engine.export import to_folder

        if not args.out:
            raise ValueError("--out: --export needs a folder to write to")
        count = to_folder(store, args.export, Path(args.out))
        print(f"wrote {count} files to {args.out}")
    elif args.stage == "automatic":
        fill_all(store, args.model, args.preset, _thresholds(args))
    else:
        serve(store, args)


def _thresholds(args: argparse.Namespace) -> dict[str, float]:
    """The generator's thresholds that were given."""
    names = ("pred_iou_thresh", "stability_score_thresh")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def fill_all(store: Any, model: str, preset: str, changes: dict[str, float]) -> None:
    """The automatic stage on every photo that has not had it; stopped, it goes on there."""
    from tqdm import tqdm

    from sam_jax.checkpoint.load import load
    from sam_jax.engine.filling import fill, open_generator, unfilled
    from sam_jax.inference.generate import fingerprint

    left = unfilled(store, "automatic")
    if not left:
        print("the automatic stage has been run on all photos that are not done")
        return
    sam = load(model)
    generator = open_generator(sam, "automatic", preset, **changes)
    weights, added, skipped = fingerprint(sam.params), 0, []
    for photo in tqdm(left, unit="photo", disable=None):
        try:
            added += fill(store, generator, photo, "automatic", weights)
        except ValueError as error:
            skipped.append(f"{photo}: {error}")
    for reason in skipped:
        print(f"skipped {reason}")
    print(f"{added} masks on {len(left) - len(skipped)} photos")


class Filler:
    """Pre-fills photos in the background, while nobody asks anything.

    Args:
      store: that gets the masks.
      assistant: whose model makes them.
      changes: thresholds of the generator.
    """

    def __init__(self, store: Any, assistant: Any, changes: dict[str, float]) -> None:
        from sam_jax.engine.filling import unfilled

        self._store, self._assistant, self._changes = store, assistant, changes
        self._left = dict.fromkeys(unfilled(store, "semi-automatic"))
        self._wanted: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="filler", daemon=True)

    def start(self) -> None:
        """Starts it."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it after the photo that it is at."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def filled(self, photo: str) -> bool:
        """Whether a photo has its masks; if not, it is next."""
        if photo not in self._left:
            return True
        self._wanted.append(photo)
        return False

    def _work(self) -> None:
        from sam_jax.engine.filling import fill, open_generator

        generator, of = None, ""
        while self._left and not self._stopped.is_set():
            assistant = self._assistant
            if not (self._wanted and assistant.status == "ready") and not assistant.calm():
                time.sleep(0.05)
                continue
            if of != assistant.hash or generator is None:
                of = assistant.hash
                generator = open_generator(assistant.predictor, "semi-automatic", **self._changes)
            photo = next(iter(self._left))
            while self._wanted:
                wanted = self._wanted.pop()
                if wanted in self._left:
                    photo = wanted
                    break
            try:
                fill(self._store, generator, photo, "semi-automatic", of)
            except Exception as error:  # one photo must not stop the others
                print(f"skipped {photo}: {error}")
            self._left.pop(photo, None)


def serve(store: Any, args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise ValueError(
            "the page needs starlette and uvicorn: pip install 'sam_jax[annotate]'"
        ) from None
    from sam_jax.checkpoint.load import load
    from sam_jax.engine.annotation import Annotation
    from sam_jax.engine.assistant import Assistant
    from sam_jax.engine.server import make_app

    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port: expected 0 to 65535, got {args.port}")
    local = args.host in LOOPBACK
    token = args.token
    if not local and not token:
        import secrets

        token = secrets.token_urlsafe(16)
    assistant = Assistant(_opener(load, args.model), store.photos, store.path / "embeddings")
    filler = Filler(store, assistant, _thresholds(args)) if args.stage == "semi-automatic" else None
    filled = filler.filled if filler else lambda photo: True
    annotation = Annotation(store, assistant, Path(args.model).name, args.stage, filled)
    hosts = {name.strip("[]") for name in LOOPBACK} if local else None
    app = make_app(annotation, hosts, token)
    listener = _listen(args.host, args.port)
    link = link_to(args.host, listener.getsockname()[1], token)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    try:
        assistant.start(store.names())
        if filler:
            filler.start()
        count = len(store.names())
        print(f"{count} photos, masks in {store.path}; Ctrl-C ends it, nothing is lost")
        print(link, flush=True)
        if not args.no_browser:
            import webbrowser

            threading.Timer(0.5, webbrowser.open, [link]).start()
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        _end(filler, assistant, store)


def _end(filler: Filler | None, assistant: Any, store: Any) -> None:
    """Waits for what the threads are doing; Ctrl-C once more leaves at once.

    An interpreter that ends while one of its threads compiles or computes is aborted, so this one
    is left without its end; all that was said to be saved is in its file.
    """
    try:
        with contextlib.suppress(OSError):  # whoever reads it may be gone
            print("ends after what is being computed; Ctrl-C again leaves at once", file=sys.stderr)
        if filler:
            filler.stop()
        assistant.stop()
        store.close()
    except KeyboardInterrupt:
        os._exit(130)


def _opener(load: Callable, model: str) -> Callable[[], Any]:
    """Loads the model now if that cannot work at all, so that a wrong name is said at once."""
    from sam_jax.checkpoint.load import NAMES

    if model not in NAMES and not Path(model).exists():
        raise ValueError(f"--model: expected {', '.join(NAMES)} or a file, got {model}")
    return lambda: load(model)


def link_to(host: str, port: int, token: str | None) -> str:
    """The page's address, with the token that opens it."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _listen(host: str, port: int) -> Any:
    """A listening socket, or a sentence that says why not."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(f"--port: can't listen on {host}:{port}: {error.strerror}") from None
    return listener
