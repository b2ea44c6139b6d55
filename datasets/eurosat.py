"""EuroSAT: land use in satellite images (Helber et al., JSTARS 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import ImageDataset
from .splits import Lists


@DATASET_REGISTRY.register()
class EuroSAT(ImageDataset):
    """`2750/<Class>/`, the RGB version; the classes have display names."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."
    other_templates = {"tcp_context": "a photo of a {}."}  # what TCP's context stands in
    sizes = (10, 13500, 5400, 8100)

    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }

    def read_official(self) -> Lists:
        """Draw the split from the class folders; there are no official lists."""
        return self.read_and_split_data(self.image_dir, new_cnames=self.renamed)
