"""Manifests: reading, writing, and finding files that are not what they should be."""

from __future__ import annotations

import pandas as pd
import pytest

from mhvae_kit.data.manifests import COLUMNS, read_manifest, verify_manifest, write_manifest
from mhvae_kit.errors import DataError, MissingError
from mhvae_kit.files import sha256


@pytest.fixture
def folder(tmp_path):
    """A data folder with one file and its manifest."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "t2.nii").write_bytes(b"image")
    row = {"case": "a", "split": "train", "file": "a/t2.nii", "sha256": sha256(tmp_path / "a" / "t2.nii")}
    frame = pd.DataFrame([row | {"shape": "4x4x2", "spacing": 1.5, "seed": 3}])
    write_manifest(frame, tmp_path / "manifest.csv")
    return tmp_path


def test_a_manifest_is_read_as_it_was_written(folder):
    frame = read_manifest(folder / "manifest.csv")
    assert list(frame.columns) == list(COLUMNS)
    assert frame.iloc[0][["case", "shape", "spacing", "seed"]].tolist() == ["a", "4x4x2", 1.5, 3]


def test_further_columns_are_kept_after_the_known_ones(folder):
    frame = read_manifest(folder / "manifest.csv").assign(licence="CC BY 4.0")
    write_manifest(frame, folder / "more.csv")
    assert list(read_manifest(folder / "more.csv").columns) == [*COLUMNS, "licence"]


def test_a_right_folder_passes(folder):
    assert verify_manifest(read_manifest(folder / "manifest.csv"), folder) is None


def test_a_changed_file_is_named(folder):
    (folder / "a" / "t2.nii").write_bytes(b"Image")
    with pytest.raises(DataError, match=r"t2\.nii has changed"):
        verify_manifest(read_manifest(folder / "manifest.csv"), folder)


def test_a_missing_file_is_named_with_the_mend(folder):
    (folder / "a" / "t2.nii").unlink()
    with pytest.raises(DataError, match=r"t2\.nii .*; fetch it again"):
        verify_manifest(read_manifest(folder / "manifest.csv"), folder, mend="fetch it again")


@pytest.mark.parametrize("name", ["../outside.nii", "/etc/hosts", "a/../../outside.nii"])
def test_a_path_that_leaves_the_folder_is_refused(folder, name):
    frame = read_manifest(folder / "manifest.csv").assign(file=name)
    with pytest.raises(DataError, match="leaves the data folder"):
        verify_manifest(frame, folder)


def test_a_link_that_leaves_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.nii"
    outside.write_bytes(b"image")
    (folder / "a" / "link.nii").symlink_to(outside)
    frame = read_manifest(folder / "manifest.csv").assign(file="a/link.nii")
    with pytest.raises(DataError, match="leaves the data folder"):
        verify_manifest(frame, folder)


def test_no_manifest(tmp_path):
    with pytest.raises(MissingError, match="manifest is not there"):
        read_manifest(tmp_path / "manifest.csv")


def test_a_manifest_without_its_columns(folder):
    (folder / "manifest.csv").write_text("case,split\na,train\n")
    with pytest.raises(DataError, match="lacks columns"):
        read_manifest(folder / "manifest.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x81", b'case,split\n"a,train\n'])
def test_a_manifest_that_is_no_csv(folder, content):
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.csv"):
        read_manifest(folder / "manifest.csv")


def test_a_case_in_two_splits(folder):
    frame = read_manifest(folder / "manifest.csv")
    write_manifest(pd.concat([frame, frame.assign(split="test")]), folder / "manifest.csv")
    with pytest.raises(DataError, match="case a into two splits"):
        read_manifest(folder / "manifest.csv")
