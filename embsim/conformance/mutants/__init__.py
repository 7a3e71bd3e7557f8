"""Wrong backends and engines, taken from faults that the field has met, and right ones.

A kit is worth what it catches. Each mutant names the check that kills it; that check, run alone,
must fail on it with an AssertionError. The controls do unusual things and change nothing: they must
pass every check.

>>> from embsim.conformance.mutants import CONTROLS, MUTANTS
>>> len(MUTANTS) >= 40 and len(CONTROLS) >= 2
True
"""

from . import backend as backend
from . import checkpoints as checkpoints
from . import device_state as device_state
from . import errors as errors
from . import gradients as gradients
from . import ids as ids
from . import in_flight as in_flight
from . import looks as looks
from . import lookup as lookup
from . import optimizers as optimizers
from . import plans as plans
from . import precision as precision
from . import replicas as replicas
from . import rows as rows
from . import schedule as schedule
from . import update as update
from .controls import CONTROLS as CONTROLS
from .mutant import MUTANTS as MUTANTS
from .mutant import Mutant as Mutant
from .mutant import mutant as mutant
