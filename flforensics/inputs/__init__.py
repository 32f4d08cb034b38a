"""From the operator's files to what a network is called with, exactly as the [input] table says.

A prediction is explained only if it is the one that was made, so every step from bytes to numbers is either
stated in the table or refused; nothing is clipped, guessed or repaired. The files are as hostile as any.
"""

from flforensics.inputs.kinds import KINDS, Kind, kind_of, read_samples, text_samples
from flforensics.inputs.labels import label_of_folder, read_labels, with_labels
from flforensics.inputs.noise import kaiming_noise, noise_shape, uniform_noise
from flforensics.inputs.paths import expand
from flforensics.inputs.samples import Batch, Sample, alike, collate

__all__ = [
    "KINDS",
    "Batch",
    "Kind",
    "Sample",
    "alike",
    "collate",
    "expand",
    "kaiming_noise",
    "kind_of",
    "label_of_folder",
    "noise_shape",
    "read_labels",
    "read_samples",
    "text_samples",
    "uniform_noise",
    "with_labels",
]
