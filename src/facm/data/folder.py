"""A folder of images, decoded as they are read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from facm.core.types import Batch
from facm.data.checked import check_at_least, check_choice
from facm.data.in_memory import from_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class ImageFolder:
    """Images (png, jpg, jpeg, webp, bmp) anywhere below ``path``, in order of their relative paths; hidden files and
    folders are left out, links are followed.

    Each is turned upright (EXIF), put on black where transparent, converted to RGB (or grey), cut to its central
    square and resized to ``size`` x ``size`` with Pillow's antialiased bicubic filter: (channels, size, size) in
    [-1, 1]. An image of that size already keeps its exact pixels.

    classes_from_folders: the class is the sub-folder of ``path`` that an image lies in or under, numbered by sorted
    name among those that hold images; False: no classes.
    channels: 3, or 1 for grey.
    ``open`` raises ValueError for a missing or empty folder, an image without a class, or a folder reached twice
    through links; ``read`` raises ValueError naming the image that cannot be decoded or has over 8 bits a channel."""

    path: str
    size: int
    flip: bool = True
    classes_from_folders: bool = True
    channels: int = 3

    def __post_init__(self) -> None:
        check_at_least("ImageFolder", "size", self.size, 1)
        check_choice("ImageFolder", "channels", self.channels, (1, 3))

    def open(self) -> ImageFiles:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"ImageFolder: path = {self.path!r}, expected an existing folder")
        files = _find_images(root)
        if not files:
            raise ValueError(f"ImageFolder: path = {self.path!r} holds no images, expected {', '.join(SUFFIXES)} files")
        classes: tuple[str, ...] = ()
        labels = None
        if self.classes_from_folders:
            remedy = "set classes_from_folders = False for images without classes"
            labels, classes = class_folders("ImageFolder", root, files, remedy)
        shape = (self.channels, self.size, self.size)
        return ImageFiles(str(root), files, labels, classes, shape, self.flip, f"ImageFolder({self.path})")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """An opened :class:`ImageFolder`: ``files`` relative to ``root``, ``labels`` (N,) int64 or None, ``classes`` the
    names by number."""

    root: str
    files: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    flip: bool
    name: str

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) or None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> Batch:
        """Images ``indices`` (B,): x_1 (B, C, H, W) in [-1, 1], cond (B,) int64 or None."""
        paths = [os.path.join(self.root, self.files[i]) for i in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(lambda path: decode(path, self.shape[0], self.shape[1]), paths))
        x = torch.from_numpy(from_bytes(np.stack(images)))
        return Batch(x, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def class_folders(owner: str, root: Path, files: tuple[str, ...], remedy: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels (N,) int64 of files relative to ``root`` and the classes' names by number. Raises ValueError naming
    an image that lies in no class folder, and what to do about it."""
    loose = next((file for file in files if "/" not in file), None)
    if loose is not None:
        raise ValueError(f"{owner}: {root / loose} lies in no class folder, expected {root}/<class>/...; {remedy}")
    folders = [file.split("/", 1)[0] for file in files]
    classes = tuple(sorted(set(folders)))
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[name] for name in folders], np.int64), classes


def picture(content: str | IO[bytes], name: str) -> Image:
    """A path or an open file as an RGB image of 8 bits a channel: turned upright (EXIF), on black where transparent.
    Raises ValueError naming ``name`` where it cannot be decoded, or has over 8 bits a channel."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(content) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except UnidentifiedImageError as error:  # its message names the open file's object
        raise ValueError(f"{name}: unreadable image (of no format that Pillow knows)") from error
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{name}: unreadable image ({type(error).__name__}: {error})") from error
    if image.mode[0] in "IF":  # Pillow would clip these to 255 rather than scale them
        raise ValueError(f"{name}: mode {image.mode} has over 8 bits a channel, expected 8")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def decode(path: str, channels: int, size: int) -> np.ndarray:
    """One image as uint8 (channels, size, size), treated as :class:`ImageFolder` says. Raises ValueError naming it."""
    from PIL import Image

    image = picture(path, path)
    if channels == 1:
        image = image.convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _find_images(root: Path) -> tuple[str, ...]:
    """Relative paths of all images, with forward slashes, sorted: the same on every file system."""
    seen: dict[str, str] = {}
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link into a loop, or images that would count twice
            raise ValueError(f"ImageFolder: {folder} and {seen[real]} are one folder, expected to reach it once")
        seen[real] = folder
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        images = (name for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        found += [(relative / name).as_posix() for name in images]
    return tuple(sorted(found))
