"""Decoding of single pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anp_vs.data import PictureOptions
from anp_vs.data.picture import decode
from anp_vs.errors import DataError, InputError
from data import pictures


def encoded(picture: Image.Image, style: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, style, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    pixels = noise(24, 24)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels)))
    options = PictureOptions(size=24)
    for source in (
        tmp_path / "a.png",
        encoded(Image.fromarray(pixels)),
        encoded(Image.fromarray(pixels), "WEBP", lossless=True),
        Image.fromarray(pixels),
        pixels,
    ):
        assert torch.equal(decode(source, "a", options), expected)
    grey = noise(24, 24, 1)
    assert torch.equal(decode(grey, "a", PictureOptions(size=24, colour="grey"))[0], torch.from_numpy(grey))
    assert torch.equal(decode(grey, "a", options), torch.from_numpy(grey).expand(3, -1, -1))


@pytest.mark.parametrize("size", [10, 25, 100])
@pytest.mark.parametrize("shape", [(100, 100), (100, 160), (130, 100)])
def test_the_centre_is_resized(size: int, shape: tuple[int, int]) -> None:
    # A symmetric filter leaves a ramp a ramp: value = position of the output pixel's centre in the picture.
    _, width = shape
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8) + 20, shape)
    image = decode(np.ascontiguousarray(ramp), "a", PictureOptions(size=size, colour="grey"))
    centres = (np.arange(size) + 0.5) * 100 / size - 0.5 + (width - 100) / 2 + 20
    inside = slice(2, -2)  # at the border of the picture the filter is cut off
    assert np.abs(image[0].double().numpy()[:, inside] - centres[inside]).max() <= 1
    turned = decode(np.ascontiguousarray(ramp.T), "a", PictureOptions(size=size, colour="grey"))
    assert torch.equal(turned[0].T, image[0])


def test_resize_and_crop_at_the_pictures_own_size_is_the_centre_alone() -> None:
    pixels = noise(30, 40)
    centre = torch.from_numpy(pixels[3:27, 8:32]).permute(2, 0, 1)
    assert torch.equal(decode(pixels, "a", PictureOptions(size=24, resize=30)), centre)
    for wrong in (23, 4097, 30.0, True):
        with pytest.raises(InputError, match=r"resize is .*24.*4096"):
            PictureOptions(size=24, resize=wrong)  # type: ignore[arg-type]


def test_a_large_jpeg_keeps_its_colours_and_places() -> None:
    picture = Image.new("RGB", (900, 600), pictures.COLOURS["red"])
    picture.paste(pictures.COLOURS["blue"], (450, 0, 900, 600))
    image = decode(encoded(picture, "JPEG", quality=95), "a", PictureOptions(size=16)).permute(1, 2, 0).int()
    assert (image[:, :7] - torch.tensor(pictures.COLOURS["red"])).abs().max() <= 4
    assert (image[:, 9:] - torch.tensor(pictures.COLOURS["blue"])).abs().max() <= 4


def test_cameras_orientation_is_applied() -> None:
    pixels = noise(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image = decode(encoded(Image.fromarray(pixels), exif=exif), "a", PictureOptions(size=16))
    assert torch.equal(image, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))


def test_other_pixel_formats_become_what_was_asked_for() -> None:
    deep = (np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).astype(np.uint16)
    grey = PictureOptions(size=16, colour="grey")
    assert torch.equal(decode(encoded(Image.fromarray(deep)), "a", grey)[0].flatten(), torch.arange(256).byte())
    for mode in ("1", "P", "LA", "RGBA"):
        image = decode(encoded(pictures.plain((255, 255, 255)).convert(mode)), "a", PictureOptions(size=8))
        assert image.shape == (3, 8, 8)
        assert (image == 255).all()
    assert (decode(encoded(Image.new("CMYK", (9, 9)), "JPEG"), "a", PictureOptions(size=8)) >= 254).all()


def test_the_callers_picture_is_not_changed() -> None:
    with Image.open(io.BytesIO(encoded(pictures.plain((9, 9, 9), (640, 480)), "JPEG"))) as picture:
        decode(picture, "a", PictureOptions(size=8))
        assert picture.size == (640, 480)
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("size", [(9000, 9000), (1 << 30, 2), (60000, 60000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_named(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"holiday\.png") as error:
        decode(pictures.bomb(*size), "holiday.png", PictureOptions())
    assert "smaller" in str(error.value)


def test_the_largest_size_is_an_option() -> None:
    picture = pictures.plain((1, 2, 3), (40, 30))
    assert decode(picture, "a", PictureOptions(largest=1200)).shape == (3, 32, 32)
    with pytest.raises(DataError, match="40 x 30 pixels, more than the 1199 allowed"):
        decode(picture, "a", PictureOptions(largest=1199))


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"GIF89a" + bytes(50),
        encoded(pictures.plain((1, 2, 3)))[:-30],
        encoded(pictures.plain((1, 2, 3)), "BMP"),
        Path("absent.png"),
        None,
        "text",
        np.zeros((4, 4, 3)),
        np.zeros((2, 2, 2, 2), np.uint8),
    ],
)
def test_what_is_no_picture_is_named(source: object) -> None:
    with pytest.raises(DataError, match="holiday cannot be decoded"):
        decode(source, "holiday", PictureOptions())


SOUND = [
    encoded(Image.fromarray(noise(12, 18)), "PNG"),
    encoded(Image.fromarray(noise(12, 18)), "JPEG"),
    encoded(Image.fromarray(noise(12, 18)), "WEBP"),
    encoded(Image.fromarray(noise(12, 18, 1)), "PNG"),
]


@pytest.mark.filterwarnings("ignore")
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=6),
    st.integers(0, 900),
)
def test_damaged_bytes_raise_nothing_else(data: bytes, changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    for attempt in (bytes(damaged), bytes(damaged[:length])):
        try:
            image = decode(attempt, "f", PictureOptions(size=8, largest=1 << 20))
        except DataError:
            continue
        assert image.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 32.0}, "size is 32.0"),
        ({"workers": True}, "workers is True"),
        ({"largest": 1 << 30}, "largest is"),
        ({"colour": "gray"}, "colour is 'gray'; choose one of rgb, grey"),
        ({"damaged": "ignore"}, "choose one of refuse, skip"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        PictureOptions(**options)
