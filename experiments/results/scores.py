"""Read finished runs: `result.json` of this code, `log.txt` of the original Dassl-based code."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from dassl.config import MACHINE_KEYS, config_values, file_values
from dassl.config.identity import Identity, is_identity
from dassl.utils import (
    UserError,
    check_kind,
    check_percent,
    parse_yaml,
    printable,
    read_bytes,
    read_json,
    read_yaml,
)
from experiments.results import published
from experiments.results.configs import CONFIGS, settings_by_dataset
from experiments.results.folders import TOGETHER, TRANSDUCTIVE, Place, read_place
from tuning.naming import STAGE_ONE, wrapped_name
from tuning.sees import known

# DePT around a trainer is this and the trainer's name, in the public DePT code.
_OLD_TRAINER = re.compile(r"ExtrasLinearProbe(\w.*)")
# What may differ between the runs of one row, beside the machine's keys.
_OF_A_RUN = ("SEED", "TEST.NO_TEST")
_OF_A_DATASET = "DATASET"  # this node, but for:
_OF_A_ROW = "DATASET.NUM_SHOTS"
Key = tuple[str, str, str, int]  # protocol, trainer, config, shots: those of a row


@dataclass(frozen=True)
class Score:
    """One accuracy, in percent: a trained model on one set of classes of one data set.

    `protocol` is base_to_new, base_and_new, transductive, all_classes, cross_dataset,
    domain_generalization or corruptions; `source` is the data set the model was trained on where
    that is another one.
    `settings` holds the resolved configuration as far as all runs of a row must share it. Where
    the test images or names were corrupted, `corruption` and `severity` say how.
    """

    protocol: str
    trainer: str
    config: str
    shots: int
    dataset: str
    seed: int
    classes: str
    accuracy: float
    folder: Path
    source: str = ""
    corruption: str = ""
    severity: int = 0
    settings: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    result: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> Key:
        """That of its row."""
        return self.protocol, self.trainer, self.config, self.shots

    @property
    def identified(self) -> bool:
        """Whether the result says what its numbers depend on; those of before don't."""
        return is_identity(self.result.get("identity"))

    @property
    def identity(self) -> Identity:
        """What the numbers depend on. Only where it is `identified`."""
        return self.result["identity"]

    @property
    def seeded(self) -> bool:
        """Whether its numbers may depend on the seed; a result of before doesn't say."""
        return self.result.get("seeded", True)

    @property
    def tested(self) -> str:
        """A digest of the images and classes that it was tested on; "" where it doesn't say."""
        data = self.identity["data"] if self.identified else {}
        return f"{data['test']} {data['classes']}" if {"test", "classes"} <= data.keys() else ""

    @property
    def ece(self) -> float | None:
        """The expected calibration error in percent, where the run says it."""
        return self.result.get("ece")

    @property
    def halves(self) -> dict[str, float]:
        """Accuracies of base and of new classes' images among all classes, as far as said."""
        halves = self.result.get("halves") or {}
        return {part: halves[part] for part in ("base", "new") if halves.get(part) is not None}

    @property
    def sees(self) -> tuple[str, ...]:
        """What the run saw, in the words of tuning/sees.py; () where it doesn't say."""
        return known(self.result.get("sees") or ())

    @property
    def backbone(self) -> str:
        """The backbone's name or file; "" where the run doesn't say."""
        return self.settings.get("MODEL.BACKBONE.NAME") or self.result.get("backbone") or ""


@cache
def dataset_stems() -> dict[str, str]:
    """Return {DATASET.NAME: name of its config file}, so that OxfordPets is oxford_pets.

    For results that don't say their DATASET.LABEL. A file with a root or a label is a set of a
    user's own; a name that several other files have stands for none of them.
    """
    stems: dict[str, list[str]] = {}
    for path in (CONFIGS / "datasets").glob("*.yaml"):
        values = file_values(path)
        if not (values.get("DATASET.ROOT") or values.get("DATASET.LABEL")):
            stems.setdefault(values.get("DATASET.NAME"), []).append(path.stem)
    return {name: found[0] for name, found in stems.items() if name and len(found) == 1}


def load_scores(root: str | os.PathLike) -> tuple[list[Score], list[str]]:
    """Return the scores of all runs below `root`, and a line for each run that has none.

    Raises UserError if there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}; give the folder that the runs were written to")
    scores, problems = [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        if {".lock", "config.yaml"} & set(files):  # what a run is made of is no row of its own
            folders[:] = [name for name in folders if name != STAGE_ONE]
        folders.sort()
        if "result.json" not in files and not any(name.startswith("log.txt") for name in files):
            continue
        try:
            scores.append(read_score(Path(folder)))
        except UserError as error:
            problems.append(str(error))
    return scores, problems


def read_score(folder: Path) -> Score:
    """Return the score of one run. Raises UserError, naming the folder, if it has none."""
    if (folder / "result.json").is_file():
        result = read_result(folder)
        config_file = folder / "config.yaml"
        config = read_yaml(config_file) if config_file.exists() else {}
    elif (folder / ".lock").is_file() or (folder / "config.yaml").is_file():  # a run of this code
        raise UserError(f"unfinished: {folder} has no result.json")
    else:
        result, config = read_original_log(folder)

    place = read_place(folder) or Place(
        stage="",
        dataset=_dataset_by_name(result),
        shots=int(result.get("shots", -1)),
        trainer=str(result.get("trainer", "?")),
        config=result.get("config") or folder.name,
        seed=int(result.get("seed", -1)),
    )
    accuracy = result.get("accuracy")
    if accuracy is None:
        raise UserError(f"no accuracy in {folder / 'result.json'}")
    check_percent(accuracy, f"the accuracy of {folder}")
    classes = result.get("classes") or _classes_of_stage(place.stage)
    if classes not in ("base", "new", "all"):
        raise UserError(f"{folder} was tested on the classes {classes!r}: not base, new or all")
    place = replace(place, dataset=result.get("dataset_label") or place.dataset)
    protocol, source = _protocol(folder, place, classes, result)
    corruption = result.get("corruption") or {"name": "", "severity": 0}
    check_kind(corruption.get("name"), str, f"the corruption of {folder}")
    check_kind(corruption.get("severity"), int, f"the corruption's severity of {folder}")
    return Score(
        protocol=printable(protocol),
        trainer=printable(_todays_name(place.trainer)),
        config=printable(place.config),
        shots=place.shots,
        dataset=printable(place.dataset),
        seed=place.seed,
        classes=classes,
        accuracy=float(accuracy),
        folder=folder,
        source=printable(source),
        corruption=printable(corruption["name"]),
        severity=corruption["severity"],
        settings=_shared_settings(config, result, place),
        result=result,
    )


def _dataset_by_name(result: dict[str, Any]) -> str:
    name = str(result.get("dataset", "?"))
    return dataset_stems().get(name, name)


def _trained_on(model_dir: Path) -> str | None:
    """Return what the run in a folder was trained on, as far as its result or its path says."""
    place = read_place(model_dir)
    try:
        label = read_result(model_dir).get("dataset_label")
    except (UserError, OSError):
        label = None
    return label or (place.dataset if place else None)


def _todays_name(trainer: str) -> str:
    old = _OLD_TRAINER.fullmatch(trainer)
    return wrapped_name(old[1]) if old else trainer


# What a result's entries are, where they are there.
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("accuracy", "error_rate", "macro_f1", "ece", "seconds"), (int, float)),
    **dict.fromkeys(("seed", "shots", "num_test", "skipped_images"), int),
    **dict.fromkeys(("trainer", "dataset", "dataset_label", "split", "model_dir", "classes"), str),
    **dict.fromkeys(("backbone", "config"), str),
    **dict.fromkeys(("backbone_sha256", "fewshot_hash", "split_hash"), (str, type(None))),
    "versions": dict,
    "corruption": (dict, type(None)),
    "per_class": list,
    "sees": list,
    "halves": (dict, type(None)),
    "model_classes": (str, type(None)),
    "seeded": bool,
}


def read_result(folder: Path) -> dict[str, Any]:
    """Return a run's result.json. Raises UserError, naming it, if an entry is of another kind."""
    path = folder / "result.json"
    result = read_json(path, dict)
    for name, kind in _ENTRIES.items():
        if name in result:
            check_kind(result[name], kind, f"{path}: its entry '{name}'")
    for part, value in (result.get("halves") or {}).items():
        if value is not None:
            check_percent(value, f"{path}: '{printable(part)}' of its 'halves'")
    if "ece" in result:
        check_percent(result["ece"], f"{path}: its 'ece'")
    for entry in result.get("per_class", []):
        check_kind(entry, dict, f"{path}: a class of its 'per_class'")
        check_kind(entry.get("classname"), str, f"{path}: a class's name")
        check_kind(entry.get("accuracy"), (int, float), f"{path}: a class's accuracy")
    return result


def _classes_of_stage(stage: str) -> str:
    return next((name for name in ("base", "new") if stage.endswith(f"_{name}")), "all")


def _protocol(folder: Path, place: Place, classes: str, result: dict[str, Any]) -> tuple[str, str]:
    """Return which protocol a run belongs to, and the data set its model comes from.

    Raises UserError if it belongs to none.
    """
    if result.get("corruption"):
        return "corruptions", ""
    if classes in ("base", "new"):
        if result.get("model_classes") != "all":
            return "base_to_new", ""
        if "images_of_new_classes" in result.get("sees", ()):
            return TRANSDUCTIVE, ""
        raise UserError(
            f"{folder} was trained on labels of all classes and tested on the {classes} ones: "
            "that is no protocol's run"
        )
    if place.stage.startswith("from_"):
        return place.group, place.stage.removeprefix("from_")
    source = _trained_on(Path(result["model_dir"])) if result.get("model_dir") else None
    if source is None:  # CoOp's scripts put there what a model of ImageNet does elsewhere
        source = "imagenet" if place.stage == "evaluation" else place.dataset
    if source == place.dataset:
        together = result.get("model_classes") == "base" or place.stage == TOGETHER
        return ("base_and_new" if together else "all_classes"), ""
    # The original scripts keep both transfer protocols in one folder.
    variant = place.dataset in published.datasets("domain_generalization")
    return ("domain_generalization" if variant else "cross_dataset"), source


def _shared_settings(
    config: dict[str, Any], result: dict[str, Any], place: Place
) -> dict[str, Any]:
    identity = result.get("identity")
    if is_identity(identity):
        files = identity["files"]
        values = {**identity["settings"], **dict.fromkeys(files, "a file")}
        values.pop("MODEL.BACKBONE.NAME", None)
        values["backbone"] = files.get("MODEL.BACKBONE.NAME")
    elif config:
        values = config_values(config)
    else:
        return {}
    if values.get("MODEL.INIT_WEIGHTS"):  # each run may have its own, if all have one
        values["MODEL.INIT_WEIGHTS"] = "a file"
    # Where data sets have values of their own, having just those is what a row shares.
    own = settings_by_dataset(place.trainer, place.config.partition("@")[0], place.dataset)
    values |= {key: "its own" for key, value in own.items() if values.get(key) == value}
    return {key: value for key, value in values.items() if key == _OF_A_ROW or not _is_free(key)}


def _is_free(key: str) -> bool:
    return key in (*_OF_A_RUN, *MACHINE_KEYS) or key.split(".")[0] == _OF_A_DATASET


_RESULT = re.compile(
    r"Evaluate on the \*test\* set(?:(?!Evaluate on).)*?"
    r"\* total: ([\d,]+)\s+\* correct: ([\d,]+)\s+"
    r"\* accuracy: ([\d.]+)%",
    re.DOTALL,
)
_BARE_ACCURACY = re.compile(r"^\* accuracy: ([\d.]+)%\s*$", re.MULTILINE)


def read_original_log(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (result, config) of a run of the original code.

    A repeated run writes `log.txt-<time>` beside `log.txt`; the newest one that reached its test
    counts. Raises UserError if none did.
    """
    logs = sorted(folder.glob("log.txt*"), reverse=True)  # the names sort by time
    for log in logs:
        text = read_bytes(log).decode("utf-8", "replace")
        if (accuracy := _tested_accuracy(text)) is not None:
            arguments, config = _log_header(text)
            dataset_file = arguments.get("dataset_config_file") or "?"
            data = config.get("DATASET")
            data = data if isinstance(data, dict) else {}
            shots, classes = data.get("NUM_SHOTS", -1), data.get("SUBSAMPLE_CLASSES")
            return {
                "accuracy": accuracy,
                "trainer": arguments.get("trainer", "?"),
                "dataset": Path(dataset_file).stem,
                "config": Path(arguments.get("config_file", "")).stem,
                "seed": _whole(arguments.get("seed")),
                "shots": _whole(shots),
                "classes": classes if isinstance(classes, str) else None,
                "model_dir": arguments.get("model_dir"),
            }, config
    raise UserError(f"unfinished: {folder} has no log.txt with a test accuracy")


def _whole(value: Any) -> int:
    """Return what a log has as a whole number; -1 where it has none."""
    return int(value) if re.fullmatch(r"-?\d{1,9}", str(value)) else -1


def _tested_accuracy(log: str) -> float | None:
    """Return the last test accuracy in percent: the counts', as a log rounds to one decimal."""
    found = _RESULT.findall(log)
    if found:
        total, correct, printed = found[-1]
        total, correct = int(total.replace(",", "")), int(correct.replace(",", ""))
        return 100 * correct / total if total else float(printed)
    if "Evaluate on the *val* set" in log:
        return None  # stopped between validation and test
    bare = _BARE_ACCURACY.findall(log)
    return float(bare[-1]) if bare else None


def _log_header(log: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the command line and the configuration that Dassl prints at the start of a log."""
    head, _, rest = log.partition("** Config **")
    _, _, arguments = head.partition("** Arguments **")
    pairs = re.findall(r"^(\w+): (.*)$", arguments, re.MULTILINE)
    body = re.sub(r"^\s*\*+\s*", "", rest)
    lines = []
    for line in body.splitlines():
        if not re.match(r"^\s*[A-Z_0-9a-z]+:|^\s+- |^\s*$", line) or line.startswith("Collecting"):
            break
        lines.append(line)
    try:
        config = parse_yaml("\n".join(lines), "a log's config")
    except UserError:
        config = {}
    return dict(pairs), config
