"""`kind = "image"`: a file to pixels [channels, height, width], step by step as torchvision would.

EXIF orientation, alpha, mode, `size` or `resize`, `crop`, division by `scale`, `mean` and `std`. Grey images of
16 bits keep them all; 16-bit colour comes with its upper 8 bits, which is what Pillow reads. Colour profiles
are ignored, and CMYK is converted without them.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flforensics.errors import EvidenceError, FLForensicsError
from flforensics.evidence import EvidenceFile
from flforensics.inputs.geometry import RESIZING, Geometry
from flforensics.inputs.samples import require_finite
from flforensics.inputs.settings import (
    Key,
    choice,
    each,
    finite,
    flag,
    pair,
    positive,
    refused,
    settle,
    whole,
)

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm")

# Pillow's own warning starts here; above it, it would have to be switched off for the whole process.
_MOST_PIXELS = 89_478_485
_SIDE = 65_535
_EIGHT_BITS, _SIXTEEN_BITS = 255.0, 65_535.0
# Formats whose pixels Pillow widens to 32 bits (`I`) although they have 16.
_SIXTEEN_AT_MOST = ("PNG", "PPM")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}

_KEYS: Mapping[str, Key] = {
    "mode": Key(choice("L", "RGB"), '"L" (grey) or "RGB"'),
    "size": Key(pair(_SIDE), "[height, width], to stretch to", None),
    "resize": Key(whole(1, _SIDE), "the length of the short side, to shrink or enlarge to", None),
    "crop": Key(pair(_SIDE), "[height, width], cut from the centre", None),
    "interpolation": Key(choice(*RESIZING), " | ".join(f'"{name}"' for name in RESIZING), "bilinear"),
    "antialias": Key(flag, "true or false", True),
    "scale": Key(positive, "the positive number that stored values are divided by", None),
    "mean": Key(each(finite), "a list of one number, or of one for each channel", (0.0,)),
    "std": Key(each(positive), "a list of one positive number, or of one for each channel", (1.0,)),
    "alpha": Key(choice("refuse", "drop", *_BACKGROUNDS), '"refuse", "drop", "white" or "black"', "refuse"),
    "exif": Key(flag, "true (turn the image as its EXIF data say) or false", True),
    "max_pixels": Key(whole(1, _MOST_PIXELS), f"a number from 1 to {_MOST_PIXELS}", 50_000_000),
}


@dataclass(frozen=True)
class ImageSettings:
    """The [input] table of kind `image`, checked."""

    mode: str
    geometry: Geometry
    scale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    alpha: str
    exif: bool
    max_pixels: int


def image_settings(table: Mapping[str, object]) -> ImageSettings:
    """The settings in `table`. Raises UsageError."""
    values = settle(table, _KEYS)
    if values["size"] and values["resize"]:
        raise refused("has both `size` and `resize`", hint="keep one; `crop` cuts after either")
    channels = 1 if values["mode"] == "L" else 3
    for key in ("mean", "std"):
        if len(values[key]) not in (1, channels):
            raise refused(f"{key} has {len(values[key])} numbers", hint=f"write 1 or {channels}")
    geometry = Geometry(
        **{key: values.pop(key) for key in ("size", "resize", "crop", "interpolation", "antialias")},
        max_pixels=values["max_pixels"],
    )
    return ImageSettings(geometry=geometry, **values)


def read_image(file: EvidenceFile, settings: ImageSettings) -> Tensor:
    """Pixels [channels, height, width], float32, normalised.

    Raises EvidenceError: FORMAT, IMAGE (truncated, malformed), LIMIT, ANIMATED, ALPHA, DEPTH, SHAPE, NON_FINITE.
    """
    # No sensible encoding needs more than 8 bytes for a pixel, and metadata of a megabyte.
    if file.size > 8 * settings.max_pixels + (1 << 20):
        raise _rejected(file, "is too large a file for an image", "LIMIT", "raise max_pixels under [input]")
    with _pillow_errors(file):
        image = _decode(file, settings)
        image, full_scale = _in_mode(image, file, settings)
        pixels = settings.geometry.apply(image, file.name)
    pixels = pixels / torch.tensor(full_scale if settings.scale is None else settings.scale)
    return require_finite(normalised(pixels, settings), file.name)


def _decode(file: EvidenceFile, settings: ImageSettings) -> "Image":
    """The image with all its pixels read, the right way up."""
    from PIL import Image, ImageOps

    image: Image.Image = Image.open(BytesIO(file.read(0, file.size)), formats=FORMATS)
    if image.width * image.height > settings.max_pixels:
        size = f"{image.width} x {image.height}"
        raise _rejected(file, f"has {size} pixels", "LIMIT", f"{settings.max_pixels} is max_pixels under [input]")
    # A photograph of several pictures (MPO) is a JPEG with a preview or a second eye behind it.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _rejected(file, "holds several pictures", "ANIMATED", "save the one that was classified")
    image.load()
    if image.mode == "I" and image.format in _SIXTEEN_AT_MOST:
        image = image.convert("I;16")
    return ImageOps.exif_transpose(image) if settings.exif else image


def _in_mode(image: "Image", file: EvidenceFile, settings: ImageSettings) -> tuple["Image", float]:
    """The image in 8 bits as `mode` says, or in floating point where it had more; and its full scale."""
    if image.mode in _DEEP:
        return _deep(image, file, settings)
    if image.mode not in _CONVERTIBLE:
        raise _rejected(file, f"has pixels of the mode {image.mode}", "DEPTH", "save it as 8-bit grey or RGB")
    if image.has_transparency_data and settings.alpha != "drop":
        image = _opaque(image, file, settings.alpha)
    return image if image.mode == settings.mode else image.convert(settings.mode), _EIGHT_BITS


def _opaque(image: "Image", file: EvidenceFile, alpha: str) -> "Image":
    """The colours without alpha: over a background, or where nothing is transparent at all."""
    from PIL import Image

    with_alpha = image.convert("RGBA")
    if alpha in _BACKGROUNDS:
        background = Image.new("RGBA", with_alpha.size, _BACKGROUNDS[alpha])
        with_alpha = Image.alpha_composite(background, with_alpha)
    elif np.asarray(with_alpha.getchannel("A")).min() < _EIGHT_BITS:
        hint = 'state alpha = "drop" (as torchvision does), "white" or "black" under [input]'
        raise _rejected(file, "is partly transparent", "ALPHA", hint)
    return with_alpha.convert("RGB")


def _deep(image: "Image", file: EvidenceFile, settings: ImageSettings) -> tuple["Image", float]:
    """Grey of more than 8 bits, as floating point. Only 16 bits have a full scale that is known."""
    if "transparency" in image.info and settings.alpha != "drop":
        raise _rejected(file, "is partly transparent", "ALPHA", 'state alpha = "drop" under [input]')
    if settings.scale is None and image.mode in ("I", "F"):
        hint = "state `scale` under [input], the number that stored values are divided by"
        raise _rejected(file, "has pixels of 32 bits, whose full scale is not known", "DEPTH", hint)
    return image.convert("F"), _SIXTEEN_BITS


def normalised(pixels: Tensor, settings: ImageSettings) -> Tensor:
    """Pixels [..., channels, height, width] less `mean`, over `std`; one channel is repeated for RGB."""
    channels = pixels if settings.mode == "L" else pixels.expand(*pixels.shape[:-3], 3, -1, -1)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (settings.mean, settings.std))
    return (channels - mean) / std


@contextmanager
def _pillow_errors(file: EvidenceFile) -> Iterator[None]:
    """Turns what a decoder raises on a malformed file, which is nearly anything, into EvidenceError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FLForensicsError:
        raise
    except UnidentifiedImageError:
        raise _rejected(file, "is not an image", "FORMAT", f"use {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise _rejected(file, "has too many pixels", "LIMIT", "use a smaller image") from None
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise _rejected(file, f"cannot be decoded ({cause})", "IMAGE", "restore the complete file") from error


def _rejected(file: EvidenceFile, problem: str, reason: str, hint: str) -> EvidenceError:
    return EvidenceError(f"{file.name} {problem}", reason=reason, file=file.name, hint=hint)
