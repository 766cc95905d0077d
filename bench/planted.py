"""Markets whose alpha we planted: the factory finds it on the pipeline that sees it, and on no other.

A simulated market for each of three signals (sentiment, on-chain, order flow) with that alpha alone, and one with none.
Cheap variants of all eight pipelines are trained walk-forward by ``perennial factory train``; the scores of a
pipeline's variants are standardised in each cross section and averaged, and their rank IC with the next return is
pooled over all out-of-sample dates. The test is one-sided, Newey-West errors, Holm over the eight pipelines of a
market: the planted pipeline must show an IC above zero at a family-wise 5%, no other may.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from bench.report import Bar, Report, Row, options, progress, publish
from feature_repo.market.simulated.market import write_market
from feature_repo.market.simulated.spec import SimSpec
from feature_repo.pipelines.catalog import CATALOGUE
from flows import postgres
from flows.settings import Settings
from training.comparison import hac_error, holm
from training.dataset import Panel
from training.metrics.forecast import ic_by_time
from training.panels import load_panel
from training.rating.tracks import score_matrix
from training.signals import SignalStore

PLANTED: Final = ("sentiment", "onchain", "order_flow")
ALPHA: Final = 0.1
"""The planted signal's correlation with the next day's return, in units of its volatility."""
LEVEL: Final = 0.05
ARCHITECTURES: Final = ("elastic_net-l7-{}-s0.5", "lightgbm-l7-{}-n7", "extra_trees-l7-{}-d6")
NUM_FOLDS: Final = 24
LAGS: Final = 5
NOTHING: Final = "nothing"

# Tensor suffixes: T sample times, N entities, V variants of a pipeline.


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A pipeline's pooled out-of-sample IC, its t-statistic and its one-sided p-value, corrected for the eight."""

    ic: float
    t: float
    p: float


def train(spec: SimSpec, folder: Path) -> Path:
    """Write the market and train the variants; gives the home where their signals are."""
    market, listed, home = folder / "market", folder / "variants.toml", folder / "home"
    write_market(spec, market)
    ids = [form.format(name) for name in CATALOGUE for form in ARCHITECTURES]
    listed.write_text(f"ids = {json.dumps(ids)}\n")
    command = [sys.executable, "-m", "flows.cli", "factory", "train", "--json", "--folds", str(NUM_FOLDS)]
    places = ["--market", str(market), "--catalogue", str(listed)]
    env = {**os.environ, "PERENNIAL_HOME": str(home)}
    subprocess.run([*command, *places], env=env, stdout=subprocess.PIPE, check=True)
    return home


def pooled(home: Path) -> dict[str, Found]:
    """Every pipeline's pooled IC."""
    store = SignalStore(root=next((home / "signals").iterdir()))
    panels = {panel.pipeline: panel for panel in (load_panel(path.parent) for path in home.glob("panels/*/panel.json"))}
    series = {name: _ic_T(store, panels[name]) for name in CATALOGUE}
    t_of = {name: float(ic_T.mean() / hac_error(ic_T, lags=LAGS)) for name, ic_T in series.items()}
    corrected = holm([float(norm.sf(t_of[name])) for name in CATALOGUE])
    return {
        name: Found(ic=float(series[name].mean()), t=t_of[name], p=p)
        for name, p in zip(CATALOGUE, corrected, strict=True)
    }


def _ic_T(store: SignalStore, panel: Panel) -> NDArray[np.float64]:
    """The rank IC of a pipeline's average score at each date that was scored; 0 where all assets score the same."""
    score_TN = np.mean([_standardised(store, form.format(panel.pipeline), panel) for form in ARCHITECTURES], axis=0)
    scored_T = np.isfinite(score_TN).any(axis=1) & ~np.isnat(panel.labels.end_T)
    return np.nan_to_num(ic_by_time(score_TN[scored_T], panel.labels.forward_TN[scored_T]))


def _standardised(store: SignalStore, variant: str, panel: Panel) -> NDArray[np.float64]:
    """A variant's scores (T, N), of mean 0 and variance 1 in each cross section; equal scores are 0."""
    versions = sorted(path.stem.removesuffix("-oos") for path in (store.root / variant).glob("*-oos.parquet"))
    signals = store.read(variant, model_versions=versions, kind="oos")
    score_TN, _ = score_matrix(signals, panel.event_times_T, panel.entities)
    known_TN = np.isfinite(score_TN)
    count_T1 = np.maximum(known_TN.sum(axis=1, keepdims=True), 1)
    centred_TN = score_TN - np.where(known_TN, score_TN, 0.0).sum(axis=1, keepdims=True) / count_T1
    spread_T1 = np.sqrt(np.where(known_TN, centred_TN**2, 0.0).sum(axis=1, keepdims=True) / count_T1)
    return centred_TN / np.where(spread_T1 > 0, spread_T1, 1.0)


def compare(planted: Sequence[str]) -> Report:
    """Each planted market in turn."""
    rows, bars = [], []
    for name in planted:
        progress(f"a market with {name} planted")
        found = _find(SimSpec(seed=1, alpha={} if name == NOTHING else {name: ALPHA}))
        rows += [
            Row(name=f"{name} planted: {pipeline}", seconds=None, more={"IC": each.ic, "t": each.t, "Holm p": each.p})
            for pipeline, each in found.items()
        ]
        bars += _bars(name, found)
    return Report(
        bench="planted",
        rows=rows,
        bars=bars,
        facts=[
            f"12 simulated assets, planted IC {ALPHA:g}; {len(ARCHITECTURES)} variants a pipeline, {NUM_FOLDS} folds "
            "of 21 days; one-sided tests, Newey-West, Holm over eight pipelines"
        ],
    )


def _find(spec: SimSpec) -> dict[str, Found]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return pooled(train(spec, Path(folder)))
        finally:
            postgres.remove(Settings(home=Path(folder) / "home"))


def _bars(planted: str, found: Mapping[str, Found]) -> list[Bar]:
    others = {name: each.p for name, each in found.items() if name != planted}
    silent = Bar(
        name=f"{planted} planted: the smallest p of the other pipelines",
        got=round(min(others.values()), 3),
        want=f"> {LEVEL:g}",
        ok=min(others.values()) > LEVEL,
    )
    if planted == NOTHING:
        return [silent]
    own = found[planted].p
    return [Bar(name=f"{planted} planted: its own p", got=round(own, 4), want=f"<= {LEVEL:g}", ok=own <= LEVEL), silent]


def main() -> int:
    """Run the bench."""
    chosen = options(__doc__).parse_args()
    return publish(compare(PLANTED[:1] if chosen.quick else (*PLANTED, NOTHING)), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
