"""train.py --list."""

from tests.registered import every_trainer
from train import main
from tuning.naming import is_wrapped


def test_every_trainer_and_data_set_is_listed(capsys):
    main(["--list"])
    told = capsys.readouterr().out
    words = told.split()
    assert all(name in words for name in every_trainer() if not is_wrapped(name))
    assert any(line.split()[:2] == ["CoOp", "+"] for line in told.splitlines()) and "arXiv" in told
    assert "oxford_pets" in words and "mini_shapes" in words and "vit_b16_ep10," in words
