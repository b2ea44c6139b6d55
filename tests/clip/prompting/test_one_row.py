"""The text tower with prefix and suffixes in one row, as on a GPU: the plain path's numbers."""

from __future__ import annotations

import pytest
import torch

from clip.prompting import block, shared
from tests.clip.prompting.oracle import NAMES, agree, both, dtypes, random
from tests.clip.prompting.test_changes import TEXT, flat, text_case, trained

D = torch.float64
# How many of the first two layers go in a row; the last never does.
IN_A_ROW = {
    "inserted, then replaced": 2,
    "per class": 1,
    "per class, inserted": 1,
    "across the prefix": 0,
    "behind the prefix": 1,
    "contexts": 1,
    "everything": 1,
}


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Encoders on the row's path; the prefixes of the layers that went so."""
    found = []

    def attend_row(qkv, heads, row):
        found.append(row.prefix)
        return own(qkv, heads, row)

    own = block.attend_row
    monkeypatch.setattr(block, "attend_row", attend_row)
    monkeypatch.setattr("clip.prompting.text.TextEncoder.in_one_row", True)
    return found


@dtypes
@pytest.mark.parametrize("case", TEXT)
def test_text(dtype, case, rows):
    fast, plain = both(dtype)
    layout, ctx, changes = text_case(fast, dtype, case)
    results = [e.text(layout, ctx, changes=changes) for e in (fast, plain)]
    agree(*results, [ctx, *trained(changes)])
    assert len(rows) == IN_A_ROW.get(case, 2)


@pytest.mark.parametrize("case", ["inserted, then replaced", "shift per context", "own blocks"])
def test_contexts_side_by_side(case, rows):
    fast, plain = both(D)
    layout, ctx, changes = text_case(fast, D, case, "side by side")
    agree(*(e.text(layout, ctx, changes=changes) for e in (fast, plain)), [ctx, *trained(changes)])
    assert rows


def test_from_a_state_within_the_tower(rows):
    """What is above a layer goes in a row, too."""
    fast, plain = both(D)
    layout, ctx, changes = text_case(fast, D, "inserted, then replaced")
    ctx = ctx.detach()
    state = fast.text.below(layout, 1, ctx)
    results = fast.text.above(state, changes), plain.text(layout, ctx, changes=changes)
    agree(*results, trained(changes))
    assert rows == [5]


def test_where_tokens_are_read_they_go_apart(rows):
    fast, plain = both(D)
    layout, ctx, changes = text_case(fast, D, "shift")
    reads = {"second": shared.Read(1, slice(1, 7))}
    results = [flat(e.text(layout, ctx, changes=changes, reads=reads)) for e in (fast, plain)]
    agree(*results, [ctx, *trained(changes)])
    assert rows == [3]


def test_what_does_not_fit_goes_apart_in_chunks(rows):
    fast, plain = both(D)
    layout, ctx, _ = text_case(fast, D, "shift")
    fast.text.memory_budget = 1
    agree(*(e.text(layout, ctx) for e in (fast, plain)), [ctx])
    assert not rows


def test_mapped_over_runs(rows):
    encoder = both(D)[0].text
    layout = encoder.layout(NAMES, 2)
    stacked = random(3, 2, 128, dtype=D)
    together = torch.func.vmap(lambda ctx: encoder(layout, ctx))(stacked)
    apart = torch.stack([encoder(layout, ctx) for ctx in stacked])
    agree(together, apart, [stacked])
    assert rows
