"""Where PyTorch is not installed the kit works, and TorchEngine says what to install."""

import subprocess
import sys

import pytest

from embsim import SGD, FeatureConfig, TableConfig
from embsim.conformance import Setup
from embsim.conformance.torch_engine import TorchEngine


def test_starting_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    setup = Setup((FeatureConfig(TableConfig(1, 1, None, SGD(1.0), name="t")),))
    with pytest.raises(ImportError, match="TorchEngine needs PyTorch: pip install torch"):
        TorchEngine(setup)


def test_the_kit_imports_no_torch():
    code = "import sys, embsim.conformance.torch_engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
