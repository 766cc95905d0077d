"""The search: its order, what it prunes and counts, and that no crash, crowd or clock changes its answer."""

import itertools
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tests.training.panel_makers import make_panel
from tests.training.tuning_studies import evaluate, make_tasks, merit, point, read_log, told, toys
from training.models.registry import architecture, architectures
from training.panels import save_panel
from training.splits.walk_forward import walk_forward
from training.trainer import validation_ic
from training.tuning import BATCH, MIN_COMPLETE, grid_points, study_name, tune

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for name, spec in toys().items():
        monkeypatch.setitem(architectures(), name, spec)


@pytest.fixture(scope="module")
def storage(databases):
    """Optuna's database of the session; another ``code`` of the tasks is another study in it."""
    return databases.url("optuna")


@contextmanager
def opened(storage):
    rdb = optuna.storages.RDBStorage(storage)
    try:
        yield rdb
    finally:
        rdb.remove_session()
        rdb.engine.dispose()


def journal(storage, tasks, num_trials):
    with opened(storage) as rdb:
        return optuna.load_study(study_name=study_name(tasks, num_trials), storage=rdb).trials


def facts(trials):
    """All of a journal but the times and ids."""
    return [(trial.number, trial.params, trial.state, trial.value, trial.intermediate_values) for trial in trials]


def counting(evaluate):
    """The evaluation, and the list of all jobs it was given."""
    jobs = []

    def counted(asked):
        jobs.extend(asked)
        return evaluate(asked)

    return counted, jobs


# ---- grid first ------------------------------------------------------------------------------------------------------


def test_the_grid_begins_with_the_defaults_and_varies_everything_at_once():
    space = {"a": (1, 2, 3), "b": ("x", "y", "z"), "c": (0.1, 0.2, 0.3)}
    order = [tuple(each.values()) for each in grid_points(space)]
    assert order[:4] == [(1, "x", 0.1), (2, "y", 0.2), (3, "z", 0.3), (1, "y", 0.3)]
    assert len(set(order)) == len(order) == 27


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 3), max_size=3))
def test_every_grid_point_is_the_farthest_from_those_before_it(sizes):
    space = {f"p{d}": tuple(range(size)) for d, size in enumerate(sizes)}
    order = [tuple(each.values()) for each in grid_points(space)]
    everything = list(itertools.product(*space.values()))
    assert sorted(order) == everything
    assert order[0] == tuple(0 for _ in sizes)

    def gap(candidate, before):
        return min(sum(a != b for a, b in zip(candidate, other, strict=True)) for other in before)

    for k in range(1, len(order)):
        assert gap(order[k], order[:k]) == max(gap(each, order[:k]) for each in everything)
    first = order[: max(sizes, default=0)]
    assert all({each[d] for each in first} == set(range(size)) for d, size in enumerate(sizes))


def test_half_of_a_study_is_the_grid_and_no_point_is_tried_twice(storage):
    tasks = make_tasks("five", num_folds=1, code="order")
    tuned = tune(tasks, num_trials=13, storage=storage, evaluate=evaluate)
    tried = [trial.params for trial in journal(storage, tasks, 13)]
    assert tuned.num_trials == len(tried) == 13
    assert tried[0] == architecture("five").defaults()
    grid = list(itertools.islice(grid_points(architecture("five").space), 13))
    assert tried[:7] == grid[:7]
    assert tried[7:] != grid[7:]  # so TPE chose
    assert len({tuple(sorted(each.items())) for each in tried}) == 13
    assert tuned.validation_ic == max(
        merit(replace(tasks[0], params={**tasks[0].params, **params})) for params in tried
    )


@pytest.mark.parametrize("seed", [3, 4])
def test_a_small_space_is_searched_whole_and_no_further(storage, seed):
    """Where TPE keeps coming back to what it knows the grid helps out."""
    counted, jobs = counting(evaluate)
    tasks = make_tasks(num_folds=1, seed=seed, code="whole")
    tuned = tune(tasks, num_trials=40, storage=storage, evaluate=counted)
    space = architecture("three").space
    assert sorted(map(point, jobs)) == sorted(itertools.product(*space.values()))
    assert tuned.num_trials == 27
    assert tuned.params == dict(zip(space, point(max(jobs, key=merit)), strict=True))


def test_tpe_learns_what_the_grid_does_not(storage):
    """On sums of one term a parameter, what TPE asks for beats the grid's own next points, for every seed."""
    for seed in range(2):
        tasks = make_tasks("five", num_folds=1, seed=seed, code="learns")

        def smooth(jobs):
            return [merit(job, noise=0.0) for job in jobs]

        tune(tasks, num_trials=24, storage=storage, evaluate=smooth)
        grid = itertools.islice(grid_points(architecture("five").space), 12, 24)
        next_ones = smooth([replace(tasks[0], params=params) for params in grid])
        assert np.mean([trial.value for trial in journal(storage, tasks, 24)[12:]]) > np.mean(next_ones) + 0.5


# ---- pruning on early folds ------------------------------------------------------------------------------------------


def is_behind(trial, before, *, num_folds):
    """The median rule by hand: after a fold but the last even its best mean so far is below the others' median."""
    whole = [each.intermediate_values for each in before if each.state == TrialState.COMPLETE]
    own = trial.intermediate_values
    return len(whole) >= MIN_COMPLETE and any(
        max(own[early] for early in range(k + 1)) < np.median([other[k] for other in whole])
        for k in own
        if k < num_folds - 1
    )


def test_trials_that_fall_behind_are_fitted_no_further_and_counted(storage):
    """Whatever a pruned trial had by then it isn't picked: here early folds look far better than late ones."""

    def sinking(jobs):
        return [merit(job) - 10 * job.fold.index for job in jobs]

    counted, jobs = counting(sinking)
    num_folds, num_trials = 4, 20
    tasks = make_tasks(num_folds=num_folds, code="prune")
    tuned = tune(tasks, num_trials=num_trials, storage=storage, evaluate=counted)
    trials = journal(storage, tasks, num_trials)
    assert (tuned.num_trials, tuned.num_failed) == (num_trials, 0)
    assert tuned.num_pruned == sum(trial.state == TrialState.PRUNED for trial in trials) >= 5
    for trial in trials:
        fits = [job.fold.index for job in jobs if job.params.items() >= trial.params.items()]
        assert fits == sorted(trial.intermediate_values) == list(range(len(fits)))
        assert (trial.state == TrialState.COMPLETE) == (len(fits) == num_folds)
        means = np.cumsum([merit(replace(tasks[k], params=trial.params)) - 10 * k for k in fits]) / np.arange(
            1, len(fits) + 1
        )
        np.testing.assert_allclose([trial.intermediate_values[k] for k in fits], means)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert tuned.validation_ic == max(trial.value for trial in complete)
    assert max(trial.value for trial in trials) > tuned.validation_ic  # a pruned one's last mean, of early folds


def test_a_trial_is_held_against_finished_batches_only(storage):
    """So nothing depends on which of a batch ends first. A batch is all grid or all TPE: 10 and 10 are 4 + 4 + 2."""
    starts = [0, 4, 8, 10, 14, 18]
    assert BATCH == 4
    tasks = make_tasks(num_folds=3, seed=5, code="batches")
    tuned = tune(tasks, num_trials=20, storage=storage, evaluate=evaluate)
    trials = journal(storage, tasks, 20)
    pruned = [trial.state == TrialState.PRUNED for trial in trials]
    begun = [max(start for start in starts if start <= trial.number) for trial in trials]
    assert pruned == [is_behind(trial, trials[:k], num_folds=3) for trial, k in zip(trials, begun, strict=True)]
    assert not any(pruned[:BATCH])
    assert sum(pruned) == tuned.num_pruned > 3
    one_by_one = [is_behind(trial, trials[: trial.number], num_folds=3) for trial in trials]
    assert one_by_one != pruned  # so this test can tell a rule that heeds trials of the same batch


def test_one_finished_trial_ends_no_other(storage):
    """Two trials are what agents are given: the second is fitted to its end, however far behind it is."""
    tasks = make_tasks(code="agent")
    tuned = tune(tasks, num_trials=2, storage=storage, evaluate=sinking_by_call())
    assert (tuned.num_trials, tuned.num_pruned) == (2, 0)


def sinking_by_call():
    values = itertools.count(0.0, -1.0)
    return lambda jobs: [next(values) for _ in jobs]


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_fit_ends_its_trial_and_is_counted(storage):
    def failing(jobs):
        failed = [(job.fold.index, job.params["c"]) in ((0, 0.1), (1, 2.5)) for job in jobs]
        return [math.nan if fails else 9.0 - job.fold.index for job, fails in zip(jobs, failed, strict=True)]

    counted, jobs = counting(failing)
    tasks = make_tasks(num_folds=3, code="failing")
    tuned = tune(tasks, num_trials=12, storage=storage, evaluate=counted)
    trials = journal(storage, tasks, 12)
    at = {c: [trial for trial in trials if trial.params["c"] == c] for c in (0.5, 0.1, 2.5)}
    assert all(at.values())
    assert {trial.state for trial in at[0.5]} == {TrialState.COMPLETE}
    assert {trial.state for trial in (*at[0.1], *at[2.5])} == {TrialState.FAIL}
    assert tuned.num_failed == len(at[0.1]) + len(at[2.5])
    assert (tuned.num_trials, tuned.num_pruned) == (12, 0)
    assert len(jobs) == 3 * len(at[0.5]) + len(at[0.1]) + 2 * len(at[2.5])
    assert tuned.params == architecture("three").defaults()  # of equals the first


def test_where_every_trial_fails_the_defaults_stand(storage):
    tuned = tune(
        make_tasks(code="fails"), num_trials=7, storage=storage, evaluate=lambda jobs: [-math.inf for _ in jobs]
    )
    assert tuned.params == architecture("three").defaults()
    assert math.isnan(tuned.validation_ic)
    assert (tuned.num_trials, tuned.num_failed, tuned.num_pruned) == (7, 7, 0)


# ---- nothing but the journal decides ---------------------------------------------------------------------------------


def test_the_answer_depends_on_no_number_of_workers_and_no_order_in_which_fits_end(storage):
    def threaded(workers):
        def late_first(job):
            time.sleep(0.01 if point(job) < (2,) else 0.0)
            return merit(job)

        def run(jobs):
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(late_first, jobs))

        return run

    def backwards(jobs):
        return [merit(job) for job in reversed(jobs)][::-1]

    found = []
    for code, way in {"one": evaluate, "four": threaded(4), "backwards": backwards}.items():
        tasks = make_tasks(num_folds=3, code=code)
        tuned = tune(tasks, num_trials=12, storage=storage, evaluate=way)
        found.append((tuned, facts(journal(storage, tasks, 12))))
    assert all(each == found[0] for each in found)
    assert found[0][0].num_pruned > 0


def test_a_finished_study_is_read_back(storage):
    tasks = make_tasks(code="again")
    first = tune(tasks, num_trials=5, storage=storage, evaluate=evaluate)
    counted, jobs = counting(evaluate)
    assert tune(tasks, num_trials=5, storage=storage, evaluate=counted) == first
    assert jobs == []


@pytest.mark.parametrize("num_left", [0, 2, 4, 5, 8])
def test_a_journal_cut_off_anywhere_leads_to_the_same_end(storage, num_left):
    """Between batches, or within one: of 10 trials these are 4 + 1 of the grid and 4 + 1 of TPE."""
    num_trials = 10
    whole, tasks = make_tasks(num_folds=3, code="uncut"), make_tasks(num_folds=3, code=f"{num_left} left")
    undisturbed = tune(whole, num_trials=num_trials, storage=storage, evaluate=evaluate)
    trials = journal(storage, whole, num_trials)
    with opened(storage) as rdb:
        study = optuna.create_study(study_name=study_name(tasks, num_trials), storage=rdb, direction="maximize")
        study.add_trials(trials[:num_left])
    counted, jobs = counting(evaluate)
    assert tune(tasks, num_trials=num_trials, storage=storage, evaluate=counted) == undisturbed
    assert facts(journal(storage, tasks, num_trials)) == facts(trials)
    assert len(jobs) == sum(len(trial.intermediate_values) for trial in trials[num_left:])  # what is there is kept


def test_another_question_is_another_study():
    tasks = make_tasks()
    others = [(make_tasks(seed=4), 5), (make_tasks(code="other"), 5), (tasks[:1], 5), (tasks, 6)]
    assert len({study_name(tasks, 5), *(study_name(*each) for each in others)}) == 5


# ---- several processes -----------------------------------------------------------------------------------------------

LOCKS = """FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND datname = current_database()"""


@contextmanager
def searcher(url, *arguments):
    """A process that is ready to search."""
    command = [sys.executable, "-m", "tests.training.tuning_studies", url, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_share_a_study_and_one_takes_over_from_another_that_is_killed(databases, fresh_database, tmp_path):
    """Two find an empty database at once; the one that begins dies by kill -9 in its third batch."""
    num_trials, url = 16, databases.url(fresh_database)
    whole = make_tasks(code="alone")
    undisturbed = tune(whole, num_trials=num_trials, storage=databases.url("optuna"), evaluate=evaluate)
    trials = journal(databases.url("optuna"), whole, num_trials)
    fits = [len(trial.intermediate_values) for trial in trials]
    kill_at = sum(fits[: 2 * BATCH]) + 3
    assert sum(fits[2 * BATCH :]) < kill_at, "else the one that takes over would die too"
    log, go = tmp_path / "log", tmp_path / "go"
    arguments = (url, log, num_trials, kill_at, go)

    with searcher(*arguments) as one, searcher(*arguments) as other:
        go.touch()
        until(Path(f"{log}.dying").exists)
        with psycopg.connect(databases.dsn(fresh_database), autocommit=True) as connection:
            until(lambda: connection.execute(f"SELECT count(*) {LOCKS} AND NOT granted").fetchone() == (1,))
        go.unlink()
        answers = [process.communicate(timeout=60)[0].strip() for process in (one, other)]
        codes = [process.returncode for process in (one, other)]

    assert sorted(codes) == [-signal.SIGKILL, 0]
    assert answers[codes.index(0)] == told(undisturbed)
    assert facts(journal(url, make_tasks(), num_trials)) == facts(trials)
    begun = Counter(read_log(log))
    assert len(begun) == sum(fits)
    again = [trials[k].params.values() for k in range(2 * BATCH, 2 * BATCH + 2)]  # the two fits of the lost batch
    assert {fit for fit, count in begun.items() if count > 1} == {f"0 {tuple(each)}" for each in again}
    assert begun.total() == sum(fits) + 2


def test_of_several_at_once_one_searches_and_all_have_its_answer(databases, fresh_database):
    counted, jobs = counting(evaluate)
    tasks, url = make_tasks(code="crowd"), databases.url(fresh_database)

    def search(_):
        return tune(tasks, num_trials=6, storage=url, evaluate=counted)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(search, range(3))
    assert others == [first, first]
    trials = journal(url, tasks, 6)
    assert first.num_trials == len(trials) == 6
    assert len(jobs) == sum(len(trial.intermediate_values) for trial in trials)


def test_different_studies_begin_at_once_in_an_empty_database(databases, fresh_database):
    def search(code):
        return tune(make_tasks(code=code), num_trials=2, storage=databases.url(fresh_database), evaluate=evaluate)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(told, pool.map(search, "abcd")))) == 1


def test_whoever_lost_the_lock_writes_nothing(databases, storage):
    """A connection that breaks gives the lock to another while the fits still run; the next run goes on."""
    calls = 0

    def loses_the_lock(jobs):
        nonlocal calls
        calls += 1
        if calls == 3:  # the second batch: one call a fold
            with psycopg.connect(databases.dsn("optuna"), autocommit=True) as connection:
                assert connection.execute(f"SELECT pg_terminate_backend(pid) {LOCKS} AND granted").fetchall() == [
                    (True,)
                ]
        return evaluate(jobs)

    tasks = make_tasks(code="lost")
    with pytest.raises(psycopg.OperationalError):
        tune(tasks, num_trials=12, storage=storage, evaluate=loses_the_lock)
    assert len(journal(storage, tasks, 12)) == BATCH
    resumed = tune(tasks, num_trials=12, storage=storage, evaluate=evaluate)
    assert resumed == tune(make_tasks(code="kept"), num_trials=12, storage=storage, evaluate=evaluate)


# ---- fits for real ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def panel():
    return make_panel(num_times=260, signal=0.3)


def real_tasks(panel, folder):
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    folds = walk_forward(*times, train=120, validate=40, test=20, step=20, num_folds=2)
    facts = {"panel": save_panel(panel, folder), "panel_fingerprint": panel.fingerprint}
    return [replace(task, fold=fold, **facts) for task, fold in zip(make_tasks("elastic_net"), folds, strict=True)]


def garbled(panel, bars):
    """The panel with features, labels and returns of these bars overwritten."""
    labels = replace(panel.labels, y_TN=panel.labels.y_TN.copy(), forward_TN=panel.labels.forward_TN.copy())
    x_TNF, hold_TN = panel.x_TNF.copy(), panel.hold_TN.copy()
    labels.y_TN[bars], labels.forward_TN[bars] = -labels.y_TN[bars], -labels.forward_TN[bars]
    x_TNF[bars], hold_TN[bars] = 9.0, 0.5
    print_of = f"{bars.start:064d}"
    return replace(panel, x_TNF=x_TNF, hold_TN=hold_TN, labels=labels, fingerprint=print_of)


def test_an_elastic_net_is_tuned_on_validation_and_no_test_can_change_that(panel, storage, tmp_path):
    def answer(panel, name):
        tasks = real_tasks(panel, tmp_path / name)
        return tune(tasks, num_trials=4, storage=storage, evaluate=lambda jobs: [validation_ic(job) for job in jobs])

    tuned = answer(panel, "whole")
    assert (tuned.num_trials, tuned.num_failed) == (4, 0)
    assert tuned.validation_ic > 0.1
    last = real_tasks(panel, tmp_path / "folds")[-1].fold
    assert answer(garbled(panel, slice(last.test.start, None)), "test") == tuned
    seen = answer(garbled(panel, slice(last.validate.start, None)), "validation")
    assert seen.validation_ic != tuned.validation_ic
