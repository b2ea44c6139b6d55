"""What a token takes in memory: counted on a small tower, the same on every machine."""

import pytest
import torch

from benchmarks import token_memory
from clip.prompting import shared
from dassl.utils import UserError


def test_allocations_are_counted():
    x = torch.ones(1000)

    def call():
        y = x * 2  # 4,000 bytes, and as many for the sum's parts
        del y
        return (x + 1) @ (x + 1)

    assert 8000 <= token_memory.allocated_by(call) < 9000


def test_what_is_counted_on_is_no_less_than_what_is_allocated():
    for changed, constant in (
        (False, shared._WIDTHS_PER_TOKEN),
        (True, shared._WIDTHS_PER_CHANGED_TOKEN),
    ):
        (few, less), (many, more) = (
            token_memory.measure("tiny", number, changed, profiled=True) for number in (10, 30)
        )
        width, layers = 64, 12
        widths = (more - less) / (many - few) / (width * layers * 4)
        assert 0.4 * constant < widths <= constant


def test_numbers_out_of_order():
    with pytest.raises(UserError, match="the second one larger"):
        token_memory.parse_args(["--classes", "5", "5"])
