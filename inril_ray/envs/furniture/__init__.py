"""FurnitureBench's assembly tasks on MuJoCo: the same tasks, observations, actions and rewards, on an open simulator.

The original runs on Isaac Gym, which is closed and at its end of life. Here all geometry is made of boxes, capsules and
spheres from measured numbers, so physics needs no download. Threads are not meshed: a screw that has caught is held to
its helix by constraints (``model.py``, ``logic.py``). Absolute numbers differ from PhysX's.

``tasks/`` is data; ``geometry.py``, ``robot.py`` and ``model.py`` make one MuJoCo model of it; ``kinematics.py`` and
``logic.py`` are batched and pure; ``cpu.py`` steps the model; ``vector_env.py`` is the environment.

Sources: Heo et al. 2023 (FurnitureBench); Ankile et al. 2024 (ResiP), whose environment IN-RIL used.
"""
