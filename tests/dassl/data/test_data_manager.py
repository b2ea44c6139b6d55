from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from toy_engine import ToyImages, draw_images

from dassl.config import config_values
from dassl.data import DataManager, DatasetWrapper, check_images
from dassl.utils import UserError


def views(dm: DataManager, epoch: int) -> dict[str, torch.Tensor]:
    """The training views of an epoch by path."""
    dm.set_epoch(epoch)
    found = {}
    for batch in dm.train_loader_x:
        assert batch["img"].shape[1:] == (3, 8, 8)
        found |= dict(zip(batch["impath"], batch["img"], strict=True))
    return found


def same(one: dict, two: dict) -> bool:
    return list(one) == list(two) and all(torch.equal(one[path], two[path]) for path in one)


def test_views_do_not_depend_on_the_number_of_workers(make_cfg):
    plain = DataManager(make_cfg())
    expected = {epoch: views(plain, epoch) for epoch in (0, 1)}
    assert not same(expected[0], expected[1])
    shared = [path for path in expected[0] if path in expected[1]]
    assert not any(torch.equal(expected[0][path], expected[1][path]) for path in shared)
    torch.manual_seed(99)
    random.seed(99)
    workers = DataManager(make_cfg("DATALOADER.NUM_WORKERS", 2))
    for epoch in (1, 0, 1):  # the workers live through all of them
        assert same(views(workers, epoch), expected[epoch])


@pytest.mark.parametrize("room,decoded", [(1.0, 18), (5 * 20 * 24 * 3 / 2**30, 18 + 13), (0, 36)])
def test_training_images_stay_decoded_while_there_is_room(make_cfg, monkeypatch, room, decoded):
    from dassl.data import wrapper

    plain = DataManager(make_cfg("DATALOADER.DECODED_GB", 0.0))
    expected = [views(plain, epoch) for epoch in (0, 1)]
    calls, read = [], wrapper.read_image
    monkeypatch.setattr(wrapper, "read_image", lambda path: calls.append(path) or read(path))
    batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", 3)  # no image is left over
    dm = DataManager(make_cfg("DATALOADER.DECODED_GB", float(room), *batch))
    for epoch in (0, 1):
        found = views(dm, epoch)
        assert all(torch.equal(found[path], view) for path, view in expected[epoch].items())
    assert len(calls) == decoded
    list(dm.test_loader)
    list(dm.test_loader)
    assert len(calls) == decoded + 2 * len(dm.test_loader.dataset)


def test_workers_share_decoded_images(make_cfg, tmp_path, monkeypatch):
    from dassl.data import wrapper

    expected = [views(DataManager(make_cfg("DATALOADER.DECODED_GB", 0.0)), e) for e in (0, 1, 2)]
    tally, read = tmp_path / "tally", wrapper.read_image

    def counted(path):
        with open(tally, "a") as file:  # of every process
            file.write(f"{path}\n")
        return read(path)

    monkeypatch.setattr(wrapper, "read_image", counted)
    batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", 3)  # no image is left over
    dm = DataManager(make_cfg("DATALOADER.NUM_WORKERS", 2, *batch))
    for epoch in (0, 1, 2):
        found = views(dm, epoch)
        assert all(torch.equal(found[path], view) for path, view in expected[epoch].items())
    paths = tally.read_text().splitlines()
    assert len(paths) == len(set(paths)) == 18
    sizes = [read(path).size for path in paths]
    assert dm.decoding == {
        "decoded": 18,
        "kept": 18,
        "kept_bytes": sum(3 * width * height for width, height in sizes),
        "room_bytes": 2 << 30,
        "workers_share": True,
    }


def test_workers_share_no_more_than_there_is_room_for(make_cfg):
    room = 5 * 20 * 24 * 3
    batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", 3)
    options = ("DATALOADER.NUM_WORKERS", 2, "DATALOADER.DECODED_GB", room / 2**30)
    dm = DataManager(make_cfg(*options, *batch))
    for epoch in (0, 1):
        views(dm, epoch)
    found = dm.decoding
    assert (found["decoded"], found["kept"]) == (18 + 13, 5) and found["kept_bytes"] <= room


def test_workers_that_are_not_forked_keep_their_own(monkeypatch):
    from dassl.data import decoded

    monkeypatch.setattr(decoded, "forks", lambda: False)
    own = decoded.DecodedImages(4, 300, workers=2)
    image = Image.new("RGB", (5, 10))  # 150 bytes
    for index in (0, 1):
        own.add(index, image)
    assert own.get(0) is image and own.get(1) is None and own.get(2) is None
    assert own.record() == {
        **dict.fromkeys(("decoded", "kept", "kept_bytes")),
        "room_bytes": 300,
        "workers_share": False,
    }


def test_views_depend_on_the_seed(make_cfg):
    one, two = (views(DataManager(make_cfg("SEED", seed)), 0) for seed in (1, 2))
    assert any(not torch.equal(one[path], two[path]) for path in one if path in two)


def test_global_generators_stay_as_they_were(make_cfg):
    dm = DataManager(make_cfg())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    views(dm, 0)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_transforms_may_use_any_generator(make_cfg):
    def noise(image):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])

    def draw(workers):
        dm = DataManager(make_cfg("DATALOADER.NUM_WORKERS", workers), custom_tfm_train=noise)
        return torch.cat([batch["img"] for batch in dm.train_loader_x])

    assert torch.equal(draw(0), draw(2))
    assert len(draw(0).unique()) == draw(0).numel()


def test_items(make_cfg):
    cfg = make_cfg("DATALOADER.RETURN_IMG0", True, "DATALOADER.K_TRANSFORMS", 2)
    dm = DataManager(cfg)
    transform = dm.train_loader_x.dataset.transform
    item = DatasetWrapper(cfg, dm.dataset.train_x, transform, is_train=True)[3]
    assert item["index"] == 3 and item["label"] == 0 and item["domain"] == 1
    assert item["impath"] == dm.dataset.train_x[3].impath
    assert len(item["img"]) == 2 and not torch.equal(*item["img"])
    assert item["img0"].shape == (3, 8, 8)
    pair = DatasetWrapper(cfg, dm.dataset.train_x, [transform, transform])[3]
    assert pair["img"].shape == pair["img2"].shape == (3, 8, 8)
    assert "img" not in DatasetWrapper(cfg, dm.dataset.train_x)[3]
    with pytest.raises(UserError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, dm.dataset.train_x, None, is_train=True)


def test_manager(make_cfg, capsys):
    dm = DataManager(make_cfg("VERBOSE", True))
    assert dm.num_classes == 3 and dm.classnames == ["red", "green", "blue"]
    assert dm.class_keys == ["key-red", "key-green", "key-blue"]
    assert dm.lab2cname[1] == "green" and dm.template == "a patch of {}."
    assert dm.num_source_domains == 0
    lengths = [
        len(x) for x in (dm.train_loader_x, dm.train_loader_u, dm.val_loader, dm.test_loader)
    ]
    assert lengths == [4, 3, 2, 3]  # 18 // 4, 12 // 4, ceil(6 / 5), ceil(12 / 5)
    assert "# train_x  18" in capsys.readouterr().out
    order = [index for batch in dm.test_loader for index in batch["index"].tolist()]
    assert order == list(range(12))


def test_a_single_small_batch_is_kept(make_cfg):
    dm = DataManager(make_cfg("DATALOADER.TRAIN_X.BATCH_SIZE", 32))
    assert [len(batch["label"]) for batch in dm.train_loader_x] == [18]


def test_template_from_the_config(make_cfg):
    assert DataManager(make_cfg("DATASET.TEMPLATE", "my {}.")).template == "my {}."
    with pytest.raises(UserError, match="must hold {} once"):
        DataManager(make_cfg("DATASET.TEMPLATE", "my photo."))


@pytest.fixture
def damaged(tmp_path):
    """A folder with toy images of which two training images and one test image are broken."""
    draw_images(tmp_path)
    for name in ("train/red/0", "train/blue/5", "test/green/1"):
        (tmp_path / "toy" / f"{name}.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_fails(make_cfg, damaged, workers):
    dm = DataManager(make_cfg("DATASET.ROOT", str(damaged), "DATALOADER.NUM_WORKERS", workers))
    with pytest.raises(UserError, match=r"^cannot decode the image .*/test/green/1\.png"):
        list(dm.test_loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_skipped_and_counted(make_cfg, damaged, workers, capsys):
    dm = DataManager(
        make_cfg(
            *("DATASET.ROOT", str(damaged), "INPUT.ON_DECODE_ERROR", "skip"),
            *("DATALOADER.NUM_WORKERS", workers, "DATALOADER.TRAIN_X.BATCH_SIZE", 1),
        )
    )
    for _ in range(2):
        assert len(list(dm.train_loader_x)) == 16
        assert [len(batch["label"]) for batch in dm.test_loader] == [5, 4, 2]
    assert dm.skipped_images == 3
    assert capsys.readouterr().out.count("Skipped: cannot decode") == 3


def test_missing_files_are_named_before_any_work(make_cfg, damaged, monkeypatch):
    read = ToyImages.__init__

    def read_and_remove(self, cfg):
        read(self, cfg)
        for name in ("train/red/0", "train/red/1"):
            (damaged / "toy" / f"{name}.png").unlink()

    monkeypatch.setattr(ToyImages, "__init__", read_and_remove)
    with pytest.raises(UserError, match=r"red/0\.png and 1 more of the train_x images are missing"):
        DataManager(make_cfg("DATASET.ROOT", str(damaged)))


def test_impossible_batches(make_cfg):
    with pytest.raises(UserError, match="batches of 0 images by 0 workers"):
        DataManager(make_cfg("DATALOADER.TRAIN_X.BATCH_SIZE", 0))


def test_unknown_ways_with_broken_images(make_cfg):
    with pytest.raises(UserError, match="ON_DECODE_ERROR is 'ignore'; choose one of fail, skip"):
        DataManager(make_cfg("INPUT.ON_DECODE_ERROR", "ignore"))


def test_all_images_can_be_decoded_first(make_cfg, damaged, capsys):
    fail = make_cfg("DATASET.ROOT", str(damaged))
    with pytest.raises(
        UserError, match=r"3 of 30 images can't be decoded, the first: .*red/0\.png"
    ):
        check_images([fail])
    assert capsys.readouterr().out.count("cannot decode the image") == 3
    skip = make_cfg("DATASET.ROOT", str(damaged), "INPUT.ON_DECODE_ERROR", "skip")
    check_images([skip])
    assert "Decoded 30 images, 3 of them can't be read" in capsys.readouterr().out
    assert config_values(fail) == config_values(skip)  # one run, where all images are whole


def test_images_that_arent_as_people_see_them_are_told(make_cfg, damaged, capsys):
    Image.new("I;16", (8, 8), 40000).save(damaged / "toy" / "train" / "red" / "0.png")
    check_images([make_cfg("DATASET.ROOT", str(damaged), "INPUT.ON_DECODE_ERROR", "skip")])
    told = capsys.readouterr().out
    assert "1 images have more than 8 bits a channel" in told and "red/0.png" in told
