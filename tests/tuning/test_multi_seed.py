"""Several runs in one process give what each gives alone."""

import json
from collections import OrderedDict

import pytest
import torch

import train
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, Records
from dassl.utils import UserError
from tests.registered import every_trainer, some_twins, trains
from tuning import feature_cache, loading
from tuning import trainer as base
from tuning.multi_seed import Stack
from tuning.options import parse_args, parse_runs

TRAINED = some_twins(n for n in every_trainer() if trains(n) and TRAINER_REGISTRY.get(n).may_differ)
OPTIONS = {"DATASET__SUBSAMPLE_CLASSES": "base", "OPTIM__MAX_EPOCH": 3}


def with_seeds(words: list[str], *seeds: int) -> list[str]:
    """A command line with other seeds."""
    at = words.index("--seed")
    return [*words[: at + 1], *map(str, seeds), *words[at + 2 :]]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder, epochs=3):
    (file,) = folder.glob(f"*/model.pth.tar-{epochs}")
    return torch.load(file, weights_only=True)


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(owner, name, n, run): `run`, killed as the n-th call of a method begins."""

    def kill(owner, name, n, run):
        method, calls = getattr(owner, name), []

        def dies(*args):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return method(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, dies)
            run()

    return kill


@pytest.mark.parametrize("name", TRAINED)
def test_together_equals_apart(command, tmp_path, name):
    words = command(name, output=tmp_path / "together", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    for seed in (1, 2):
        alone = tmp_path / f"alone{seed}"
        train.main(with_seeds(command(name, output=alone, **OPTIONS), seed))
        folder = tmp_path / "together" / f"seed{seed}"
        for a, b in zip(lines(alone), lines(folder), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-4, abs=5e-6)  # 1 − cos θ
            assert a["lr"] == b["lr"]
        one, other = state(alone), state(folder)
        for key, value in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][key], value, rtol=1e-4, atol=1e-5)
        results = [json.loads((f / "result.json").read_text()) for f in (alone, folder)]
        for key in ("accuracy", "seed", "fewshot_hash", "identity"):
            assert results[0][key] == results[1][key]
        log = (folder / "log.txt").read_text()
        assert log.count("* accuracy:") == 1 and f"fixed seed: {seed}" in log


@pytest.mark.parametrize("name", TRAINED)
def test_together_equals_apart_in_double_precision(command, tmp_path, monkeypatch, name):
    """Five epochs: what is left between them is rounding, which training makes larger."""
    monkeypatch.setattr(CLIP, "float", CLIP.double)
    monkeypatch.setattr(loading, "_ENCODERS", {})  # nothing of fp32's is used again
    monkeypatch.setattr(feature_cache, "_memory", OrderedDict())
    freeze = base.Method.freeze
    monkeypatch.setattr(base.Method, "freeze", lambda method: freeze(method.double()))
    options = {**OPTIONS, "OPTIM__MAX_EPOCH": 5}
    words = command(name, output=tmp_path / "together", **options)
    train.main([*with_seeds(words, 1, 2), "--no-cache"])
    for seed in (1, 2):
        alone = tmp_path / f"alone{seed}"
        train.main([*with_seeds(command(name, output=alone, **options), seed), "--no-cache"])
        folder = tmp_path / "together" / f"seed{seed}"
        for a, b in zip(lines(alone), lines(folder), strict=True):
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-9, abs=1e-12)
        assert torch.float64 in {x.dtype for x in state(folder, 5)["state_dict"].values()}


def test_loss_weights_together_equal_apart(command, tmp_path):
    weights = {"low": 0.2, "high": 0.9}

    def words(name, folder):
        options = {**OPTIONS, "TRAINER__DEPT__WEIGHT": weights[name]}
        return command("DePT_CoOp", output=tmp_path / folder / name, **options)

    train.main([*words("low", "together"), "--and", *words("high", "together")])
    for name in weights:
        train.main(words(name, "alone"))
        folders = [tmp_path / part / name for part in ("alone", "together")]
        for a, b in zip(*map(lines, folders), strict=True):
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
        one, other = (json.loads((folder / "result.json").read_text()) for folder in folders)
        for key in ("accuracy", "macro_f1"):
            assert one[key] == other[key]
        assert (one["side_by_side"], other["side_by_side"]) == (1, 2)
    losses = [lines(tmp_path / "together" / name)[0]["losses"]["itm"] for name in weights]
    assert losses[0] != pytest.approx(losses[1], rel=0.5)
    assert (
        "weight 0.2: epoch [1/3] batch [1/1]"
        in (tmp_path / "together" / "low" / "log.txt").read_text()
    )


@pytest.mark.filterwarnings("ignore:Detected call of")  # the first steps are left out
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_run_has_its_own_loss_scale(command, tmp_path, monkeypatch, optimizer):
    """A run whose scaled gradients overflow leaves out its steps, not the other's."""
    scaler = torch.amp.GradScaler
    scales = {1: 2.0**10, 2: 2.0**127}
    build_model = base.PromptTrainer.build_model

    def build(run):
        build_model(run)
        run.scaler = scaler("cpu", init_scale=scales[run.cfg.SEED], growth_interval=5)

    monkeypatch.setattr(base.PromptTrainer, "build_model", build)
    options = {**OPTIONS, "OPTIM__MAX_EPOCH": 12, "OPTIM__NAME": optimizer}
    train.main(with_seeds(command("DePT_CoOp", output=tmp_path, **options), 1, 2))
    ends = {}
    for seed in scales:
        alone = tmp_path / f"alone{seed}"
        train.main(with_seeds(command("DePT_CoOp", output=alone, **options), seed))
        one, other = state(alone, 12), state(tmp_path / f"seed{seed}", 12)
        assert one["scaler"] == other["scaler"]
        ends[seed] = other["scaler"]["scale"]
        for key, value in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][key], value, rtol=1e-3, atol=1e-4)
    assert ends[1] > scales[1] and ends[2] < scales[2]


@pytest.mark.parametrize("diverging", [(2,), (1, 2)], ids=["one", "both"])
def test_a_run_that_diverges_ends_alone(command, tmp_path, monkeypatch, diverging):
    before_epoch = base.PromptTrainer.before_epoch

    def spoilt(run):
        before_epoch(run)
        if run.epoch == 1 and run.cfg.SEED in diverging:
            for parameter in run.method.trained().values():
                parameter.data.fill_(float("nan"))

    alone = tmp_path / "alone"
    train.main(with_seeds(command("DePT_CoOp", output=alone, **OPTIONS), 1))
    monkeypatch.setattr(base.PromptTrainer, "before_epoch", spoilt)
    message = f"{len(diverging)} of 2 runs ended early: seed {diverging[0]}: the loss became"
    with pytest.raises(UserError, match=message):
        train.main(with_seeds(command("DePT_CoOp", output=tmp_path, **OPTIONS), 1, 2))
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        ended = seed in diverging
        assert (folder / "result.json").exists() != ended
        assert len(lines(folder)) == (1 if ended else 3)
        assert ("the loss became infinite" in (folder / "log.txt").read_text()) == ended
    if 1 not in diverging:
        for a, b in zip(lines(alone), lines(tmp_path / "seed1"), strict=True):
            assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)


def test_a_run_that_diverges_in_its_last_step_ends_alone(command, tmp_path, monkeypatch):
    """Its losses were finite to the end; so were the other run's numbers."""
    update, steps = base.PromptTrainer.model_update, []

    def spoilt(run, names=None):
        update(run, names)
        if run.cfg.SEED == 2:
            steps.append(1)
            if len(steps) == 3 * len(run.train_loader_x):
                next(iter(run.method.trained().values())).data.fill_(float("nan"))

    monkeypatch.setattr(base.PromptTrainer, "model_update", spoilt)
    with pytest.raises(UserError, match="1 of 2 runs ended early: seed 2: the trained parameters"):
        train.main(with_seeds(command("CoOp", output=tmp_path, **OPTIONS), 1, 2))
    assert (tmp_path / "seed1" / "result.json").exists()
    assert not (tmp_path / "seed2" / "result.json").exists()
    assert len(lines(tmp_path / "seed2")) == 2


def test_the_next_epochs_views_outlive_the_run_that_began_them(
    command, tmp_path, monkeypatch, numbers_encoded
):
    """The first of two runs of a seed has the views encoded beside training, and diverges."""
    monkeypatch.setattr(base.PromptTrainer, "encodes_beside_training", True)
    before_epoch = base.PromptTrainer.before_epoch

    def spoilt(run):
        before_epoch(run)
        if run.label == "weight 0.5":
            for parameter in run.method.trained().values():
                parameter.data.fill_(float("nan"))

    options = {**OPTIONS, "DATALOADER__NUM_WORKERS": 1}
    train.main(command("DePT_CoOp", "--no-cache", output=tmp_path / "alone", **options))
    views = list(numbers_encoded)
    numbers_encoded.clear()
    monkeypatch.setattr(base.PromptTrainer, "before_epoch", spoilt)
    first = {**options, "TRAINER__DEPT__WEIGHT": 0.5}
    words = command("DePT_CoOp", "--no-cache", output=tmp_path / "first", **first)
    other = ["TRAINER.DEPT.WEIGHT", "0.7", "--output-dir", str(tmp_path / "other")]
    with pytest.raises(UserError, match="1 of 2 runs ended early: weight 0.5"):
        train.main([*words, "--and", *other])
    assert numbers_encoded == views
    losses = [[a["loss"] for a in lines(tmp_path / part)] for part in ("alone", "other")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    "owner,method,call,tolerance",
    [
        pytest.param(Stack, "step", 3, 0, id="in an epoch"),
        # The first run's second epoch is on disk, the other's isn't: they go on apart.
        pytest.param(Records, "write_resume", 4, 1e-4, id="between two records"),
    ],
)
@pytest.mark.parametrize("name", ["DePT_CoOp", "DePT_MaPLe"])
def test_goes_on_where_it_was_killed(
    command, tmp_path, killed_at, name, owner, method, call, tolerance
):
    def run(folder):
        train.main(with_seeds(command(name, output=tmp_path / folder, **OPTIONS), 1, 2))

    run("whole")
    killed_at(owner, method, call, lambda: run("killed"))
    run("killed")
    for seed in ("seed1", "seed2"):
        whole, killed = (lines(tmp_path / part / seed) for part in ("whole", "killed"))
        assert [a["epoch"] for a in killed] == [1, 2, 3]
        losses = [a["loss"] for a in whole]
        assert [a["loss"] for a in killed] == pytest.approx(losses, rel=tolerance, abs=0)


@pytest.mark.parametrize(
    "changes,complaint",
    [
        (["--seed", "2", "--output-dir", "b", "OPTIM.LR", "0.5"], "differ in OPTIM.LR"),
        (["--seed", "2"], "one folder"),
        (["--seed", "2", "--output-dir", "a/"], "one folder"),
        (["--seed", "2", "--output-dir", "b", "USE_CUDA", "False"], "differ in USE_CUDA"),
        (["--seed", "2", "--output-dir", "b", "--eval-only", "--model-dir", "a"], "all runs or"),
        (["--seed", "2", "--output-dir", "b", "--no-train"], "all runs or none"),
        (["--output-dir", "b", "TRAINER.DEPT.WEIGHT", "0.5"], "differ in TRAINER.DEPT.WEIGHT"),
        (["--trainer", "CoOpp"], "CoOpp"),
    ],
)
def test_runs_that_cannot_be_trained_together(command, tmp_path, changes, complaint):
    changes = [f"{tmp_path}/{word}" if word in ("a", "a/", "b") else word for word in changes]
    with pytest.raises(UserError, match=complaint):
        train.main([*command("CoOp", output=tmp_path / "a", **OPTIONS), "--and", *changes])
    assert not list(tmp_path.rglob("log.txt"))


def test_options_of_several_runs():
    first = ["--trainer", "CoOp", "--seed", "1", "--transforms", "random_flip", "normalize"]
    words = [*first, "--and", "OPTIM.LR", "1", "--seed", "2", "--and", "--seed", "3", "4"]
    lines = parse_runs(words)
    assert [args.seed for args in lines] == [[1], [2], [3, 4]]
    assert [args.opts for args in lines] == [[], ["OPTIM.LR", "1"], []]
    assert all(args.transforms == ["random_flip", "normalize"] for args in lines)
    lines = parse_runs(["OPTIM.LR", "1", "--eval-only", "--and", "OPTIM.LR", "2"])
    assert [args.opts for args in lines] == [["OPTIM.LR", "1"], ["OPTIM.LR", "1", "OPTIM.LR", "2"]]
    assert all(args.eval_only for args in lines)
    assert len(parse_runs([])) == 1


def test_runs_cannot_go_on_from_one_folder(command, tmp_path):
    words = command("CoOp", "--resume", str(tmp_path), output=tmp_path / "a", **OPTIONS)
    with pytest.raises(UserError, match="each its own --resume"):
        train.main([*words, "--and", "--seed", "2", "--output-dir", str(tmp_path / "b")])


@pytest.fixture
def numbers_encoded(monkeypatch):
    """How many views each pass through a tower had, not counting tests."""
    numbers, encode = [], base.PromptTrainer.encode_views

    def counting(self, image):
        if self._in_training:
            numbers.append(len(image))
        return encode(self, image)

    monkeypatch.setattr(base.PromptTrainer, "encode_views", counting)
    return numbers


def test_views_are_encoded_once_for_runs_of_one_seed(command, tmp_path, numbers_encoded):
    def images_encoded(name, *changes):
        numbers_encoded.clear()
        words = command("DePT_CoOp", "--no-cache", output=tmp_path / name, **OPTIONS)
        train.main([*words, *changes])
        return sum(numbers_encoded)

    other = ["TRAINER.DEPT.WEIGHT", "0.2", "--output-dir", str(tmp_path / "other")]
    alone = images_encoded("alone")
    assert alone > 0 and images_encoded("weights", "--and", *other) == alone
    assert (
        images_encoded("seeds", "--and", "--seed", "2", "--output-dir", str(tmp_path / "third"))
        == 2 * alone
    )


def test_a_run_that_was_complete_when_the_others_were_killed_stays(command, tmp_path, killed_at):
    from dassl.engine import SimpleTrainer

    def run():
        train.main(with_seeds(command("CoOp", output=tmp_path, **OPTIONS), 1, 2))

    killed_at(SimpleTrainer, "after_train", 2, run)
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "seed1").rglob("*") if p.is_file()}
    assert not (tmp_path / "seed2" / "result.json").exists()
    run()
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert len(lines(tmp_path / "seed2")) == 3
    assert (tmp_path / "seed2" / "result.json").is_file()


def test_nothing_is_written_without_training(command, tmp_path):
    words = with_seeds(command("CoOp", "--no-train", output=tmp_path, **OPTIONS), 1, 2)
    train.main(words)
    assert not list(tmp_path.rglob("log.txt"))


def test_evaluates_each_seeds_own_model(command, tmp_path):
    words = command("CoOp", output=tmp_path / "base", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    there = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    words = command("CoOp", *there, output=tmp_path / "again", **OPTIONS)
    train.main(with_seeds(words, 1, 2))
    for seed in ("seed1", "seed2"):
        results = [
            json.loads((tmp_path / part / seed / "result.json").read_text())
            for part in ("base", "again")
        ]
        assert results[0]["accuracy"] == results[1]["accuracy"]


def test_a_model_that_is_missing_keeps_no_other_from_being_tested(command, tmp_path, capsys):
    train.main(command("CoOp", output=tmp_path / "base", **OPTIONS))

    def tested(model, folder):
        there = ("--eval-only", "--model-dir", str(tmp_path / model))
        return command("CoOp", *there, output=tmp_path / folder, **OPTIONS)

    lines = [tested("nowhere", "a"), tested("base", "b")]
    with pytest.raises(UserError, match="1 of 2 runs could not be tested"):
        train.main([*lines[0], "--and", *lines[1]])
    assert (tmp_path / "b" / "result.json").is_file()
    assert not (tmp_path / "a" / "result.json").exists()


@pytest.mark.parametrize(
    "words,seeds",
    [
        (["--seed", "1", "OPTIM.LR", "0.1"], [1]),
        (["--seed", "1", "2", "3", "OPTIM.LR", "0.1"], [1, 2, 3]),
        (["--seed", "-1"], [-1]),
        (["--seed=4"], [4]),
        (["--seed", "1", "2", "--trainer", "CoOp"], [1, 2]),
    ],
)
def test_seeds_end_where_the_numbers_do(words, seeds):
    args = parse_args(words)
    assert args.seed == seeds
    assert args.opts == (["OPTIM.LR", "0.1"] if "OPTIM.LR" in words else [])


@pytest.mark.parametrize("words", [["1", "1"], ["1", "-1"], ["x"], []])
def test_wrong_seeds(words):
    with pytest.raises(UserError, match="seed"):
        parse_args(["--seed", *words])
