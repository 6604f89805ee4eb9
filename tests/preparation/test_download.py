"""Downloading ReMIND with a stand-in for idc-index: consent first, whole series only, clear words without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

from mhvae_kit.cli import app
from mhvae_kit.data.patient_manifests import SeriesRow
from mhvae_kit.errors import DataError, InputError, MissingError, RunError
from mhvae_kit.preparation import download as downloads

FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"


class StandIn:
    """Delivers files of a phantom's series, or fails."""

    def __init__(self, source: Path, error: Exception | None = None, lose: int = 0):
        self.source, self.error, self.lose, self.asked = source, error, lose, []

    def __call__(self):
        return self

    def download_dicom_series(self, uid, downloadDir, **options):
        self.asked.append(uid)
        if self.error:
            raise self.error
        for path in sorted(self.source.glob("*.dcm"))[self.lose :]:
            shutil.copy(path, downloadDir)


@pytest.fixture
def source(patients) -> Path:
    return patients / "phantom-001" / "t2"


@pytest.fixture
def row(source) -> SeriesRow:
    first = pydicom.dcmread(source / "0001.dcm")
    values = {"case": "ReMIND-901", "collection": "remind", "role": "t2", "modality": "MR", "description": "3D"}
    values |= {"series_uid": str(first.SeriesInstanceUID), "study_uid": str(first.StudyInstanceUID), "files": 12}
    return SeriesRow(**values, megabytes=1.0, licence="CC BY 4.0", doi="10.7937/3RAG-D070", index="IDC v25")


def test_two_cases_with_both_images_by_default():
    rows = downloads.plan(manifest=FOLDER / "remind_cases.csv")
    assert len({row.case for row in rows}) == 2 and {"us", "t2"} <= {row.role for row in rows}
    text = downloads.describe(rows)
    assert "2 cases" in text and "MB" in text and "CC BY 4.0" in text and "10.7937/3RAG-D070" in text


def test_unknown_cases_and_numbers_are_refused():
    with pytest.raises(InputError, match="unknown cases; got \\['ReMIND-999'\\]"):
        downloads.plan(["ReMIND-999"], FOLDER / "remind_cases.csv")
    with pytest.raises(InputError, match="1 to 66"):
        downloads.plan(0, FOLDER / "remind_cases.csv")


def test_without_consent_nothing_is_asked_for(row, source, tmp_path):
    client = StandIn(source)
    with pytest.raises(InputError, match="(?s)without consent.*CC BY 4.0.*--yes"):
        downloads.download([row], tmp_path, consent=False, client=client)
    assert client.asked == []


def test_a_series_that_is_there_is_not_fetched_again(row, source, tmp_path):
    client = StandIn(source)
    for _ in range(2):
        downloads.download([row], tmp_path, consent=True, client=client)
    assert client.asked == [row.series_uid] and len(list((tmp_path / "ReMIND-901" / "t2").iterdir())) == 12


def test_half_a_series_is_never_taken_for_one(row, source, tmp_path):
    with pytest.raises(DataError, match="did not come whole; got 9 files"):
        downloads.download([row], tmp_path, consent=True, client=StandIn(source, lose=3))
    assert list((tmp_path / "ReMIND-901").iterdir()) == []
    downloads.download([row], tmp_path, consent=True, client=StandIn(source))
    assert (tmp_path / "ReMIND-901" / "t2").is_dir()


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), None])
def test_without_a_network_it_says_what_to_do(row, source, tmp_path, error):
    client = StandIn(source, error=error, lose=99)
    with pytest.raises(MissingError, match="connect to a network and run the same command again"):
        downloads.download([row], tmp_path, consent=True, client=client)
    assert list((tmp_path / "ReMIND-901").iterdir()) == []


def test_no_room_is_told_before_the_download(row, source, tmp_path, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    client = StandIn(source)
    with pytest.raises(RunError, match="no room for the download"):
        downloads.download([row], tmp_path, consent=True, client=client)
    assert client.asked == []


def test_without_idc_index_the_install_command_is_named(row, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(MissingError, match=r'pip install "mhvae_kit\[data\]"'):
        downloads.download([row], tmp_path, consent=True)


def test_the_command_ends_with_two_without_a_network(row, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "plan", lambda cases: [row])
    library = SimpleNamespace(IDCClient=StandIn(source))
    monkeypatch.setattr(downloads, "importlib", SimpleNamespace(import_module=lambda name: library))
    monkeypatch.setattr(downloads, "STORE", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SystemExit) as ended:
        app(["prepare", "remind", str(tmp_path / "in"), "--download", "--yes"], prog_name="mhvae")
    told = capsys.readouterr()
    assert ended.value.code == 2 and "1 cases (ReMIND-901)" in told.out
    assert "mhvae: ReMIND-901 t2 cannot be downloaded" in told.err and "Traceback" not in told.err


def test_the_command_prepares_a_folder(patients, tmp_path, capsys):
    options = ["--size", "64", "--spacing", "1.5", "--name", "phantom-made", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        app(["prepare", "folder", str(patients), *options], prog_name="mhvae")
    assert ended.value.code == 0 and "1 cases in" in capsys.readouterr().out
    assert (tmp_path / "out" / "phantom-001" / "us.nii").is_file()
