"""Sources of image files: how a file is read, CelebA, and the user's own folders."""

import io

import numpy as np
import pytest
from PIL import Image
from refusals import refuses

from dpdm.data import ImageMeta
from dpdm.sources import celeba, image_files
from dpdm.sources.base import DATA_DIR_VARIABLE
from dpdm.sources.celeba import Celeba
from dpdm.sources.folder import Folder
from dpdm.sources.image_files import read_image

# --- image files ----------------------------------------------------------------------------------------------


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_of_the_right_size_stays_exact(tmp_path):
    pixels = picture(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 3), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 12), (13, 8)])
def test_the_largest_centred_square_is_cut_out(tmp_path, height, width):
    pixels = picture(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = pixels[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 3), expected)


def test_shrinking_averages_over_all_pixels(tmp_path):
    """Without antialiasing, a fine checkerboard becomes black or white instead of grey."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png", 8, 3).astype(int)
    assert np.abs(out - 127.5).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_is_converted(tmp_path, mode, channels):
    original = Image.fromarray(picture(8, 8)).convert(mode)
    original.save(tmp_path / "a.png")
    expected = np.asarray(original.convert({1: "L", 3: "RGB"}[channels])).reshape(8, 8, channels).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", 8, channels), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_on_white(tmp_path, mode):
    """Their color is often black: dropping alpha made one black picture of every drawing."""
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        flat = Image.new("P", (8, 8), 1)
        flat.paste(0, (0, 0, 4, 8))
        flat.putpalette([0, 0, 0, 0, 0, 0])
        flat.save(tmp_path / "a.png", transparency=1)
    else:
        drawing.convert(mode).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 8, 3)
    assert (pixels[:, :, :4] == 0).all()
    assert (pixels[:, :, 4:] == 255).all()
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8, 1) == 204).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_is_turned_upright_before_the_crop(tmp_path, kind):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left half white: in an upright photo of orientation 6 the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", kind, exif=exif, **{"quality": 95} if kind == "JPEG" else {})
    found = read_image(tmp_path / "a.png", 8, 3)
    assert found[:, :3].min() > 240
    assert found[:, 5:].max() < 15


def test_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "a.png")
    with refuses("8 bits"):
        read_image(tmp_path / "a.png", 8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_named(tmp_path, kind):
    buffer, path = io.BytesIO(), tmp_path / "a.png"
    Image.fromarray(picture(16, 16)).save(buffer, kind)
    content = buffer.getvalue()
    for damaged in (b"", b"text", content[:20], content[: len(content) // 2], content[:-60]):
        path.write_bytes(damaged)
        with refuses(path):
            read_image(path, 8, 3)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with refuses(path, "Git LFS"):
        read_image(path, 8, 3)


def test_other_formats_and_missing_files_are_refused(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "missing.png", "folder.png"):
        with refuses(tmp_path / name):
            read_image(tmp_path / name, 8, 3)


# --- CelebA ---------------------------------------------------------------------------------------------------

CELEBA = Celeba(image_size=16)
CELEBA_MALE = Celeba(image_size=16, label="Male")


def celeba_pixels(number: int) -> np.ndarray:
    """A smooth 178x218 image (JPEG keeps it nearly) whose top and bottom bars the crop must remove."""
    image = np.empty((218, 178, 3), np.uint8)
    image[:] = [20 * number, 255 - 20 * number, 100]
    image[:20], image[198:] = 255, 255
    return image


@pytest.fixture
def small_celeba(monkeypatch, tmp_path):
    """Eight images: 1, 4, 6, 8 to train, 2 and 5 to validate, 3 and 7 to test; odd ones are Male."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    partition = {1: 0, 2: 1, 3: 2, 4: 0, 5: 1, 6: 0, 7: 2, 8: 0}
    for number in partition:
        path = folder / "img_align_celeba" / f"{number:06}.jpg"
        Image.fromarray(celeba_pixels(number)).save(path, quality=95)
    splits = "".join(f"{number:06}.jpg {split}\n" for number, split in partition.items())
    (folder / "list_eval_partition.txt").write_text(splits)
    rows = "".join(f"{number:06}.jpg -1 {' 1' if number % 2 else '-1'}  1\n" for number in partition)
    (folder / "list_attr_celeba.txt").write_text(f"8\nBald Male Young \n{rows}")
    monkeypatch.setattr(celeba, "SIZES", {"train": 4, "test": 2})
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    return folder


def test_celeba(small_celeba):
    for spec in (CELEBA, CELEBA.model_copy(update={"data_dir": str(small_celeba)})):
        splits = spec.load()
        assert splits["train"].meta == spec.meta() == ImageMeta(4, (3, 16, 16), 1)
        for split, numbers in (("train", (1, 4, 6, 8)), ("test", (3, 7))):
            assert splits[split].labels.tolist() == [0] * len(numbers)
            expected = np.array([[20 * number, 255 - 20 * number, 100] for number in numbers])
            difference = splits[split].images.astype(int) - expected[:, :, None, None]
            assert np.abs(difference[..., 2:-2, :]).max() <= 3
            assert np.abs(difference).max() <= 20  # the white bars bleed into the crop by JPEG's blocks alone


def test_an_attribute_makes_two_classes(small_celeba):
    splits = CELEBA_MALE.load()
    assert splits["train"].meta == CELEBA_MALE.meta() == ImageMeta(4, (3, 16, 16), 2)
    assert splits["train"].labels.tolist() == [1, 0, 0, 0]
    assert splits["test"].labels.tolist() == [1, 1]


def test_celeba_without_attributes_needs_no_list_of_them(small_celeba):
    (small_celeba / "list_attr_celeba.txt").unlink()
    assert len(CELEBA.load()["train"].images) == 4
    with refuses("list_attr_celeba.txt"):
        CELEBA_MALE.load()


@pytest.mark.parametrize("name", ["img_align_celeba", "list_eval_partition.txt"])
def test_missing_celeba_is_one_sentence(small_celeba, name):
    (small_celeba / name).rename(small_celeba / "elsewhere")
    with refuses(small_celeba / name, "img_align_celeba, list_eval_partition.txt", DATA_DIR_VARIABLE, "https://"):
        CELEBA.load()


def test_a_part_of_celeba_is_refused(small_celeba):
    (small_celeba / "img_align_celeba" / "000007.jpg").unlink()
    with refuses("1 of", "2 test", "img_align_celeba.zip"):
        CELEBA.load()
    for number in (1, 4):
        (small_celeba / "img_align_celeba" / f"00000{number}.jpg").unlink()
    with refuses("2 of", "4 train"):
        CELEBA.load()


def test_a_file_in_the_place_of_celebas_images(small_celeba):
    (small_celeba / "img_align_celeba").rename(small_celeba / "elsewhere")
    (small_celeba / "img_align_celeba").write_bytes(b"")
    with refuses("0 of", "4 train"):
        CELEBA.load()


def test_another_list_of_splits_is_refused(small_celeba):
    (small_celeba / "list_eval_partition.txt").write_bytes(b"\xff\n000001.jpg 0 0\n000004.jpg 0\n")
    with refuses("1 of", "4 train", "list_eval_partition.txt"):
        CELEBA.load()


def test_the_real_totals_of_celeba_are_asked_for(small_celeba, monkeypatch):
    monkeypatch.setattr(celeba, "SIZES", {"train": 162_770, "test": 19_962})
    with refuses("4 of", "162770 train"):
        CELEBA.load()


def test_an_unknown_attribute_gets_the_nearest(small_celeba):
    with refuses("'male'", "'Male'"):
        CELEBA.model_copy(update={"label": "male"}).load()


@pytest.mark.parametrize(
    ("old", "new"),
    [("000006.jpg -1", "000009.jpg -1"), ("000003.jpg -1  1", "000003.jpg -1  0"), (" 1\n000008", "\n8")],
)
def test_a_list_of_attributes_with_gaps_is_refused(small_celeba, old, new):
    path = small_celeba / "list_attr_celeba.txt"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with refuses("Male", "-1", "1"):
        CELEBA_MALE.load()


def test_an_empty_list_of_attributes(small_celeba):
    (small_celeba / "list_attr_celeba.txt").write_text("")
    with refuses("'Male'"):
        CELEBA_MALE.load()


def test_the_crop_and_resize_are_recorded(small_celeba):
    facts = CELEBA.facts(CELEBA.load())
    assert [word for word in ("EXIF", "centered", "white", "bilinear") if word not in facts["preprocessing"]] == []
    assert facts["n"] == {"train": 4, "test": 2}


def test_long_loading_shows_its_progress(small_celeba, monkeypatch, capsys):
    monkeypatch.setattr(image_files, "PROGRESS_EVERY", 2)
    CELEBA.load()
    assert capsys.readouterr().err.splitlines() == [
        "celeba train: 2/4 images", "celeba train: 4/4 images", "celeba test: 2/2 images",
    ]  # fmt: skip


# --- the user's own folders -----------------------------------------------------------------------------------


@pytest.fixture
def own_folder(tmp_path):
    """Classes cat and dog; 3 + 1 training images and 1 + 3 test images of several sizes and endings."""
    names = {
        "train": {"dog": ["z.png", "a.JPG", "m.jpeg"], "cat": ["1.png"]},
        "test": {"cat": ["1.png"], "dog": ["1.png", "2.png", "3.png"]},
    }
    for split, classes in names.items():
        for name, files in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number, file in enumerate(files):
                Image.fromarray(picture(8 + number, 9, number)).save(tmp_path / split / name / file)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("not a class")
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("not an image")
    return tmp_path


def folder_spec(folder, **keys) -> Folder:
    return Folder(**{"data_dir": str(folder), "image_size": 8, "num_classes": 2} | keys)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_folder_of_classes(own_folder, channels):
    spec = folder_spec(own_folder, channels=channels)
    splits = spec.load()
    assert splits["train"].meta == spec.meta() == ImageMeta(4, (channels or 3, 8, 8), 2)
    assert splits["train"].labels.tolist() == [0, 1, 1, 1]  # classes by name, not as the system lists them
    assert splits["test"].labels.tolist() == [0, 1, 1, 1]
    files = ["cat/1.png", "dog/a.JPG", "dog/m.jpeg", "dog/z.png"]
    expected = [read_image(own_folder / "train" / name, 8, channels or 3) for name in files]
    assert np.array_equal(splits["train"].images, expected)
    facts = spec.facts(splits)
    assert facts["classes"] == ["cat", "dog"]
    assert "preprocessing" in facts


def test_classes_stand_in_natural_order(tmp_path):
    for split in ("train", "test"):
        for name in ("10", "0", "2", "1", "2b", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(picture(8, 8)).save(tmp_path / split / name / "1.png")
    spec = folder_spec(tmp_path, num_classes=6)
    assert spec.facts(spec.load())["classes"] == ["0", "1", "2", "2b", "10", "a"]


def test_a_folder_in_the_home_of_the_user(own_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(own_folder.parent))
    assert folder_spec(f"~/{own_folder.name}").meta() == folder_spec(own_folder).meta()
    monkeypatch.setenv(DATA_DIR_VARIABLE, "~/sets")
    assert CELEBA.folder() == own_folder.parent / "sets" / "celeba"


def test_a_test_split_that_is_too_small_is_found_without_reading_images(own_folder):
    (own_folder / "test" / "dog" / "3.png").unlink()
    with refuses(own_folder / "test", "3", "4"):
        folder_spec(own_folder).meta()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_class_folders_must_match_num_classes(own_folder, split, classes):
    with refuses("train", "2 class", "num_classes", classes):
        folder_spec(own_folder, num_classes=classes).meta()
    (own_folder / split / "emu").mkdir()
    with refuses(split, "3 class", "num_classes", "2"):
        folder_spec(own_folder).load()


def test_both_splits_need_the_same_classes(own_folder):
    (own_folder / "test" / "cat").rename(own_folder / "test" / "emu")
    with refuses("cat", "train/", "test/"):
        folder_spec(own_folder).load()


@pytest.mark.parametrize("name", ["b.webp", "notes.txt", "more"])
def test_a_file_that_is_no_image_is_named(own_folder, name):
    (own_folder / "test" / "dog" / name).write_text("")
    with refuses(own_folder / "test" / "dog" / name, ".png"):
        folder_spec(own_folder).meta()


def test_an_unreadable_image_is_named(own_folder):
    path = own_folder / "train" / "dog" / "z.png"
    path.write_bytes(path.read_bytes()[:60])
    with refuses(path):
        folder_spec(own_folder).load()


def test_a_split_without_images(own_folder):
    for path in (own_folder / "test").glob("*/*.png"):
        path.unlink()
    with refuses("test", "images"):
        folder_spec(own_folder).load()


def test_a_missing_folder_is_one_sentence(own_folder):
    for data_dir, missing in ((own_folder / "gone", "gone/train"), (own_folder / "train", "train/train")):
        with refuses(missing, "data_dir/train/CLASS"):
            folder_spec(data_dir).meta()
