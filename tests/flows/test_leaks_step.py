"""The cycle's leak check: a verdict beside each panel, made once for these data and this code, heeded by the judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from feature_repo.definitions.repo import open_feature_store
from feature_repo.market.schema import Market
from feature_repo.pipelines import catalog
from feature_repo.pipelines.base import Pipeline
from flows.cycle import CycleConfig
from flows.steps import data, fit
from flows.steps.judge import Judgement, judge
from flows.steps.leaks import LeakCheck, check_leaks
from flows.steps.run import Run
from tests.flows.small_market import write_small_market
from training.dataset import Panel
from training.leakage.verdict import VERDICT, clean_verdict, read_verdict, write_verdict
from training.panels import load_panel, save_panel
from training.rating.gates import Verdict
from training.trainer import train_fold
from training.variants import Variant

NAMES = ("momentum", "volatility")
NOW = datetime(2023, 1, 1, tzinfo=UTC)
HORIZON_AND_DELAY = 2  # from a sample's close to the end of its label


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    market = write_small_market(home / "small", num_assets=4, num_days=700)
    return Run(
        config=CycleConfig(market=str(market), folds=9),
        cycle_id="cycle",
        market="small",
        now=NOW,
        code="code",
        git_sha="sha",
        features=home / "features",
        panels=home / "panels",
        fits=home / "fits",
        signals=home / "signals",
        reports=home / "reports",
    )


@pytest.fixture(scope="module")
def market(run: Run) -> Market:
    return data.load(run.config, NOW)


@pytest.fixture(scope="module")
def panels(run: Run, market: Market) -> data.Panels:
    return build(run, market)


def build(run: Run, market: Market) -> data.Panels:
    data.build_tables(run, market, None)
    registry = f"sqlite:///{run.features}/registry.db"
    store = open_feature_store(project="small", registry=registry, features_root=run.features, interval="1d")
    return data.assemble_panels(run, market, NAMES, store)


def in_folder(run: Run, folder: Path) -> Run:
    return replace(run, features=folder / "features", panels=folder / "panels")


def early(pipeline: Pipeline) -> Pipeline:
    """The pipeline with its features two bars early, each row as if known at its bar."""

    def compute(columns):
        ahead = np.full(HORIZON_AND_DELAY, np.nan)
        return {name: np.append(x[HORIZON_AND_DELAY:], ahead) for name, x in pipeline.compute(columns).items()}

    return replace(pipeline, compute=compute)


@contextmanager
def leaky_momentum() -> Iterator[None]:
    """Momentum knows the future."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.PIPELINES, "momentum", early(catalog.PIPELINES["momentum"]))
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaking:
    run: Run
    panels: data.Panels
    check: LeakCheck


@pytest.fixture(scope="module")
def leaking(run: Run, market: Market, tmp_path_factory: pytest.TempPathFactory) -> Leaking:
    """What comes of a cycle with a leaky pipeline."""
    folder = tmp_path_factory.mktemp("leaking")
    own = replace(in_folder(run, folder), fits=folder / "fits", signals=folder / "signals")
    with leaky_momentum():
        panels = build(own, market)
        return Leaking(run=own, panels=panels, check=check_leaks(own, market, panels))


def momentum_only(
    panels: data.Panels, folder: Path, change: Callable[[Panel], Panel] = lambda panel: panel
) -> data.Panels:
    """The panel of momentum, changed, in a folder where no verdict lies."""
    panel = change(load_panel(panels.folders["momentum"]))
    return replace(
        panels, folders={"momentum": save_panel(panel, folder)}, fingerprints={"momentum": panel.fingerprint}
    )


def told(check: LeakCheck, name: str) -> set[str]:
    return {finding.check for finding in check.verdicts[name].findings}


def test_sound_panels_are_clean_and_the_verdict_lies_beside_them(run, market, panels) -> None:
    check = check_leaks(run, market, panels)
    assert all(verdict.clean for verdict in check.verdicts.values())
    assert set(check.verdicts) == set(NAMES)
    for name, folder in panels.folders.items():
        assert read_verdict(folder) == check.verdicts[name]
        assert clean_verdict(folder, fingerprint=load_panel(folder).fingerprint)
        assert check.verdicts[name].num_compared > 10_000
        assert len(check.verdicts[name].checked_at) == 4
    assert "2 of 2 panels clean" in check.describe()


def test_a_verdict_is_made_once_for_the_same_data_and_code(run, market, panels, tmp_path) -> None:
    first = check_leaks(run, market, panels)
    elsewhere = in_folder(run, tmp_path)  # without tables nothing could be compared
    assert check_leaks(elsewhere, market, panels) == first


@pytest.mark.parametrize(
    "kind", ["edited", "of other data", "by other code", "of other folds", "cut short", "not there"]
)
def test_a_verdict_of_something_else_does_not_count(kind, run, market, panels) -> None:
    first = check_leaks(run, market, panels)
    folder, verdict = panels.folders["momentum"], first.verdicts["momentum"]
    path = folder / VERDICT
    if kind == "edited":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_compared": 10**9}))
    elif kind == "cut short":
        path.write_text(path.read_text()[:100])
    elif kind == "not there":
        path.unlink()
    elif kind == "of other data":
        write_verdict(folder, replace(verdict, fingerprint="other"))
    elif kind == "by other code":
        write_verdict(folder, replace(verdict, code="other"))
    else:
        write_verdict(folder, replace(verdict, checks=(*verdict.checks[:-1], "3 folds")))
    nothing = replace(run, now=datetime(2000, 1, 1, tzinfo=UTC))  # when there was no moment to look at
    again = check_leaks(nothing, market, panels)
    assert set(again.verdicts) == {"volatility"}
    assert "momentum not checked: nothing of the newest 42 bars is known yet" in again.describe()
    assert path.parent == folder
    write_verdict(folder, verdict)


def test_a_leaky_pipeline_is_told(leaking) -> None:
    check, folders = leaking.check, leaking.panels.folders
    assert {"truncation", "changed future", "label in features"} <= told(check, "momentum")
    assert check.verdicts["volatility"].clean
    assert [clean_verdict(folders[name]) for name in NAMES] == [False, True]
    assert "1 of 2 panels clean" in check.describe()
    assert "momentum: panel LEAKS: truncation: " in check.describe()


def test_rows_stored_by_leaky_code_are_told_after_it_was_mended(market, leaking, tmp_path) -> None:
    mended = check_leaks(leaking.run, market, momentum_only(leaking.panels, tmp_path))
    assert "replay" in told(mended, "momentum")
    assert not told(mended, "momentum") & {"truncation", "restatement", "changed future"}


def test_a_panel_that_runs_ahead_of_its_tables_is_told(run, market, panels, tmp_path) -> None:
    def ahead(panel: Panel) -> Panel:
        return replace(panel, x_TNF=np.roll(panel.x_TNF, -1, axis=0), fingerprint="0" * 64)

    planted = momentum_only(panels, tmp_path, change=ahead)
    assert told(check_leaks(run, market, planted), "momentum") == {"panel"}


def judged(run: Run, market: Market, panels: data.Panels, check: LeakCheck) -> tuple[Judgement, str]:
    """What a cycle thinks of one variant on the leaky panel, and its name."""
    name = "lightgbm-l7-momentum-n7"
    variant = Variant(
        id=name,
        architecture="lightgbm",
        family="classical",
        lookback=7,
        pipeline="momentum",
        params=(("num_leaves", 7),),
    )
    tasks = fit.variant_tasks(run, panels, variant, costs=market.info.costs, tuned={})
    trained = fit.Trained(variant=variant, tasks=tasks, results=[train_fold(task) for task in tasks])
    return judge(run, market.info, panels, {name: trained}, check), name


def test_a_leak_keeps_its_variants_out_of_production(market, leaking) -> None:
    run, panels, check = leaking.run, leaking.panels, leaking.check
    strict, variant = judged(run, market, panels, check)
    assert list(strict.selection.staging) == [variant]
    assert strict.selection.production == {}
    said = strict.selection.reasons[variant]
    assert said.startswith("rank 1, on paper: leaks: its panel knows the future: ")
    gates = {verdict.gate: verdict for verdict in strict.judged.verdicts[variant]}
    assert gates["leaks"].veto
    assert gates["skill"].ok, "else something else would stand against it too"
    assert gates["track_record"].ok

    advisory = replace(run, config=replace(run.config, policy="advisory"))
    shown = judged(advisory, market, panels, check)[0].selection
    assert list(shown.production) == [variant]
    assert "leaks: its panel knows the future: " in shown.reasons[variant]


def test_only_a_clean_verdict_on_its_own_panel_lets_a_variant_through(market, leaking) -> None:
    run, panels, found = leaking.run, leaking.panels, leaking.check.verdicts["momentum"]

    def leaks(check: LeakCheck) -> Verdict:
        judgement, variant = judged(run, market, panels, check)
        assert not judgement.selection.production  # strict: a panel made by other code can't be made again either
        return {verdict.gate: verdict for verdict in judgement.judged.verdicts[variant]}["leaks"]

    blind = replace(found, findings=())
    assert leaks(LeakCheck(verdicts={"momentum": blind})).ok
    other = leaks(LeakCheck(verdicts={"momentum": replace(blind, fingerprint="other")}))
    assert not other.ok
    assert "about other data" in other.why
    unchecked = leaks(LeakCheck(verdicts={"volatility": blind}))
    assert not unchecked.ok
    assert "was not checked for leaks" in unchecked.why
