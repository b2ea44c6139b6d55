"""Reading image files."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable
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


def read_image(path: str | os.PathLike) -> Image.Image:
    """Return the image at `path`, decoded, in RGB.

    Raises UserError naming a file that is missing, of another format, damaged or too large.
    """
    from PIL import Image, UnidentifiedImageError

    if not os.path.exists(path):
        raise UserError(f"no such image: {path}")
    try:
        with open_file(path) as file, Image.open(file, formats=_formats()) as image:
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


def undecodable(paths: Iterable[str]) -> list[str]:
    """Decode images; return a line for each that can't be, in their order."""

    def why(path: str) -> str:
        try:
            read_image(path)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        return [line for line in pool.map(why, paths) if line]
