"""A step never waits for a GPU: nothing in it brings a value to the host.

Where a GPU is, each such call would have it run empty; and a CUDA graph can't hold one.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.registered import every_trainer, some_twins, trains
from tuning.naming import bare_name, is_wrapped

# What needs a value, or a shape that depends on values, on the host.
WAITING = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim"}
# Of the steps of methods' own, those that do, and why.
WAITS = {
    "LPpp": "its rates are read from a buffer",
    "ProMetaR": "the halves of a batch are drawn, and have no fixed sizes",
    "RLPrompt": "words are chosen one by one",
    "SkipT": "a step takes the classes that its images choose",
}
NAMES = [name for name in some_twins(every_trainer()) if trains(name)]


class Forbidding(TorchDispatchMode):
    """Raises AssertionError at a call that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"a step calls {name}"
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [x for x in indices if x is not None and x.dtype == torch.bool]
        assert not masks, "a step picks by a mask"
        return func(*args, **(kwargs or {}))


def test_it_forbids():
    x = torch.ones(3)
    for call in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: bool(x[0])):
        with pytest.raises(AssertionError, match="a step"), Forbidding():
            call()


def waits(name):
    return (bare_name(name) if is_wrapped(name) else name) in WAITS


@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(make_trainer, name):
    trainer = make_trainer(name, DATALOADER__FEATURE_CACHE="")
    trainer.before_train()
    trainer.begin_epoch()
    trainer.before_epoch()
    trainer.set_model_mode("train")
    batch = next(iter(trainer.training_batches()))
    if trainer.method.has_own_step():
        trainer.num_batches, trainer.batch_idx = 9, 0
        trainer.forward_backward(batch)
        expects = pytest.raises(AssertionError, match="a step") if waits(name) else nullcontext()
        with expects, Forbidding():
            trainer.forward_backward(batch)
        return
    inputs = trainer.step_inputs(batch)
    trainer.training_step.compute_gradients(inputs)  # what is computed once is at hand from here on
    with Forbidding():
        losses = trainer.training_step.compute_gradients(inputs)
    assert losses["loss"].isfinite()
