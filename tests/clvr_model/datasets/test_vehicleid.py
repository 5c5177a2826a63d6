from collections.abc import Callable
from pathlib import Path

import pytest

from clvr_model.datasets.labelled import UNKNOWN_MODEL
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from infra.errors import BadLabels, BadSetting, BucketMissing

# Vehicles 10 and 11 have models and are for training, 12 has no model, 20 and 21 are for testing.
FILES = {
    "attribute/img2vid.txt": "0000001 10\n0000002 10\n0000003 11\n0000004 12\n"
    "0000005 20\n0000006 20\n0000007 21\n",
    "attribute/model_attr.txt": "10 249\n11 3\n",
    "attribute/model_names.txt": "Alpha One 2012 249\r\nBeta 3\r\n",
    "train_test_split/train_list.txt": "0000001 10\n0000002 10\n0000003 11\n0000004 12\n",
    "train_test_split/test_list_1.txt": "0000005 20\n0000006 20\n",
    "train_test_split/test_list_2.txt": "0000005 20\n0000006 20\n0000007 21\n",
}

Release = Callable[..., str]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Write a small release, with some files replaced or (None) left out; return its root."""

    def write(changes: dict[str, str | None] | None = None) -> str:
        for name, text in {**FILES, **(changes or {})}.items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return str(tmp_path)

    return write


def test_training_images_have_vehicles_and_where_they_are_known_models(release: Release) -> None:
    root = release()
    train = read_vehicleid(root)
    assert train.uris == [f"{root}/image/{n:07d}.jpg" for n in (1, 2, 3, 4)]
    assert train.model_ids.tolist() == [249, 249, 3, UNKNOWN_MODEL]
    assert train.vehicle_ids is not None
    assert train.vehicle_ids.tolist() == [10, 10, 11, 12]
    assert train.with_known_model().uris == train.uris[:3]
    assert train.model_names == {249: "Alpha One 2012", 3: "Beta"}


def test_the_split_labelled_needs_no_training_list(release: Release) -> None:
    root = release({"train_test_split/train_list.txt": None})
    assert read_vehicleid(root, "labelled").uris == [f"{root}/image/{n:07d}.jpg" for n in (1, 2, 3)]


def test_test_images_have_vehicles_but_no_models(release: Release) -> None:
    root = release()
    assert list_test_splits(root) == ["test_1", "test_2"]
    test = read_vehicleid(root, "test_2")
    assert test.vehicle_ids is not None
    assert test.vehicle_ids.tolist() == [20, 20, 21]
    assert set(test.model_ids.tolist()) == {UNKNOWN_MODEL}


def test_windows_line_ends_and_a_byte_order_mark_are_accepted(release: Release) -> None:
    root = release({"attribute/model_attr.txt": "\ufeff10 249\r\n11 3\r\n\r\n"})
    assert read_vehicleid(root).model_ids.tolist() == [249, 249, 3, UNKNOWN_MODEL]


@pytest.mark.parametrize(
    ("name", "split", "remedy"),
    [
        ("train_test_split/train_list.txt", "train", "split 'labelled'"),
        ("train_test_split/test_list_2.txt", "test_2", "There are: test_1"),
        ("attribute/model_attr.txt", "train", "Copy it"),
        ("attribute/img2vid.txt", "labelled", "Copy it"),
    ],
)
def test_a_missing_file_is_named_with_what_to_do(
    release: Release, name: str, split: str, remedy: str
) -> None:
    with pytest.raises(BadLabels, match=f"{name} is missing") as caught:
        read_vehicleid(release({name: None}), split)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "attribute/img2vid.txt",
            "0000001 10\n0000002\n",
            r"img2vid\.txt, line 2: '0000002' is not two numbers",
        ),
        (
            "attribute/img2vid.txt",
            "0000001 10\n../../etc 10\n",
            r"line 2: '\.\./\.\./etc 10' is not two numbers",
        ),
        (
            "attribute/img2vid.txt",
            "0000001 10\n0000001 11\n",
            r"line 2: image 0000001 is already in line 1",
        ),
        (
            "attribute/img2vid.txt",
            "0000001 11\n",
            r"image 0000001 is of vehicle 10, but of 11 in .*, line 1",
        ),
        ("attribute/img2vid.txt", "0000001 10\n", r"line 2: image 0000002 is not in"),
        (
            "attribute/model_attr.txt",
            "10 1\n10 2\n",
            r"line 2: vehicle 10 has model 2, but 1 in an earlier line",
        ),
        ("attribute/model_attr.txt", "10 -1\n", r"line 1: '10 -1' is not two numbers"),
        ("attribute/model_attr.txt", "99 1\n", r"no image of split 'train' has a model"),
        (
            "attribute/model_names.txt",
            "Alpha\n",
            r"model_names\.txt, line 1: 'Alpha' does not end in a model",
        ),
        ("train_test_split/train_list.txt", "", r"train_list\.txt is empty"),
    ],
)
def test_a_wrong_line_is_named(release: Release, name: str, text: str, message: str) -> None:
    with pytest.raises(BadLabels, match=message):
        read_vehicleid(release({name: text}))


def test_bytes_that_are_not_utf8_are_named_with_their_line(release: Release) -> None:
    root = release()
    (Path(root) / "attribute/img2vid.txt").write_bytes(b"0000001 10\n\xff\xfe\n")
    with pytest.raises(BadLabels, match="line 2: not UTF-8"):
        read_vehicleid(root)


@pytest.mark.parametrize("split", ["", "tests", "test_", "test_1/../../x", "TRAIN"])
def test_an_unknown_split_is_refused(release: Release, split: str) -> None:
    with pytest.raises(BadSetting, match="split is"):
        read_vehicleid(release(), split)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BucketMissing):
        read_vehicleid(str(tmp_path / "nowhere"))
