"""Encoded batches one stretch ahead of the steps: the next views are encoded while these are used.

A stretch is what is encoded together. While the steps go through one, a thread makes the next, and
no more: that bounds the memory. An epoch's last one is followed by the first of the next epoch.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import torch

from dassl.data.data_manager import ImageLoader

from .feature_cache import Encoder

Batches = list[dict[str, Any]]


class _Stretch(NamedTuple):
    """Batches of one epoch, or what was met in their place.

    event: on a GPU, reached when they are encoded.
    """

    epoch: int
    batches: Batches
    error: Exception | None = None
    event: torch.cuda.Event | None = None


class Ahead:
    """Epochs of encoded batches.

    Args:
        encoder: encodes them.
        loader: of the training images. Its workers draw the views: in this process they would draw
            from the generators that training draws from.
        at_once: batches encoded together.
        epochs: how many there are.
    """

    def __init__(self, encoder: Encoder, loader: ImageLoader, at_once: int, epochs: int) -> None:
        self.encoder = encoder
        self.loader = loader
        self.at_once = at_once
        self.epochs = epochs
        self._source: Generator[_Stretch, None, None] = self._stretches(epochs)
        self._next: Future[_Stretch | None] | None = None

    def batches(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The batches of an epoch (from 0), in their order.

        What goes wrong in the thread is raised here, as it is, in the epoch that it belongs to.
        """
        stretch = self._next.result() if self._next is not None else None
        if stretch is None or stretch.epoch != epoch:
            self._source = self._stretches(epoch)
            stretch = next(self._source, None)
        while stretch is not None and stretch.epoch == epoch:
            if stretch.error is not None:
                raise stretch.error
            self._next = _beside.submit(next, self._source, None)
            yield from self._taken(stretch)
            stretch = self._next.result()

    def close(self) -> None:
        """Drop what was made ahead, and the locks of what was being encoded."""
        if self._next is not None:
            wait([self._next])
        self._next = None
        self._source.close()

    def _stretches(self, first: int) -> Generator[_Stretch, None, None]:
        """From the beginning of epoch `first` to the end of the last."""
        for epoch in range(first, self.epochs):
            if epoch > first and not self.loader.has_started:
                # An epoch that may start the workers begins in the main thread: a process forked
                # beside running steps may inherit a lock that nobody gives back.
                return
            try:
                self.loader.set_epoch(epoch)
                batches = self.encoder.batches(self.loader, self.at_once)
                while found := self._encoded(epoch, batches):
                    yield found
            except Exception as error:
                yield _Stretch(epoch, [], error)
                return

    def _encoded(self, epoch: int, batches: Iterator[dict[str, Any]]) -> _Stretch | None:
        device = self.encoder.device
        if device.type != "cuda":
            found = list(islice(batches, self.at_once))
            return _Stretch(epoch, found) if found else None
        beside = _stream(device)
        with torch.cuda.stream(beside):
            found = list(islice(batches, self.at_once))
        return _Stretch(epoch, found, event=beside.record_event()) if found else None

    def _taken(self, stretch: _Stretch) -> Batches:
        """The batches, for the stream of the steps: it waits for them, the host doesn't."""
        if stretch.event is not None:
            training = torch.cuda.current_stream(self.encoder.device)
            training.wait_event(stretch.event)
            for tensor in _tensors(stretch.batches):
                if tensor.is_cuda:
                    tensor.record_stream(training)  # its memory is in use there until freed here
        return stretch.batches


def _tensors(batches: Batches) -> Iterator[torch.Tensor]:
    for batch in batches:
        for value in batch.values():
            values = value if isinstance(value, list) else [value]
            yield from (x for x in values if torch.is_tensor(x))


# One thread and one stream for all runs of this process: together they would only share the GPU.
_beside = ThreadPoolExecutor(1, thread_name_prefix="views")


def _renew() -> None:
    """A forked process inherits the pool, but not its thread: nothing would run in it."""
    global _beside
    _beside = ThreadPoolExecutor(1, thread_name_prefix="views")


if hasattr(os, "register_at_fork"):  # not on every system
    os.register_at_fork(after_in_child=_renew)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
