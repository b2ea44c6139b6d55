"""The trainer that runs one method: one step for all precisions, one save, one load.

Shape letters: method.py's.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import nn

from clip.clip import find_backbone
from clip.prompting import Encoders
from dassl.config import CfgNode
from dassl.data.data_manager import template_of
from dassl.data.wrapper import generators_at
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, count_num_param, file_sha256, resolve_seed

from . import original_checkpoints, sentences
from .class_names import cut_names, say_alike
from .further_data import digests_of, further_classes, other_templates_of
from .held import Held, own_modules
from .inputs import Inputs, resolve_views
from .loading import autocast, load_encoders, load_into, resolve_precision, take_precision
from .method import Classes, Method
from .recorded import kind_of_steps
from .run import open_run
from .sees import SEES, Seeing
from .step import BatchLosses, OwnStep, TrainingStep, logged, scaled_update
from .teacher import Teacher, digest_of
from .training_data import TrainingData

_PREPARING = 10**9  # of the random numbers: no epoch's

# What runs that are trained at once have one step and one loop in place of.
_STEP = ("train", "run_epoch", "_run_batches", "forward_backward", "model_zero_grad")


def extend_cfg(cfg: CfgNode) -> None:
    """Declare the keys of every method's trainer."""
    cfg.MODEL.FAST = True  # False: the plain encoders, for benchmarks and doubts; same numbers
    # On a GPU a step's kernels are recorded once and replayed. Off until measured on one.
    cfg.TRAIN.CUDA_GRAPH = False
    cfg.DATASET.FURTHER = ()  # config files of data sets trained on in turn with the run's own
    cfg.TRAINER.PREC = ""  # of whatever method runs; "": its node's own
    cfg.TRAINER.SETTINGS_PER_DATA_SET = False  # whether its values were chosen for each


class PromptTrainer(Seeing, Inputs):
    """Trains one `Method`: one step for all precisions, one save, one load.

    A subclass names its method, config node, model's folder, and usual file of configs/trainers/.
    """

    usual_config = "vit_b16_ep10"
    method_class: type[Method]
    config_node: str
    model_name = "prompt_learner"
    may_differ: tuple[str, ...] = ("SEED",)
    files_by_content = ("MODEL.BACKBONE.NAME", "MODEL.INIT_WEIGHTS", sentences.KEY)
    described_in = ""  # the module whose head tells of it, if not its own
    side_by_side = 1  # the number of runs that are trained together

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.own_step():
            cls.may_differ = ()
        method = getattr(cls, "method_class", Method)
        keys = (*cls.files_by_content, *method.needs_files, method.teacher_key)
        cls.files_by_content = tuple(key for key in dict.fromkeys(keys) if key)

    @classmethod
    def own_step(cls) -> list[str]:
        """Which of the functions it defines itself that runs trained at once don't call."""
        own = [name for name in _STEP if getattr(cls, name) is not getattr(PromptTrainer, name)]
        method = getattr(cls, "method_class", Method)
        its = method.own_step is not Method.own_step
        return [*own, f"{method.__name__}.own_step"] if its else own

    def check_cfg(self, cfg: CfgNode) -> None:
        """As the engine's.

        Raises:
            UserError: DATASET.FURTHER with a method that trains on one data set.
        """
        self.method_cfg(cfg)  # names the missing node before any work
        if cfg.DATASET.FURTHER and "other_data_sets" not in self.method_class.what_it_sees(cfg):
            raise UserError(f"{type(self).__name__} trains on one data set: empty DATASET.FURTHER")

    @classmethod
    def config_nodes(cls) -> tuple[str, ...]:
        """As the engine's."""
        return (cls.config_node,)

    @classmethod
    def identity_of(cls, cfg: CfgNode, dataset: Any, model: str | os.PathLike | None = None):
        """As the engine's; a test needs no teacher, nor sentences that training alone takes."""
        if model is not None:
            cfg = cfg.clone()
            cfg.defrost()
            if key := cls.method_class.teacher_key:
                cfg.merge_from_list([key, ""])
            if cls.method_class.sentences_for == "training":
                cfg.DATASET.SENTENCES = ""
        identity = super().identity_of(cfg, dataset, model)
        further = digests_of(cfg, cls.method_class.template_name)
        others = other_templates_of(cfg, dataset, cls.method_class.further_templates)
        identity["data"]["template"] = "; ".join([identity["data"]["template"], *others.values()])
        return {**identity, "files": {**identity["files"], **further}}

    @classmethod
    def file_digest(cls, key: str, name: str) -> str:
        """As the engine's; a backbone may also be named, and a teacher is a run."""
        if key == cls.method_class.teacher_key:
            return digest_of(open_run(name))
        return find_backbone(name).digest if key == "MODEL.BACKBONE.NAME" else file_sha256(name)

    @classmethod
    def template_of(cls, cfg: CfgNode, dataset: Any) -> str:
        """As the engine's; a method may read another of the data set's templates."""
        return template_of(cfg, dataset, cls.method_class.template_name)

    @classmethod
    def precision_of(cls, cfg: CfgNode, device: torch.device) -> str:
        """What the towers run in, by the method's PREC and the device."""
        key = f"TRAINER.{cls.config_node}.PREC"
        return resolve_precision(cls.method_cfg(cfg).PREC, device, key)

    @classmethod
    def method_cfg(cls, cfg: CfgNode) -> CfgNode:
        """The method's own node, TRAINER.<config_node>."""
        return cfg.TRAINER[cls.config_node]

    @classmethod
    def resolve_cfg(cls, cfg: CfgNode) -> None:
        """Let config.yaml record what is used; called once, when all options are merged."""
        cls.method_class.resolve_cfg(cfg)
        sentences.resolve_cfg(cfg, cls.__name__, cls.method_class)
        take_precision(cfg, cls.method_cfg(cfg))
        resolve_views(cfg, cls.method_class, cls.__name__)

    @classmethod
    def build_method(cls, cfg: CfgNode, encoders: Encoders, classes: Classes) -> Method:
        """The method as the config says, on the CPU; its teacher, if it has one, is unread."""
        classes = sentences.with_sentences(classes, cfg.DATASET.SENTENCES, cls.method_class)
        classes = cut_names(classes, cfg.DATASET.NAME_TOKENS)
        say_alike(classes)
        method = cls.method_class.from_cfg(cfg, encoders, classes)
        if method.teacher_key:
            method.teacher_run = Teacher(cfg, method.teacher_key, classes)
        return method

    def build_model(self) -> None:
        """Load the towers, build the method, register it with its optimizers.

        Raises:
            UserError: the method sees what isn't in `SEES`, or weights to start from don't fit.
        """
        cfg = self.cfg
        self.precision = self.precision_of(cfg, self.device)
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        encoders, self.backbone_sha256 = load_encoders(cfg, self.precision, self.device)
        self.method = self.build_method(cfg, encoders, self._classes()).to(self.device).freeze()
        if cfg.MODEL.INIT_WEIGHTS:
            self.initialize_from(cfg.MODEL.INIT_WEIGHTS)
        trained = self.method.trained()
        print(f"Parameters to train: {', '.join(trained) or 'none'}")
        print(f"Number of them: {sum(p.numel() for p in trained.values()):,}")
        print(f"Number of all: {count_num_param(self.method):,}")
        self._register_optimizers()
        self.steps = None if self.own_step() else kind_of_steps(cfg, self.method, self.device)
        held = partial(Held, own_modules(self.method))
        self.training_step = TrainingStep(
            BatchLosses(self.method, self.autocast),
            lambda: self.model_zero_grad(),
            lambda total: self.scaler.scale(total),
            self.finish_step,
            self.steps and partial(self.steps, parameters=[*trained.values()], held=held),
        )
        self.build_encoder()
        # fp16 gradients underflow without a scale; CLIP's τ = 100 overflows at the default one.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**10, enabled=self.precision in ("fp16", "amp")
        )

    def _classes(self) -> Classes:
        """The run's classes, and as much of others as its method sees."""
        cfg, dm = self.cfg, self.dm
        sees = self.method_class.what_it_sees(cfg)
        if unknown := sorted(set(sees) - set(SEES)):
            raise UserError(f"{type(self).__name__} sees {unknown[0]!r}; one of: {', '.join(SEES)}")
        own = set(dm.class_keys)
        return Classes(
            list(dm.classnames),
            list(dm.class_keys),
            self.template_of(cfg, dm.dataset),
            dict(dm.label_space),
            # One that was asked for takes part.
            bool(cfg.DATASET.TEMPLATE) or dm.dataset.template_joins_ensembles,
            {key: name for key, name in dm.label_space.items() if key not in own}
            if "new_class_names" in sees
            else {},
            len(dm.dataset.train_x or ()),
            further_classes(self.further, self.method_class.template_name),
            other_templates_of(cfg, dm.dataset),
        )

    def _register_optimizers(self) -> None:
        """Register the method with its usual optimizer, and those of its own beside it."""
        cfg, trained = self.cfg, self.method.trained()
        further = self.method.own_optimizers(cfg.OPTIM)
        theirs = {
            name: [p for group in optim.param_groups for p in group["params"]]
            for name, (optim, _) in further.items()
        }
        taken = {id(p) for parameters in theirs.values() for p in parameters}
        groups = []
        for group in self.method.param_groups(cfg.OPTIM.LR) if trained else ():
            left = [p for p in group["params"] if id(p) not in taken]
            groups += [{**group, "params": left}] if left else []
        optim = build_optimizer(self.method, cfg.OPTIM, groups) if groups else None
        sched = build_lr_scheduler(optim, cfg.OPTIM) if optim is not None else None
        self.register_model(self.model_name, self.method, optim, sched)
        for name, (own, schedule) in further.items():
            self.register_model(name, nn.ParameterList(theirs[name]), own, schedule)

    def autocast(self) -> torch.autocast:
        """What the features are computed under."""
        return autocast(self.device, self.precision)

    # Training.

    def train(self) -> None:  # type: ignore[override]  # as Dassl has it
        """Train, or where nothing is trained prepare and test."""
        if not self._has_outcome():
            print(f"{type(self).__name__} has nothing to train")
            self.final_test()
        elif not self.method.trained():
            print(f"{type(self).__name__} has nothing to train but what it prepares")
            self.before_train()
            self.epoch = self.max_epoch - 1
            self.save_model(self.epoch, self.output_dir)
            self.after_train()
        else:
            super().train()

    def _has_outcome(self) -> bool:
        """Whether training leaves anything to save."""
        return bool(self.method.trained() or self.method.prepared_state())

    def before_train(self) -> None:
        """As the engine's; a run that begins is prepared."""
        sentences.check_described(self.method.classes)
        super().before_train()
        self.take_teacher()
        if self.start_epoch or self.batches_done:
            return
        data = self.training_data()
        # By numbers of its own: it changes none that training draws, nor depends on other runs.
        with generators_at(resolve_seed(self.cfg.SEED), _PREPARING), torch.no_grad():
            self.method.prepare(data)
        self.method.forget_text()
        if self.cfg.MODEL.INIT_WEIGHTS and self.prepares():
            self.initialize_from(self.cfg.MODEL.INIT_WEIGHTS)  # it goes before what was prepared

    def training_data(self) -> TrainingData:
        """The training images, as a method sees them before its first step."""
        encoder = self.encoder if self.layer is None else None
        return TrainingData(self.cfg, self.dm.dataset, encoder, self.encode_views, self.device)

    def before_epoch(self) -> None:
        """As Dassl's; the method may change what it trains."""
        super().before_epoch()
        self.method.before_epoch(self.epoch, self.max_epoch)

    @classmethod
    def prepares(cls) -> bool:
        """Whether its method looks at the training images before the first step."""
        return cls.method_class.prepare is not Method.prepare

    def forward_backward(self, batch: dict) -> dict:
        """One step; → its losses by name, each (), and their sum as "loss"."""
        inputs = self.step_inputs(batch)
        if not self.method.has_own_step():
            return self.training_step(inputs)
        own = OwnStep(
            BatchLosses(self.method, self.autocast),
            {name: optim for name, optim in self._optims.items() if optim is not None},
            self.scaler,
            self.model_update,
            self.epoch,
            self.max_epoch,
        )
        losses = logged(self.method.own_step(inputs, own))
        self.end_step()
        return losses

    def finish_step(self) -> None:
        """Once the gradients are there: the optimizers' step, and at an epoch's end the rates'."""
        self.model_update()
        self.end_step()

    def end_step(self) -> None:
        """After an epoch's last step, the rates'."""
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()

    def undeclared(self) -> list[str]:
        """The registered models whose optimizers train what the method doesn't declare."""
        declared = {id(p) for p in self.method.trained().values()}
        return [
            name
            for name, optim in self._optims.items()
            if optim is not None
            and any(id(p) not in declared for group in optim.param_groups for p in group["params"])
        ]

    def model_update(self, names: str | list[str] | None = None) -> None:
        """As Dassl's, but for a step whose scaled gradients overflowed: that one is left out."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        scaled_update([optim for optim in optims if optim is not None], self.scaler)

    # Evaluation.

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Scores (B,C) of images (B,3,I,I), or of what is kept of them."""
        with self.autocast():
            features = self.method.features(input)
        return self.method.logits(features)

    # Checkpoints.

    def model_state(self, name: str) -> dict[str, torch.Tensor]:
        """What the method trains; of another model all, copied: it may be slices of several."""
        if self._is_method(name):
            return self.method.trained_state()
        return {key: value.clone() for key, value in super().model_state(name).items()}

    def _is_method(self, name: str) -> bool:
        return self._models[name] is self.method

    def checkpoint_extra(self) -> dict:
        """As the engine's, the backbone's SHA-256, what was seen, and what was prepared."""
        return {
            **super().checkpoint_extra(),
            "backbone_sha256": self.backbone_sha256,
            "sees": self.seen(),
            "scaler": self.scaler.state_dict(),
            **({"prepared": prepared} if (prepared := self.method.prepared_state()) else {}),
        }

    def load_checkpoint_extra(self, extra: dict) -> None:
        """The gradient scale's state; `load_model_state` takes the rest."""
        self.scaler.load_state_dict(extra["scaler"])

    def result_extra(self) -> dict:
        """Backbone, how many runs trained together, what the method saw and was trained on."""
        return {
            "backbone_sha256": self.backbone_sha256,
            "side_by_side": self.side_by_side,
            **self.seeing(),
        }

    def load_model(self, directory: str | os.PathLike | None, epoch: int | None = None) -> None:
        """As Dassl's; a method that trains nothing has nothing to load."""
        if self._has_outcome():
            super().load_model(directory, epoch)

    def load_model_state(self, name: str, state_dict: dict, checkpoint: dict) -> None:
        """The method's checkpoint onto this run's classes.

        Raises:
            UserError: it doesn't fit, or is of another backbone.
        """
        if not self._is_method(name):
            return super().load_model_state(name, state_dict, checkpoint)
        self._load(state_dict, checkpoint, partial=False)

    def initialize_from(self, path: str) -> None:
        """Start from the parameters of a checkpoint file, ours or one of the original code."""
        checkpoint = original_checkpoints.read(path)
        self._load(checkpoint["state_dict"], checkpoint, partial=True, source=path)

    def _load(
        self, state: dict, checkpoint: dict, partial: bool, source: str = "the checkpoint"
    ) -> None:
        load_into(
            self.method,
            {**checkpoint, "state_dict": state},
            source,
            self.backbone_sha256,
            partial,
            others_classes=self.cfg.DATASET.SUBSAMPLE_CLASSES == "new" and not partial,
        )
        self.remember_seen(checkpoint, partial)
