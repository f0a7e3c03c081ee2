import dataclasses
import io

import numpy as np
import pytest
from PIL import Image as PILImage

from modelkit.datatypes import Audio, Image, Media, Tensor, Text, Video


def test_text_reads_as_its_text():
    assert f"{Text('hi', (1, 2))}" == "hi"
    assert Text("hi") == Text("hi", ())


@pytest.mark.parametrize(
    "value", [Text("a"), Image(b"x"), Audio(b"x"), Video(b"x"), Tensor((1,), "uint8", b"x")]
)
def test_values_are_immutable_and_hashable(value):
    first = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, first, b"y")
    assert hash(value) == hash(dataclasses.replace(value))


@pytest.mark.parametrize(
    ("name", "media_type"), [("a.png", "image/png"), ("a.unheard", "application/octet-stream")]
)
def test_a_file_is_read_with_its_media_type(tmp_path, name, media_type):
    path = tmp_path / name
    path.write_bytes(b"data")
    assert Media.from_path(path) == Media(b"data", media_type)
    assert len(Image.from_path(str(path))) == 4


def test_the_bytes_stay_out_of_the_repr():
    assert "secret" not in repr(Image(b"secret", "image/png"))
    assert "1, 2" in repr(Tensor((1, 2), "uint8", b"ab"))
    assert "ab" not in repr(Tensor((1, 2), "uint8", b"ab")).replace("tab", "")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
def test_a_pillow_image_comes_back_with_mode_and_size(mode):
    image = PILImage.new(mode, (3, 2))
    back = Image.from_pil(image)
    assert back.media_type == "image/png"
    assert (back.pil().mode, back.pil().size) == (mode, (3, 2))


def test_bytes_that_are_no_image_are_a_clear_error():
    with pytest.raises(ValueError, match="not an image of a known format"):
        Image(b"no image").pil()


def test_a_truncated_image_is_a_clear_error():
    buffer = io.BytesIO()
    PILImage.effect_noise((64, 64), 50).save(buffer, "PNG")
    with pytest.raises(ValueError, match="the image cannot be read"):
        Image(buffer.getvalue()[:200]).pil()


def test_a_decompression_bomb_is_a_clear_error(monkeypatch):
    data = Image.from_pil(PILImage.new("L", (100, 100))).data
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="the image cannot be read"):
        Image(data).pil()


def test_an_array_view_is_read_only_and_a_copy_is_not():
    tensor = Tensor.from_numpy(np.arange(3))
    assert not tensor.numpy().flags.writeable
    copied = np.array(tensor)
    copied[0] = 9
    assert tensor.numpy()[0] == 0
    assert np.asarray(tensor, dtype=np.float32).dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "dtype", "data", "reason"),
    [
        ((-1,), "uint8", b"", "negative"),
        ((2,), "uint8", b"1", "needs 2 bytes, the data has 1"),
        ((1,), "string", b"1", "unknown dtype 'string'; known are bool"),
    ],
)
def test_a_tensor_that_cannot_be_read_cannot_be_made(shape, dtype, data, reason):
    with pytest.raises(ValueError, match=reason):
        Tensor(shape, dtype, data)
