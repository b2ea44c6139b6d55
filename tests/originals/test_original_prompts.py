"""Which token ids stand where in every method's prompts, as in the original code.

A negative id −1−m is the place of context vector m.
"""

import pytest
import torch

from clip.prompting import PromptLayout
from dassl.engine import build_trainer
from tests.originals.test_originals import (  # noqa: F401
    NUMBERS,
    command,
    in_the_repository,
    read,
    world,
)
from tuning.options import parse_args, setup_cfg

# What was run without its data manager has no record of prompts.
CASES = [c for c in NUMBERS if "DePT" not in c and "prompts" in read(c)["base"]]


def ids_of(layout):
    ids = torch.where(layout.slots >= 0, -1 - layout.slots, layout.tokens)
    return [row[: end + 1] for row, end in zip(ids.tolist(), layout.eot.tolist(), strict=True)]


@pytest.fixture
def layouts(monkeypatch):
    """The prompts around contexts, and the finished sentences, that are written meanwhile."""
    contexts, sentences = [], []
    init, of_texts = PromptLayout.__init__, PromptLayout.of_texts

    def of_context(self, *args, **kwargs):
        init(self, *args, **kwargs)
        contexts.append(ids_of(self))

    def of_sentences(texts, *args, **kwargs):
        layout = of_texts(texts, *args, **kwargs)
        sentences.extend(ids_of(layout))
        return layout

    monkeypatch.setattr(PromptLayout, "__init__", of_context)
    monkeypatch.setattr(PromptLayout, "of_texts", of_sentences)
    return contexts, sentences


@pytest.mark.parametrize("part", ["base", "new"])
@pytest.mark.parametrize("case", CASES)
def test_tokens(world, tmp_path, layouts, case, part):  # noqa: F811
    record = read(case)
    if part not in record:
        pytest.skip("a context per class has no prompts for new classes")
    cfg = setup_cfg(parse_args(command(world, record, tmp_path, part)))
    import datasets  # noqa: F401

    build_trainer(cfg).final_test()
    contexts, sentences = layouts
    expected = record[part]
    assert contexts == ([expected["prompts"]] if expected["prompts"] else [])
    assert sorted(sentences) == sorted(expected["sentences"])
