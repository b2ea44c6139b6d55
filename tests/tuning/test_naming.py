"""The names of DePT's twins."""

import subprocess
import sys

import pytest

from tuning.naming import bare_name, is_wrapped, wrapped_name


@pytest.mark.parametrize("name", ["CoOp", "DePT_CoOp"])
def test_both_names_of_a_pair_are_found_from_either(name):
    assert bare_name(name) == "CoOp"
    assert wrapped_name(name) == "DePT_CoOp"
    assert is_wrapped(name) == (name == "DePT_CoOp")


def test_names_are_told_without_pytorch():
    code = "import sys, tuning.naming; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
