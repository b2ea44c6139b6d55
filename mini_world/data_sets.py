"""Data sets of the drawn world (`drawing.py`): drawn on first use, then read like any other.

Their classes are compositions of words the tiny CLIP knows; their look is another than that of its
pre-training: warmer and uneven light, wandering colours, noise, clutter, JPEG. A fixture and a
demonstration, not evidence: see docs/mini_world.md.
"""

import json
import os
import secrets
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, is_disk_error, read_json, wait_for_folder, write_json
from datasets.base import ImageDataset

from .drawing import Look, Scene, draw
from .outlines import SHAPES, SWATCH
from .textures import COLOURS, GROUNDS, TEXTURES

DRAWING = 1  # raise it whenever the same recipe would give other pictures
SIDE = 56  # pixels; the tiny CLIP sees 48
LAMP = Look(
    radius=(0.45, 0.75),
    shift=0.2,
    turn=0.35,
    hue=0.12,
    light=0.35,
    noise=0.07,
    clutter=3,
    tint=(1.0, 0.9, 0.75),
    contrast=(0.6, 0.9),
    rim=0.06,
)


class DrawnDataset(ImageDataset):
    """A data set that draws its own images below `<root>/<dataset_dir>` when they aren't there.

    A class is named by words of the world: `striped red star`, `tree on snow`. What a name doesn't
    say is drawn at random. Images and lists are a function of the class attributes below.
    """

    image_dir = "images"
    split_file = "split.json"
    how_to_get = "delete the data set's folder: it is drawn anew"
    names: tuple[str, ...] = ()  # by label
    per_class = {"train": 20, "val": 6, "test": 30}
    look = LAMP
    quality: int | None = 60  # of JPEG; None writes PNG

    def locate(self, root: str) -> None:
        """Draw the data set if it isn't there, then set its folders."""
        if not root:
            raise UserError("no data folder given: say --root DIR (DATASET.ROOT)")
        folder = Path(root).expanduser().resolve() / type(self).dataset_dir
        if not folder.is_dir():
            self._draw_into(folder)
        super().locate(root)
        recipe = Path(self.dataset_dir) / "recipe.json"
        if not recipe.is_file() or read_json(recipe) != self.recipe():
            raise UserError(
                f"{self.dataset_dir} was drawn by another version of {type(self).__name__}; "
                "delete the folder: it is drawn anew"
            )

    @classmethod
    def recipe(cls) -> dict:
        """What the pictures are a function of."""
        return json.loads(
            json.dumps(
                {
                    "drawing": DRAWING,
                    "side": SIDE,
                    "names": cls.names,
                    "per_class": cls.per_class,
                    "look": asdict(cls.look),
                    "quality": cls.quality,
                    "seed": cls._seed(),
                }
            )
        )

    @classmethod
    def _seed(cls) -> int:
        return zlib.crc32(cls.__name__.encode())

    @classmethod
    def pictures(cls, label: int) -> tuple[list[str], np.ndarray]:
        """The pictures of a class: paths in the image folder, and uint8 (n, SIDE, SIDE, 3)."""
        folder = cls.names[label].replace(" ", "_")
        ending = "png" if cls.quality is None else "jpg"
        paths = [
            f"{folder}/{part}_{i:03d}.{ending}"
            for part, n in cls.per_class.items()
            for i in range(n)
        ]
        rng = np.random.default_rng((cls._seed(), label))
        return paths, draw(scene_of(cls.names[label], len(paths), rng), SIDE, cls.look, rng)

    @classmethod
    def _draw_into(cls, folder: Path) -> None:
        """Draw everything beside `folder`, then give it its name: another process may be at it.

        One draws at a time, and removes what a killed one left.
        """
        with wait_for_folder(folder.parent) as alone:
            for left in folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 8}") if alone else ():
                shutil.rmtree(left, ignore_errors=True)
            if not folder.is_dir():
                cls._draw_alone(folder)

    @classmethod
    def _draw_alone(cls, folder: Path) -> None:
        print(f"Drawing {cls.__name__} ({len(cls.names)} classes) into {folder}")
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        lists: dict[str, list] = {part: [] for part in ("train", "val", "test")}
        try:
            for label, name in enumerate(cls.names):
                paths, pictures = cls.pictures(label)
                (unfinished / cls.image_dir / paths[0]).parent.mkdir(parents=True)
                for path, picture in zip(paths, pictures, strict=True):
                    options = {} if cls.quality is None else {"quality": cls.quality}
                    Image.fromarray(picture).save(unfinished / cls.image_dir / path, **options)
                    lists[path.split("/")[1].split("_")[0]].append([path, label, name])
            write_json(lists, unfinished / cls.split_file)
            write_json(cls.recipe(), unfinished / "recipe.json")
            os.rename(unfinished, folder)
        except OSError as error:
            if is_disk_error(error):
                error.filename = error.filename or str(folder)
                raise
            if not folder.is_dir():  # else another process was first, with the same pictures
                raise UserError(f"cannot draw {cls.__name__} into {folder}: {error}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def scene_of(name: str, n: int, rng: np.random.Generator) -> Scene:
    """`n` scenes of the class `name`; attributes it doesn't state are drawn, texture stays plain.

    Raises ValueError for a word that is none of the world's.
    """
    words = [word for word in name.split() if word != "on"]
    known = {
        "shape": [*SHAPES, SWATCH],
        "colour": list(COLOURS),
        "texture": list(TEXTURES),
        "ground": list(GROUNDS),
    }
    stated = {kind: [w for w in words if w in names] for kind, names in known.items()}
    if sum(map(len, stated.values())) != len(words) or any(len(s) > 1 for s in stated.values()):
        raise ValueError(f"{name!r} isn't a thing of the drawn world")
    values = {}
    for kind, names in known.items():
        if stated[kind]:
            values[kind] = np.full(n, names.index(stated[kind][0]))
        elif kind == "texture":
            values[kind] = np.full(n, names.index("plain"))
        else:
            values[kind] = rng.integers(0, len(names) - (kind == "shape"), n)
    return Scene(**values)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@DATASET_REGISTRY.register()
class MiniShapes(DrawnDataset):
    """Colour and shape; the source of cross-dataset runs. Sorted by name."""

    dataset_dir = "mini_shapes"
    names = _names(
        "black arrow, blue circle, blue house, blue triangle, brown house, brown leaf, "
        "green arrow, green leaf, green square, green tree, orange ring, orange triangle, "
        "pink flower, pink heart, purple flower, purple ring, red circle, red heart, "
        "red star, teal tree, white moon, yellow moon, yellow square, yellow star"
    )


@DATASET_REGISTRY.register()
class MiniFabrics(DrawnDataset):
    """Texture and colour of cloth that fills the picture. Sorted by name."""

    dataset_dir = "mini_fabrics"
    names = _names(
        "checkered black fabric, checkered green fabric, checkered red fabric, "
        "dotted blue fabric, dotted pink fabric, dotted yellow fabric, plaid green fabric, "
        "plaid purple fabric, plaid red fabric, ringed orange fabric, ringed teal fabric, "
        "speckled brown fabric, speckled grey fabric, speckled white fabric, "
        "striped black fabric, striped blue fabric, striped orange fabric, "
        "wavy pink fabric, wavy purple fabric, wavy teal fabric"
    )


@DATASET_REGISTRY.register()
class MiniScenes(DrawnDataset):
    """Shape and ground, in any colour. Sorted by name. PNG."""

    dataset_dir = "mini_scenes"
    quality = None
    names = _names(
        "cloud on night, cloud on water, cog on tiles, cog on wood, cross on brick, "
        "cross on wood, drop on tiles, drop on water, flower on grass, flower on sand, "
        "heart on brick, heart on snow, house on grass, house on snow, star on night, "
        "star on sand, tree on grass, tree on snow"
    )


@DATASET_REGISTRY.register()
class MiniBadges(DrawnDataset):
    """Texture, colour and shape: colour alone tells the base classes apart, texture the new ones.

    What tuning on base classes learns to look past is what new ones need.
    """

    dataset_dir = "mini_badges"
    names = _names(
        "checkered blue circle, dotted red ring, plaid green heart, ringed orange cog, "
        "speckled brown cloud, striped yellow star, wavy purple square, plain pink flower, "
        "plain black arrow, striped teal cross, "
        "checkered red circle, dotted red circle, plaid red circle, striped red circle, "
        "wavy red circle, checkered blue star, dotted blue star, plaid blue star, "
        "striped blue star, wavy blue star"
    )


class _ShapesElsewhere(DrawnDataset):
    """The classes of MiniShapes, looking otherwise; every image is a test image."""

    names = MiniShapes.names
    per_class = {"test": 30}


@DATASET_REGISTRY.register()
class MiniShapesSketch(_ShapesElsewhere):
    """Crayon outlines on paper."""

    dataset_dir = "mini_shapes_sketch"
    look = Look(line=0.2, hue=0.1, noise=0.05, light=0.7)


@DATASET_REGISTRY.register()
class MiniShapesNight(_ShapesElsewhere):
    """Seen in the dark through a noisy, unsharp camera."""

    dataset_dir = "mini_shapes_night"
    look = Look(
        hue=0.12, light=0.4, noise=0.1, blur=1.0, clutter=3, tint=(0.3, 0.35, 0.55), rim=0.0
    )


_ALL = (MiniShapes, MiniFabrics, MiniScenes, MiniBadges, MiniShapesSketch, MiniShapesNight)
DRAWN: dict[str, type[DrawnDataset]] = {each.dataset_dir: each for each in _ALL}
