"""The process of a drill."""

from inril_ray.chaos.processes import main

main()
