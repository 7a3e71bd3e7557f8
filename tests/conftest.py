"""What every test runs under: a Hypothesis profile, and embsim held to its own annotations.

HYPOTHESIS_PROFILE=ci         (default) the same examples every time
HYPOTHESIS_PROFILE=nightly    many, and others every time; a failure prints how to repeat it
"""

import os

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Must come before the first import of embsim. An int is a float, as pyright has it.
install_import_hook("embsim", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# No deadline: the first example of a test compiles kernels.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "nightly",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
