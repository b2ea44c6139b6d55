"""Reading image files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from PIL import Image


def read_image(path: str | os.PathLike) -> Image.Image:
    """Return the image at `path`, decoded, in RGB. Raises UserError naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"no such image: {path}") from None
    # A damaged file makes Pillow's decoders raise nearly anything.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot decode the image {path}: {error}") from None
