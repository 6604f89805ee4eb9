"""Which file is which: the folder route, the names of BraTS and UPenn-GBM, ReMIND in DICOM and NRRD."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhvae_kit.data.dicom import Series
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.preparation import find_cases
from mhvae_kit.preparation.made import write_patient
from mhvae_kit.preparation.remind import choose
from mhvae_kit.preparation.sources import claimed_modality


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_folders_and_flat_files(tmp_path):
    touch(tmp_path, "P1/us.nrrd", "P1/t2.nii.gz", "P1/seg.nii.gz", "P1/notes.txt", "P2-us.nii.gz", "P2-flair.nii.gz")
    one, two = find_cases("folder", tmp_path)
    assert (one.case, sorted(one.images), sorted(one.labels)) == ("P1", ["t2", "us"], ["tumour"])
    assert (two.case, sorted(two.images)) == ("P2", ["flair", "us"])


def test_transforms_are_found_by_modality_then_by_case(tmp_path):
    touch(tmp_path / "in", "P1/us.nii", "P1/t2.nii", "P1/flair.nii", "P1/transform.tfm", "P1/flair.tfm")
    moves = touch(tmp_path / "moves", "P1-t2.tfm")
    images = find_cases("folder", tmp_path / "in", moves)[0].images
    assert [p.name for p in images["t2"].transform] == ["P1-t2.tfm"]
    assert [p.name for p in images["flair"].transform] == ["flair.tfm"]
    assert images["us"].transform == ()


def test_one_modality_twice(tmp_path):
    touch(tmp_path, "P1/us.nii", "P1/t2.nii", "P1/t2.nrrd")
    with pytest.raises(DataError, match="one modality twice"):
        find_cases("folder", tmp_path)


@pytest.mark.parametrize(
    ("names", "case"),
    [
        (["BraTS-GLI-00001-000-t2w.nii.gz", "BraTS-GLI-00001-000-t1c.nii.gz"], "BraTS-GLI-00001-000"),
        (["BraTS20_Training_001_t2.nii", "BraTS20_Training_001_t1ce.nii"], "BraTS20_Training_001"),
        (["UPENN-GBM-00001_11_T2.nii.gz", "UPENN-GBM-00001_11_T1GD.nii.gz"], "UPENN-GBM-00001_11"),
    ],
)
def test_names_of_brats_and_upenn(tmp_path, names, case):
    touch(tmp_path / case, *names, names[0].replace("T2", "T1").replace("t2", "t1"))
    found = find_cases("brats", tmp_path)[0]
    assert found.case == case and sorted(found.images) == ["cet1", "t2"]


def test_two_copies_of_one_brats_case(tmp_path):
    touch(tmp_path, "a/BraTS20_Training_001_t2.nii", "b/BraTS20_Training_001_t2.nii")
    with pytest.raises(DataError, match="two cases have the id BraTS20_Training_001"):
        find_cases("brats", tmp_path)


def test_remind_in_dicom_is_found_by_its_descriptions(tmp_path, images):
    chosen = {k: images[k] for k in ("us", "t2", "cet1")}
    write_patient(tmp_path, "ReMIND-901", chosen, layout="remind")
    case = find_cases("remind", tmp_path)[0]
    assert case.case == "ReMIND-901" and sorted(case.images) == ["cet1", "t2", "us"]
    assert case.images["t2"].says == "3D_AX_T2_SPACE" and len(case.images["t2"].files) == 12


def test_remind_in_nrrd_with_the_released_transforms(tmp_path):
    data = touch(
        tmp_path / "nrrd",
        "Case001-intraop-US-pre_dura.nrrd",
        "Case001-intraop-US-post_dura.nrrd",
        "Case001-preop-MR-3D_SAG_T2_SPACE.nrrd",
        "Case001-preop-MR-3D_AX_T1_postcontrast.nrrd",
        "Case001-preop-SEG-tumor-MR-3D_SAG_T2_SPACE.nrrd",
    )
    affine = "affine/Case001/Case001-Case001-intraop-US-pre_dura-to-Case001-preop-MR-3D_SAG_T2_SPACE.tfm"
    rigid = "rigid/Case001/Case001-Case001-preop-MR-3D_SAG_T2_SPACE-to-Case001-preop-MR-3D_AX_T1_postcontrast.tfm"
    case = find_cases("remind", data, touch(tmp_path / "registration", affine, rigid))[0]
    assert case.case == "ReMIND-001" and sorted(case.images) == ["cet1", "t2", "us"] and list(case.labels) == ["tumour"]
    assert [p.parts[-3] for p in case.images["t2"].transform] == ["affine"]
    assert [p.parts[-3] for p in case.images["cet1"].transform] == ["affine", "rigid"]


def series(modality: str, description: str, study: str, number: int = 1) -> Series:
    return Series(f"1.{number}.{study}", study, "ReMIND-001", modality, description, number, (Path("x.dcm"),))


def test_mr_during_surgery_is_left_out_and_the_label_follows_its_image():
    chosen = choose(
        [
            series("US", "US_pre_dura", "2"),
            series("US", "US_post_dura", "2", 2),
            series("MR", "3D_AX_T1_postcontrast", "2", 3),
            series("MR", "3D_AX_T1_postcontrast", "1", 4),
            series("SEG", "tumor seg - MR ref: 3D_AX_T1_postcontrast", "1", 5),
            series("SEG", "tumor seg - MR ref: 3D_AX_T1_postcontrast", "2", 6),
            series("SEG", "cerebrum seg - MR ref: 3D_AX_T1_postcontrast", "1", 7),
        ]
    )
    assert {role: s.number for role, s in chosen.items()} == {"us": 1, "cet1": 4, "tumour": 5}


def test_two_series_for_one_role_are_not_guessed_between():
    with pytest.raises(DataError, match="2 series for t2.*move all but one"):
        choose([series("MR", "3D_AX_T2_SPACE", "1", 3), series("MR", "3D_SAG_T2_SPACE", "1", 4)])


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("3D_AX_T2_FLAIR", "flair"),
        ("3D_AX_T1_postcontrast", "cet1"),
        ("BraTS20_001_t1ce.nii.gz", "cet1"),
        ("3D_SAG_T2_SPACE", "t2"),
        ("US_pre_dura", "us"),
        ("3D_AX_T1_precontrast", None),
        ("status", None),
    ],
)
def test_what_a_name_claims(text, claim):
    assert claimed_modality(text) == claim


def test_nothing_to_find(tmp_path):
    with pytest.raises(MissingError, match="no case of the brats route"):
        find_cases("brats", tmp_path)
    with pytest.raises(MissingError, match="is not there"):
        find_cases("folder", tmp_path / "none")
    with pytest.raises(InputError, match="unknown route"):
        find_cases("own", tmp_path)
