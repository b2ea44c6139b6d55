"""Views encoded beside training: the same numbers, one stretch ahead and no further."""

import json
import multiprocessing
import threading

import pytest
import torch

import train
from dassl.utils import UserError
from tests.conftest import CLASSES
from tuning import feature_cache, inputs
from tuning.ahead import Ahead
from tuning.feature_cache import Encoder
from tuning.trainer import PromptTrainer

AUGMENTED = "('random_resized_crop', 'random_flip', 'normalize')"


class Loader:
    """Of `length` batches per epoch; the third one can't be drawn in the epoch `bad`."""

    def __init__(self, length=5, bad=None, has_started=True):
        self.length, self.bad, self.has_started = length, bad, has_started
        self.epoch, self.drawn = None, []

    def set_epoch(self, epoch):
        self.epoch = epoch

    def batches(self, loader, at_once):
        assert loader is self
        self.threads.append(threading.current_thread() is threading.main_thread())
        try:
            for i in range(self.length):
                if (self.epoch, i) == (self.bad, 2):
                    raise UserError("no image: b.png")
                self.drawn.append((self.epoch, i))
                yield {"img": torch.tensor([self.epoch, i])}
        finally:
            self.closed += 1

    device = torch.device("cpu")
    closed = 0

    @property
    def threads(self):
        return self.__dict__.setdefault("_threads", [])


def read(ahead, epoch):
    return [tuple(batch["img"].tolist()) for batch in ahead.batches(epoch)]


def test_epochs_come_whole_and_in_order():
    for length in (1, 4, 5, 6):
        loader = Loader(length)
        ahead = Ahead(loader, loader, 2, epochs=3)
        for epoch in range(3):
            assert read(ahead, epoch) == [(epoch, i) for i in range(length)]
        assert loader.threads == [True, False, False] and loader.closed == 3


def test_no_more_than_a_stretch_is_made_ahead():
    loader = Loader(6)
    ahead = Ahead(loader, loader, 2, epochs=2)
    batches = ahead.batches(0)
    for taken in range(1, 7):
        next(batches)
        ahead._next.result()
        in_use = (taken + 1) // 2 * 2
        assert len(loader.drawn) == in_use + 2


def test_it_goes_on_from_any_epoch():
    loader = Loader(3)
    ahead = Ahead(loader, loader, 2, epochs=5)
    assert read(ahead, 2) == [(2, 0), (2, 1), (2, 2)]
    assert read(ahead, 1) == [(1, 0), (1, 1), (1, 2)]
    assert read(ahead, 4) == [(4, 0), (4, 1), (4, 2)]


@pytest.mark.parametrize("bad", [0, 1])
def test_what_goes_wrong_is_raised_as_it_is_in_its_epoch(bad):
    loader = Loader(bad=bad)
    ahead = Ahead(loader, loader, 2, epochs=3)
    for epoch in range(bad):
        assert len(read(ahead, epoch)) == 5
    batches, found = ahead.batches(bad), []
    with pytest.raises(UserError, match=r"^no image: b\.png$"):
        found.extend(tuple(batch["img"].tolist()) for batch in batches)
    assert loader.drawn[-2:] == [(bad, 0), (bad, 1)]


def test_workers_are_started_by_the_main_thread():
    loader = Loader(4, has_started=False)
    ahead = Ahead(loader, loader, 2, epochs=2)
    assert [read(ahead, epoch) for epoch in (0, 1)] == [[(e, i) for i in range(4)] for e in (0, 1)]
    assert loader.threads == [True, True]


def test_nothing_stays_open_where_training_ends_early():
    loader = Loader(6)
    ahead = Ahead(loader, loader, 2, epochs=2)
    next(ahead.batches(0))
    assert not loader.closed
    ahead.close()
    assert loader.closed == 1
    ahead.close()
    assert read(ahead, 1) == [(1, i) for i in range(6)]


def test_a_forked_process_has_a_thread_of_its_own():
    loader = Loader(4)
    assert len(read(Ahead(loader, loader, 2, epochs=2), 0)) == 4  # the thread is there

    def child():
        assert len(read(Ahead(loader, loader, 2, epochs=2), 0)) == 4

    forked = multiprocessing.get_context("fork").Process(target=child)
    forked.start()
    forked.join(30)
    try:
        assert forked.exitcode == 0
    finally:
        forked.kill()


# Whole runs: without anything kept of the image; with the unprompted tower's features; with tokens.
RUNS = ["DePT_CoOp", "PromptSRC", "IPT"]


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_same_to_the_digit(command, tmp_path, monkeypatch, name):
    monkeypatch.setattr(inputs, "VIEWS_AT_ONCE", (4, 4))  # a batch a stretch
    options = {"DATALOADER__NUM_WORKERS": 2, "OPTIM__MAX_EPOCH": 3, "INPUT__TRANSFORMS": AUGMENTED}
    encode = {"IPT": "encode_below"}.get(name, "encode_views")
    call, where = getattr(PromptTrainer, encode), []

    def told(self, image):
        where.append(threading.current_thread() is threading.main_thread())
        return call(self, image)

    monkeypatch.setattr(PromptTrainer, encode, told)

    def run(folder, beside):
        feature_cache._memory.clear()
        monkeypatch.setattr(PromptTrainer, "encodes_beside_training", beside)
        train.main(command(name, "--no-cache", output=folder, **options))
        checkpoint = next(folder.glob("*/model.pth.tar-3"))
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        result = json.loads((folder / "result.json").read_text())
        assert not multiprocessing.active_children()  # the workers' end isn't left to chance
        return state, [json.loads(line)["losses"] for line in lines], result

    state, losses, result = run(tmp_path / "apart", False)
    assert all(where)
    where.clear()
    beside = run(tmp_path / "beside", True)
    assert where[0] and where.count(False) == 3 * 2 - 1  # two batches an epoch, all but the first
    assert losses == beside[1] and result["accuracy"] == beside[2]["accuracy"]
    assert state.keys() == beside[0].keys()
    assert all(torch.equal(value, beside[0][key]) for key, value in state.items())
    decoded = beside[2]["decoding"]
    assert decoded["decoded"] == decoded["kept"] == 2 * len(CLASSES) and decoded["workers_share"]


def test_a_bad_image_met_beside_training_is_named(command, tmp_path, monkeypatch):
    encoded, epochs = Encoder.batches, []

    def fails(self, *args, **options):
        epochs.append(1)
        if len(epochs) == 2:
            raise UserError("no image: b.png")
        return encoded(self, *args, **options)

    monkeypatch.setattr(Encoder, "batches", fails)
    words = command("CoOp", "--no-cache", output=tmp_path / "run", DATALOADER__NUM_WORKERS=1)
    with pytest.raises(UserError, match=r"b\.png"):
        train.main(words)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
