"""The cache: the same bytes always, whole or not at all, and damage is named with its mend."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mhvae_kit.data.manifests import COLUMNS, read_manifest, verify_manifest
from mhvae_kit.data.phantom import compare_with_reference, load_phantom, store
from mhvae_kit.data.phantom import dataset as phantom_dataset
from mhvae_kit.data.phantom.atlas import FILE_NAME
from mhvae_kit.data.phantom.presets import KINDS, case_seed, case_table, get_preset
from mhvae_kit.errors import DataError, InputError, RunError

MANIFESTS = Path(__file__).resolve().parents[2] / "data_manifests"
CASE = "phantom-test-001"


@pytest.fixture
def cache(tmp_path, phantom):
    """An empty cache that has the atlas already."""
    shutil.copy(phantom.root.parent / FILE_NAME, tmp_path / FILE_NAME)
    return tmp_path


@pytest.fixture
def made(cache):
    """A cache of its own with one patient, and the patient's folder."""
    return load_phantom("smoke", cases=[CASE], cache_dir=cache, show_progress=False).root / CASE


def again(folder):
    return load_phantom("smoke", cases=[CASE], cache_dir=folder.parent.parent, show_progress=False)


def hashes(dataset):
    return dict(zip(dataset.manifest["file"], dataset.manifest["sha256"], strict=True))


# --- the same bytes


def test_one_patient_alone_has_the_same_bytes_as_among_all(phantom, made):
    alone = hashes(again(made))
    assert alone.items() <= hashes(phantom).items() and len(alone) == len(KINDS)


def test_the_bytes_do_not_depend_on_the_number_of_threads(phantom, cache):
    threads = "1" if (os.cpu_count() or 1) > 1 else "3"  # another number than this process uses
    code = f"from mhvae_kit.data import load_phantom; load_phantom('smoke', cases=['{CASE}'], cache_dir={str(cache)!r})"
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | variables, capture_output=True)
    made = load_phantom("smoke", cases=[CASE], cache_dir=cache)
    assert hashes(made).items() <= hashes(phantom).items()


def test_two_processes_at_once_end_with_a_right_cache(phantom, cache):
    code = f"from mhvae_kit.data import load_phantom; load_phantom('smoke', splits=['test'], cache_dir={str(cache)!r})"
    pair = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    made = load_phantom("smoke", splits=["test"], cache_dir=cache)
    assert hashes(made).items() <= hashes(phantom).items()
    assert not list(made.root.glob(".tmp-*"))
    verify_manifest(read_manifest(made.root / "manifest.csv"), made.root)


def test_threads_of_one_process_do_not_disturb_each_other(phantom, cache):
    loaded = []

    def load():
        loaded.append(load_phantom("smoke", splits=["validation"], cache_dir=cache, show_progress=False))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({dataset.digest for dataset in loaded}) == 1 and len(loaded) == 3


# --- what is loaded


def test_all_patients_by_split(phantom):
    assert {split: len(phantom.case_ids(split)) for split in ("train", "validation", "test", "ood")} == get_preset(
        "smoke"
    ).n_cases
    assert phantom.case_ids() == list(case_table(get_preset("smoke")))
    assert phantom.split_of("phantom-ood-001") == "ood"


def test_the_demo_preset_has_the_papers_proportions():
    counts = get_preset("demo").n_cases
    assert counts["train"] >= 56 and counts["validation"] >= 6 and counts["test"] >= 10 and counts["ood"] > 0


def test_only_the_asked_patients_are_made(made):
    assert [path.name for path in made.parent.iterdir() if path.is_dir()] == [CASE]
    assert again(made).case_ids() == [CASE]


def test_a_dataset_names_itself_a_phantom(phantom):
    assert phantom.name == "phantom-smoke" and "phantom" in repr(phantom)
    assert all(case.startswith("phantom-") for case in phantom.case_ids())


def test_the_digest_follows_the_content(phantom, made):
    part = again(made)
    assert len(part.digest) == 64 and part.digest != phantom.digest
    assert part.digest == load_phantom("smoke", cases=[CASE], show_progress=False).digest


def test_the_caches_manifest_holds_what_is_there(phantom):
    frame = read_manifest(phantom.root / "manifest.csv")
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(KINDS) * len(phantom.case_ids())
    verify_manifest(frame, phantom.root)


def test_drawn_parameters_are_told(phantom):
    told = phantom.describe(CASE)
    assert told["seed"] == case_seed(CASE) and told["split"] == "test"
    assert 5 < told["tumour"]["radius_mm"] < 25 and 20 < told["fan"]["half_angle_deg"] < 35


def test_volumes_are_read_only_and_shared(phantom):
    volume = phantom.volume(CASE, "us")
    assert volume is phantom.volume(CASE, "us") and not volume.flags.writeable


def test_files_are_plain_nifti_in_millimetres(phantom):
    image = nib.load(phantom.path(CASE, "t2"))
    assert image.header.get_xyzt_units()[0] == "mm" and image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), phantom.spacing_mm, rtol=1e-5)


@pytest.mark.parametrize("preset", ["smoke", "demo"])
def test_the_reference_manifest_lists_every_file(preset):
    frame = read_manifest(MANIFESTS / f"phantom_{preset}.csv")
    table = case_table(get_preset(preset))
    assert dict(zip(frame["case"], frame["split"], strict=True)) == table
    assert len(frame) == len(KINDS) * len(table) and frame["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert (frame["seed"] == frame["case"].map(case_seed)).all()
    assert set(frame["shape"]) == {"x".join(map(str, get_preset(preset).shape))}


def test_comparing_with_a_reference_counts_files(phantom):
    frame = phantom.manifest.copy()
    frame.loc[0, "sha256"] = "0" * 64
    counts = compare_with_reference(phantom, frame.iloc[:-2])
    assert counts == {"identical": len(frame) - 3, "different": 1, "unknown": 2}


# --- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "large"}, "unknown phantom preset; got 'large'"),
        ({"preset": "smoke", "splits": ["training"]}, "unknown split; got 'training'"),
        ({"preset": "smoke", "cases": ["phantom-train-099"]}, "unknown case of preset 'smoke'"),
        ({"preset": "smoke", "splits": ["test"], "cases": ["phantom-train-000"]}, "no case is left"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        load_phantom(**arguments)


def test_a_case_or_kind_that_is_not_there(phantom):
    with pytest.raises(InputError, match="case is not loaded; got 'nobody'"):
        phantom.volume("nobody", "t2")
    with pytest.raises(InputError, match="unknown kind; got 'ct'"):
        phantom.volume(CASE, "ct")


# --- interruption and full disk


def test_ctrl_c_leaves_nothing_half_written(cache, monkeypatch):
    written = []

    def interrupted(path, volume, affine):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        original(path, volume, affine)

    original = store.write_nifti
    monkeypatch.setattr(store, "write_nifti", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_phantom("smoke", cases=[CASE], cache_dir=cache, show_progress=False)
    root = written[0].parent.parent
    assert list(root.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(cache, monkeypatch):
    def full(path, volume, affine):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_nifti", full)
    with pytest.raises(RunError, match="disk is full: .*MHVAE_CACHE"):
        load_phantom("smoke", cases=[CASE], cache_dir=cache, show_progress=False)
    assert list(store.preset_dir(cache, get_preset("smoke")).iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be written"):
        load_phantom("smoke", cases=[CASE], cache_dir=tmp_path / "file", show_progress=False)


def test_leftovers_of_a_killed_process_are_removed(made):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leftover = made.parent / f".tmp-{store._host()}-{dead.stdout.strip()}-abc"
    leftover.mkdir()
    (leftover / "t2.nii").write_bytes(b"half")
    again(made)
    assert not leftover.exists()


def test_folders_of_running_processes_are_left_to_them(made):
    mine = made.parent / f".tmp-{store._host()}-{os.getppid()}-abc"
    elsewhere = made.parent / ".tmp-othermachine-1-abc"
    old = made.parent / ".tmp-othermachine-2-abc"
    for folder in (mine, elsewhere, old):
        folder.mkdir()
    long_ago = time.time() - 2 * store.STALE_S
    os.utime(old, (long_ago, long_ago))
    again(made)
    assert mine.exists() and elsewhere.exists() and not old.exists()


@pytest.mark.parametrize("name", ["us.nii", "case.json"])
def test_an_incomplete_patient_is_made_again(phantom, made, name):
    (made / name).unlink()
    assert hashes(again(made)).items() <= hashes(phantom).items()
    assert (made / name).is_file()


# --- damage


def test_a_changed_byte_is_found_by_a_new_process(made, monkeypatch):
    data = bytearray((made / "us.nii").read_bytes())
    data[5000] ^= 1
    (made / "us.nii").write_bytes(bytes(data))
    monkeypatch.setattr(phantom_dataset, "_verified", set())  # as in a process that has not read it yet
    with pytest.raises(DataError, match=r"us\.nii has changed.*delete the folder"):
        again(made)


def test_a_changed_byte_is_found_when_asked(made):
    dataset = again(made)
    data = bytearray((made / "t2.nii").read_bytes())
    data[5000] ^= 1
    (made / "t2.nii").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"t2\.nii has changed since it was made"):
        dataset.verify()


def test_a_truncated_file_is_named(made):
    with open(made / "flair.nii", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"flair\.nii is truncated .*got 1000 bytes.*delete the folder"):
        again(made)


def test_deleting_the_folder_mends(phantom, made):
    (made / "us.nii").write_bytes(b"")
    with pytest.raises(DataError):
        again(made)
    shutil.rmtree(made)
    assert hashes(again(made)).items() <= hashes(phantom).items()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"case": "x", "files": {}}'])
def test_a_damaged_record_is_named(made, text):
    (made / "case.json").write_text(text)
    with pytest.raises(DataError, match=r"case\.json .*delete the folder"):
        again(made)


@pytest.mark.parametrize("content", [b"", b"no nifti at all" * 100])
def test_an_unreadable_nifti_is_named(made, content):
    dataset = again(made)
    (made / "t2.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"t2\.nii cannot be read as NIfTI"):
        dataset.volume(CASE, "t2")


def test_a_nifti_cut_after_loading_is_named(made):
    dataset = again(made)
    with open(made / "t2.nii", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(DataError, match=r"t2\.nii is truncated"):
        dataset.volume(CASE, "t2")


def test_another_shape_is_named(made):
    dataset = again(made)
    store.write_nifti(made / "t2.nii", np.zeros((64, 64, 11), np.uint8), dataset.affine(CASE))
    with pytest.raises(DataError, match=r"t2\.nii has another shape.*\(64, 64, 11\)"):
        dataset.volume(CASE, "t2")


@pytest.mark.parametrize(("shift_mm", "bad"), [(0.005, False), (0.5, True), (np.nan, True)])
def test_an_affine_unlike_the_others_is_named(made, shift_mm, bad):
    dataset = again(made)
    image = nib.load(made / "t2.nii", mmap=False)
    affine, volume = dataset.affine(CASE), np.array(image.dataobj)
    affine[0, 3] += shift_mm
    header = image.header
    header.set_sform(affine, code=1)
    nib.Nifti1Image(volume, None, header).to_filename(made / "t2.nii")
    if bad:
        with pytest.raises(DataError, match=r"t2\.nii does not lie on the grid"):
            dataset.volume(CASE, "t2")
    else:
        assert np.array_equal(dataset.volume(CASE, "t2"), volume)


# --- the oracle


def test_the_oracle_is_kept_beside_the_case(made, monkeypatch):
    dataset = again(made)
    first = dataset.oracle(CASE)
    monkeypatch.setattr("mhvae_kit.data.phantom.dataset.make_oracle", None)
    assert np.array_equal(dataset.oracle(CASE), first)
    assert json.loads((made / "oracle_us.json").read_text())["draws"] == 64


def test_a_damaged_oracle_is_made_again(made):
    dataset = again(made)
    first = dataset.oracle(CASE)
    data = bytearray((made / "oracle_us.nii").read_bytes())
    data[6000] ^= 64
    (made / "oracle_us.nii").write_bytes(bytes(data))
    assert np.array_equal(dataset.oracle(CASE), first)


def test_the_oracle_does_not_need_a_writable_cache(made, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store, "write_nifti", refuse)
    assert again(made).oracle(CASE).shape == (64, 64, 12)
    assert not (made / "oracle_us.nii").exists()
