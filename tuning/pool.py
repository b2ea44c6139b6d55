"""A pool of training views, encoded before the first step, from which steps draw.

For methods whose image tower is untouched, and whose steps are so cheap that drawing views anew
would be all their cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dassl.config import CfgNode
from dassl.utils import UserError, resolve_seed

from .trainer import PromptTrainer


class PoolTrainer(PromptTrainer):
    """Trains on features of TRAINER.<…>.PASSES views of each of n images; 0: new views each epoch.

    An epoch shuffles the PASSES · n features and takes as many batches of them as one pass over the
    images has, so that it may meet several views of an image, and none of another.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        """As the engine's."""
        super().check_cfg(cfg)
        if self.method_cfg(cfg).PASSES and cfg.DATALOADER.K_TRANSFORMS > 1:
            raise UserError(f"TRAINER.{self.config_node}.PASSES: one view of an image at a time")

    @classmethod
    def passes_of(cls, cfg: CfgNode, epochs: int) -> set[int | None]:
        """As every trainer's; those of the pool, where there is one."""
        return set(range(cls.method_cfg(cfg).PASSES or epochs))

    def before_train(self) -> None:
        """As the engine's, with the pool."""
        super().before_train()
        passes = self.method_cfg(self.cfg).PASSES
        self.pool = self.pool_labels = torch.empty(0, device=self.device)
        if passes and self.method.trained():
            data = self.training_data()
            self.pool = torch.cat([data.features(i) for i in range(passes)])  # (P·n,D)
            self.pool_labels = data.labels.repeat(passes)

    def training_batches(self) -> Iterator[dict]:
        """The epoch's batches; their order is a function of seed and epoch."""
        if not len(self.pool):
            yield from super().training_batches()
            return
        generator = torch.Generator().manual_seed(resolve_seed(self.cfg.SEED) * 2**20 + self.epoch)
        order = torch.randperm(len(self.pool), generator=generator)
        size = self._loader_x.batch_size
        for i in range(self.batches_per_epoch):
            rows = order[i * size : (i + 1) * size].to(self.device)
            index = rows % self.method.classes.images
            yield {"img": self.pool[rows], "label": self.pool_labels[rows], "index": index}
