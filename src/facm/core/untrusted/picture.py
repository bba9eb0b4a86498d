"""Reading one picture: of the formats that are meant, of a bounded size, and by its pixels alone."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from facm.core.untrusted.door import open_regular, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What Pillow may try. Among its others is one that starts Ghostscript, whatever the file's name."""
MOST_PIXELS = 89_478_485
"""Width times height; where Pillow itself begins to warn."""
MOST_BYTES = 2**29
"""Bytes of a picture's file."""
MOST_CHUNKS = 200_000
"""Chunks of a PNG file."""

PNG = b"\x89PNG\r\n\x1a\n"
FIRST = b"\0\0\0\rIHDR"
SHOWN = (b"tRNS", b"eXIf")
"""What changes a PNG's pixels besides its critical chunks, whose names begin with a capital: transparency, and which
side is up."""
XMP = b"iTXtXML:com.adobe.xmp\0\0"
"""How uncompressed XMP begins, which may say which side is up, too."""
ORIENTATION = 0x0112
SIDEWAYS = 5
"""From this orientation on, a picture's height is its width."""


def picture(content: str | IO[bytes], name: str, most_pixels: int = MOST_PIXELS) -> Image:
    """The RGB picture with 8 bits a channel in a file, upright (EXIF) and composed over black where it is transparent.

    Metadata other than the orientation, and animations behind the first picture, are not read, so that they cannot
    spoil good pixels; colour profiles are ignored.

    content: A path or an open file.
    Raises ValueError naming ``name`` for a file that is not regular, or is no PNG, JPEG, WebP or BMP, or cannot be
    decoded, or has over 8 bits a channel or more than ``most_pixels`` pixels.
    """
    from PIL import Image

    try:
        held = read_bytes(Path(content), MOST_BYTES) if isinstance(content, str) else content.read(MOST_BYTES)
    except OSError as error:
        raise ValueError(f"{name}: unreadable image ({error.strerror or error})") from error
    depth = held[24] if held[:16] == PNG + FIRST else 8
    if depth > 8:
        raise ValueError(f"{name} has over 8 bits a channel ({depth}), expected 8")
    image = _decoded(held, name, most_pixels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def size_of(content: str | IO[bytes], name: str) -> tuple[int, int]:
    """(height, width) in pixels of the picture in a file, upright, as its header says; its pixels are not read.

    content: A path or an open file. Raises ValueError naming ``name`` as :func:`picture` does.
    """
    from PIL import Image

    try:
        with (
            open_regular(Path(content)) if isinstance(content, str) else content as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels, expected at most {MOST_PIXELS} in all")
            turned = _orientation(image) >= SIDEWAYS
    except OSError as error:  # also Pillow's own, whose message names the open file's object
        reason = error.strerror or "no PNG, JPEG, WebP or BMP"
        raise ValueError(f"{name}: unreadable image ({reason})") from error
    except Exception as error:  # Pillow's decoders fail in many ways
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: unreadable image ({said})") from error
    return (width, height) if turned else (height, width)


def _decoded(content: bytes, name: str, most_pixels: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        if content.startswith(PNG):
            content = b"".join([PNG, *_pixels_of_png(content)])
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise ValueError(f"{width} x {height} pixels, expected at most {most_pixels} in all")
            image.load()
            return _upright(image)
    except UnidentifiedImageError as error:  # its message names the open file's object
        raise ValueError(f"{name}: unreadable image (no PNG, JPEG, WebP or BMP)") from error
    except Exception as error:  # Pillow's decoders fail in many ways
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: unreadable image ({reason})") from error


def _pixels_of_png(content: bytes) -> Iterator[bytes]:
    """The chunks of a PNG file without those that only describe the picture, each with its checksum verified.

    Pillow verifies no checksum of pixels, and gives up where text or a colour profile is large or damaged.
    """
    place = len(PNG)
    for _ in range(MOST_CHUNKS):
        head = content[place : place + 8]
        if len(head) < 8:
            return  # Pillow says what is missing; some programs leave out the end
        length, kind = struct.unpack(">L4s", head)
        chunk = content[place : place + 12 + length]
        if kind in SHOWN or not kind[0] & 0x20 or (chunk[4:].startswith(XMP) and length < 2**20):
            if len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise ValueError(f"damaged: the checksum of {kind.decode('latin1')!r} at byte {place} is another")
            yield chunk
        if kind == b"IEND":
            return
        place += 12 + length
    raise ValueError(f"more than {MOST_CHUNKS} chunks")


def _upright(image: Image) -> Image:
    """The picture turned and mirrored as its orientation says, where that can be read."""
    from PIL.Image import Transpose

    said = _orientation(image)
    turns = {
        **{2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE},
        **{6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90},
    }
    return image.transpose(turns[said]) if said in turns else image


def _orientation(image: Image) -> int:
    """Which side is up, from 1 to 8; 1 where that cannot be read."""
    try:
        said = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser fails in many ways on damaged metadata
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1
