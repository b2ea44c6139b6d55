"""Several data sets in one run."""

import pytest
from PIL import Image

import train
from dassl.utils import UserError
from tests.tuning.small_methods import same, with_seeds
from tuning import feature_cache

pytestmark = pytest.mark.usefixtures("small_methods")


def test_several_data_sets_are_trained_on_in_turn(make_trainer, further):
    trainer = make_trainer("OfOnSeveral", DATALOADER__TRAIN_X__BATCH_SIZE=2, **further)
    assert [len(c.names) for c in trainer.method.classes.further] == [2, 3]
    trainer.begin_epoch()
    batches = list(trainer.training_batches())
    numbers = [int(batch["dataset"]) for batch in batches]
    # 10, 4 and 6 images.
    assert numbers == [0, 1, 2, 0, 1, 2, 0, 2, 0, 0] and trainer.batches_per_epoch == 10
    for number, most in enumerate((5, 2, 3)):
        own = [b for b in batches if int(b["dataset"]) == number]
        assert {int(y) for b in own for y in b["label"]} == set(range(most))
    trainer.train()
    bias = trainer.method.trained()["shared.bias"]
    assert (bias.abs().amax(dim=1) > 0).all()


def test_several_data_sets_are_part_of_a_run(run, further, tmp_path, command):
    first = run("OfOnSeveral", "first", **further)
    feature_cache._memory.clear()
    again = run("OfOnSeveral", "again", **further)
    same(first[0], again[0])
    assert first[2]["sees"] == ["other_data_sets"]
    files = first[2]["identity"]["files"]
    assert len([name for name in files if name.startswith("DATASET.FURTHER")]) == 2
    image = next((tmp_path / "set0").rglob("*.png"))
    for other in image.parent.glob("*.png"):
        Image.new("RGB", (40, 40)).save(other)
    with pytest.raises(UserError, match=r"another file for DATASET\.FURTHER"):
        run("OfOnSeveral", "first", **further)
    with pytest.raises(UserError, match="OfOnSeveral takes several data sets"):
        train.main(with_seeds(command("OfOnSeveral", output=tmp_path / "s", **further), 1, 2))


def test_who_trains_on_one_data_set_says_so(make_trainer, further):
    with pytest.raises(UserError, match="KgCoOp trains on one data set"):
        make_trainer("KgCoOp", **further)
    with pytest.raises(UserError, match="one data set's classes"):
        make_trainer("DePT_OfOnSeveral", **further)
    with pytest.raises(UserError, match="no config file nowhere"):
        make_trainer("OfOnSeveral", DATASET__FURTHER="('nowhere.yaml',)")
