"""Which episode the pictures show, and what lies beside the videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from inril_ray import media
from inril_ray.experiment import load_config
from inril_ray.media import choose_episode


@pytest.mark.parametrize(
    ("before", "after", "num_envs", "expected"),
    [
        ([1, 0, 0, 0], [1, 0, 1, 1], 4, 2),
        ([1, 1, 0], [1, 1, 1], 2, 0),
        ([0.2, 0.5, 0.3], [0.3, 0.4, 0.9], 3, 2),
    ],
    ids=["the first that failed and succeeds", "none in the first round", "the score that rose most"],
)
def test_the_episode_that_gained_most_is_shown(
    before: list[float], after: list[float], num_envs: int, expected: int
) -> None:
    assert choose_episode(before, after, num_envs) == expected


FRAMES = [np.full((32, 48, 3), shade, np.uint8) for shade in (10, 90, 200)]
CONFIG = load_config([{"task": "robomimic/lift"}])


def test_beside_each_video_lies_its_last_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = iter(("failure", "success"))
    monkeypatch.setattr(media, "film", lambda *_: (FRAMES, next(endings)))
    said = media.write_before_and_after(tmp_path, CONFIG, dict, {}, 4)
    assert said == "Evaluation episode 4: failure before, success after fine-tuning."
    folder = tmp_path / "media"
    names = ["after.mp4", "after.png", "before.mp4", "before.png", "media.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in ("before", "after"):
        assert (imageio.imread(folder / f"{name}.png") == FRAMES[-1]).all()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(media, "film", broken)
    assert media.write_before_and_after(tmp_path, CONFIG, dict, {}, 4) == "No pictures: no OpenGL"
    assert [path.name for path in folder.iterdir()] == ["media.json"], "nor those of a former end"
