"""A folder whose files register what they have, among them files that can't."""

import importlib
import sys

import pytest

from dassl.utils import Registry, UserError, import_folder

OWN = """
from {package}.registry import R

@R.register()
class Own: ...
"""
FILES = {
    "own": OWN,
    "aaa_takes_a_name": OWN.replace("class Own", "class First: ...\n\n@R.register()\nclass Own"),
    "bbb_needs_another": "import nothing_such\n\nclass Needy: ...\n",
    "ccc_is_no_python": "class Broken:\n    x = = 1\n",
    "ddd_is_a_program": "import sys\nsys.exit('usage: ddd')\n",
    "eee_uses_a_broken_one": "from .bbb_needs_another import Needy\n",
    "fff_uses_a_good_one": "from .zzz_is_fine import Fine\nraise ValueError\n",
    "zzz_is_fine": OWN.replace("class Own", "class Fine"),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of FILES under a name of its own."""
    name = f"package_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "registry.py").write_text("from dassl.utils import Registry\nR = Registry('TOOL')\n")
    for file, text in FILES.items():
        (folder / f"{file}.py").write_text(text.replace("{package}", name))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_a_file_that_fails_is_named_in_a_line_and_harms_no_other(package, capsys):
    registry: Registry = importlib.import_module(f"{package.__name__}.registry").R
    modules = import_folder(package, ("own",), registry)
    names = [module.__name__.rpartition(".")[2] for module in modules]
    assert names == ["own", "registry", "zzz_is_fine"]
    assert registry.registered_names() == ["Own", "Fine"]
    assert registry.get("Own").__module__.endswith(".own")
    home = package.__name__
    assert capsys.readouterr().err.splitlines() == [
        f"{home}/aaa_takes_a_name.py left out: the tool Own is registered already, by {home}.own",
        f"{home}/bbb_needs_another.py left out: "
        "ModuleNotFoundError: No module named 'nothing_such'",
        f"{home}/ccc_is_no_python.py left out: "
        "SyntaxError: invalid syntax (ccc_is_no_python.py, line 2)",
        f"{home}/ddd_is_a_program.py left out: SystemExit: usage: ddd",
        f"{home}/eee_uses_a_broken_one.py left out: "
        "ModuleNotFoundError: No module named 'nothing_such'",
        f"{home}/fff_uses_a_good_one.py left out: ValueError",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("First", r"aaa_takes_a_name.py left out: the tool Own is registered already"),
        ("Needy", r"bbb_needs_another.py left out: .*'nothing_such'"),
        ("Broken", r"ccc_is_no_python.py left out: SyntaxError"),
    ],
)
def test_whoever_asks_for_what_is_in_it_is_told_why(package, name, reason):
    registry = importlib.import_module(f"{package.__name__}.registry").R
    import_folder(package, ("own",), registry)
    with pytest.raises(UserError, match=rf"tool '{name}' can't be had: .*{reason}"):
        registry.get(name)
    with pytest.raises(UserError, match="unknown tool 'Nothing'; registered: Fine, Own"):
        registry.get("Nothing")
