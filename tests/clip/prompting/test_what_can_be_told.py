"""docs/new_method.md: every line of what an encoder can be told is something that it does."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import clip.prompting
from tests.clip.prompting.oracle import NAMES, agree, both, model_of, random

D = torch.float64
TEXT = (Path(__file__).parents[3] / "docs" / "new_method.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## What an encoder can be told\n")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"^\|.*\| `(.+)` \|$", SECTION, re.MULTILINE)


def told(tower: str, example: str, rows: int):
    model, width = model_of(D), {"text": 128, "image": 64}[tower]
    blocks = (model if tower == "text" else model.visual).transformer.resblocks
    torch.manual_seed(0)
    names = {
        "prompts": random(2, width, dtype=D),
        "per_row": random(rows, 2, width, dtype=D),
        "module": nn.Sequential(nn.Linear(width, 4), nn.GELU(), nn.Linear(4, width)).to(D),
        "a": random(2, width, dtype=D),
        "b": random(width, 2, dtype=D),
        "scale": random(width, dtype=D),
        "shift": random(width, dtype=D, seed=2),
        "own_block": copy.deepcopy(blocks[0]).requires_grad_(),
    }
    return eval(example, {**vars(clip.prompting), **names})


def test_every_part_has_its_line():
    parts = {example.split("(")[0] for example in EXAMPLES}
    assert parts == {"Tokens", "NameShift", "Branch", "LowRank", "Weights", "Read"}


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("tower", ["text", "image"])
def test_examples(tower, example):
    if tower == "image" and example.startswith("NameShift"):
        pytest.skip("images have no class name")
    encoder = getattr(both(D)[0], tower)
    image = random(4, 3, 32, 32, dtype=D).detach()
    layout = encoder.layout(NAMES, 2) if tower == "text" else None
    start = (layout, random(2, 128, dtype=D).detach()) if tower == "text" else (image,)
    part = told(tower, example, rows=6 if tower == "text" else 4)
    bare = encoder(*start)
    if isinstance(part, clip.prompting.Read):
        found = encoder(*start, reads={"mine": part})
        assert list(found) == ["features", "mine"] and len(found["mine"]) == len(bare)
        torch.testing.assert_close(found["features"], bare, rtol=0, atol=1e-12)
        return
    torch.manual_seed(1)
    changed = encoder(*start, changes=[part])
    assert changed.requires_grad and (changed - bare).abs().max() > 1e-3
    j = encoder.first_layer([part])
    torch.manual_seed(1)
    if tower == "text":
        state = encoder.below(layout, j, start[1])
        above = encoder.above(state, [part])
        some = encoder.above(state.select(torch.tensor([2, 0])))
        torch.testing.assert_close(some, bare[[2, 0]], rtol=0, atol=1e-12)
    else:
        above = encoder.above(encoder.below(image, j), j, [part])
    leaves = [x for x in clip.prompting.changes.tensors_of(part) if x.requires_grad]
    agree(above, changed, leaves)
