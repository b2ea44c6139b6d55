"""Plans: which runs a protocol needs, where they lie, and the commands that people see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dassl.utils import UserError
from experiments.chains import side_by_side
from experiments.launch import launch, make_plan, parse_args, side_by_side_at_most
from experiments.protocols import ADAPTERS, PROTOCOLS, Plan, resolve
from experiments.results.folders import read_place
from experiments.results.sweeps import ABLATION, LAMBDA, LAMBDAS
from experiments.watching.lines import duration
from tuning.options import parse_args as parse_run
from tuning.options import setup_cfg
from tuning.run import trainer_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def chains(*arguments: str, together: int = 1):
    return side_by_side(make_plan(parse_args(list(arguments))), together)


def test_base_to_new_trains_on_base_and_tests_on_new():
    command = "base_to_new --trainers CoOp DePT_CoOp --datasets oxford_pets --seeds 1-3"
    plan = chains(*command.split())
    assert len(plan) == 6 and all(len(chain.jobs) == 2 for chain in plan)
    train, test = plan[0].jobs
    end = "oxford_pets/shots_16/CoOp/vit_b16_ep10/seed1"
    assert train.folder == Path("output/base2new/train_base", end)
    assert test.folder == Path("output/base2new/test_new", end) and test.model == train.folder
    assert "DATASET.SUBSAMPLE_CLASSES base" in train.command
    assert f"--eval-only --model-dir {train.folder}" in test.command
    assert train.kin != test.kin


def test_what_depends_on_no_seed_runs_once(capsys):
    words = ["base_to_new", "--datasets", "dtd", "--seeds", "2-3", "--dry-run", "--trainers"]
    plan = chains(*words, "ZeroshotCLIP", "ZeroshotCLIP2", "TipAdapter", "CoOp")
    found = [(c.jobs[0].folder.parts[-3], c.jobs[0].folder.name) for c in plan]
    assert sorted(found) == [
        *(("CoOp", "seed2"), ("CoOp", "seed3")),
        *(("TipAdapter", "seed2"), ("TipAdapter", "seed3")),  # it looks at the drawn images
        *(("ZeroshotCLIP", "seed1"), ("ZeroshotCLIP2", "seed1")),
    ]
    launch(parse_args([*words, "ZeroshotCLIP"]))
    assert "ZeroshotCLIP trains nothing: one run" in capsys.readouterr().err


def test_every_protocol_plans_the_papers_runs(monkeypatch):
    monkeypatch.setattr(
        "experiments.protocols.resolve", lambda arguments: (str(arguments), "")
    )  # thousands of configs
    sizes = {name: sum(len(c.jobs) for c in chains(name)) for name in PROTOCOLS}
    eleven, seeds, methods = 11, 3, 2
    assert sizes == {
        "base_to_new": eleven * seeds * methods * 2,
        "base_and_new": eleven * seeds * methods * 3,
        "cross_dataset": seeds * methods * 11,
        "domain_generalization": seeds * methods * 5,
        "few_shot": eleven * seeds * methods * 5 * 3,
        "few_shot_adapters": eleven * seeds * len(ADAPTERS) * 5,
        # Trained once, and tested clean and under nine corruptions, on base and on new classes.
        "corruptions": eleven * seeds * methods * (1 + 9) * 2,
        # The teacher on both halves; its student on all images, and on both halves.
        "transductive": eleven * seeds * (2 + 3),
        "zero_shot": eleven * 3,
        "lambda": len(LAMBDAS) * eleven * seeds * 2,
        "ablation": len(ABLATION) * eleven * seeds * 2,
    }


def test_base_and_new_together_tests_the_model_of_base_to_new_on_all_classes():
    words = ["--trainers", "CoOp", "--datasets", "dtd", "--seeds", "1"]
    (alone,) = chains("base_to_new", *words)
    (chain,) = chains("base_and_new", *words)
    assert chain.jobs[:2] == alone.jobs
    test = chain.jobs[2]
    end = "dtd/shots_16/CoOp/vit_b16_ep10/seed1"
    assert test.folder == Path("output/base2new/test_all", end)
    assert test.model == chain.jobs[0].folder
    assert "DATASET.SUBSAMPLE_CLASSES all" in test.command and "--eval-only" in test.command


def test_transductive_trains_a_teacher_before_its_student():
    words = ["transductive", "--datasets", "dtd", "mini_shapes", "--seeds", "2", "--shots", "8"]
    dtd, mini = chains(*words)
    places = [read_place(job.folder) for job in dtd.jobs]
    assert [(p.group, p.stage, p.trainer, p.shots) for p in places] == [
        ("base2new", "train_base", "PromptSRC", 8),
        ("base2new", "test_new", "PromptSRC", 8),
        ("transductive", "train_all", "PromptKD", -1),
        ("transductive", "test_base", "PromptKD", -1),
        ("transductive", "test_new", "PromptKD", -1),
    ]
    teacher, _, student, base, new = dtd.jobs
    assert student.teacher == teacher.folder and base.model == new.model == student.folder
    assert f"TRAINER.PROMPTKD.TEACHER {teacher.folder}" in student.command
    assert "DATASET.NUM_SHOTS -1 DATASET.SUBSAMPLE_CLASSES all" in student.command
    # A teacher stands before its student; what trains and what tests go in processes apart.
    assert [len(step) for step in dtd.steps] == [1, 1, 1, 2]
    assert dtd.steps[:2] == ((teacher,), (student,))
    # The paper's teacher is ViT-L/14; on the mini world there is one backbone.
    assert [places[i].config for i in (0, 2)] == ["vit_l14_ep20", "vit_b16_ep10"]
    assert {read_place(job.folder).config for job in mini.jobs} == {"mini"}


def test_all_trainers_are_those_that_need_nothing_else(capsys):
    plan = chains("base_to_new", "--trainers", "all", "--datasets", "mini_shapes", "--seeds", "1")
    ran = {read_place(job.folder).trainer for chain in plan for job in chain.jobs}
    said = " ".join(capsys.readouterr().err.split())
    assert {"CoOp", "DePT_CoOp", "DPC_CoOp", "ZeroshotCLIP", "TipAdapter"} <= ran
    assert not {"CoPrompt", "DePT_CoPrompt", "PromptKD"} & ran
    assert f"all: {len(ran)} trainers, without CoPrompt (needs DATASET.SENTENCES)" in said


@pytest.mark.parametrize(
    "words, told",
    [
        ("transductive --trainers CoOp", "CoOp has none"),
        ("transductive --shots 4 8", "one number of --shots"),
        ("base_to_new --teacher CoOp", "are for the protocol transductive"),
    ],
)
def test_teachers_where_there_are_none(words, told):
    with pytest.raises(UserError, match=told):
        chains(*words.split())


@pytest.mark.parametrize("trainer", ADAPTERS)
def test_adapters_run_as_published_and_choose_nothing_on_test_images(trainer):
    """Their own schedules, one setting for all data sets, the last epoch."""
    words = ["--trainers", trainer, "--seeds", "1", "--shots", "16", "--datasets"]
    found = {}
    for dataset in ("dtd", "eurosat", "imagenet", "oxford_flowers"):
        (chain,) = chains("few_shot_adapters", *words, dataset)
        cfg = setup_cfg(parse_run(list(chain.jobs[0].arguments)))
        assert cfg.TEST.FINAL_MODEL == "last_step" and not cfg.TRAINER.SETTINGS_PER_DATA_SET
        sees = trainer_of(cfg).method_class.what_it_sees(cfg)
        assert not {"test_images", "validation_images"} & set(sees)
        found[dataset] = read_place(chain.jobs[0].folder).config
    trains = trainer != "TipAdapter"
    assert set(found.values()) == {"vit_b16_few_shot" if trains else "vit_b16_ep10"}


def test_models_that_differ_in_seed_or_loss_weight_are_joined():
    command = "base_to_new --trainers CoOp DePT_CoOp --datasets dtd mini_shapes --seeds 1-3"
    plan = chains(*command.split(), together=8)
    assert [chain.name for chain in plan] == [
        f"{trainer} {dataset} 16 shots seed 1|2|3"
        for dataset in ("dtd", "mini_shapes")
        for trainer in ("CoOp", "DePT_CoOp")
    ]
    for chain in plan:
        train, test = chain.steps
        assert [read_place(job.folder).seed for job in (*train, *test)] == [1, 2, 3, 1, 2, 3]
        assert [job.model for job in test] == [job.folder for job in train]
    options = ["--datasets", "mini_shapes", "--seeds", "1-2"]
    joined = chains("lambda", *options, together=4)
    apart = chains("lambda", *options)
    number = len(LAMBDAS) * 2
    assert len(apart) == number and [len(c.steps[0]) for c in joined[:-1]] == [4] * (number // 4)
    assert [job for c in joined for job in c.steps[0]] == [chain.jobs[0] for chain in apart]


@pytest.mark.parametrize(
    "command",
    [
        "base_to_new --seeds 1-2 --trainers CoOp CoOp --datasets dtd --shots 4 4",
        "ablation --trainers CoOp DePT_CoOp --datasets dtd --seeds 1-2",
        "cross_dataset --source dtd --trainers CoOp --datasets eurosat eurosat dtd --seeds 2",
    ],
)
def test_nothing_is_planned_twice(command):
    for together in (1, 8):
        folders = [
            job.folder for c in chains(*command.split(), together=together) for job in c.jobs
        ]
        assert len(folders) == len(set(folders)) > 1


def test_every_slot_has_something_to_do():
    def limit(words, chains, slots):
        return side_by_side_at_most(parse_args(["lambda", *words]), chains, slots)

    assert limit([], 21, 8) == 3 and limit([], 21, 1) == 8 and limit([], 2, 8) == 1
    assert limit(["--together", "5"], 21, 8) == 5
    with pytest.raises(UserError, match="--together"):
        parse_args(["lambda", "--together", "0"])


def test_a_trainer_that_cannot_train_several_is_left_apart(monkeypatch):
    from dassl.engine import TRAINER_REGISTRY

    plan = chains("base_to_new", "--datasets", "mini_shapes", "--trainers", "CoOp", together=3)
    assert len(plan) == 1
    resolve.cache_clear()
    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "may_differ", ())
    plan = chains("base_to_new", "--datasets", "mini_shapes", "--trainers", "CoOp", together=3)
    resolve.cache_clear()
    assert len(plan) == 3


def test_transfers_share_the_model_that_was_trained_on_all_classes():
    options = ["--trainers", "CoOp", "--seeds", "1", "--source", "mini_shapes", "--datasets"]
    (cross,) = chains("cross_dataset", *options, "mini_shapes", "mini_fabrics", "mini_scenes")
    (shifted,) = chains("domain_generalization", *options, "mini_shapes_sketch")
    assert cross.jobs[0] == shifted.jobs[0]
    assert [read_place(job.folder).dataset for job in cross.jobs] == [
        "mini_shapes",
        "mini_fabrics",
        "mini_scenes",
    ]
    assert all(job.model == cross.jobs[0].folder for job in (*cross.jobs[1:], shifted.jobs[1]))


def test_no_two_configurations_share_a_folder_and_no_default_is_repeated():
    options = ["--trainers", "DePT_CoOp", "--datasets", "mini_shapes", "--seeds", "1"]
    plain = chains("base_to_new", *options)
    swept = chains("lambda", *options)
    folders = {chain.jobs[0].folder for chain in swept}
    assert len(folders) == len(LAMBDAS) and plain[0].jobs[0].folder in folders
    assert len({chain.jobs[0].folder for chain in swept}) == len(LAMBDAS)
    changed = chains("base_to_new", *options, "--opts", "OPTIM.LR", "0.1", LAMBDA, "0.7")
    assert changed[0].jobs[0].folder.parent.name == "mini@OPTIM.LR=0.1"
    machine = chains("base_to_new", *options, "--opts", "DATALOADER.NUM_WORKERS", "3")
    assert machine[0].jobs[0].folder == plain[0].jobs[0].folder


def test_an_odd_setting_in_front_is_the_config():
    args = parse_args(["base_to_new", "--opts", "vit_b32_ep10", "OPTIM.LR", "0.1"])
    assert (args.config, args.opts) == ("vit_b32_ep10", ["OPTIM.LR", "0.1"])


def test_configs_by_the_data_sets_family():
    plan = Plan(Path("data"), Path("output"))
    assert plan.config_of("CoOp", "mini_shapes") == "mini"
    assert plan.config_of("CoOp", "dtd") == "vit_b16_ep10"
    assert plan.config_of("ZeroshotCLIP", "dtd") == "vit_b16"
    assert plan.config_of("PromptSRC", "dtd") == "vit_b16_ep20"
    assert plan.config_of("PromptSRC", "dtd", "cross_dataset") == "vit_b16_cross_dataset"
    assert plan.config_of("CoOp", "dtd", "cross_dataset") == "vit_b16_ep10"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("base_to_new --trainers CoOpp", "did you mean 'CoOp'"),
        ("base_to_new --datasets oxford_pet", "did you mean 'oxford_pets'"),
        ("base_to_new --config vit_b61_ep10", "did you mean 'vit_b16_ep10'"),
        ("base_to_new --opts OPTIM.LRR 1", "OPTIM.LR"),
        ("base_to_new --seeds one", "no seed"),
        ("base_to_old", "base_to_new"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        chains(*arguments.split())
    assert "\n" not in str(error.value)


def test_shell_scripts_say_how_they_are_used(tmp_path):
    for name in ("base_to_new", "cross_dataset", "domain_generalization", "few_shot", "zero_shot"):
        environment = {**os.environ, "PYTHON": sys.executable}
        command = ["bash", f"scripts/{name}.sh", "CoOp"]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert answer.returncode == 2 and f"usage: scripts/{name}.sh TRAINER" in answer.stderr


def test_durations():
    shown = [duration(s) for s in (45.4, 720, 12_000)]
    assert shown == ["45 s", "12 min", "3 h 20 min"]
