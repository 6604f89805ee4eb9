"""`mhvae degradation-cell`, `degradation-plan` and `degradation-training`: what they print and how they refuse."""

from __future__ import annotations

import pytest

from mhvae_kit import cli
from mhvae_kit.degradation import plan_digest, plan_text


def call(*arguments: str) -> int:
    """The exit code of `mhvae ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.app(list(arguments), prog_name="mhvae")
    return ended.value.code or 0


def test_the_commands_are_in_the_help(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"  degradation-{name} " in printed for name in ("cell", "plan", "training"))


def test_the_plan_is_printed(capsys):
    assert call("degradation-plan", "--preset", "smoke", "--only", "blur", "--cores", "4") == 0
    printed = capsys.readouterr().out
    assert printed == plan_text("smoke", "blur", 4) + "\n" and plan_digest("smoke")[:12] in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("degradation-plan", "--preset", "huge"), "mhvae: unknown preset; got 'huge'"),
        (("degradation-plan", "--only", "rust"), "mhvae: unknown conditions; got rust"),
        (("degradation-cell", "blur", "--dose", "0.3", "--preset", "smoke"), "mhvae: blur has no such dose"),
        (("degradation-cell", "blur", "--preset", "smoke"), "mhvae: blur has no such dose"),
        (("degradation-cell", "real", "--dose", "1", "--preset", "smoke"), "mhvae: real has no such dose"),
        (("degradation-cell", "rust"), "mhvae: unknown condition; got 'rust'"),
        (("degradation-training", "--preset", "smoke"), "mhvae: the plan at smoke has no checkpoint ages"),
    ],
)
def test_what_the_plan_does_not_have_is_one_sentence(arguments, sentence, capsys):
    assert call(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(sentence) and told.count("\n") == 1


@pytest.mark.parametrize("arguments", [("degradation-cell",), ("degradation-plan", "--cores", "0")])
def test_calls_that_cannot_be_meant_are_refused(arguments, capsys):
    assert call(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_cell_is_made_and_told_in_one_line(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr("mhvae_kit.degradation.cell.run_cell", lambda *a, **o: asked.append((a, o)) or tmp_path)
    monkeypatch.setattr("mhvae_kit.degradation.cell.one_line", lambda folder: f"made {folder.name}")
    assert call("degradation-cell", "blur", "--dose", "1", "--preset", "smoke", "--root", str(tmp_path)) == 0
    assert asked == [(("blur", 1.0), {"preset": "smoke", "root": tmp_path, "data_dir": None})]
    assert capsys.readouterr().out == f"made {tmp_path.name}\n"
