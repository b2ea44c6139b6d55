"""One's own images as they come: nested, from Windows, listed twice, beside other files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dassl.utils import UserError
from datasets.image_folder import ImageFolder
from datasets.preparation import steps
from datasets.preparation.check import check, table
from experiments.preparation_command import main
from tests.datasets.layouts import image, lines
from tests.datasets.test_image_folder import folders, load, parts


def test_images_in_nested_folders_are_read(tmp_path, capsys):
    folders(tmp_path, count=8)
    for i in range(3):
        image(tmp_path / "cat" / "summer" / "deep" / f"{i}.jfif")
    train, val, test = parts(load(tmp_path))
    found = train | val | test
    assert len(found) == 27 and "cat/summer/deep/0.jfif" in found
    assert "passed over" not in capsys.readouterr().out
    assert parts(load(tmp_path)) == [train, val, test]  # as the saved split says


def test_a_link_upwards_is_walked_once(tmp_path):
    folders(tmp_path, count=4)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert sum(map(len, parts(load(tmp_path)))) == 12


def test_what_is_passed_over_is_counted(tmp_path, capsys):
    folders(tmp_path, count=4)
    for name in ("a.txt", "b.txt", "c.heic", ".hidden"):
        (tmp_path / "dog" / name).write_text("x")
    image(tmp_path / "beside.jpg")
    load(tmp_path)
    told = "5 files: 1 .heic, 2 .txt, 1 hidden, 1 images outside the class folders"
    assert f"passed over {told}" in capsys.readouterr().out


def test_a_folder_too_high_is_named(tmp_path):
    folders(tmp_path / "species")
    with pytest.raises(UserError, match=f"say --root {tmp_path / 'species'}"):
        load(tmp_path)


def test_a_test_folder_alone_is_a_set_to_evaluate_on(tmp_path):
    folders(tmp_path / "test", ("a", "b"), 3)
    data = load(tmp_path)
    assert not data.train_x and len(data.test) == 6
    assert data.classnames == ["a", "b"]


@pytest.mark.parametrize(("separator", "bom"), [(";", ""), ("\t", "\ufeff"), (",", "\ufeff")])
def test_tables_of_other_programs(separator, bom, tmp_path):
    folders(tmp_path / "images", ("a", "b, c"), 4)
    rows = [
        rf"images\{name}\{i}.PNG{separator}{name}"
        if separator != ","
        else rf'"images\{name}\{i}.PNG","{name}"'
        for name in ("a", "b, c")
        for i in range(4)
    ]
    text = bom + "\r\n".join([separator.join(["Image", "Label"]), *rows])
    (tmp_path / "labels.csv").write_bytes(text.encode())
    data = load(tmp_path)
    assert data.classnames == ["a", "b, c"]
    assert sum(map(len, parts(data))) == 8


@pytest.mark.parametrize("separator", [";", "\t"])
def test_separators_without_a_header(separator, tmp_path):
    folders(tmp_path, ("a", "b"), 4)
    rows = [separator.join([f"{n}/{i}.PNG", n]) for n in ("a", "b") for i in range(4)]
    lines(tmp_path / "labels.csv", rows)
    assert sum(map(len, parts(load(tmp_path)))) == 8


def test_a_split_file_of_windows(tmp_path):
    folders(tmp_path, ("a", "b"), 2)
    odd = tmp_path / "odd\\name.jpg"  # a name with a backslash stays one
    image(odd)
    split = {
        "train": [[r"a\0.PNG", 0, "a"], [r"b\0.PNG", 1, "b"], [odd.name, 0, "a"]],
        "test": [[r"a\1.PNG", 0, "a"], [r"b\1.PNG", 1, "b"]],
    }
    text = "\ufeff" + json.dumps(split)
    (tmp_path / "split.json").write_bytes(text.encode())
    train, _, test = parts(load(tmp_path))
    assert train == {"a/0.PNG", "b/0.PNG", odd.name} and test == {"a/1.PNG", "b/1.PNG"}


def test_one_image_in_train_and_test(tmp_path, capsys):
    folders(tmp_path, ("a", "b"), 2)
    rows = [["a/0.PNG", 0, "a"], ["b/0.PNG", 1, "b"]]
    split = {"train": rows, "test": [*rows, ["a/1.PNG", 0, "a"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    load(tmp_path)
    assert "2 of 3 test images are in train too, first" in capsys.readouterr().out


def test_one_image_under_two_classes(tmp_path, capsys):
    folders(tmp_path, ("a", "b"), 4)
    rows = [f"{n}/{i}.PNG,{n}" for n in ("a", "b") for i in range(4)]
    lines(tmp_path / "labels.csv", ["path,class", *rows, "a/0.PNG,b"])
    load(tmp_path)
    told = capsys.readouterr().out
    assert "1 images have two classes" in told and "a/0.PNG: a and b" in told


def test_a_table_of_several_labels_each_is_refused(tmp_path):
    rows = [f"{i}.jpg,{name}" for i in range(4) for name in ("a", "b")]
    lines(tmp_path / "labels.csv", ["path,class", *rows])
    with pytest.raises(UserError, match="4 of 4 images, first 0.jpg: a table of multi-label"):
        load(tmp_path)


@pytest.mark.parametrize("ending", ["jfif", "jpe", "avif", "jp2", "pbm", "dib"])
def test_formats_by_their_endings(ending, tmp_path):
    folders(tmp_path, ("a", "b"), 2)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "pbm": "PPM", "dib": "BMP"}
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"x.{ending}", kind.get(ending, "AVIF"))
    except (KeyError, OSError):
        pytest.skip("this Pillow doesn't write it")
    finding = check(ImageFolder, str(tmp_path), decode=True)
    assert finding.complete and sum(finding.sizes[1:]) == 5 and not finding.unreadable


def test_check_tells_of_own_images(tmp_path):
    folders(tmp_path, ("a", "b"), 4)
    (tmp_path / "a" / "notes.doc").write_text("x")
    (tmp_path / "b" / "broken.jpg").write_text("x")
    finding = check(ImageFolder, str(tmp_path), decode=True)
    text = table([finding])
    assert not finding.complete and f"cannot decode the image {tmp_path}/b/broken.jpg" in text
    assert "passed over 1 file: 1 .doc" in text and "would draw a split" in text
    Path(tmp_path / "b" / "broken.jpg").unlink()
    assert check(ImageFolder, str(tmp_path), decode=True).complete


def test_a_link_to_a_folder_above_is_passed_over(tmp_path, capsys):
    folders(tmp_path / "root", ("a", "b"), 4)
    (tmp_path / "root" / "a" / "all").symlink_to(tmp_path / "root")
    data = load(tmp_path / "root")
    assert sum(map(len, parts(data))) == 8
    told = capsys.readouterr().out
    assert "passed over 1 file: 1 links to a folder above" in told and "two classes" not in told


def test_what_lies_beside_the_folders_is_counted(tmp_path, capsys):
    for part in ("train", "test"):
        folders(tmp_path / part, ("a", "b"), 2)
    folders(tmp_path / "extra", ("a",), 3)
    image(tmp_path / "train" / "beside.jpg")
    image(tmp_path / "__MACOSX" / "a" / "0.jpg")
    image(tmp_path / ".ipynb_checkpoints" / "0.jpg")
    (tmp_path / "notes.docx").write_text("x")
    for name in ("split_fewshot", ".cache"):  # what runs leave
        (tmp_path / name).mkdir()
    load(tmp_path)
    told = "7 files: 1 .docx, 1 hidden, 5 images outside the class folders"
    assert f"passed over {told}" in capsys.readouterr().out


def test_two_folders_for_one_part(tmp_path):
    for part in ("train", "val", "Valid", "test"):
        folders(tmp_path / part, ("a", "b"), 2)
    with pytest.raises(UserError, match=r"(val and .*Valid|Valid and .*val) are both there"):
        load(tmp_path)


def test_one_file_by_two_names(tmp_path, capsys):
    folders(tmp_path / "train", ("a", "b"), 2)
    folders(tmp_path / "test", ("a", "b"), 2)
    (tmp_path / "test" / "a" / "link.png").symlink_to(tmp_path / "train" / "a" / "0.PNG")
    (tmp_path / "test" / "b" / "linked.png").hardlink_to(tmp_path / "train" / "a" / "1.PNG")
    load(tmp_path)
    told = capsys.readouterr().out
    assert "2 of 6 test images are in train too, first" in told
    assert "1 images have two classes" in told


def test_copies_are_found_when_images_are_read(tmp_path):
    folders(tmp_path / "train", ("a", "b"), 2)
    folders(tmp_path / "test", ("a", "b"), 2)
    for i, path in enumerate(sorted(tmp_path.rglob("*.PNG"))):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    copy = (tmp_path / "train" / "a" / "0.PNG").read_bytes()
    (tmp_path / "test" / "b" / "0.PNG").write_bytes(copy)
    assert not check(ImageFolder, str(tmp_path)).remarks
    told = check(ImageFolder, str(tmp_path), decode=True).remarks
    assert any("1 of 4 test images are in train too" in line for line in told)
    assert any("1 images have two classes" in line for line in told)


def test_classes_that_are_less_than_they_seem(tmp_path, capsys):
    folders(tmp_path / "one" / "only", ("a",), 4)
    folders(tmp_path / "few" / "train", ("a", "b", "c"), 2)
    folders(tmp_path / "few" / "test", ("a",), 2)
    folders(tmp_path / "val" / "train", ("a", "b"), 2)
    folders(tmp_path / "val" / "val", ("a", "b"), 2)
    for root, told in (
        ("one/only", "there is one class only: every prediction is right"),
        ("few", "2 of 3 classes have no test images, first 'b'"),
        ("val", "no test images: val is tested on, too"),
    ):
        load(tmp_path / root)
        assert f"{root}: {told}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.zip", "is an archive: unpack it"),
        ("mine.tar.gz", "is an archive: unpack it"),
        ("Labels.XLSX", "is a spreadsheet: save it as CSV"),
        ("labels.csv", "is not UTF-8 text, so save it as that"),
    ],
)
def test_files_that_are_no_table(name, said, tmp_path):
    (tmp_path / name).write_bytes("grün;a".encode("cp1252"))
    with pytest.raises(UserError, match=f"{name} {said}"):
        load(tmp_path / name)


def test_images_without_class_folders(tmp_path):
    image(tmp_path / "0.jpg")
    image(tmp_path / "1.jpg")
    with pytest.raises(UserError, match="has 2 images and no class folders; put them into"):
        load(tmp_path)


def test_a_class_of_other_files_says_what_there_is(tmp_path):
    folders(tmp_path, ("a", "b"), 2)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.heic").write_text("x")
    with pytest.raises(UserError, match=r"no images in the class folder .*c \(1 file: 1 .heic\)"):
        load(tmp_path)


def test_check_tells_of_images_that_arent_as_people_see_them(tmp_path):
    folders(tmp_path, ("a", "b"), 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "turned.jpg", exif=turned)
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "a" / "deep.png")
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(tmp_path / "b" / "moving.gif", save_all=True, append_images=frames[1:])
    finding = check(ImageFolder, str(tmp_path), decode=True)
    assert finding.complete
    for name, what in (
        ("turned.jpg", "an EXIF entry by which viewers turn them"),
        ("deep.png", "more than 8 bits a channel"),
        ("moving.gif", "several frames"),
    ):
        found = [line for line in finding.remarks if what in line]
        assert len(found) == 1 and found[0].startswith("1 images") and name in found[0]


def test_the_command_takes_several_sets_of_ones_own(tmp_path, capsys, monkeypatch):
    folders(tmp_path / "x", ("Cat", "cat", "a " * 80), 4)
    folders(tmp_path / "y", ("a", "b"), 4)
    monkeypatch.setattr(steps, "CONFIGS", tmp_path)
    (tmp_path / "leaves.yaml").write_text(
        f"DATASET:\n  NAME: ImageFolder\n  ROOT: {tmp_path / 'y'}\n"
    )
    assert main(["--check", f"flowers={tmp_path / 'x'}", "leaves", "--decode"]) == 0
    told = capsys.readouterr().out
    assert "flowers   yes    3 " in told and "leaves    yes    2 " in told
    assert "flowers: Classes whose prompts are token for token the same" in told
    assert "flowers: 1 names are too long for the text tower's 77 tokens, first 'a a" in told
    assert main(["--check", "leaves", "--root", str(tmp_path / "x")]) == 0
    assert "leaves    yes    3 " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--check", "ImageFolder"])
    assert "say where ImageFolder lies" in capsys.readouterr().err


def test_classes_with_fewer_images_than_shots_are_told(tmp_path, capsys):
    folders(tmp_path / "train", ("a", "b", "c"), 4)
    image(tmp_path / "train" / "b" / "more.png")
    folders(tmp_path / "test", ("a", "b", "c"), 1)
    load(tmp_path, shots=4)
    assert "fewer" not in capsys.readouterr().out
    load(tmp_path, shots=5)
    told = "2 of 3 classes have fewer than 5 training images and are taken whole, 'a' with 4\n"
    assert told in capsys.readouterr().out
