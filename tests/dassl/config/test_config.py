from __future__ import annotations

from pathlib import Path

import pytest
from yacs.config import CfgNode as YacsNode

from dassl.config import CfgNode, clean_cfg, get_cfg_default, public
from dassl.utils import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_fresh_each_time():
    cfg = get_cfg_default()
    cfg.OPTIM.LR = 7.0
    cfg.INPUT.PIXEL_MEAN[0] = 7.0
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485


def test_file_inherits_in_order(tmp_path):
    write(tmp_path / "a.yaml", "OPTIM: {LR: 0.1, MAX_EPOCH: 5, NAME: adam}")
    write(tmp_path / "b.yaml", "OPTIM: {LR: 0.2}\nSEED: 3")
    write(tmp_path / "sub" / "c.yaml", "_BASE_: [../a.yaml, ../b.yaml]\nOPTIM: {NAME: sgd}")
    last = write(tmp_path / "sub" / "deeper" / "d.yaml", "_BASE_: ../c.yaml\nSEED: 4")
    cfg = get_cfg_default()
    cfg.merge_from_file(last)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.NAME, cfg.SEED) == (0.2, 5, "sgd", 4)


def test_dumped_config_reads_back(tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", "(64, 48)", "DATASET.NAME", "101", "OPTIM.LR", "1e-5"])
    again = get_cfg_default()
    again.merge_from_file(write(tmp_path / "config.yaml", cfg.dump()))
    assert again == cfg


def test_files_that_lead_back_to_themselves(tmp_path):
    write(tmp_path / "a.yaml", "_BASE_: b.yaml")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml")
    with pytest.raises(UserError, match="leads back"):
        get_cfg_default().merge_from_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("OPTIM: {LRR: 1}", r"x\.yaml: unknown config key OPTIM\.LRR \(did you mean 'OPTIM\.LR'"),
        ("DATASETT: {NAME: a}", r"DATASETT \(did you mean 'DATASET"),
        ("OPTIM: {LR: fast}", r"x\.yaml: OPTIM\.LR takes a value of type float"),
        ("OPTIM: {MAX_EPOCH: 1.5}", "type int"),
        ("OPTIM: {SGD_NESTEROV: 1}", "type bool"),
        ("OPTIM: 3", "OPTIM is a group of keys"),
        ("SEED: {A: 1}", "SEED takes a value of type int"),
        ("- 1\n- 2", "holds a list"),
        ("OPTIM: {LR: [", "not valid YAML"),
        ("_BASE_: xx.yaml", r"no such config file: .*xx\.yaml \(did you mean 'x\.yaml'"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, complaint):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(UserError, match=complaint):
        get_cfg_default().merge_from_file(path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["OPTIM.LR"], "pairs KEY VALUE"),
        (["OPTIM.LRR", "1"], "command line: unknown config key OPTIM.LRR"),
        (["OPTIM.LR.X", "1"], "OPTIM.LR takes a value of type float"),
        (["OPTIM", "1"], "OPTIM is a group of keys"),
    ],
)
def test_mistakes_on_the_command_line(options, complaint):
    with pytest.raises(UserError, match=complaint):
        get_cfg_default().merge_from_list(options)


def test_values_take_the_type_of_the_default():
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            *("OPTIM.LR", "1", "INPUT.TRANSFORMS", ["normalize"], "DATASET.NAME", "True"),
            *("INPUT.PIXEL_MEAN", (0.5, 0.5, 0.5), "DATASET.TEMPLATE", "a photo of a {}."),
        ]
    )
    assert cfg.OPTIM.LR == 1.0 and isinstance(cfg.OPTIM.LR, float)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.INPUT.PIXEL_MEAN == [0.5, 0.5, 0.5]
    assert cfg.DATASET.NAME == "True"
    assert cfg.DATASET.TEMPLATE == "a photo of a {}."


def test_nodes_of_methods_made_with_yacs_itself():
    cfg = get_cfg_default()
    cfg.TRAINER.OTHER = YacsNode()
    cfg.TRAINER.OTHER.N_CTX = 16
    cfg.merge_from_list(["TRAINER.OTHER.N_CTX", "4"])
    assert cfg.TRAINER.OTHER.N_CTX == 4
    with pytest.raises(UserError, match="'TRAINER.OTHER.N_CTX'"):
        cfg.merge_from_list(["TRAINER.OTHER.NCTX", "4"])


def test_clean_cfg_keeps_the_trainers_own_nodes():
    cfg = get_cfg_default()
    for name in ("ONE", "TWO", "THREE", "FOUR"):
        cfg.TRAINER[name] = YacsNode()
    clean_cfg(cfg, "One_Two", keep=["FOUR"])
    assert set(cfg.TRAINER) == {"NAME", "ONE", "TWO", "FOUR"}


def test_a_clone_shares_nothing_that_can_change():
    cfg = CfgNode({"A": {"LIST": [1, [2]], "TUPLE": (3,), "NAME": "x"}, "B": 1.5})
    public(cfg, "OTHER.NAME", "A.NAME")
    cfg.merge_from_list(["OTHER.NAME", "y"])
    cfg.freeze()
    twin = cfg.clone()
    assert twin == cfg and type(twin.A) is CfgNode and twin.remarks == cfg.remarks
    assert twin.is_frozen() and twin.A.is_frozen()
    twin.defrost()
    twin.A.LIST[1].append(4)
    public(twin, "OTHER.TOO", "A.NAME")
    twin.merge_from_list(["A.NAME", "z", "B", "2.5"])
    assert (cfg.A.LIST, cfg.A.NAME, cfg.B) == ([1, [2]], "y", 1.5)
    assert cfg.is_frozen() and cfg.A.is_frozen()
    assert list(cfg.public_options) == ["OTHER.NAME"]
    assert (len(cfg.remarks), twin.remarks) == (1, [])
