"""Interleaved reinforcement and imitation learning (IN-RIL) for robot policies, on Ray.

Importing this package loads neither Ray nor MLflow nor a simulator; each is loaded by the part that needs it.
"""

__version__ = "0.1.0"
