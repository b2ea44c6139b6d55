"""The picture of the mini world: whose images stand where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dassl.utils import UserError
from mini_world.data_sets import DRAWN, SIDE
from mini_world.gallery import GAP, gallery, main


def test_every_row_has_the_first_test_image_of_its_classes(tmp_path):
    main(
        ["--datasets", "mini_badges", "mini_shapes", "--columns", "3", "--out", f"{tmp_path}/x.png"]
    )
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    step = SIDE + GAP
    assert sheet.shape == (2 * step - GAP, 3 * step - GAP, 4)
    for row, name in enumerate(("mini_badges", "mini_shapes")):
        drawn = DRAWN[name]
        last = len(drawn.names) - 1
        for column, label in enumerate((0, round(last / 2), last)):
            paths, pictures = drawn.pictures(label)
            shown = sheet[row * step :, column * step :][:SIDE, :SIDE]
            (first,) = [i for i, path in enumerate(paths) if path.rsplit("/")[-1][:8] == "test_000"]
            assert (shown[..., :3] == pictures[first]).all() and (shown[..., 3] == 255).all()
    assert not sheet[SIDE : SIDE + GAP].any()  # the page shows through


def test_a_data_set_that_is_not_drawn_is_one_line():
    with pytest.raises(UserError, match="no drawn data set mini_shape .did you mean"):
        gallery(["mini_shape"], 2)
