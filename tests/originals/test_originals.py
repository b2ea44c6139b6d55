"""Our trainers against numbers of the original code; README.md says where they come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from tests.originals import inputs

NUMBERS = {path.stem: path for path in sorted((Path(__file__).parent / "numbers").glob("*.json"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The backbone's file and the pictures' folder."""
    folder = tmp_path_factory.mktemp("originals")
    inputs.write_backbone(folder / "clip.pt")
    inputs.write_pictures(folder / "pictures")
    inputs.write_sentences(folder / "sentences.json")
    return folder


def command(world, record, output, classes, *extra, **options):
    """A command line as a user's: the trainer's published config, cut to the small CLIP."""
    trainer = record["trainer"]
    options = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.SUBSAMPLE_CLASSES": classes,
        "INPUT.SIZE": f"({inputs.SIZE}, {inputs.SIZE})",
        "INPUT.TRANSFORMS": "('center_crop', 'normalize')",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": inputs.TRAIN * len(inputs.BASE),
        **({"OPTIM.MAX_EPOCH": inputs.STEPS} if "losses" in record else {}),
        "TEST.SAVE_PREDICTIONS": True,
        **record["options"],
        **options,
    }
    return [
        *("--trainer", trainer, "--config-file", f"configs/trainers/{trainer}/{record['config']}"),
        *("--root", str(world / "pictures"), "--backbone", str(world / "clip.pt")),
        *("--output-dir", str(output), "--seed", "1", *extra),
        *(str(word).replace("{world}", str(world)) for pair in options.items() for word in pair),
    ]


def start_file(world, folder, record):
    """A checkpoint with every name the original saves; what must not be read is no number."""
    embedding = torch.load(world / "clip.pt", mmap=True)["token_embedding.weight"]
    state = {}
    for name, shape in record["parameters"].items():
        if name in record["start"]:
            state[name] = inputs.draw(name, tuple(shape))
        elif name.endswith(("token_prefix", "token_suffix")):
            state[name] = token_buffer(name, shape, record, embedding)
        elif not name.endswith("ctx"):
            state[name] = torch.full(shape, torch.nan)
    state |= {name: inputs.draw(name, tuple(shape)) for name, shape in nets(record).items()}
    path = folder / record["model_name"] / "model.pth.tar-0"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 0, "optimizer": None, "val_result": None}, path)
    return path


def nets(record):
    """ProMetaR's nets, which its code doesn't save: names and shapes."""
    return record.get("nets", {})


def token_buffer(name, shape, record, embedding):
    """The embeddings of the tokens before and after the context, padded with those of token 0."""
    rows = [[i for i in ids if i >= 0] for ids in record["base"]["prompts"]]
    rows = [ids[:1] if name.endswith("prefix") else ids[1:] for ids in rows]
    padded = torch.tensor([ids + [0] * (shape[1] - len(ids)) for ids in rows])
    return embedding[padded].float()


@pytest.fixture(scope="module")
def teacher(world):
    """A run of PromptSRC whose only step leaves its prompts where they start."""
    torch.save({"state_dict": inputs.teacher_state()}, world / "teacher.pt")
    depths = {f"TRAINER.PROMPTSRC.PROMPT_DEPTH_{tower}": 3 for tower in ("TEXT", "VISION")}
    options = {
        **depths,
        "TRAINER.PROMPTSRC.PREC": "fp32",
        "OPTIM.LR": 0.0,
        "OPTIM.WARMUP_EPOCH": 0,
        "OPTIM.MAX_EPOCH": 1,
        "MODEL.INIT_WEIGHTS": world / "teacher.pt",
    }
    record = {"trainer": "PromptSRC", "config": "vit_b16_ep20.yaml", "options": options}
    train.main(command(world, record, world / "teacher", "all"))


def logits_by_path(folder):
    saved = np.load(folder / "predictions.npz")
    return dict(zip(saved["paths"].tolist(), saved["logits"], strict=True))


def assert_same_logits(measured, expected):
    assert list(measured) == expected["paths"]
    values = np.stack(list(measured.values()))
    np.testing.assert_allclose(values, expected["logits"], rtol=0, atol=3e-4)


def read(case):
    return json.loads(NUMBERS[case].read_text(encoding="utf-8"))


STARTED = [case for case in NUMBERS if "start_base" in read(case)]
TRAINED = [case for case in NUMBERS if "losses" in read(case)]
UNTRAINED = sorted(NUMBERS.keys() - TRAINED)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def names_after(words, said):
    lines = [line.removeprefix(words) for line in said.splitlines() if line.startswith(words)]
    return [name for line in lines for name in line.split(", ")]


@pytest.mark.parametrize("case", STARTED)
def test_logits_of_a_checkpoint_of_the_original_code(world, tmp_path, capsys, case):
    """The starting parameters in the original layout, tested on base and on new classes."""
    record = read(case)
    frozen = record["parameters"].keys() - record["start"]
    start_file(world, tmp_path / "original", record)
    for classes in ("base", "new"):
        if f"start_{classes}" in record:
            model = ("--eval-only", "--model-dir", str(tmp_path / "original"), "--load-epoch", "0")
            train.main(command(world, record, tmp_path / classes, classes, *model))
            assert_same_logits(logits_by_path(tmp_path / classes), record[f"start_{classes}"])
            said = capsys.readouterr().out
            if classes == "base":  # a head is nothing to classes it wasn't trained on
                taken = len(record["start"]) + len(nets(record))
                assert len(names_after("Taken from the checkpoint: ", said)) == taken
                assert set(names_after("Left there: ", said)) <= frozen


@pytest.mark.parametrize("case", [case for case in NUMBERS if "mixture" in read(case)])
def test_dpcs_checkpoints_are_of_the_mixture(world, tmp_path, case):
    """As one of CoOp they give the same logits on base classes; new ones see stage 1's alone."""
    record = read(case)
    start = start_file(world, tmp_path / "stage", record)
    path = start_file(world, tmp_path / "original", record)
    state = torch.load(path)["state_dict"]
    torch.save({"state_dict": {**state, "ctx": torch.tensor(record["mixture"])}}, path)
    model = ("--eval-only", "--model-dir", str(tmp_path / "original"), "--load-epoch", "0")
    options = {"MODEL.INIT_WEIGHTS": start, "TRAINER.DPC.WEIGHT": record["weight"]}
    for classes in ("base", "new"):
        output = tmp_path / classes
        train.main(command(world, record, output, classes, *model, **options))
    assert_same_logits(logits_by_path(tmp_path / "new"), record["new"])
    of_coop = {"config": "vit_b16_ep10.yaml", "trainer": "CoOp"}
    of_coop["options"] = {"TRAINER.COOP.PREC": "fp32", "TRAINER.COOP.N_CTX": 4}
    train.main(command(world, of_coop, tmp_path / "coop", "base", *model))
    measured, expected = (logits_by_path(tmp_path / part) for part in ("base", "coop"))
    assert list(measured) == list(expected)
    for path, values in measured.items():
        np.testing.assert_allclose(values, expected[path], rtol=0, atol=3e-4)


@pytest.mark.parametrize("classes", ["base", "new"])
@pytest.mark.parametrize("case", UNTRAINED)
def test_zero_shot_logits(world, tmp_path, case, classes):
    record = read(case)
    train.main(command(world, record, tmp_path, classes))
    assert_same_logits(logits_by_path(tmp_path), record[classes])


@pytest.mark.parametrize("case", TRAINED)
def test_losses_and_logits_of_the_original_code(world, tmp_path, monkeypatch, request, case):
    record = read(case)
    if record["trainer"] == "PromptKD":
        request.getfixturevalue("teacher")
    if record.get("draws"):
        inputs.pin_draws(monkeypatch.setattr)
    start = {"MODEL.INIT_WEIGHTS": start_file(world, tmp_path, record)} if record["start"] else {}
    train.main(command(world, record, tmp_path / "base", "base", **start))
    lines = (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    losses = [line["loss"] for line in lines]
    np.testing.assert_allclose(losses, record["losses"], rtol=0, atol=1e-4)
    for name, expected in record.get("logged", {}).items():
        logged = [line["losses"][name] for line in lines]
        np.testing.assert_allclose(logged, expected, rtol=1e-4, atol=1e-6)
    epochs = record["options"].get("OPTIM.MAX_EPOCH", inputs.STEPS)
    assert (tmp_path / "base" / record["model_name"] / f"model.pth.tar-{epochs}").is_file()
    assert_same_logits(logits_by_path(tmp_path / "base"), record["base"])

    if "new" not in record:  # a context per class has none for new ones
        return
    last = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    train.main(command(world, record, tmp_path / "new", "new", *last))
    assert_same_logits(logits_by_path(tmp_path / "new"), record["new"])
