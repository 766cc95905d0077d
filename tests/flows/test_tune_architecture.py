"""Tuning an architecture of a cycle: which of its variants are fitted, and that a pool gives one process's answer."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from feature_repo.market.costs import CostModel
from flows.cycle import CycleConfig
from flows.steps.data import Panels
from flows.steps.fit import fold_task, num_trials, tune_architecture
from flows.steps.run import Run
from tests.training.panel_makers import make_panel
from training.engine import Lost, local_pool
from training.panels import save_panel
from training.splits.walk_forward import final_fold, walk_forward
from training.variants import LOOKBACKS, full_grid

LENGTHS = {"train": 120, "validate": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    folders = {name: home / name for name in ("features", "panels", "fits", "signals", "reports")}
    config = CycleConfig(trials=4, agent_trials=2)
    now = datetime(2022, 1, 1, tzinfo=UTC)
    return Run(config=config, cycle_id="c", market="m", now=now, code="code", git_sha="sha", **folders)


@pytest.fixture(scope="module")
def panels(run):
    panel = make_panel(num_times=260, signal=0.3)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    return Panels(
        folders={"toy": save_panel(panel, run.panels)},
        fingerprints={"toy": panel.fingerprint},
        market_FT=np.zeros((1, len(panel.sample_times_T))),
        traded_value_TN=np.full(panel.hold_TN.shape, np.nan),
        folds=[],
        live=final_fold(*times, **LENGTHS),
        tuning=walk_forward(*times, **LENGTHS, test=20, step=20, num_folds=2),
        not_applicable={},
    )


def variants_of(name, *, lookbacks=LOOKBACKS):
    found = [each for each in full_grid(["toy"]) if each.architecture == name and each.lookback in lookbacks]
    return found[::-1]  # the order in which they come doesn't matter


def test_markets_with_the_same_data_have_fits_of_their_own(run, panels):
    (variant,) = variants_of("lightgbm", lookbacks=[7])[:1]
    own, other = (
        fold_task(each, panels, variant, panels.live, kind="live", costs=CostModel(), tuned={})
        for each in (run, replace(run, market="a copy"))
    )
    assert own.key != other.key
    assert own.market_name == "m"


class InThisProcess:
    """A pool without workers that keeps what it was given; ``lost`` are lookbacks whose fits kill their worker."""

    def __init__(self, lost=()):
        self.jobs, self.lost = [], lost

    def map(self, run, parts, *, on_done):
        self.jobs.extend(task for part in parts for task in part)
        answers = [Lost(part, "died") if part[0].variant.lookback in self.lost else run(part) for part in parts]
        for answer in answers:
            on_done(answer)
        return answers


@pytest.fixture
def tuned_with(run, panels, databases):
    def tuned_with(pool, variants, *, code="code", done=lambda _: None):
        other = replace(run, code=code)
        options = {"costs": CostModel(), "storage": databases.url("optuna"), "pool": pool, "done": done}
        return tune_architecture(other, panels, variants, **options)

    return tuned_with


def test_each_fold_is_fitted_on_another_variant_spread_over_the_lookbacks(tuned_with, panels):
    pool, done = InThisProcess(), []
    tuned = tuned_with(pool, variants_of("elastic_net"), code="spread", done=done.append)
    assert {(job.fold.index, job.variant.lookback) for job in pool.jobs} == {
        (panels.tuning[0].index, 14),
        (panels.tuning[1].index, 60),
    }
    assert len(done) == len(pool.jobs) <= 2 * tuned.num_trials
    one = InThisProcess()
    tuned_with(one, variants_of("elastic_net", lookbacks=(7,))[:1], code="spread")
    assert {job.variant.lookback for job in one.jobs} == {7}


def test_the_pool_gives_the_answer_of_one_process(tuned_with):
    variants = variants_of("elastic_net")
    alone = tuned_with(InThisProcess(), variants, code="alone")
    with local_pool(2) as pool:
        assert tuned_with(pool, variants, code="pool") == alone
    assert alone.validation_ic > 0.1


def test_a_fit_that_kills_its_worker_is_a_failed_trial(tuned_with):
    tuned = tuned_with(InThisProcess(lost=(14,)), variants_of("elastic_net"), code="lost")
    assert tuned.num_failed == tuned.num_trials == 4
    assert np.isnan(tuned.validation_ic)


def test_agents_are_given_fewer_trials(run):
    [agent, *_], [other, *_] = variants_of("dqn"), variants_of("elastic_net")
    assert (num_trials(run.config, agent), num_trials(run.config, other)) == (2, 4)
