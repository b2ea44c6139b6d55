"""A trained model in three lines, beside packages that have this repository's names."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PROGRAM = """
import sys
import clip, datasets
assert clip.OTHER and datasets.OTHER
import dept
model = dept.load(sys.argv[1])
found = model([sys.argv[2]], top=2)
named = dept.load(sys.argv[1], classes=["cat", "dog"])
print(found[0], model.classes, named.classes)
from PIL import Image
print(tuple(named.logits([Image.open(sys.argv[2])]).shape))
import clip as again, datasets.load as part
assert again is clip and clip.OTHER and part.OTHER
assert "tuning" not in sys.modules and sys.argv[3] not in sys.path
try:
    dept.load(sys.argv[3] + "/docs")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder with `dept` alone of this repository, and other packages of two rooms' names."""
    (tmp_path / "dept").symlink_to(REPO / "dept")
    for name in ("clip", "datasets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OTHER = True\n")
    (tmp_path / "datasets" / "load.py").write_text("OTHER = True\n")
    return tmp_path


@pytest.mark.parametrize("exported", [False, True])
def test_other_packages_keep_their_names(exported, elsewhere, run_folders, picture_root):
    model = run_folders["DePT_CoOp"]
    if exported:
        from experiments import export_command

        export_command.main([str(model), "--output", str(elsewhere / "model")])
        model = elsewhere / "model"
    words = ["-c", PROGRAM, str(model), str(picture_root / "ant" / "0.png"), str(REPO)]
    done = subprocess.run([sys.executable, *words], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    guesses, shape, refused = done.stdout.splitlines()
    assert guesses.endswith("['cat', 'dog']") and guesses.startswith("[('")
    assert shape == "(1, 2)" and refused.startswith("UserError") and "no run" in refused
