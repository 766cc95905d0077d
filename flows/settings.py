"""What the outside decides: where Perennial keeps its data, which ports it takes, which Postgres it uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.cycle import Policy

PREFIX = "PERENNIAL_"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SettingsError(ValueError):
    """A setting that makes no sense; the message names it, what it is and what it may be."""


class Settings(BaseSettings):
    """The settings of one process, from ``PERENNIAL_...`` variables or from keywords; an unknown keyword is refused.

    ``home`` holds all that Perennial writes (as root, its Postgres data lies outside, see ``flows.postgres``).
    ``database_url`` names a Postgres server of yours; without it an embedded one is used. ``engine`` is where fits run:
    ``local``, ``ray``, or a Ray cluster's address; ``home`` must then lie on a file system that all its nodes see.
    ``device`` is where networks are trained: ``auto`` takes a GPU where there is one. ``policy`` is that by which a
    stage that a person sets in the MLflow UI is honoured or refused.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Path.cwd() / ".perennial")
    database_url: str | None = None
    host: str = "127.0.0.1"
    mlflow_port: int = Field(default=5000, ge=1, le=65535)
    prefect_port: int = Field(default=4200, ge=1, le=65535)
    evidently_port: int = Field(default=8000, ge=1, le=65535)
    api_port: int = Field(default=8080, ge=1, le=65535)
    workers: int = Field(default_factory=_num_cores, ge=1)
    engine: str = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    policy: Policy = "strict"

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @property
    def features(self) -> Path:
        """Feature tables in two times."""
        return self.home / "features"

    @property
    def panels(self) -> Path:
        """Memory-mapped panels, one folder a fingerprint."""
        return self.home / "panels"

    @property
    def cycles(self) -> Path:
        """What each cycle has finished, for resuming."""
        return self.home / "cycles"

    @property
    def signals(self) -> Path:
        """The out-of-sample signal store."""
        return self.home / "signals"

    @property
    def snapshots(self) -> Path:
        """Live figures, every five minutes."""
        return self.home / "snapshots"

    @property
    def artifacts_url(self) -> str:
        """MLflow's artifact root."""
        return (self.home / "mlflow").as_uri()

    @property
    def prefect_home(self) -> Path:
        """Prefect's own folder, its database included."""
        return self.home / "prefect"

    @property
    def evidently_workspace(self) -> Path:
        """Evidently's projects and snapshots."""
        return self.home / "evidently"

    @property
    def reports(self) -> Path:
        """HTML reports."""
        return self.home / "reports"

    @property
    def logs(self) -> Path:
        """One log file a service."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """Process records and locks."""
        return self.home / "run"

    @property
    def prefect_api_url(self) -> str:
        """Where the Prefect server of ``perennial up`` answers."""
        return f"http://{self.host}:{self.prefect_port}/api"

    def exported(self) -> dict[str, str]:
        """The variables from which a child process reads these same settings."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in fields.items()}


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, and from what was given on the command line."""
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = [
            f"{PREFIX}{fault['loc'][0]}".upper() + f"={fault['input']!r}: {fault['msg']}" for fault in error.errors()
        ]
        raise SettingsError(f"wrong settings: {'; '.join(faults)}") from error


def quiet_environment(settings: Settings) -> dict[str, str]:
    """Variables that keep the libraries quiet, at home and off the network; to be set before they are imported."""
    return {
        "DO_NOT_TRACK": "true",  # MLflow and Prefect want the word, Evidently any value
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MPLBACKEND": "Agg",
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # it takes 5 s, but not on a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PYGAME_HIDE_SUPPORT_PROMPT": "hide",
        "RAY_USAGE_STATS_ENABLED": "0",
        **settings.exported(),
    }
