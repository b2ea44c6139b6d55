"""The paper's protocols as plans: which runs of train.py each needs, and where they lie.

A plan is a list of chains. The runs of a chain go one after the other (a model must be trained
before it is tested elsewhere); chains are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dassl.config.severities import CORRUPTIONS
from dassl.utils import UserError, suggest
from experiments.chains import Chain, Job
from experiments.chosen_datasets import ChosenDataset, check_labels, chosen
from experiments.results import published
from experiments.results.configs import CONFIGS, ROOT, config_file
from experiments.results.folders import TOGETHER, TRANSDUCTIVE, Place, config_label
from experiments.results.sweeps import ABLATED, ABLATION, LAMBDA, LAMBDAS
from experiments.results.under_corruption import CORRUPTED, CORRUPTION, SEVERITY
from tuning.naming import bare_name

BACKBONE = "vit_b16"  # the paper's, in the names of configs


@dataclass(frozen=True)
class Plan:
    """What all runs of a plan share: where data and outputs lie, the config, changed settings.

    `root_given`: whether `root` also holds for data sets whose own config has a DATASET.ROOT.
    `severities`: of the protocol `corruptions`. `teacher`, `teacher_config`: of `transductive`.
    """

    root: Path
    output: Path
    config: str = ""
    opts: tuple[str, ...] = ()
    source: str = "imagenet"
    root_given: bool = True
    severities: tuple[int, ...] = (3,)
    teacher: str = "PromptSRC"
    teacher_config: str = "vit_l14_ep20"  # where the data set doesn't ask for one

    def config_of(self, trainer: str, dataset: str, purpose: str = "") -> str:
        """Return the name of the trainer's config file for a data set.

        Unless one is given: the one that the data set's own config asks for (DATASET.CONFIG), else
        the paper's backbone with the schedule of a protocol where it differs
        (`vit_b16_<purpose>`), else the trainer's usual one. Raises UserError if there is none.
        """
        folder = CONFIGS / "trainers" / trainer
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if not names:
            found = (CONFIGS / "trainers").glob("[!_]*")
            raise _unknown("trainer", trainer, [path.name for path in found])
        if self.config:
            if self.config not in names:
                raise _unknown(f"{trainer} config", self.config, names)
            return self.config
        asked_for = chosen(dataset).trainers_config
        wanted = asked_for
        if not wanted and f"{BACKBONE}_{purpose}" in names:
            return f"{BACKBONE}_{purpose}"
        wanted = wanted or usual_config(trainer)
        if wanted in names:
            return wanted
        if not wanted and len(names) == 1:
            return names[0]
        why = f", which {dataset} asks for" if asked_for else ", its usual one" if wanted else ""
        raise UserError(
            f"{trainer} has no config {wanted or 'of its own choice'}{why}: choose one with "
            f"--config: {', '.join(names)}"
        )

    def job(
        self,
        stage: str,
        trainer: str,
        dataset: str,
        seed: int,
        shots: int,
        classes: str,
        opts: Sequence[str] = (),
        model: Job | None = None,
        purpose: str = "",
        condition: Sequence[str] = (),
        teacher: Job | None = None,
    ) -> Job:
        """Return a run; `stage` is <group>/<stage> of the layout, `opts` are KEY, VALUE pairs.

        `condition`: KEY, VALUE pairs that its folder's name doesn't have, as its stage says them.
        """
        data = chosen(dataset)
        config = self.config_of(trainer, dataset, purpose)
        arguments = self._root(data)
        arguments += ["--seed", str(seed), "--trainer", trainer]
        arguments += ["--dataset-config-file", f"configs/datasets/{data.config}.yaml"]
        file = config_file(trainer, config, data.label).relative_to(ROOT)
        arguments += ["--config-file", file.as_posix()]
        fixed = [*data.words, "DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", classes]
        fixed += condition
        changes = _that_matter(tuple(arguments), (*self.opts, *opts))
        group, _, name = stage.partition("/")
        config = config_label(config, changes)
        folder = self.output / Place(name, data.label, shots, trainer, config, seed, group).folder
        arguments += ["--output-dir", str(folder)]
        _, kin = resolve((*arguments, *fixed, *self.opts, *opts))
        kin = kin and f"{data.label} {kin}"  # where a set lies is no setting
        if model:
            arguments += ["--eval-only", "--model-dir", str(model.folder)]
        arguments += [*fixed, *self.opts, *opts]
        needed = [job.folder if job else None for job in (model, teacher)]
        return Job(folder, tuple(arguments), needed[0], kin, needed[1])

    def _root(self, data: ChosenDataset) -> list[str]:
        """Where a data set lies: its own folder, else --root, else its config's DATASET.ROOT."""
        if data.own_folder:
            return ["--root", data.root]
        return [] if data.root and not self.root_given else ["--root", str(self.root)]

    def base_to_new(
        self, trainer: str, dataset: str, seed: int, shots: int, opts: Sequence[str] = ()
    ) -> Chain:
        """Train on the base classes, test on them and on the new ones."""
        key = (trainer, dataset, seed, shots)
        train = self.job("base2new/train_base", *key, "base", opts)
        test = self.job("base2new/test_new", *key, "new", opts, model=train)
        changed = " ".join(["", *opts])
        name = f"{trainer} {chosen(dataset).label} {shots} shots seed {seed}{changed}"
        return Chain(name, (train, test))

    def base_and_new(self, trainer: str, dataset: str, seed: int, shots: int) -> Chain:
        """As base to new; then the same model on all classes at once."""
        chain = self.base_to_new(trainer, dataset, seed, shots)
        key = (trainer, dataset, seed, shots)
        test = self.job(f"base2new/{TOGETHER}", *key, "all", model=chain.jobs[0])
        return Chain(f"{chain.name} together", (*chain.jobs, test))

    def corruptions(self, trainer: str, dataset: str, seed: int, shots: int) -> Chain:
        """As base to new; then the same model under every corruption, base and new classes."""
        chain = self.base_to_new(trainer, dataset, seed, shots)
        train = chain.jobs[0]
        tests = (
            self.job(
                f"{CORRUPTED}/{name}_{severity}_{classes}",
                *(trainer, dataset, seed, shots, classes),
                model=train,
                condition=(CORRUPTION, name, SEVERITY, str(severity)),
            )
            for severity in self.severities
            for name in CORRUPTIONS
            for classes in ("base", "new")
        )
        return Chain(f"{chain.name} {CORRUPTED}", (*chain.jobs, *tests))

    def transductive(self, trainer: str, dataset: str, seed: int, shots: int) -> Chain:
        """As base to new a teacher; a student on all images, tested on base and on new classes.

        Raises UserError for a trainer that doesn't learn from a teacher: it would see labels of the
        new classes.
        """
        key = teacher_key(trainer)
        if not key:
            raise UserError(
                f"{TRANSDUCTIVE} is for methods that learn from a teacher: {trainer} has none"
            )
        asks = chosen(dataset).trainers_config
        of_teacher = replace(self, config="" if asks else self.teacher_config)
        its = of_teacher.base_to_new(self.teacher, dataset, seed, shots)
        teacher = its.jobs[0]
        row = (trainer, dataset, seed, -1)  # all images
        learn = (key, str(teacher.folder))
        student = self.job(
            f"{TRANSDUCTIVE}/train_all", *row, "all", condition=learn, teacher=teacher
        )
        tests = (
            self.job(f"{TRANSDUCTIVE}/test_{part}", *row, part, model=student)
            for part in ("base", "new")
        )
        name = f"{trainer} {chosen(dataset).label} {TRANSDUCTIVE} {shots} shots seed {seed}"
        return Chain(name, (*its.jobs, student, *tests))

    def all_classes(
        self, trainer: str, dataset: str, seed: int, shots: int, purpose: str = "few_shot"
    ) -> Chain:
        """Train and test on all classes."""
        key = (trainer, dataset, seed, shots)
        job = self.job("all_classes/train_all", *key, "all", purpose=purpose)
        name = f"{trainer} {chosen(dataset).label} all classes {shots} shots seed {seed}"
        return Chain(name, (job,))

    def transfer(
        self, protocol: str, trainer: str, targets: Sequence[str], seed: int, shots: int
    ) -> Chain:
        """Train on all classes of the source, test on the targets."""
        check_labels([self.source, *targets])
        (train,) = self.all_classes(trainer, self.source, seed, shots, purpose="cross_dataset").jobs
        stage = f"{protocol}/from_{chosen(self.source).label}"
        tests = (
            self.job(
                stage, trainer, target, seed, shots, "all", model=train, purpose="cross_dataset"
            )
            for target in targets
            if target != self.source
        )
        return Chain(f"{trainer} {protocol} {shots} shots seed {seed}", (train, *tests))


def usual_config(trainer: str) -> str:
    """Return the config that a trainer declares; "" if it declares none (one made for Dassl)."""
    import trainers
    from dassl.engine import TRAINER_REGISTRY

    trainers.modules()
    return getattr(TRAINER_REGISTRY.get(trainer), "usual_config", "")


def teacher_key(trainer: str) -> str:
    """Return the config key of the run that a trainer's method learns from; "" if there is none."""
    import trainers
    from dassl.engine import TRAINER_REGISTRY

    trainers.modules()
    return getattr(getattr(TRAINER_REGISTRY.get(trainer), "method_class", None), "teacher_key", "")


def is_seeded(trainer: str) -> bool:
    """Whether a trainer's numbers may depend on the seed.

    One made for Dassl doesn't say; of one that isn't there somebody else does.
    """
    import trainers
    from dassl.engine import TRAINER_REGISTRY

    trainers.modules()
    if trainer not in TRAINER_REGISTRY.registered_names():
        return True
    seeded = getattr(TRAINER_REGISTRY.get(trainer), "seeded", None)
    return seeded is None or seeded()


def _seed(trainer: str, seed: int) -> int:
    """The seed of its run: where the numbers depend on none, the same one always."""
    return seed if is_seeded(trainer) else 1


Seeds = Sequence[int]
Names = Sequence[str]


def _each(make: Callable[..., Chain]) -> Callable[..., list[Chain]]:
    """Return a protocol of one chain per shots, data set, seed and trainer."""

    def chains(plan: Plan, trainers: Names, datasets: Names, seeds: Seeds, shots: Seeds):
        return [
            make(plan, trainer, dataset, _seed(trainer, seed), number)
            for number in shots
            for dataset in datasets
            for seed in seeds
            for trainer in trainers
        ]

    return chains


_base_to_new = _each(Plan.base_to_new)
_all_classes = _each(Plan.all_classes)
_base_and_new = _each(Plan.base_and_new)
_corruptions = _each(Plan.corruptions)


def _transductive(plan: Plan, trainers: Names, datasets: Names, seeds: Seeds, shots: Seeds):
    """The student's folder doesn't say how many shots its teacher had: there is one number."""
    if len(shots) > 1:
        raise UserError(f"{TRANSDUCTIVE} takes one number of --shots: the teacher's")
    return _each(Plan.transductive)(plan, trainers, datasets, seeds, shots)


def _both(*what: object) -> list[Chain]:
    return _base_to_new(*what) + _all_classes(*what)


def _transfer(protocol: str) -> Callable[..., list[Chain]]:
    def chains(plan: Plan, trainers: Names, datasets: Names, seeds: Seeds, shots: Seeds):
        return [
            plan.transfer(protocol, trainer, datasets, _seed(trainer, seed), number)
            for number in shots
            for trainer in trainers
            for seed in seeds
        ]

    return chains


def _varied(changes_of: Callable[[str], list[tuple[str, tuple[str, ...]]]]):
    """Return a protocol that repeats base-to-new with the settings of `changes_of(trainer)`."""

    def chains(plan: Plan, trainers: Names, datasets: Names, seeds: Seeds, shots: Seeds):
        return [
            plan.base_to_new(name, dataset, _seed(name, seed), number, opts)
            for number in shots
            for trainer in trainers
            for name, opts in changes_of(trainer)
            for dataset in datasets
            for seed in seeds
        ]

    return chains


def _lambdas(trainer: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(trainer, (LAMBDA, f"{value:g}")) for value in LAMBDAS]


def _settings(trainer: str) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (
            bare_name(trainer) if setting.bare else trainer,
            tuple(part for pair in setting.changes.items() for part in pair),
        )
        for setting in ABLATION
    ]


@dataclass(frozen=True)
class Protocol:
    """How a protocol makes its chains, and what it runs when nothing is said."""

    chains: Callable[..., list[Chain]]
    datasets: tuple[str, ...]
    trainers: tuple[str, ...] = ("CoOp", "DePT_CoOp")
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = (16,)
    varies: frozenset[str] = frozenset()  # settings that its runs differ in


ELEVEN = published.datasets("base_to_new")
FEW = (1, 2, 4, 8, 16)
# Methods on frozen features. None of them chooses by test images.
ADAPTERS = ("TipAdapter", "TipAdapterF", "CLIPAdapter", "TaskRes", "LPpp", "ZSLP", "CLAP")
PROTOCOLS = {
    "base_to_new": Protocol(_base_to_new, ELEVEN),
    "base_and_new": Protocol(_base_and_new, ELEVEN),
    "cross_dataset": Protocol(_transfer("cross_dataset"), published.datasets("cross_dataset")),
    "domain_generalization": Protocol(
        _transfer("domain_generalization"), published.datasets("domain_generalization")
    ),
    "few_shot": Protocol(_both, ELEVEN, shots=FEW),
    "few_shot_adapters": Protocol(_all_classes, ELEVEN, trainers=ADAPTERS, shots=FEW),
    CORRUPTED: Protocol(_corruptions, ELEVEN, varies=frozenset({CORRUPTION, SEVERITY})),
    TRANSDUCTIVE: Protocol(_transductive, ELEVEN, trainers=("PromptKD",)),
    # Nothing is drawn or trained: one seed says all.
    "zero_shot": Protocol(_both, ELEVEN, trainers=("ZeroshotCLIP",), seeds=(1,)),
    "lambda": Protocol(
        _varied(_lambdas), ELEVEN, trainers=("DePT_CoOp",), varies=frozenset({LAMBDA})
    ),
    "ablation": Protocol(
        _varied(_settings), ELEVEN, trainers=("DePT_CoOp",), varies=frozenset(ABLATED)
    ),
}


def _unknown(kind: str, name: str, known: Sequence[str]) -> UserError:
    choices = ", ".join(sorted(known))
    return UserError(f"no {kind} {name}{suggest(name, known)}; one of: {choices}")


def _that_matter(arguments: tuple[str, ...], opts: tuple[str, ...]) -> list[str]:
    """Return the changes that alter a result: not the machine's, not a default repeated."""
    plain = resolve(arguments)
    kept = []
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if resolve((*arguments, key, value)) != plain:
            kept += [key, value]
    return kept


@cache
def resolve(arguments: tuple[str, ...]) -> tuple[str, str]:
    """Return a digest of the settings that train.py makes of these arguments, and its kin's.

    The latter leaves out what runs side by side may differ in; "" where there can't be any. Raises
    UserError for arguments that make no config.
    """
    from dassl.config import check_values
    from dassl.config.identity import settings_of
    from dassl.engine import TRAINER_REGISTRY
    from tuning import options

    cfg = options.setup_cfg(options.parse_args(list(arguments)))
    check_values(cfg)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    settings = settings_of(cfg, trainer.config_nodes())
    shared = {key: value for key, value in settings.items() if key not in trainer.may_differ}
    return repr(settings), repr(shared) if trainer.may_differ else ""
