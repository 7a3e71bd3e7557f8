"""Numbers under a clock: the lookups and updates of a timeline, done on real data in its order.

    timeline = run(pipeline.operations(1000), seconds)
    result = replay(timeline, pipeline, features, optimizer, batches, dense)
    result.seconds, result.scores          of each batch: when it was scored, and what came out

One run gives seconds and quality, because the operations that have times are the ones that touch
tables: a lookup reads as it begins, an update is made as it ends. For schedules of schedule.py the
numbers are those of the engine, to the bit.
"""

from .compensation import Compensation, dc_asgd, decayed, drop_if_older
from .dense import Dense
from .run import Replayed, replay

__all__ = [
    "Compensation",
    "Dense",
    "Replayed",
    "dc_asgd",
    "decayed",
    "drop_if_older",
    "replay",
]
