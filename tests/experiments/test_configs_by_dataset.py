"""Which config, which root, which settings of its own a data set gets."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from dassl.utils import UserError
from experiments import chosen_datasets, protocols
from experiments.launch import make_plan, parse_args
from experiments.protocols import PROTOCOLS, Plan
from experiments.results.folders import read_place
from experiments.results.scores import read_score
from experiments.results.summary import summarize
from tuning.options import parse_args as parse_run
from tuning.options import setup_cfg

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def chains(*arguments: str):
    return make_plan(parse_args(list(arguments)))


@pytest.fixture
def own_datasets(monkeypatch, tmp_path):
    """own_datasets(name=text, …): data set configs beside the repository's trainer configs."""

    def write(**files: str) -> None:
        folder = tmp_path / "configs" / "datasets"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        (tmp_path / "configs" / "trainers").symlink_to(ROOT / "configs" / "trainers")
        for module in (protocols, chosen_datasets):
            monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
        monkeypatch.setattr(protocols, "resolve", lambda arguments: (str(arguments), ""))
        chosen_datasets.chosen.cache_clear()

    yield write
    chosen_datasets.chosen.cache_clear()


def test_a_data_set_says_itself_which_config_it_takes(own_datasets):
    own_datasets(
        mini_imagenet="DATASET: {NAME: ImageNet}",
        shapes="DATASET: {NAME: MiniShapes, CONFIG: mini}",
        odd="DATASET: {NAME: MiniShapes, CONFIG: minni}",
    )
    plan = Plan(Path("data"), Path("output"))
    assert plan.config_of("CoOp", "mini_imagenet") == "vit_b16_ep10"
    assert plan.config_of("PromptSRC", "shapes", "cross_dataset") == "mini"
    with pytest.raises(UserError, match="CoOp has no config minni, which odd asks for: choose"):
        plan.config_of("CoOp", "odd")
    assert Plan(Path("data"), Path("output"), "mini").config_of("CoOp", "odd") == "mini"


def test_a_data_sets_own_root_gives_way_to_an_explicit_one_alone(own_datasets):
    own_datasets(
        here="DATASET: {NAME: ImageFolder, ROOT: /far/away}", there="DATASET: {NAME: ImageFolder}"
    )
    words = ["base_to_new", "--trainers", "CoOp", "--seeds", "1", "--datasets"]
    here, there = (chains(*words, name)[0].jobs[0].arguments for name in ("here", "there"))
    assert "--root" not in here and there[there.index("--root") + 1] == "data"
    told = chains(*words, "here", "--root", "nearby")[0].jobs[0].arguments
    assert told[told.index("--root") + 1] == "nearby"


def test_a_data_sets_own_root_is_the_runs(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("DATASET: {NAME: ImageFolder, ROOT: /far/away}")
    words = ["--dataset-config-file", str(file)]
    assert setup_cfg(parse_run(words)).DATASET.ROOT == "/far/away"
    assert setup_cfg(parse_run([*words, "--root", "near"])).DATASET.ROOT == "near"
    assert setup_cfg(parse_run([])).DATASET.ROOT == "data"


ELEVEN = PROTOCOLS["few_shot"].datasets
LATE = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}


@pytest.mark.parametrize("trainer", ["PromptSRC", "DePT_PromptSRC"])
def test_promptsrcs_two_aggregations(trainer):
    for dataset in ELEVEN:
        words = ["--trainers", trainer, "--seeds", "1", "--shots", "16", "--datasets", dataset]
        base, all_classes = chains("few_shot", *words)
        assert aggregation(base) == (15, 1, 20, 0.0025)
        assert aggregation(all_classes) == ((45, 5) if dataset in LATE else (30, 30)) + (50, 0.0025)
        # One row of the table: the config's name is the same for all data sets.
        assert read_place(all_classes.jobs[0].folder).config == "vit_b16_few_shot"


def aggregation(chain):
    """μ, σ, epochs and learning rate of a chain's training."""
    cfg = setup_cfg(parse_run(list(chain.jobs[0].arguments)))
    c = cfg.TRAINER.PROMPTSRC
    return c.GPA_MEAN, c.GPA_STD, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR


def test_a_row_shares_what_its_data_sets_may_differ_in(tmp_path):
    def score(dataset, *changes):
        words = ["--trainers", "PromptSRC", "--seeds", "1", "--shots", "16", "--datasets", dataset]
        job = chains("few_shot", *words, "--output", str(tmp_path))[1].jobs[0]
        cfg = setup_cfg(parse_run([*job.arguments, *changes]))
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "config.yaml").write_text(cfg.dump())
        (job.folder / "result.json").write_text('{"accuracy": 50.0, "classes": "all"}')
        return read_score(job.folder)

    cars, pets = score("stanford_cars"), score("oxford_pets")
    assert cars.settings == pets.settings
    assert len(summarize([cars, pets]).rows) == 1
    stray = score("stanford_cars", "TRAINER.PROMPTSRC.GPA_MEAN", "30")
    (refused,) = summarize([stray, pets]).refused
    assert "TRAINER.PROMPTSRC.GPA_MEAN is 30.0" in refused


OF_SPT = {
    "OPTIM.NAME": "adamw",
    "OPTIM.WEIGHT_DECAY": 0.01,
    "OPTIM.WARMUP_EPOCH": 10,
    "OPTIM.WARMUP_TYPE": "linear",
    "OPTIM.WARMUP_MIN_LR": 1e-8,
}
OF_MMRL = {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 5e-4, "INPUT.RRCROP_SCALE": (0.5, 1.0)}
OF_SKIPT = {
    "DATALOADER.TRAIN_X.SAMPLER": "RandomClassSampler",
    "DATALOADER.TRAIN_X.N_INS": 4,
    "OPTIM.WARMUP_CONS_LR": 1e-6,
}
# Trainer, config → batch, learning rate, epochs, further values: what the methods' own code runs.
OWN_SCHEDULES = {
    ("CoOp", "vit_b16_coop_ep50"): (32, 0.002, 50, {"TRAINER.COOP.N_CTX": 16}),
    ("CoOp", "vit_b16_coop_ep100"): (32, 0.002, 100, {"TRAINER.COOP.CTX_INIT": ""}),
    ("CoOp", "vit_b16_coop_ep200"): (32, 0.002, 200, {"TRAINER.COOP.CSC": False}),
    ("CoCoOp", "vit_b16_cocoop"): (1, 0.002, 10, {"TRAINER.COCOOP.CTX_INIT": "a photo of a"}),
    ("KgCoOp", "vit_b16_kgcoop"): (128, 0.002, 100, {"TRAINER.COOP.W": 8.0}),
    ("MaPLe", "vit_b16_maple"): (4, 0.0035, 5, {"TRAINER.MAPLE.PROMPT_DEPTH": 9}),
    ("MaPLe", "vit_b16_maple_cross_dataset"): (4, 0.0026, 2, {"TRAINER.MAPLE.PROMPT_DEPTH": 3}),
    ("CLIP_LoRA", "vit_b16_clip_lora"): (
        *(32, 2e-4, 200),
        {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 0.01, "TRAINER.CLIP_LORA.N_ITERS": 500},
    ),
    ("MMA", "vit_b16_mma"): (16, 0.0015, 5, {"OPTIM.WARMUP_EPOCH": 0}),
    ("MMA", "vit_b16_mma_imagenet"): (128, 0.0015, 5, {"OPTIM.WARMUP_EPOCH": 0}),
    ("MMRL", "vit_b16_mmrl"): (4, 0.001, 10, {**OF_MMRL, "TRAINER.MMRL.REG_WEIGHT": 1.0}),
    ("MMRL", "vit_b16_mmrl_imagenet"): (32, 0.001, 5, OF_MMRL),
    ("MMRL", "vit_b16_mmrl_few_shot"): (32, 0.001, 50, OF_MMRL),
    ("MMRL", "vit_b16_mmrl_cross_dataset"): (
        *(32, 0.001, 1),
        {**OF_MMRL, "OPTIM.WARMUP_EPOCH": 0, "TRAINER.MMRL.REG_WEIGHT": 0.2},
    ),
    ("MMRLpp", "vit_b16_mmrlpp"): (4, 0.001, 10, {**OF_MMRL, "TRAINER.MMRLpp.BETA": 0.9}),
    ("MMRLpp", "vit_b16_mmrlpp_imagenet"): (32, 0.001, 5, OF_MMRL),
    ("MMRLpp", "vit_b16_mmrlpp_few_shot"): (32, 0.002, 100, OF_MMRL),
    ("MMRLpp", "vit_b16_mmrlpp_cross_dataset"): (
        *(32, 0.001, 1),
        {**OF_MMRL, "OPTIM.WARMUP_EPOCH": 0, "TRAINER.MMRLpp.REG_WEIGHT": 0.1},
    ),
    ("VPT", "vit_b16_maple"): (4, 0.0025, 5, {"TRAINER.VPT.PROMPT_DEPTH_VISION": 12}),
    ("PromptSRC", "vit_b16_promptsrc"): (4, 0.0025, 20, {"TRAINER.PROMPTSRC.GPA_MEAN": 15.0}),
    ("PromptSRC", "vit_b16_cross_dataset"): (4, 0.0025, 20, {"TRAINER.PROMPTSRC.GPA_MEAN": 6.0}),
    ("PRE", "vit_b16_pre"): (32, 0.002, 50, {"TRAINER.PRE.ENCODER": "LSTM1"}),
    ("LASP", "vit_b16_lasp"): (32, 0.032, 25, {"TRAINER.LASP.LASP_LOSS_WEIGHT": 5.0}),
    ("EPT", "vit_b16_ept"): (4, 0.002, 10, {"TRAINER.EPT.SHIFT_LR_MULT": 2.0}),
    ("LAMP", "vit_b16_lamp"): (32, 0.002, 200, {"TRAINER.LAMP.POOL": 4}),
    ("SPT", "vit_b16_spt"): (32, 0.001, 100, {**OF_SPT, "TRAINER.VPT.N_CTX_VISION": 20}),
    ("VPT", "vit_b16_spt"): (32, 0.001, 100, {**OF_SPT, "TRAINER.VPT.N_CTX_VISION": 20}),
    ("IPT", "vit_b16_ipt"): (32, 0.002, 100, {"TRAINER.IPT.TOKENS": 8}),
    ("InfoPrompt", "vit_b16_infoprompt"): (32, 0.002, 200, {"TRAINER.INFOPROMPT.DECAY": 0.0}),
    ("StablePT", "vit_b16_stablept"): (
        *(32, 1e-4, 50),
        {
            "OPTIM.NAME": "adamw",
            "OPTIM.WEIGHT_DECAY": 1e-4,
            "TRAINER.STABLEPT.CONTRAST_WEIGHT": 1.0,
        },
    ),
    ("MP2", "vit_b16_mp2"): (
        *(32, 3e-4, 50),
        {
            "OPTIM.NAME": "adamw",
            "OPTIM.LR_SCHEDULER": "single_step",
            "OPTIM.STEPSIZE": (-1,),
            "OPTIM.WARMUP_EPOCH": 0,
            "TRAINER.MP2.ROUTER_EPOCHS": 25,
            "TRAINER.MP2.ROUTER_LR_MULT": 10.0,
        },
    ),
    ("RobustPrompt", "vit_b16_robustprompt"): (
        *(32, 0.002, 200),  # nothing is trained; the search's own are
        {"TRAINER.ROBUSTPROMPT.POPULATION": 24, "TRAINER.ROBUSTPROMPT.ROUNDS": 40},
    ),
    ("RLPrompt", "vit_b16_rlprompt"): (
        *(32, 5e-5, 480),
        {
            "OPTIM.NAME": "adam",
            "OPTIM.WEIGHT_DECAY": 0.0,
            "OPTIM.LR_SCHEDULER": "single_step",
            "OPTIM.STEPSIZE": (-1,),
            "OPTIM.WARMUP_EPOCH": 0,
            "TRAINER.RLPROMPT.SEARCH": "policy",
        },
    ),
    ("TipAdapterF", "vit_b16_tip_adapter_f"): (
        *(256, 0.001, 20),
        {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 0.01, "INPUT.RRCROP_SCALE": (0.5, 1.0)},
    ),
    ("TipAdapterF", "vit_b16_tip_adapter_f_per_set"): (
        *(256, 0.001, 20),
        {"OPTIM.NAME": "adamw", "TRAINER.TIP_ADAPTER.CHOICE": "fixed"},
    ),
    ("TaskRes", "vit_b16_taskres"): (256, 0.002, 200, {"OPTIM.NAME": "adam"}),
    ("TaskRes", "vit_b16_taskres_per_set"): (
        *(256, 0.002, 200),
        {"OPTIM.NAME": "adam", "TRAINER.TaskRes.RESIDUAL_SCALE": 0.5},
    ),
    ("LPpp", "vit_b16_lppp"): (
        *(16000, 1.0, 300),
        {
            "OPTIM.LR_SCHEDULER": "single_step",
            "OPTIM.WEIGHT_DECAY": 0.0,
            "TEST.FINAL_MODEL": "best_val",
        },
    ),
    ("ZSLP", "vit_b16_zslp"): (256, 0.1, 300, {"OPTIM.WEIGHT_DECAY": 0.0}),
    ("CLAP", "vit_b16_clap"): (256, 0.1, 300, {"TRAINER.ADAPTER.CONSTRAINT": "l2"}),
    ("CaPT_CoOp", "vit_b16_ep10"): (4, 0.0035, 10, {"TRAINER.UCP.SCALE": 0.5}),
    ("CaPT_KgCoOp", "vit_b16_ep10"): (4, 0.0035, 10, {"TRAINER.COOP.W": 1.5}),
    ("DePT_CaPT_KgCoOp", "vit_b16_ep10"): (4, 0.0035, 10, {"TRAINER.DEPT.LR_MULT": 18.0}),
    ("SkipT", "vit_b16_skipt"): (4, 2e-5, 20, {**OF_SKIPT, "TRAINER.SKIP.IMAGE_LR": 5e-6}),
    ("SkipT", "vit_b16_skipt_few_shot"): (4, 1e-5, 40, {**OF_SKIPT, "OPTIM.WARMUP_EPOCH": 0}),
    ("SkipT", "vit_b16_skipt_cross_dataset"): (
        *(4, 1e-5, 5),
        {**OF_SKIPT, "OPTIM.WARMUP_CONS_LR": 1e-8, "TRAINER.SKIP.IMAGE_LR": 1e-6},
    ),
    ("TCP", "vit_b16_tcp"): (
        *(32, 0.002, 50),
        {"OPTIM.NAME": "adam", "OPTIM.ADAM_EPS": 1e-3, "TRAINER.COOP.N_CTX": 4},
    ),
    ("PromptKD", "vit_b16_promptkd"): (8, 0.005, 20, {"TRAINER.PROMPTKD.KD_WEIGHT": 1000.0}),
    ("CoPrompt", "vit_b16_coprompt"): (4, 0.0035, 8, {"TRAINER.CoPrompt.W": 8.0}),
    ("DPC_CoOp", "vit_b16_dpc"): (
        *(4, 0.002, 20),
        {
            "TRAINER.COOP.N_CTX": 4,
            "TRAINER.DPC.TOPK": 8,
            "TRAINER.DPC.STAGE1": ("OPTIM.MAX_EPOCH", 50, "DATALOADER.TRAIN_X.BATCH_SIZE", 32),
        },
    ),
    ("DPC_KgCoOp", "vit_b16_dpc"): (4, 0.002, 20, {"TRAINER.COOP.W": 8.0}),
    ("DPC_MaPLe", "vit_b16_dpc"): (4, 0.002, 20, {"TRAINER.DPC.WEIGHT": 0.5}),
    ("DPC_PromptSRC", "vit_b16_dpc"): (4, 0.002, 20, {"TRAINER.PROMPTSRC.GPA_MEAN": 15.0}),
    ("ProMetaR", "vit_b16_prometar"): (4, 0.0025, 10, {"TRAINER.PROMETAR.META": "loss"}),
    ("CLIPAdapter", "vit_b16_clip_adapter"): (32, 0.002, 50, {"TRAINER.CLIP_ADAPTER.PREC": "fp32"}),
}


@pytest.mark.parametrize(("trainer", "config"), OWN_SCHEDULES)
def test_the_originals_own_schedules(trainer, config):
    batch, rate, epochs, more = OWN_SCHEDULES[trainer, config]
    file = f"configs/trainers/{trainer}/{config}.yaml"
    cfg = setup_cfg(parse_run(["--trainer", trainer, "--config-file", file]))
    found = (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH)
    assert found == (batch, rate, epochs)
    assert cfg.MODEL.BACKBONE.NAME == "ViT-B/16"
    assert more.get("OPTIM.NAME", "sgd") == cfg.OPTIM.NAME
    schedule = more.get("OPTIM.LR_SCHEDULER", "cosine")
    warm_up = more.get("OPTIM.WARMUP_CONS_LR", 1e-5)
    assert (schedule, warm_up) == (cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WARMUP_CONS_LR)
    for key, value in more.items():
        assert reduce(getitem, key.split("."), cfg) == value
    assert f"configs/trainers/{trainer}/{config}.yaml" in Path("docs/reproduce.md").read_text()


def test_heads_of_own_schedules_give_commands_that_plan():
    """Each head names its paper, and each command in it plans runs with that file."""
    for trainer, config in OWN_SCHEDULES:
        text = Path(f"configs/trainers/{trainer}/{config}.yaml").read_text()
        head = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        assert any("arXiv" in line for line in head), (trainer, config)
        commands = [line.split("  ")[0] for line in head if line.startswith("python ")]
        assert commands, (trainer, config)
        for command in commands:
            words = command.replace("python scripts/run_protocol.py ", "").split()
            plan = chains(*words, "--seeds", "1", "--datasets", "dtd", "--shots", "1")
            assert all(chain.jobs for chain in plan)
            if "--config" in words:
                assert words[words.index("--config") + 1] == config


def test_the_adapters_settings_for_each_data_set():
    def of(trainer, config, dataset):
        words = ["--trainers", trainer, "--config", config, "--seeds", "1", "--shots", "16"]
        (chain,) = chains("few_shot_adapters", *words, "--datasets", dataset)
        return setup_cfg(parse_run(list(chain.jobs[0].arguments)))

    for dataset in ELEVEN:
        cfg = of("TaskRes", "vit_b16_taskres_per_set", dataset)
        assert cfg.TRAINER.SETTINGS_PER_DATA_SET
        own = (cfg.TRAINER.TaskRes.RESIDUAL_SCALE, cfg.OPTIM.LR, cfg.TRAINER.TaskRes.TEMPLATES)
        special = {"oxford_flowers": (1, 0.002, "own"), "imagenet": (0.5, 0.0002, "ensemble")}
        assert own == special.get(dataset, (0.5, 0.002, "own"))
        cfg = of("TipAdapterF", "vit_b16_tip_adapter_f_per_set", dataset)
        tip = cfg.TRAINER.TIP_ADAPTER
        assert (100 if dataset == "eurosat" else 20) == cfg.OPTIM.MAX_EPOCH
        assert (tip.INIT_ALPHA, *tip.SEARCH_SCALE, tip.INIT_BETA) == (*TIPS[dataset], 1)


# α, and the ends of β's and α's grids.
TIPS = {
    **{"caltech101": (3, 12, 5), "dtd": (2, 13, 13), "eurosat": (2, 12, 10)},
    **{"fgvc_aircraft": (5, 30, 30), "food101": (1.17, 10, 10), "imagenet": (1.17, 7, 3)},
    **{"oxford_flowers": (10, 50, 50), "oxford_pets": (1.17, 7, 3), "sun397": (1.17, 12, 10)},
    **{"stanford_cars": (3, 20, 10), "ucf101": (3, 7, 3)},
}


@pytest.mark.parametrize(
    ("dataset", "batch", "rate", "epochs", "warm_up", "weight"),
    [
        *((name, 32, 0.032, 50, 5, 10.0) for name in ("caltech101", "dtd", "ucf101")),
        ("eurosat", 32, 0.032, 300, 7, 5.0),
        ("food101", 1, 0.002, 10, 1, 5.0),
        ("oxford_pets", 32, 0.032, 25, 3, 5.0),
    ],
)
def test_lasps_schedules(dataset, batch, rate, epochs, warm_up, weight):
    words = ["--trainers", "LASP", "--config", "vit_b16_lasp", "--seeds", "1"]
    (chain,) = chains("base_to_new", *words, "--datasets", dataset)
    cfg = setup_cfg(parse_run(list(chain.jobs[0].arguments)))
    found = (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH)
    assert found == (batch, rate, epochs)
    found = (cfg.OPTIM.WARMUP_EPOCH, cfg.TRAINER.LASP.LASP_LOSS_WEIGHT, cfg.TRAINER.LASP.PREC)
    assert found == (warm_up, weight, "amp")


# λ of MMRL, λ and β of MMRL++, by data set: as their code has them.
PUBLISHED = {
    "imagenet": (0.5, 0.2, 0.9),
    "caltech101": (0.5, 3.0, 0.6),
    "oxford_pets": (0.2, 0.01, 0.7),
    "stanford_cars": (7.0, 6.0, 0.7),
    "oxford_flowers": (4.0, 7.0, 0.4),
    "food101": (5.0, 1.0, 0.1),
    "fgvc_aircraft": (6.0, 2.0, 0.9),
    "sun397": (6.0, 3.0, 0.5),
    "dtd": (6.0, 7.0, 0.9),
    "eurosat": (0.01, 0.01, 0.2),
    "ucf101": (3.0, 3.0, 0.9),
}


@pytest.mark.parametrize("dataset", ELEVEN)
@pytest.mark.parametrize("protocol", ["base_to_new", "few_shot"])
def test_mmrls_settings_of_each_data_set(protocol, dataset):
    own, other, beta = PUBLISHED[dataset]
    few = protocol == "few_shot"
    for trainer, weight, epochs in (("MMRL", own, 50), ("MMRLpp", other, 100)):
        name = f"vit_b16_published{'_few_shot' * few}"
        words = ["--trainers", trainer, "--config", name, "--seeds", "1", "--shots", "16"]
        chain = chains(protocol, *words, "--datasets", dataset)[-1]
        cfg = setup_cfg(parse_run(list(chain.jobs[0].arguments)))
        assert weight == cfg.TRAINER[trainer].REG_WEIGHT
        assert cfg.TRAINER.SETTINGS_PER_DATA_SET
        large = trainer == "MMRL" and dataset == "eurosat"
        assert (2048 if large else 512) == cfg.TRAINER[trainer].REP_DIM
        of_imagenet = dataset == "imagenet"
        assert (5 if of_imagenet else epochs if few else 10) == cfg.OPTIM.MAX_EPOCH
        assert (32 if of_imagenet or few else 4) == cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    assert beta == cfg.TRAINER.MMRLpp.BETA
