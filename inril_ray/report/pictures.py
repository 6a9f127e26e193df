"""Pictures and videos of a run, with their bytes inside the page."""

from __future__ import annotations

import base64
from pathlib import Path

from inril_ray.report.page import Html, join, section, tag
from inril_ray.report.records import read_tree

MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


def pictures(folder: Path) -> Html:
    """Return the section of the pictures in a run's folder of media; nothing where there is none."""
    if not folder.is_dir():
        return join()
    record, _ = read_tree(folder / "media.json")
    figures = []
    for name in ("before", "after"):
        found = next((p for end in MEDIA_TYPES if (p := folder / f"{name}{end}").is_file() and inside(p, folder)), None)
        if found is not None:
            outcome = "not recorded" if record.get(name) is None else record[name]
            caption = tag("figcaption", f"{name.capitalize()} fine-tuning: {outcome}")
            still = folder / f"{name}.png"
            poster = still if found != still and still.is_file() and inside(still, folder) else None
            figures.append(tag("figure", caption, embedded(found, f"Evaluation episode {name} fine-tuning", poster)))
    about = record.get("note") or record.get("error") or ("" if figures else "There are no pictures of this run.")
    if figures and record.get("episode") is not None and not record.get("note"):
        about = f"Evaluation episode {record['episode']}."
    caution = " One chosen episode illustrates; the intervals above are the result." if figures else ""
    shown = tag("div", *figures, class_="charts")
    return section("One episode before and after", shown, tag("p", about, caution, class_="note"))


def inside(path: Path, folder: Path) -> bool:
    """Tell whether a file is where it seems to be: a link in somebody's run could show a file of the reader's own."""
    return path.resolve().is_relative_to(folder.parent.resolve())


def embedded(path: Path, label: str, poster: Path | None = None) -> Html:
    """Return a picture or a video with its bytes inside, and with those of the picture to show until it is played."""
    if MEDIA_TYPES[path.suffix].startswith("video"):
        shown = None if poster is None else _data(poster)
        controls = {"controls": True, "loop": True, "muted": True, "playsinline": True}
        return tag("video", **controls, aria_label=label, poster=shown, src=_data(path))
    return tag("img", src=_data(path), alt=label)


def _data(path: Path) -> str:
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
