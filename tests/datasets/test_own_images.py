"""One's own images as they come: nested, from Windows, listed twice, beside other files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dassl.utils import UserError
from datasets.image_folder import ImageFolder
from datasets.preparation.check import check, table
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
