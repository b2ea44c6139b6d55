"""The names of corruptions, and how much of each there is at the five severities.

They stand apart from what is done (dassl/data/corruptions.py), so that commands that only plan or
tabulate need neither images nor PyTorch.
"""

NONE = "none"
TYPOS = "typos"  # of class names; all others are of images
SEVERITIES = (1, 2, 3, 4, 5)

# What the amounts are of stands with the function of that name.
AMOUNTS: dict[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "jpeg": (25, 18, 15, 10, 7),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "crop": (0.9, 0.8, 0.7, 0.6, 0.5),
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
    "color": (0.05, 0.1, 0.15, 0.2, 0.25),
    "rotation": (10, 20, 30, 45, 60),
}
OF_IMAGES = tuple(AMOUNTS)
CORRUPTIONS = (*OF_IMAGES, TYPOS)
