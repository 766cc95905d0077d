"""Records of a cycle for tests of what MLflow is told."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from training.artifacts import write_manifest
from training.tracking import CycleSummary, DatasetType, VariantRecord

START = datetime(2024, 5, 6, 21, tzinfo=UTC)
VARIANT = "lstm-l30-technical-h128"


def make_record(folder: Path, *, variant: str = VARIANT) -> VariantRecord:
    """A small LSTM's record; its files are written to ``folder``."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    manifest = write_manifest(
        folder,
        variant=variant,
        checksum="c0ffee",
        params={"hidden_size": 128, "dropout": 0.1},
        feature_names=("rsi_14",),
        dataset_fingerprint="f" * 64,
        training_span=(datetime(2019, 1, 2, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC)),
        seed=7,
        code_version="abc",
        packages={"numpy": "2.4.0"},
    )
    return VariantRecord(
        cycle_id="c1",
        architecture="lstm",
        family="deep",
        pipeline="technical",
        lookback=30,
        training_key="k1",
        folder=folder,
        manifest=manifest,
        metrics={
            "test": {"sharpe_net": 1.5, "ic": 0.03, "recovery_time": float("nan"), "worst": float("-inf")},
            "train": {"fit_s": 12.0},
        },
        fold_table=pd.DataFrame({"fold": [0, 1, 2], "ic": [0.1, np.nan, 0.3], "hit_rate": [0.5, 0.6, 0.7]}),
        series=("ic",),
        started_at=START,
        ended_at=START + timedelta(seconds=90),
    )


def of_variant(
    record: VariantRecord, variant: str, *, metrics: Mapping[DatasetType, Mapping[str, float]] | None = None
) -> VariantRecord:
    """The same record of another variant, with a fit of its own."""
    return replace(
        record,
        manifest=replace(record.manifest, variant=variant),
        training_key=f"{record.training_key}-{variant}",
        metrics=record.metrics if metrics is None else metrics,
    )


def make_summary(cycle_id: str = "c1", *, started_at: datetime = START) -> CycleSummary:
    """Four variants, one of them in production."""
    names = [f"v{number}" for number in range(4)]
    return CycleSummary(
        cycle_id=cycle_id,
        dataset_fingerprint="f" * 64,
        code_version="abc",
        seed=7,
        ranking=pd.DataFrame(
            {
                "variant": names,
                "architecture": ["lstm", "lstm", "arima", "lgbm"],
                "pipeline": ["technical", "momentum", "technical", "momentum"],
                "score": [0.9, 0.5, np.nan, -0.1],
                "stage": ["Production", "Staging", "None", "None"],
                "why": ["<gate>", "", "", ""],
            }
        ),
        fold_ic=pd.DataFrame([[0.1, np.nan], [0.0, -0.1]], index=names[:2], columns=[0, 1]),
        equity=pd.DataFrame({"v0": [1.0, 1.1]}, index=pd.to_datetime(["2024-01-02", "2024-01-03"], utc=True)),
        reports=[],
        num_variants=4,
        num_trials=20,
        num_staging=1,
        num_production=1,
        started_at=started_at,
        ended_at=started_at + timedelta(minutes=5),
    )
