"""One form for all results: figures, what they are held against, the ratio of both, and the machine."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from inril_ray.run_dir import provenance, write_json

FOLDER = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], *, reference: str, ratio: float | None, goal: str) -> None:
    """Write and print a result.

    Args:
        name: of the file.
        figures: what was measured, with units in the names.
        reference: what it is held against, measured in the same run.
        ratio: ours to the reference.
        goal: what was asked for.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    result = {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "figures": figures,
        "reference": reference,
        "ratio": ratio,
        "goal": goal,
        **provenance(),
    }
    write_json(FOLDER / f"{name}.json", result)
    print(json.dumps({k: result[k] for k in ("name", "figures", "reference", "ratio", "goal")}, indent=2))
