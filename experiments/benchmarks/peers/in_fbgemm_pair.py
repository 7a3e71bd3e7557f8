"""FBGEMM at its best on two cores: half of the tables in each of two instances."""

from .in_fbgemm import Batched
from .in_fbgemm import versions as versions
from .job import Batches, Job, NotOfferedError


def prepare(job: Job, batches: Batches, threads: int) -> Batched:
    if threads < 2:
        raise NotOfferedError("two instances need two threads")
    if job.workload.tables < 2:
        raise NotOfferedError("one table cannot be halved")
    return Batched(job, batches, threads, instances=2)
