"""The binary version of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3 x 32 x 32 pixels.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data set's page.
CIFAR-10 records hold the label; CIFAR-100 records hold the coarse label (0..19), then the fine one (0..99),
which is the one used. Planes are red, green, blue, row by row.
"""

import numpy as np
import torch
from torch import Tensor

from anp_vs.errors import DataError

PIXELS = 3 * 32 * 32
_REMEDY = "delete it so that it is downloaded again, or give the official file of the binary version."

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)


def parse(data: bytes | bytearray, label_counts: tuple[int, ...], records: int, name: str) -> tuple[Tensor, Tensor]:
    """Read one file of records.

    Args:
        data: The whole file. A bytearray is not copied.
        label_counts: How many classes each label byte may name: (10,) for CIFAR-10, (20, 100) for CIFAR-100.
        records: How many records there must be.
        name: The file's name, for messages.

    Returns:
        Images, uint8, records x 3 x 32 x 32; labels (the last label byte), int64, records.

    Raises:
        DataError: If the size is another or a label is out of range.
    """
    length = len(label_counts) + PIXELS
    if len(data) != records * length:
        raise DataError(
            f"{name} has {len(data)} bytes where {records} records of {length} bytes are expected "
            f"({records * length}); {_REMEDY}"
        )
    buffer = data if isinstance(data, bytearray) else bytearray(data)
    # NumPy: torch reads no empty buffer.
    table = torch.from_numpy(np.frombuffer(buffer, np.uint8)).view(records, length)
    for column, count in enumerate(label_counts):
        wrong = (table[:, column] >= count).nonzero()
        if len(wrong):
            record = int(wrong[0])
            raise DataError(
                f"{name} has the label {int(table[record, column])} in record {record}, outside "
                f"0..{count - 1}; {_REMEDY}"
            )
    labels = table[:, len(label_counts) - 1].long()
    return table[:, len(label_counts) :].reshape(records, 3, 32, 32), labels
