"""Rows with images in `data build`: bytes are embedded, and what is not an image, too large or elsewhere is dropped by name."""

from __future__ import annotations

import io
import json
import random
import zlib
from pathlib import Path

import pytest
from PIL import Image as PIL

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.data.images import embedded, image_size, open_image
from safework_cli.data.row import Image, read_rows
from safework_data.build.stage import stage


def png(path: Path, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    PIL.new(mode, size).save(path)
    return path


def build(work, folder: Path, records: list[dict]):
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = {
        "kind": "file", "path": str(folder / "rows.jsonl"), "name": "mine", "subset": "rl", "task": "general",
        "columns": {"id": "id", "prompt": "q", "images": "image"},
    }  # fmt: skip
    outcome = stage.run(stage.Config.model_validate({"sources": [source], "max_dropped": 1.0}), Inputs({}), work)
    drops = {d["id"]: (d["reason"], d.get("detail", "")) for d in map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())}
    return outcome, drops


def test_good_pictures_are_embedded_and_bad_ones_dropped_by_name(work, tmp_path):
    png(tmp_path / "images" / "good.png")
    whole = png(tmp_path / "images" / "noise.png", (64, 64)).read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "text.png").write_text("<svg onload=alert(1)>")
    png(tmp_path / "images" / "bomb.png", (20_000, 20_000), "1")
    png(tmp_path.parent / f"{tmp_path.name}-outside.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path.parent / f"{tmp_path.name}-outside.png")
    names = {
        "good": "images/good.png", "two": ["images/good.png", "images/good.png"], "cut": "images/cut.png", "text": "images/text.png",
        "bomb": "images/bomb.png", "link": "images/link.png", "up": f"../{tmp_path.name}-outside.png", "absolute": "/etc/hostname",
        "missing": "images/no.png", "number": 7,
    }  # fmt: skip
    records = [{"id": name, "q": f"What is in {name}?", "image": image} for name, image in names.items()]
    records += [
        {"id": "tagged", "q": "Here <image> and here?", "image": "images/good.png"},
        {"id": "uneven", "q": "<image> <image>?", "image": "images/good.png"},
    ]
    outcome, drops = build(work, tmp_path, records)
    rows = {row.id.removeprefix("mine/"): row for row in read_rows(work.output / "rl" / "train.parquet")}
    assert set(rows) == {"good", "two", "tagged"}
    assert rows["good"].question == "<image>\nWhat is in good?" and open_image(rows["good"].images[0]).size == (4, 3)
    assert rows["two"].question.count("<image>") == len(rows["two"].images) == 2 and rows["tagged"].question == "Here <image> and here?"
    why = {name.removeprefix("mine/"): detail for name, (reason, detail) in drops.items() if reason == "unreadable image"}
    assert {name: detail.split(";")[0] for name, detail in why.items()} == {
        "cut": "the image 'cut.png' cannot be read", "text": "the image 'text.png' cannot be read",
        "bomb": "the image 'bomb.png' has too many pixels",
        "link": "an image is outside its folder",
        "up": "an image is outside its folder", "absolute": "an image is outside its folder",
        "missing": "an image is missing", "number": "a int is neither a path nor bytes",
    }  # fmt: skip
    assert drops["mine/uneven"][0].startswith("schema") and outcome.metrics["dropped"]["unreadable image"] == 8


def test_a_public_set_of_pictures_is_embedded_and_split_by_scene(work, real_data):
    config = {"sources": [{"kind": "set", "set": "nlvr", "subset": "rl", "folder": str(real_data), "limit": 40}], "heldout": 0.2}
    stage.run(stage.Config.model_validate(config), Inputs({}), work)
    rows = read_rows(work.output / "rl" / "train.parquet")
    held = read_rows(work.output / "heldout" / "test.parquet")
    assert rows and all(row.images[0]["bytes"][:4] == b"\x89PNG" for row in rows)
    assert held and not {row.group for row in rows} & {row.group for row in held}


def test_a_picture_in_memory_is_checked_before_it_is_unpacked():
    buffer = io.BytesIO()
    PIL.new("1", (20_000, 20_000)).save(buffer, "PNG")
    with pytest.raises(InputError, match="too many pixels"):
        open_image({"bytes": buffer.getvalue(), "path": None})
    with pytest.raises(InputError, match="leads out|outside"):
        embedded("../x.png", Path(__file__).parent)


def encoded(drawn: PIL.Image, kind: str, **more) -> Image:
    file = io.BytesIO()
    drawn.save(file, kind, **more)
    return Image(bytes=file.getvalue(), path=f"drawn.{kind.lower()}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_pictures_stand_the_way_up_that_their_exif_says(kind):
    """Orientation 6: the camera was turned, and the first column of the file is the top row, from right to left."""
    stored = PIL.new("RGB", (32, 16), (255, 0, 0))
    stored.paste((0, 0, 255), (0, 0, 16, 16))
    exif = PIL.Exif()
    exif[0x0112] = 6
    seen = open_image(encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    assert seen.size == (16, 32)
    top, bottom = seen.getpixel((8, 4)), seen.getpixel((8, 28))
    assert top[2] > 200 > 60 > top[0] and bottom[0] > 200 > 60 > bottom[2]


def test_grey_pictures_of_16_bits_are_scaled():
    import numpy as np

    drawn = PIL.fromarray(np.array([[0, 30_000], [65_535, 257]], dtype=np.uint16))
    seen = open_image(encoded(drawn, "PNG"))
    assert [seen.getpixel(at)[0] for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 117, 255, 1]


FOREIGN = {
    "an EPS, which Pillow would hand to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "an AVIF cut off": b"\0\0\0 ftypavif\0\0\0\0avifmif1miafMA1B" + b"\0" * 99,
    "a DDS of nonsense": b"DDS |\0\0\0" + b"\1" * 200,
    "an ICO": b"\0\0\1\0\1\0\1\1\0\0\1\0\x18\0\x30\0\0\0\x16\0\0\0" + b"\0" * 48,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_formats_that_are_not_on_the_list_are_not_decoded(content, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(InputError, match="none of PNG, JPEG"):
        open_image(Image(bytes=content, path="cat.png"))


def test_a_broken_picture_of_any_kind_is_a_dropped_row_and_not_the_end(work, tmp_path):
    good = tmp_path / "good.png"
    PIL.new("RGB", (8, 8)).save(good)
    names = ["good.png"]
    for number, content in enumerate(FOREIGN.values()):
        (tmp_path / f"{number}.png").write_bytes(content)
        names.append(f"{number}.png")
    whole = io.BytesIO()
    PIL.new("RGB", (40, 40), (1, 2, 3)).save(whole, "TIFF")
    rng = random.Random(0)
    for number in range(20):
        broken = bytearray(whole.getvalue())
        for _ in range(4):
            broken[rng.randrange(200)] = rng.randrange(256)
        (tmp_path / f"b{number}.tif").write_bytes(bytes(broken[: rng.randrange(20, len(broken))]))
        names.append(f"b{number}.tif")
    outcome, drops = build(work, tmp_path, [{"id": n, "q": f"What is on {n}?", "image": n} for n in names])
    assert {reason for reason, _ in drops.values()} == {"unreadable image"} and len(drops) >= 4
    assert outcome.metrics["rows"] + len(drops) == len(names)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_black_text_on_a_transparent_background_stays_readable(mode, kind):
    drawn = PIL.new("RGBA", (4, 2), (0, 0, 0, 0))  # transparent pixels are black, as drawing programs leave them
    drawn.putpixel((1, 1), (0, 0, 0, 255))
    stored = drawn.quantize(8) if mode == "P" else drawn.convert(mode)
    shown = open_image(encoded(stored, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((1, 1))) == ("RGB", (255, 255, 255), (0, 0, 0))


def test_half_transparent_red_is_pink():
    assert open_image(encoded(PIL.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG")).getpixel((0, 0)) == (255, 127, 127)


def test_colours_of_print_are_those_of_the_screen():
    assert open_image(encoded(PIL.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((4, 4)) == (255, 0, 0)
    red, green, blue = open_image(encoded(PIL.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))
    assert red > 200 > 60 > max(green, blue)


def frames(kind: str, count: int) -> Image:
    drawn = [PIL.new("RGB", (8, 8), (40 * number, 0, 0)) for number in range(count)]
    return encoded(drawn[0], kind, save_all=True, append_images=drawn[1:])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_refused(kind):
    with pytest.raises(InputError, match=f"drawn.{kind.lower()}' has several frames") as refused:
        open_image(frames(kind, 3))
    assert "save the frame that is meant" in refused.value.do
    assert open_image(frames(kind, 1)).size == (8, 8)


def test_previews_in_a_photograph_do_not_make_it_a_film():
    assert open_image(frames("MPO", 2)).size == (8, 8)


@pytest.mark.parametrize(("size", "fits"), [((400, 1), False), ((1, 201), False), ((200, 1), True), ((1, 1), True)])
def test_strips_are_refused_and_small_images_are_not(size, fits):
    strip = encoded(PIL.new("RGB", size, "red"), "PNG")
    if fits:
        assert open_image(strip).getpixel((0, 0)) == (255, 0, 0)
    else:
        with pytest.raises(InputError, match="'drawn.png' is too narrow"):
            open_image(strip)


def test_a_bomb_is_refused_by_name_before_it_is_unpacked():
    whole = encoded(PIL.new("1", (8, 8)), "PNG")["bytes"]
    size = (30_000).to_bytes(4, "big") * 2
    header = b"IHDR" + size + whole[24:29]
    bomb = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]
    for read in (open_image, image_size):
        with pytest.raises(InputError, match=r"'bomb.png' has too many pixels"):
            read(Image(bytes=bomb, path="bomb.png"))


def test_a_cut_file_is_refused_by_name():
    whole = encoded(PIL.effect_noise((64, 64), 90), "PNG")["bytes"]
    with pytest.raises(InputError, match="'cut.png' cannot be read") as refused:
        open_image(Image(bytes=whole[: len(whole) // 2], path="cut.png"))
    assert "truncated" in refused.value.why and "leave its row out" in refused.value.do


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_sizes_are_known_without_decoding(kind, turn, monkeypatch):
    exif = PIL.Exif()
    exif[0x0112] = turn
    turned = encoded(PIL.new("RGB", (32, 16)), kind, exif=exif)
    plain = encoded(PIL.new("RGB", (32, 16)), kind)
    expected = open_image(turned).size
    assert image_size(turned) == expected == ((16, 32) if turn > 4 else (32, 16))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert image_size(plain) == (32, 16)
