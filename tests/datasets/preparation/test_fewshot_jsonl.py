"""Few-shot samples as lines of JSON, read and written."""

import json

import pytest

import datasets  # noqa: F401 - registers the readers
from dassl.data.datasets import DATASET_REGISTRY
from datasets.preparation.fewshot_samples import convert
from experiments import preparation_command as prepare_data
from tests.datasets.layouts import build, write_split


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def pets(tmp_path):
    """A data set's folder, and how to call the command for it."""
    write_split(tmp_path, build("OxfordPets", tmp_path))
    folder = tmp_path / "oxford_pets" / "split_fewshot"

    def command(*words):
        return prepare_data.main(["OxfordPets", *words, "--root", str(tmp_path)])

    return folder, command


def test_samples_are_written_as_the_public_ones(pets):
    folder, command = pets
    assert command("--export-fewshot", "--shots", "2", "--seeds", "1-2") == 0
    names = [f"shot_2-seed_{seed}_{part}.jsonl" for seed in (1, 2) for part in ("train", "val")]
    assert sorted(path.name for path in folder.glob("*.jsonl")) == names
    kept = json.loads((folder / "shot_2-seed_1.json").read_text())
    for part in ("train", "val"):
        records = lines(folder / f"shot_2-seed_1_{part}.jsonl")
        assert all(set(r) == {"_impath", "_label", "_domain", "_classname"} for r in records)
        assert [
            [r["_impath"].removeprefix("oxford_pets/images/"), r["_label"], r["_classname"]]
            for r in records
        ] == kept[part]


@pytest.mark.parametrize("folder", ["oxford_pets/images", "/home/someone/data/oxford_pets/images"])
def test_public_samples_are_read(pets, folder):
    place, command = pets
    command("--export-fewshot", "--shots", "2", "--seeds", "1")
    parts = {part: place / f"shot_2-seed_1_{part}.jsonl" for part in ("train", "val")}
    turned = {}
    for part, path in parts.items():  # in another order: no seed here draws it
        records = lines(path)[::-1]
        for record in records:
            record["_impath"] = record["_impath"].replace("oxford_pets/images", folder)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        turned[part] = [record["_impath"].rpartition("/")[2] for record in records]
    assert command("--convert-fewshot") == 0
    kept = json.loads((place / "shot_2-seed_1.json").read_text())
    assert {part: [row[0] for row in kept[part]] for part in turned} == turned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.partition("\n")[2], "is not 2 of each class"),
        (lambda text: text.replace('"_label": 0', '"_label": 1', 1), "is not in the split"),
        (lambda text: text.replace('"_label": 0', '"_label": "0"', 1), "line 1: its '_label'"),
        (lambda text: text.replace("{", "", 1), "line 1, is not valid JSON"),
        (lambda text: "[]\n" + text, "line 1, "),
    ],
)
def test_what_fits_no_split_is_named(pets, capsys, change, message):
    place, command = pets
    command("--export-fewshot", "--shots", "2", "--seeds", "1")
    (place / "shot_2-seed_1.json").unlink()
    path = place / "shot_2-seed_1_train.jsonl"
    text = "".join(sorted(path.read_text().splitlines(keepends=True), key=lambda x: 'l": 1' in x))
    path.write_text(change(text))
    with pytest.raises(SystemExit) as ending:
        command("--convert-fewshot")
    assert ending.value.code == 2
    told = capsys.readouterr().err
    assert message in told and str(path) in told
    assert not (place / "shot_2-seed_1.json").exists()


def test_a_sample_in_both_forms_is_refused(pets, capsys):
    place, command = pets
    command("--export-fewshot", "--shots", "2", "--seeds", "1")
    (place / "shot_2-seed_1.pkl").write_bytes(b"")
    with pytest.raises(SystemExit):
        command("--convert-fewshot")
    assert "is not a few-shot sample" in capsys.readouterr().err


def test_a_file_of_another_name(pets, capsys):
    place, command = pets
    place.mkdir(exist_ok=True)
    (place / "shots_2_train.jsonl").write_text("")
    with pytest.raises(SystemExit):
        command("--convert-fewshot")
    assert "expected shot_<number>-seed_<number>" in capsys.readouterr().err


def test_imagenet_has_no_validation_part(tmp_path):
    build("ImageNet", tmp_path)
    words = ["--export-fewshot", "ImageNet", "--shots", "1", "--seeds", "1"]
    assert prepare_data.main([*words, "--root", str(tmp_path)]) == 0
    (path,) = (tmp_path / "imagenet" / "split_fewshot").glob("*.jsonl")
    assert path.name == "shot_1-seed_1_train.jsonl"
    (kept,) = convert(DATASET_REGISTRY.get("ImageNet"), str(tmp_path))
    assert len(json.loads(kept.read_text())["train"]) == len(lines(path))
