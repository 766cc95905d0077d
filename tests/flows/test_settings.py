from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.settings import Settings, quiet_environment


def test_home_is_in_the_current_folder_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().home == tmp_path / ".perennial"
    assert Settings(home=Path("here")).home == tmp_path / "here"


def test_variables_set_them_and_keywords_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_MLFLOW_PORT", "5555")
    monkeypatch.setenv("PERENNIAL_DATABASE_URL", "postgresql://me@host")
    settings = Settings(workers=3)
    assert (settings.mlflow_port, settings.database_url, settings.workers) == (5555, "postgresql://me@host", 3)
    assert Settings(mlflow_port=6000).mlflow_port == 6000


@pytest.mark.parametrize("wrong", [{"prot": 1}, {"api_port": 70_000}, {"workers": 0}])
def test_wrong_keywords_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_child_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_port=9000, workers=5, database_url="postgresql://me@host")
    for name, value in settings.exported().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_everything_is_written_below_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    folders = [
        getattr(settings, name) for name in ("features", "panels", "cycles", "signals", "reports", "logs", "run")
    ]
    folders += [settings.prefect_home, settings.evidently_workspace]
    assert {folder.parent for folder in folders} == {tmp_path}
    assert len(set(folders)) == len(folders)
    assert settings.artifacts_url == f"file://{tmp_path}/mlflow"


def test_the_environment_is_quiet_and_points_home(tmp_path: Path) -> None:
    environment = quiet_environment(Settings(home=tmp_path))
    assert environment["DO_NOT_TRACK"] == "true"
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["PERENNIAL_HOME"] == str(tmp_path)
    assert all(isinstance(value, str) for value in environment.values())
