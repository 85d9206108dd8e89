"""What has been done: masks and seconds by stage, annotator and model, and how good masks were.

The paper's check of quality (section 5): on photos that a person has said are done, the model's
masks against what became of them. One that was left alone counts as right (IoU 1), a corrected one
with its IoU with the correction; rejected ones are counted apart.
"""

from __future__ import annotations

import collections
import html
import statistics
from collections.abc import Sequence
from typing import Any

from sam_jax.data.store import MODEL, Mask, Store

PAPER = {
    "assisted, the paper": "14 s a mask at the end (34 s at the start), 44 masks a photo",
    "semi-automatic, the paper": "34 s a mask, 72 masks a photo",
    "automatic, the paper": "about 100 masks a photo; 94% above 90% IoU, 97% above 75%",
}


def figures(store: Store) -> dict[str, Any]:
    """The numbers of a store, ready for JSON.

    Returns:
      {"photos", "done", "masks", "by stage" | "by annotator" | "by model": {name: {"masks",
      "photos", "masks a photo", "seconds a mask"}}, "by day": {date: masks}, "quality": {"masks",
      "corrected", "rejected", "above 0.9", "above 0.75"} or None}. Masks that were removed or
      replaced are not counted, except in "quality".
    """
    masks = store.masks()
    alive = [mask for mask in masks.values() if mask.alive]
    done = store.done()
    days = collections.Counter(mask.event["when"][:10] for mask in alive)
    return {
        "photos": len(store.names()),
        "done": sum(done.values()),
        "masks": len(alive),
        "by stage": _by(alive, lambda event: event.get("stage") or "?"),
        "by annotator": _by(alive, lambda event: event["who"]),
        "by model": _by(alive, lambda event: event.get("model") or "none"),
        "by day": dict(sorted(days.items())),
        "quality": _quality(masks, {name for name, is_done in done.items() if is_done}),
    }


def _by(masks: Sequence[Mask], key) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Mask]] = collections.defaultdict(list)
    for mask in masks:
        groups[key(mask.event)].append(mask)
    result = {}
    for name, own in sorted(groups.items()):
        seconds = [m.event["seconds"] for m in own if m.event.get("seconds") is not None]
        photos = len({mask.event["photo"] for mask in own})
        result[name] = {
            "masks": len(own),
            "photos": photos,
            "masks a photo": len(own) / photos,
            "seconds a mask": statistics.median(seconds) if seconds else None,
        }
    return result


def _quality(masks: dict[str, Mask], done: set[str]) -> dict[str, Any] | None:
    """See the module; None where no photo with masks of the model is done."""
    from sam_jax.ops.clicks import iou
    from sam_jax.ops.rle import decode

    ious, corrected, rejected = [], 0, 0
    for mask in masks.values():
        if mask.event["who"] != MODEL or mask.event["photo"] not in done:
            continue
        if mask.replaced_by is not None:
            last = mask
            while last.replaced_by is not None:
                last = masks[last.replaced_by]
            ious.append(iou(decode(mask.rle), decode(last.rle)))
            corrected += 1
        elif mask.removed_by is not None:
            rejected += mask.removed_by != MODEL
        else:
            ious.append(1.0)
    if not ious and not rejected:
        return None
    count = max(len(ious), 1)
    return {
        "masks": len(ious),
        "corrected": corrected,
        "rejected": rejected,
        "above 0.9": sum(v > 0.9 for v in ious) / count,
        "above 0.75": sum(v > 0.75 for v in ious) / count,
    }


def page(store: Store) -> str:
    """The ledger as HTML, with its plots as SVG; needs /static/style.css and nothing else."""
    numbers = figures(store)
    parts = [
        f"<p>{numbers['masks']} masks on {numbers['photos']} photos, {numbers['done']} of them "
        "done.</p>"
    ]
    for title in ("by stage", "by annotator", "by model"):
        rows = [
            [name, one["masks"], one["photos"], f"{one['masks a photo']:.1f}", _seconds(one)]
            for name, one in numbers[title].items()
        ]
        header = [title[3:], "masks", "photos", "masks a photo", "seconds a mask (median)"]
        parts.append(f"<h2>{title.capitalize()}</h2>" + _table(header, rows))
        parts.append(_bars({name: one["masks"] for name, one in numbers[title].items()}))
    parts.append("<h2>Masks by day</h2>" + _bars(numbers["by day"]))
    parts.append("<h2>Quality of the model's masks</h2>" + _quality_text(numbers["quality"]))
    rows = [[name, text] for name, text in PAPER.items()]
    parts.append("<h2>The paper</h2>" + _table(["stage", "reported"], rows))
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ledger</title>'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="/static/icon.svg">'
        '<link rel="stylesheet" href="/static/style.css"></head>'
        f'<body class="ledger"><h1>Ledger</h1>\n{body}\n</body></html>\n'
    )


def _seconds(one: dict[str, Any]) -> str:
    return "" if one["seconds a mask"] is None else f"{one['seconds a mask']:.1f}"


def _quality_text(quality: dict[str, Any] | None) -> str:
    if quality is None:
        return "<p>No photo with masks of the model is done yet.</p>"
    return (
        f"<p>{quality['masks']} masks on photos that are done, {quality['corrected']} of them "
        f"corrected: {quality['above 0.9']:.0%} above 90% IoU, {quality['above 0.75']:.0%} above "
        f"75% (the paper: 94% and 97%). {quality['rejected']} more were rejected.</p>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _bars(values: dict[str, int], width: int = 420) -> str:
    """A horizontal bar for each value."""
    if not values:
        return "<p>Nothing yet.</p>"
    high, most = 22, max(max(values.values()), 1)
    parts = []
    for row, (name, value) in enumerate(values.items()):
        y, length = row * high, round(value / most * width)
        parts.append(
            f'<text x="150" y="{y + 15}" text-anchor="end">{html.escape(name[:20])}</text>'
            f'<rect x="158" y="{y + 3}" width="{length}" height="{high - 6}" fill="#1e90ff"/>'
            f'<text x="{164 + length}" y="{y + 15}">{value}</text>'
        )
    size = f'width="{width + 230}" height="{high * len(values)}"'
    return f'<svg class="bars" {size} role="img">{"".join(parts)}</svg>'
