"""The conformance kit: anyone can hold an embedding engine to the definition.

    run_checks("my_backend").passed                 six functions, registered or an instance
    run_checks(MyEngineAdapter).failures            an engine with queues of its own

From pytest:

    @pytest.mark.parametrize("check", checks_for_backend("my_backend"), ids=str)
    def test_my_backend(check):
        check()

Needs the extra `conformance`: pip install 'embsim[conformance]'.
"""

from .adapter import REFUSABLE as REFUSABLE
from .adapter import REFUSABLE_BY_BACKENDS as REFUSABLE_BY_BACKENDS
from .adapter import AdapterFactory as AdapterFactory
from .adapter import Capabilities as Capabilities
from .adapter import EngineAdapter as EngineAdapter
from .adapter import arrays as arrays
from .bisect import Separation as Separation
from .bisect import first_difference as first_difference
from .bisect import random_program as random_program
from .check import LEVELS as LEVELS
from .check import BoundCheck as BoundCheck
from .check import Check as Check
from .check import Draw as Draw
from .check import Result as Result
from .check import check as check
from .difference import Difference as Difference
from .embsim_engine import EmbsimEngine as EmbsimEngine
from .lockstep import Lockstep as Lockstep
from .lockstep import definition_of as definition_of
from .lockstep import replay as replay
from .program import Apply as Apply
from .program import Dequeue as Dequeue
from .program import Drain as Drain
from .program import Enqueue as Enqueue
from .program import Evaluate as Evaluate
from .program import Look as Look
from .program import Program as Program
from .program import Rates as Rates
from .program import Restore as Restore
from .program import Save as Save
from .program import Setup as Setup
from .program import Train as Train
from .program import Values as Values
from .program import source as source
from .report import Report as Report
from .report import all_checks as all_checks
from .report import checks_for_backend as checks_for_backend
from .report import checks_for_engine as checks_for_engine
from .report import run_checks as run_checks
from .rules import Counting as Counting
from .rules import EveryOperation as EveryOperation
from .subject import Subject as Subject
from .subject import subject_of as subject_of
from .subnormals import SubnormalMet as SubnormalMet
