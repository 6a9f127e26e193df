"""Write small data sets with the real Minari in all of its layouts, for the tests of our reader.

Needs an environment of its own, because Minari needs numpy 2::

    python -m venv other && other/bin/pip install "minari[hdf5,arrow]==0.5.4" pillow
    other/bin/python tests/record_minari.py tests/golden/minari.zip
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

LENGTHS = (5, 3, 4)
LAYOUTS = ("hdf5", "arrow", "parquet")


def episodes(flat: bool, extra: bool) -> list[EpisodeBuffer]:
    """Numbers that tell where they come from: step t of episode e observes 100 e + t."""
    buffers = []
    for e, n in enumerate(LENGTHS):
        at = 100.0 * e + np.arange(n + 1, dtype=np.float64)
        goal = {
            "observation": at[:, None] + [0.0, 0.25],
            "achieved_goal": -at[:, None],
            "desired_goal": at[:, None] * 2,
        }
        last = np.arange(n) == n - 1
        buffers.append(
            EpisodeBuffer(
                id=e,
                observations=(at[:, None] + [0.0, 0.5, 0.75]).astype(np.float32) if flat else goal,
                actions=(np.arange(n * 2, dtype=np.float32).reshape(n, 2) + e) / 10,
                rewards=list(np.arange(n, dtype=float) - 1),
                terminations=list(last & (e == 0)),
                truncations=list(last & (e != 0)),
                infos={"success": np.append(False, last & (e == 1))} if extra else {},
            )
        )
    return buffers


def main() -> None:
    """Write one archive with a flat and a goal data set in each layout."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
        for layout in LAYOUTS:
            for kind, env_id in (("flat", "Hopper-v5"), ("goal", "FetchPush-v4")):
                data = Path(folder) / layout / kind / "data"
                data.mkdir(parents=True)
                box = {
                    k: spaces.Box(-np.inf, np.inf, (w,), np.float64)
                    for k, w in (("observation", 2), ("achieved_goal", 1), ("desired_goal", 1))
                }
                storage = MinariStorage.new(
                    data,
                    observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32)
                    if kind == "flat"
                    else spaces.Dict(box),
                    action_space=spaces.Box(-1, 1, (2,), np.float32),
                    env_spec=EnvSpec(id=env_id, max_episode_steps=5),
                    data_format=layout,
                )
                storage.update_episodes(episodes(kind == "flat", kind == "goal"))
                storage.update_metadata({"dataset_id": f"{kind}/human-v0", "minari_version": "0.5.4"})
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    print(f"gymnasium {gym.__version__}")


if __name__ == "__main__":
    main()
