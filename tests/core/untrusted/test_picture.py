"""Pictures with odd metadata, deep channels, large claims, and files that only look like pictures."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from facm.core.untrusted.picture import picture

PIXELS = (np.arange(24 * 16 * 3) % 256).astype(np.uint8).reshape(16, 24, 3)


def encoded(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    content = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(content, form, **options)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    content = encoded("PNG")
    return content[:33] + chunk(kind, data) + content[33:]


def read(content: bytes) -> np.ndarray:
    return np.asarray(picture(io.BytesIO(content), "mine"))


def exif(*tags: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    block = b"II*\0" + struct.pack("<LH", 8, len(tags))
    block += b"".join(struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in tags)
    return b"Exif\0\0" + block + struct.pack("<L", 0) + extra


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))
ODD_EXIF = {
    "a rational over zero": exif(TURNED, (0x11A, 10, 1, struct.pack("<L", 38)), extra=struct.pack("<ll", -1, 0)),
    "a number as bytes": exif(TURNED, (0x128, 7, 4, b"\1\2\3\4")),
    "a text beyond the end": exif(TURNED, (0x10E, 2, 9999, struct.pack("<L", 8000))),
    "an unknown type": exif(TURNED, (0x9999, 99, 1, bytes(4))),
}


@pytest.mark.parametrize("name", ODD_EXIF)
def test_malformed_tags_beside_the_orientation_do_not_matter(name: str) -> None:
    turned = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_270)
    assert (read(encoded("PNG", exif=ODD_EXIF[name][6:])) == np.asarray(turned)).all()
    assert read(encoded("JPEG", exif=ODD_EXIF[name])).shape == (24, 16, 3)


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0MM", exif((0x112, 3, 1, struct.pack("<HH", 77, 0)))])
def test_an_orientation_that_says_nothing_leaves_the_picture_as_it_is(block: bytes) -> None:
    assert (read(with_chunk(b"eXIf", block[6:])) == PIXELS).all()


TEXT = zlib.compress(bytes(3_000_000))
ODD_CHUNKS = {
    "large text": (b"zTXt", b"workflow\0\0" + TEXT),
    "large international text": (b"iTXt", b"workflow\0\1\0\0\0" + TEXT),
    "large profile": (b"iCCP", b"profile\0\0" + TEXT),
    "profile that is none": (b"iCCP", b"profile\0\0no zlib"),
    "damaged text": (b"zTXt", b"no end"),
    "short density": (b"pHYs", b"12"),
    "wrong gamma": (b"gAMA", b""),
    "animation": (b"acTL", struct.pack(">LL", 10**6, 0)),
    "unknown": (b"abCd", bytes(100)),
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_chunks_beside_the_pixels_do_not_matter(name: str) -> None:
    assert (read(with_chunk(*ODD_CHUNKS[name])) == PIXELS).all()


def test_a_wrong_colour_profile_is_ignored() -> None:
    assert (read(encoded("PNG", icc_profile=b"no profile" * 100)) == PIXELS).all()
    for form in ("JPEG", "WEBP"):
        same = encoded(form, quality=90)
        assert (read(encoded(form, quality=90, icc_profile=b"no profile" * 9000)) == read(same)).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_its_first_picture(form: str) -> None:
    frames = [Image.fromarray(np.roll(PIXELS, k, 0)) for k in range(30)]
    options = {"lossless": True} if form == "WEBP" else {}
    assert (read(encoded(form, frames[0], save_all=True, append_images=frames[1:], **options)) == PIXELS).all()


def deep_png(colour: int, channels: int) -> bytes:
    rows = b"".join(b"\0" + bytes(16 * channels) for _ in range(8))
    header = struct.pack(">LLBBBBB", 8, 8, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused(colour: int, channels: int) -> None:
    with pytest.raises(ValueError, match=r"mine has over 8 bits a channel \(16\), expected 8"):
        read(deep_png(colour, channels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_eight_bits_and_less_is_read(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("RGB")
    assert (read(encoded("PNG", image)) == np.asarray(expected)).all()


def test_cmyk_and_transparent_palettes() -> None:
    assert read(encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK"))).shape == (16, 24, 3)
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "L").convert("P")
    palette.putpalette([200, 100, 50] * 256)
    assert (read(encoded("PNG", palette)) == [200, 100, 50]).all()
    assert not read(encoded("PNG", palette, transparency=0)).any()


OTHERS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "GIF": encoded("GIF"),
    "TIFF": encoded("TIFF"),
    "float TIFF": encoded("TIFF", Image.fromarray(np.zeros((4, 4), np.float32))),
    "PPM": b"P6 8 8 65535\n" + bytes(384),
    "ICO": encoded("ICO", Image.fromarray(PIXELS[:16, :16])),
    "nothing": b"",
    "text": b"no image",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_whatever_the_files_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^mine: unreadable image \(no PNG, JPEG, WebP or BMP\)$"):
        read(OTHERS[name])


def claim(width: int, height: int) -> bytes:
    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore:Image size")
def test_pictures_that_claim_too_many_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"mine: unreadable image .*(pixels|Image size)"):
        read(claim(*size))


def test_damaged_pixels_of_a_png_are_noticed() -> None:
    content = bytearray(encoded("PNG"))
    content[-20] ^= 1  # the checksum of the pixels' chunk, or the end of these
    with pytest.raises(ValueError, match=r"mine: unreadable image .*checksum of 'IDAT'"):
        read(bytes(content))


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "dangling", "loop", "device"):
        with pytest.raises(ValueError, match=rf"{name}\.png"):
            picture(str(tmp_path / f"{name}.png"), str(tmp_path / f"{name}.png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "real")
    (tmp_path / "real").write_bytes(encoded("PNG"))
    assert (np.asarray(picture(str(tmp_path / "link.png"), "x")) == PIXELS).all()


def test_metadata_of_a_png_keep_their_meaning() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    assert (read(encoded("PNG", pnginfo=info)) == PIXELS[::-1, ::-1]).all()
