"""What an image is, is decided by its content; what is none is named in one line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.utils import UserError, read_image, undecodable

PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF"])
def test_formats_by_content(tmp_path, kind):
    path = tmp_path / "a.jpg"
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    Image.fromarray(PIXELS).save(path, kind)
    with Image.open(path) as image:
        expected = image.convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n%%EOF\n"


def test_other_formats_are_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(EPS)
    with Image.open(path) as image:
        assert image.format == "EPS"  # as Pillow would
    monkeypatch.setattr(os, "system", lambda *_: 1 / 0)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="it is none of JPEG, PNG"):
        read_image(path)
    for kind in ("ICO", "TGA", "PDF", "SGI"):
        Image.fromarray(PIXELS).save(path, kind)
        with pytest.raises(UserError, match="a.jpg: it is none of JPEG"):
            read_image(path)


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_an_image_too_large_is_not_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000) + struct.pack(">I", 9) + b"IDAT" + bytes(9))
    with pytest.raises(UserError, match=r"a.png: it has more than 178,956,970 pixels"):
        read_image(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="no regular file|is a folder"):
            read_image(path)


def test_the_undecodable_are_listed_in_order(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(PIXELS).save(path)
    for path in (paths[1], paths[4]):
        path.write_bytes(path.read_bytes()[:60])
    lines = undecodable(map(str, paths))
    assert [line.split(": ")[0] for line in lines] == [
        f"cannot decode the image {path}" for path in (paths[1], paths[4])
    ]
