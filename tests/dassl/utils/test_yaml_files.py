"""Whatever lies where a text is expected: one line that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dassl.config import CfgNode
from dassl.utils import UserError, read_json, read_json_lines, read_text, read_yaml
from dassl.utils.reading import parse_yaml

READERS = (read_text, read_json, read_json_lines, read_yaml)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    places = [
        (tmp_path / "none", "no such file"),
        (tmp_path, "no regular file|is a folder"),
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path / ("a" * 400), "cannot read .*File name too long"),
        (str(tmp_path) + "/a\0b", "cannot read"),
    ]
    for path, message in places:
        with pytest.raises(UserError, match=message):
            reader(path)


def test_a_text_too_large_is_not_read(tmp_path):
    path = tmp_path / "a"
    path.write_text("abcd")
    assert read_text(path, limit=4) == "abcd"
    with pytest.raises(UserError, match="larger than 3 bytes"):
        read_text(path, limit=3)
    path.write_bytes(b"a: " + b"x" * (1 << 20))
    with pytest.raises(UserError, match="larger than"):
        read_yaml(path)


def test_byte_order_marks_and_other_codes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]
    path.write_bytes("é".encode("latin1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800", "\0", "nan"]
)
def test_what_is_no_json(tmp_path, text):
    path = tmp_path / "a"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for reader in (read_json, read_json_lines):
        if reader is read_json_lines and not text:
            continue
        with pytest.raises(UserError) as error:
            reader(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_json_of_another_kind(tmp_path):
    path = tmp_path / "a"
    path.write_text('[]\n{"a": 1}')
    with pytest.raises(UserError, match="line 1, holds a list, not an object"):
        read_json_lines(path)
    for text in ("[]", '"a"', "1", "null"):
        path.write_text(text)
        with pytest.raises(UserError, match="not an object of keys and values"):
            read_json(path, dict)


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "a", "5", "a: [", "a: b: c", "a: &x [*x]", "? [a]\n: b", "a: !!int x"),
        *("a: 2001-99-99", "a: !!timestamp x", "a: !!bool x", "a: !!python/object:os.system {}"),
        *("a: " + "9" * 5000, "[" * 5000, "\0", ALIASES, "a: !!float x", "a: !!binary x"),
        *("<<: 5\na: 1", "a: !!omap 5", "&a a: *b", "a: !!set 5", "a: \ud800"),
    ],
)
def test_what_is_no_yaml(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("base", ["5", "{a: b}", "[5]", "true"])
def test_bases_that_are_none(tmp_path, base):
    path = tmp_path / "a.yaml"
    path.write_text(f"_BASE_: {base}\n")
    with pytest.raises(UserError, match="_BASE_ is .*, not a file's path"):
        CfgNode().merge_from_file(path)


def test_a_text_is_read_once_and_each_reader_has_its_own(monkeypatch):
    import yaml

    calls, load = [], yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: calls.append(1) or load(text))
    text = "once: {read: [1, 2]}"
    first = parse_yaml(text, "a file")
    first["once"]["read"].append(3)
    assert parse_yaml(text, "another") == {"once": {"read": [1, 2]}} and len(calls) == 1
