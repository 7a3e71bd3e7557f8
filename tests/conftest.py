"""What every test runs under: a Hypothesis profile, embsim held to its own annotations, and eight
virtual devices of JAX.

HYPOTHESIS_PROFILE=ci         (default) the same examples every time
HYPOTHESIS_PROFILE=nightly    many, and others every time; a failure prints how to repeat it
"""

import os

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# JAX reads it when it starts, once.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the only one with virtual devices

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
