"""Ray at the edge: thin shells around the plain classes of a run.

Promises. A worker's random and environment state comes back with each fragment, so a replaced worker repeats the lost
fragment exactly; a dead worker costs the time of that fragment, on whichever node there is room. A node that leaves
takes its workers and at most one round of fragments with it, which is collected again. Weights carry a version; a
worker never goes back to an older one. At most one call is in flight on each worker, and every wait has a deadline. A
dead learner, or the loss of its node, ends the run; the same command goes on from the last checkpoint.
"""

import os
import sys

if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
    # A cluster that Ray starts for us keeps strangers out by a token, as is Ray's default; said before Ray is imported,
    # or it says so itself in every process. Somebody else's cluster says what it wants.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
