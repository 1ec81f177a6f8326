"""Data sets: labelled uint8 images in three splits, and augmentation on whole batches."""

from anp_vs.data.augment import CROP_FLIP, Augmentation, to_float
from anp_vs.data.catalogue import NAMES, load
from anp_vs.data.hugging_face import from_hugging_face
from anp_vs.data.picture import PictureOptions
from anp_vs.data.split import Dataset, Split, hold_out

__all__ = [
    "CROP_FLIP",
    "NAMES",
    "Augmentation",
    "Dataset",
    "PictureOptions",
    "Split",
    "from_hugging_face",
    "hold_out",
    "load",
    "to_float",
]
