"""Reading image files."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .errors import UserError
from .reading import open_file, reason

if TYPE_CHECKING:
    from PIL import Image

# What an image is by its content, whatever its name: Pillow knows more, one of which starts another
# program. AVIF is there from Pillow 11.3 on.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".webp", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf"),
)


# What of an image isn't as people see it once it is read: Pillow's `convert("RGB")` has it so.
DEEP = "more than 8 bits a channel, of which values above 255 become 255: save them with 8"
TURNED = "an EXIF entry by which viewers turn them; they are read as they are stored"
MOVING = "several frames; the first is read"
_ORIENTATION = 0x0112


def read_image(path: str | os.PathLike, oddities: list[str] | None = None) -> Image.Image:
    """Return the image at `path`, decoded, in RGB.

    oddities: takes `DEEP`, `TURNED`, `MOVING`, where one holds.

    Raises UserError naming a file that is missing, of another format, damaged or too large.
    """
    from PIL import Image, UnidentifiedImageError

    if not os.path.exists(path):
        raise UserError(f"no such image: {path}")
    try:
        with open_file(path) as file, Image.open(file, formats=_formats()) as image:
            if oddities is not None:
                oddities.extend(_odd(image))
            return image.convert("RGB")
    except UserError:
        raise
    except UnidentifiedImageError:
        why = f"it is none of {', '.join(_formats())}"
    except Image.DecompressionBombError:
        why = f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        why = reason(error)
    raise UserError(f"cannot decode the image {path}: {why}")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow has."""
    from PIL import Image

    Image.init()
    # Half of the limit is worth a warning to Pillow.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _odd(image: Image.Image) -> list[str]:
    """Which of the three it is."""
    found = [DEEP] if image.mode in ("I", "F") or image.mode.startswith("I;16") else []
    found += [TURNED] if image.getexif().get(_ORIENTATION, 1) != 1 else []
    return found + ([MOVING] if getattr(image, "is_animated", False) else [])


def odd_lines(odd: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each oddity, of the paths that `undecodable` gives by it."""
    return [f"{len(p):,} images have {what} (first {p[0]})" for what, p in odd.items()]


def undecodable(paths: Iterable[str], odd: dict[str, list[str]] | None = None) -> list[str]:
    """Decode images; return a line for each that can't be, in their order.

    odd: takes the paths of those that aren't as people see them, by `read_image`'s oddities.
    """

    def look(path: str) -> tuple[str, str, list[str]]:
        oddities: list[str] = []
        try:
            read_image(path, oddities)
        except UserError as error:
            return path, str(error), []
        return path, "", oddities

    lines = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for path, line, oddities in pool.map(look, paths):
            lines += [line] if line else []
            for oddity in oddities if odd is not None else ():
                odd.setdefault(oddity, []).append(path)
    return lines
