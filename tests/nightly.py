"""What `make nightly` alone runs: HYPOTHESIS_PROFILE is nightly then."""

import os

import pytest

IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
nightly = pytest.mark.skipif(not IS_NIGHTLY, reason="takes long: make nightly")
