"""Wrong backends and engines, taken from faults that the field has met, and two right ones.

A kit is worth what it catches. Each mutant names the check that kills it; that check, run alone,
must fail on it with an AssertionError. The controls do unusual things and change nothing: they must
pass every check.
"""

from .mutant import MUTANTS as MUTANTS
from .mutant import Mutant as Mutant
from .mutant import mutant as mutant
