"""Spread and speed of learning, of made-up records."""

import json

import pytest

from benchmarks.convergence import ROWS, commands, epochs_to, main, parse_args
from dassl.utils import UserError
from tuning.options import parse_args as parse_options
from tuning.options import setup_cfg


def test_epochs_to():
    assert epochs_to([2.0, 1.5, 1.06, 1.04, 1.0]) == 4
    assert epochs_to([2.0, 0.5, 1.0]) == 2
    assert epochs_to([2.0, 1.0]) == 2
    assert epochs_to([1.0, 0.5, 1.0]) is None and epochs_to([1.0]) is None


def write(args, curves):
    for seed, (curve, accuracy) in curves.items():
        folder = args.output / f"mini_shapes/base/mini/CoOp__words/seed{seed}"
        folder.mkdir(parents=True)
        lines = [{"epoch": i, "loss": 9.0, "losses": {"itm": x}} for i, x in enumerate(curve, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "result.json").write_text(json.dumps({"accuracy": accuracy}))


def test_the_table(tmp_path, capsys):
    words = ["--output", str(tmp_path), "--rows", "CoOp, words", "--seeds", "1", "2", "--read-only"]
    args = parse_args(words)
    with pytest.raises(UserError, match="seed1 holds no finished run"):
        main(words)
    write(args, {1: ([3.0, 1.02, 1.0], 80.0), 2: ([3.0, 3.0, 2.0], 84.0)})
    main(words)
    row = [cell.strip() for cell in capsys.readouterr().out.strip().splitlines()[-1].split("|")]
    assert row[1:-1] == ["CoOp, words", "2", "1.5000", "0.7071", "2, 3", "82.00", "2.83"]
    write(parse_args([*words, "--output", str(tmp_path / "x")]), {1: ([], 1.0), 2: ([], 1.0)})
    with pytest.raises(UserError, match="no loss itm"):
        main([*words, "--output", str(tmp_path / "x")])


def test_commands_are_train_pys():
    """One for each row and seed, no two into one folder, with the starts that the row names."""
    args = parse_args(["--output", "out", "--seeds", "1", "2"])
    cfgs = [setup_cfg(parse_options(words)) for words in commands(args)]
    assert len({cfg.OUTPUT_DIR for cfg in cfgs}) == len(cfgs) == 2 * len(ROWS)
    starts = [(cfg.TRAINER.COOP.CTX_INIT, cfg.TRAINER.COOP.N_CTX) for cfg in cfgs[:3:2]]
    assert starts == [("a photo of a", 4), ("", 4)]
