"""The shortest program that shows a difference from the law."""

from .adapter import asked_for
from .difference import Difference
from .lockstep import replay
from .program import Program
from .shrink import shrunk
from .subject import Subject

RUNS = 300  # of programs, at most


def smallest(subject: Subject, difference: Difference) -> Difference:
    """The difference that the shortest program shows which can be cut out of this one's."""
    program, latest = difference.program, difference
    if program is None or subject.capabilities.output_shift:
        return difference

    def shows(candidate: Program) -> bool:
        nonlocal latest
        try:
            replay(subject, candidate, watch=difference.watched)
        except Difference as seen:
            latest = seen
            return True
        except Exception:
            return False  # no setup of the subject's
        return False

    can = subject.capabilities
    ids = can.bitwise and not asked_for(program.setup) & set(can.bounded)
    shrunk(program, shows, RUNS, ids=ids)
    return latest
