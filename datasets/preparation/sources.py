"""Where the data sets are to be had: addresses, sizes and hashes. Facts only, no code.

A data set is made of parts; a part is had from the first of its mirrors that works. If parts are
left over, the bundles are tried: archives that somebody made of the whole folder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mirror:
    """One place to get a file from.

    Args:
        url: https://… ; gdrive:<id> ; root:<path below the data folder>, a file to copy;
            hand:<address>, where a person has to go.
        name: the file's name; taken from the url if not given.
        size: in bytes, if known.
        digest: "sha256:<hex>" or "md5:<hex>", if known.
    """

    url: str
    name: str = ""
    size: int | None = None
    digest: str = ""

    @property
    def file_name(self) -> str:
        """The name the file gets in the downloads folder."""
        return self.name or self.url.rpartition("/")[2]


@dataclass(frozen=True)
class SourcePart:
    """What one archive or file brings.

    Args:
        folder: below the data folder.
        contents: names in that folder which are there once the part is.
        mirrors: where to get it.
        needed: False for what a run can do without.
    """

    folder: str
    contents: tuple[str, ...]
    mirrors: tuple[Mirror, ...]
    needed: bool = True


@dataclass(frozen=True)
class Source:
    """One data set: its parts, bundles of the whole, and where it comes from."""

    homepage: str
    licence: str
    parts: tuple[SourcePart, ...]
    bundles: tuple[Mirror, ...] = ()


VGG = "https://www.robots.ox.ac.uk/~vgg/data"
HF = "https://huggingface.co"


def _bundles(folder: str, koorye: str, zhengli: str = "") -> tuple[Mirror, ...]:
    """The archives of two groups of the field that share the folders they work with."""
    zhengli = f"{zhengli or folder}.zip"
    return (
        Mirror(
            f"{HF}/datasets/koorye/{koorye}/resolve/main/{folder}.tar.gz",
            f"koorye_{folder}.tar.gz",
        ),
        Mirror(
            f"{HF}/zhengli97/prompt_learning_dataset/resolve/main/{zhengli}", f"zhengli97_{zhengli}"
        ),
    )


def _file(folder: str, name: str, drive_id: str) -> SourcePart:
    return SourcePart(folder, (name,), (Mirror(f"gdrive:{drive_id}", name),))


CLASSNAMES = Mirror("gdrive:1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", "classnames.txt")


def _classnames(folder: str) -> SourcePart:
    """ImageNet's class names, as the field has them: a copy in each of its variants' folders."""
    return SourcePart(
        folder, ("classnames.txt",), (Mirror("root:imagenet/classnames.txt"), CLASSNAMES)
    )


IMAGENET_PAGE = "hand:https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"

SOURCES = {
    "ImageNet": Source(
        "https://image-net.org",
        "research only; accept the terms there",
        (
            SourcePart("imagenet", ("classnames.txt",), (CLASSNAMES,)),
            SourcePart(
                "imagenet/images/train",
                ("n01440764",),
                (
                    Mirror(
                        IMAGENET_PAGE,
                        "ILSVRC2012_img_train.tar",
                        digest="md5:1d675b47d978889d74fa0da5fadfb00e",
                    ),
                ),
            ),
            SourcePart(
                "imagenet/images/val",
                ("ILSVRC2012_val_00000001.JPEG",),
                (
                    Mirror(
                        IMAGENET_PAGE,
                        "ILSVRC2012_img_val.tar",
                        digest="md5:29b22e2961454d5413ddabcf34fc5622",
                    ),
                ),
            ),
            SourcePart(
                "imagenet",
                ("ILSVRC2012_devkit_t12",),
                (
                    Mirror(
                        IMAGENET_PAGE,
                        "ILSVRC2012_devkit_t12.tar.gz",
                        digest="md5:fa75699e90414af021442c21a62c3abf",
                    ),
                ),
            ),
        ),
    ),
    "Caltech101": Source(
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "CC BY 4.0",
        (
            _file("caltech-101", "split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
            SourcePart(
                "caltech-101",
                ("101_ObjectCategories",),
                (
                    Mirror(
                        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                        digest="md5:3138e1922a9193bfa496528edbbc45d0",
                    ),
                    Mirror(
                        "gdrive:137RyRjvTBkBiIfeYBNZBtViDHQ6_Ewsp",
                        "101_ObjectCategories.tar.gz",
                        131740031,
                        "sha256:af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
                    ),
                ),
            ),
        ),
        _bundles("caltech-101", "Caltech-101"),
    ),
    "OxfordPets": Source(
        f"{VGG}/pets/",
        "CC BY-SA 4.0",
        (
            _file("oxford_pets", "split_zhou_OxfordPets.json", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
            SourcePart(
                "oxford_pets",
                ("images",),
                (
                    Mirror(
                        f"{VGG}/pets/data/images.tar.gz",
                        "oxford_pets_images.tar.gz",
                        791918971,
                        "sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                    ),
                ),
            ),
            SourcePart(
                "oxford_pets",
                ("annotations",),
                (
                    Mirror(
                        f"{VGG}/pets/data/annotations.tar.gz",
                        "oxford_pets_annotations.tar.gz",
                        19173078,
                        "sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                    ),
                ),
                needed=False,
            ),
        ),
        _bundles("oxford_pets", "Oxford-Pets"),
    ),
    "StanfordCars": Source(
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
        "non-commercial research",
        (
            _file(
                "stanford_cars",
                "split_zhou_StanfordCars.json",
                "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
            ),
            SourcePart(
                "stanford_cars",
                ("cars_train",),
                (
                    Mirror(
                        "https://ai.stanford.edu/~jkrause/car196/cars_train.tgz",
                        "",
                        979269282,
                        "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                    ),
                ),
            ),
            SourcePart(
                "stanford_cars",
                ("cars_test",),
                (
                    Mirror(
                        "https://ai.stanford.edu/~jkrause/car196/cars_test.tgz",
                        "",
                        977350468,
                        "sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                    ),
                ),
            ),
            SourcePart(
                "stanford_cars",
                ("devkit",),
                (
                    Mirror(
                        "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",
                        "",
                        330960,
                        "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                    ),
                    Mirror(
                        "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
                        "",
                        330960,
                        "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                    ),
                ),
                needed=False,
            ),
            SourcePart(
                "stanford_cars",
                ("cars_test_annos_withlabels.mat",),
                (
                    Mirror(
                        "https://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",
                        "",
                        185758,
                        "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                    ),
                ),
                needed=False,
            ),
        ),
        _bundles("stanford_cars", "Stanford-Cars"),
    ),
    "OxfordFlowers": Source(
        f"{VGG}/flowers/102/",
        "not stated",
        (
            _file(
                "oxford_flowers",
                "split_zhou_OxfordFlowers.json",
                "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
            ),
            _file("oxford_flowers", "cat_to_name.json", "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
            SourcePart(
                "oxford_flowers",
                ("jpg",),
                (
                    Mirror(
                        f"{VGG}/flowers/102/102flowers.tgz",
                        "",
                        344862509,
                        "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                    ),
                ),
            ),
            SourcePart(
                "oxford_flowers",
                ("imagelabels.mat",),
                (
                    Mirror(
                        f"{VGG}/flowers/102/imagelabels.mat",
                        "",
                        502,
                        "sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
                    ),
                ),
                needed=False,
            ),
        ),
        _bundles("oxford_flowers", "Oxford-Flowers"),
    ),
    "Food101": Source(
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "images of foodspotting.com: research only",
        (
            _file("food-101", "split_zhou_Food101.json", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
            SourcePart(
                "food-101",
                ("images", "meta"),
                (
                    Mirror(
                        "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                        "",
                        4996278331,
                        "sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
                    ),
                ),
            ),
        ),
        _bundles("food-101", "Food-101", "food101"),
    ),
    "FGVCAircraft": Source(
        f"{VGG}/fgvc-aircraft/",
        "non-commercial research",
        (
            SourcePart(
                "fgvc_aircraft",
                ("images", "variants.txt"),
                (Mirror(f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"),),
            ),
        ),
        _bundles("fgvc_aircraft", "FGVC-Aircraft"),
    ),
    "SUN397": Source(
        "https://vision.princeton.edu/projects/2010/SUN/",
        "not stated",
        (
            _file("sun397", "split_zhou_SUN397.json", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
            SourcePart(
                "sun397",
                ("SUN397",),
                (
                    Mirror(
                        "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                        "",
                        39077296924,
                        "sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
                    ),
                ),
            ),
            SourcePart(
                "sun397",
                ("Training_01.txt", "Testing_01.txt"),
                (
                    Mirror(
                        "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
                        "",
                        18293705,
                        "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
                    ),
                ),
                needed=False,
            ),
        ),
        _bundles("sun397", "SUN397"),
    ),
    "DescribableTextures": Source(
        f"{VGG}/dtd/",
        "research only",
        (
            _file(
                "dtd", "split_zhou_DescribableTextures.json", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"
            ),
            SourcePart(
                "dtd",
                ("images", "labels"),
                (
                    Mirror(
                        f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",
                        "",
                        625239812,
                        "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                    ),
                ),
            ),
        ),
        _bundles("dtd", "Describable-Textures-Dataset"),
    ),
    "EuroSAT": Source(
        "https://github.com/phelber/EuroSAT",
        "MIT",
        (
            _file("eurosat", "split_zhou_EuroSAT.json", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
            SourcePart(
                "eurosat",
                ("2750",),
                tuple(
                    Mirror(
                        url,
                        "",
                        94280567,
                        "sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
                    )
                    for url in (
                        f"{HF}/datasets/torchgeo/eurosat/resolve/main/EuroSAT.zip",
                        "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                    )
                ),
            ),
        ),
        _bundles("eurosat", "EuroSAT"),
    ),
    "UCF101": Source(
        "https://www.crcv.ucf.edu/data/UCF101.php",
        "not stated",
        (
            _file("ucf101", "split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
            SourcePart(
                "ucf101",
                ("UCF-101-midframes",),
                (Mirror("gdrive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", "UCF-101-midframes.zip"),),
            ),
        ),
        _bundles("ucf101", "UCF101"),
    ),
    "ImageNetV2": Source(
        "https://github.com/modestyachts/ImageNetV2",
        "MIT",
        (
            _classnames("imagenetv2"),
            SourcePart(
                "imagenetv2",
                ("imagenetv2-matched-frequency-format-val",),
                tuple(
                    Mirror(f"{base}/imagenetv2-matched-frequency.tar.gz")
                    for base in (
                        f"{HF}/datasets/vaishaal/ImageNetV2/resolve/main",
                        "https://s3-us-west-2.amazonaws.com/imagenetv2public",
                    )
                ),
            ),
        ),
        _bundles("imagenetv2", "ImageNet-V2"),
    ),
    "ImageNetSketch": Source(
        "https://github.com/HaohanWang/ImageNet-Sketch",
        "MIT",
        (
            _classnames("imagenet-sketch"),
            SourcePart(
                "imagenet-sketch/images",
                ("n01440764",),
                (
                    Mirror(
                        f"{HF}/datasets/songweig/imagenet_sketch/resolve/main/data/"
                        "ImageNet-Sketch.zip"
                    ),
                    Mirror("gdrive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", "ImageNet-Sketch.zip"),
                ),
            ),
        ),
        _bundles("imagenet-sketch", "ImageNet-Sketch"),
    ),
    "ImageNetA": Source(
        "https://github.com/hendrycks/natural-adv-examples",
        "MIT",
        (
            _classnames("imagenet-adversarial"),
            SourcePart(
                "imagenet-adversarial",
                ("imagenet-a",),
                (
                    Mirror(
                        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                        "",
                        687552512,
                        "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
                    ),
                ),
            ),
        ),
        _bundles("imagenet-adversarial", "ImageNet-Adversarial"),
    ),
    "ImageNetR": Source(
        "https://github.com/hendrycks/imagenet-r",
        "MIT",
        (
            _classnames("imagenet-rendition"),
            SourcePart(
                "imagenet-rendition",
                ("imagenet-r",),
                (
                    Mirror(
                        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                        "",
                        2191079936,
                        "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
                    ),
                ),
            ),
        ),
        _bundles("imagenet-rendition", "ImageNet-Rendition"),
    ),
}
