"""Stacks of fold tasks: what is put together, and that each comes out as it would by itself and is published so."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.market.costs import CostModel
from tests.training.panel_makers import make_panel
from training.engine import Pool
from training.models.fitted import FittedModel
from training.models.registry import architecture
from training.models.spec import Budget
from training.panels import load_panel, save_panel
from training.signals import SignalStore
from training.splits.walk_forward import walk_forward
from training.stacking import LARGEST, map_stacks, plan_stacks, train_folds, validation_ics
from training.trainer import FoldTask, finished_result, model_folder, train_fold, validation_ic
from training.variants import full_grid
from training.worker import Gone

BUDGET = Budget(max_epochs=3, device="cpu")


@pytest.fixture(scope="module")
def panel_folder(tmp_path_factory):
    return save_panel(make_panel(num_times=260, signal=0.5), tmp_path_factory.mktemp("panels"))


@pytest.fixture
def make_task(panel_folder, tmp_path):
    panel = load_panel(panel_folder)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    folds = walk_forward(*times, train=120, validate=40, test=20, step=20, num_folds=2)
    grid = full_grid(["toy"])

    def make(name, params=(), *, lookback=7, fold=0, **more):
        base = next(each for each in grid if each.architecture == name and each.lookback == lookback)
        own = {**dict(base.params), **dict(params)}
        suffix = "".join(f"-{key}{value}" for key, value in own.items())
        task = FoldTask(
            variant=replace(base, id=f"{name}-l{lookback}-toy{suffix}", params=tuple(own.items())),
            params={**architecture(name).defaults(), **own},
            panel=panel_folder,
            panel_fingerprint=panel.fingerprint,
            fold=folds[fold],
            kind="oos",
            interval="1d",
            seed=3,
            budget=BUDGET,
            costs=CostModel(),
            code="code",
            git_sha="sha",
            folder=tmp_path / "fits",
            signals=tmp_path / "signals",
        )
        return replace(task, **more)

    return make


@pytest.fixture
def stack(make_task):
    """Four variants of DLinear, planned as a run would plan them."""
    rates = (1e-3, 5e-4, 1e-4, 1e-2)
    return plan_stacks([make_task("dlinear", {"learning_rate": rate}) for rate in rates])


def test_tasks_of_one_shape_and_one_training_window_make_a_stack(make_task):
    alike = [make_task("dlinear", {"learning_rate": rate, "l1": l1}) for rate in (1e-3, 1e-4) for l1 in (0.0, 1e-4)]
    others = [
        make_task("dlinear", fold=1),
        make_task("dlinear", lookback=14),
        make_task("dlinear", budget=replace(BUDGET, max_epochs=4)),
        make_task("dlinear", panel_fingerprint="another"),
        make_task("lightgbm"),
        make_task("lightgbm", {"learning_rate": 0.2}),
    ]
    mixed = [each for pair in zip(alike, others, strict=False) for each in pair] + others[4:]
    planned = plan_stacks(mixed)
    assert [task.stacked for task in planned] == [task in alike for task in mixed]
    assert [replace(task, stacked=False) for task in planned] == mixed
    parts = parts_of(planned)
    assert parts[0] == [task.key for task in planned if task.stacked]
    assert parts[1:] == [[task.key] for task in planned if not task.stacked]


def test_the_device_and_the_family_decide(make_task):
    """On a CPU an LSTM is quicker by itself."""
    tasks = [make_task("lstm", {"learning_rate": rate}) for rate in (1e-3, 1e-4)]
    assert plan_stacks(tasks) == tasks


def test_what_is_left_of_a_stack_is_planned_as_the_stack_was(make_task):
    """Trials of a batch that was cut off, or pruned, must come out as in the whole batch."""
    batch = [make_task("dlinear", {"learning_rate": rate}) for rate in (1e-3, 5e-4, 1e-4)]
    whole, (last,) = plan_stacks(batch, expected=3), plan_stacks(batch[2:], expected=3)
    assert last == whole[2]
    assert last.stacked
    assert plan_stacks(batch[2:]) == batch[2:]
    assert validation_ics([last]) == validation_ics(whole)[2:]


def test_networks_of_two_shapes_make_two_stacks(make_task):
    tasks = [
        replace(make_task("nhits", {"hidden_size": size, "dropout": rate}), stacked=True)
        for rate in (0.1, 0.2)
        for size in (64, 128)
    ]
    assert parts_of(tasks) == [[tasks[0].key, tasks[2].key], [tasks[1].key, tasks[3].key]]


def test_a_stack_has_a_largest_size(make_task):
    planned = plan_stacks([make_task("dlinear", {"weight_decay": k / 1000}) for k in range(LARGEST + 3)])
    parts = parts_of(planned)
    assert [len(part) for part in parts] == [LARGEST, 3]
    assert [key for part in parts for key in part] == [task.key for task in planned]


def parts_of(tasks):
    """What a pool would be given at once."""
    worker = Inline()
    answers = map_stacks(keys_of, tasks, Pool([worker]), on_done=lambda _: None)
    assert answers == [task.key for task in tasks]
    return worker.parts


def keys_of(tasks):
    return [task.key for task in tasks]


class Inline:
    """A worker in this process that is lost when it is given more tasks at once than it can take."""

    def __init__(self, *, most=100):
        self.most = most
        self.parts = []

    def ask(self, question):
        run, tasks = pickle.loads(question)
        self.parts.append(keys_of(tasks))
        return pickle.dumps((True, run(tasks))) if len(tasks) <= self.most else Gone("out of memory", again=False)


def test_the_pool_s_answers_come_in_the_tasks_order_and_each_is_told_once(make_task, stack):
    tasks = [stack[0], make_task("lightgbm", budget=Budget(max_trees=10)), *stack[1:]]
    told = []
    results = map_stacks(train_folds, tasks, Pool([Inline()]), on_done=told.append)
    assert [result.key for result in results] == [task.key for task in tasks]
    assert sorted(result.key for result in told) == sorted(result.key for result in results)


def test_of_a_stack_that_was_lost_each_task_is_fitted_by_itself(stack):
    together = train_folds(stack)
    for task in stack:
        shutil.rmtree(task.folder / task.variant.id)
    worker, told = Inline(most=1), []
    results = map_stacks(train_folds, stack, Pool([worker]), on_done=told.append)
    assert [len(part) for part in worker.parts] == [len(stack)] + [1] * len(stack)
    assert [result.checksum for result in results] == [result.checksum for result in together]
    assert told == results
    lost = map_stacks(train_folds, stack, Pool([Inline(most=0)]), on_done=told.append)
    assert [(each.task, each.reason) for each in lost] == [(task, "out of memory") for task in stack]


def test_the_mark_is_part_of_the_key(stack):
    assert stack[0].stacked
    assert replace(stack[0], stacked=False).key != stack[0].key


def test_each_task_comes_out_as_it_would_by_itself(stack):
    results = train_folds(stack)
    for task, result in zip(stack, results, strict=True):
        alone = replace(task, stacked=False)
        expected = train_fold(alone)
        assert result.ok, result.reason
        assert (result.variant, result.key, result.num_signals) == (task.variant.id, task.key, expected.num_signals)
        assert (result.epochs, result.num_parameters) == (expected.epochs, expected.num_parameters)
        np.testing.assert_allclose(scores(task), scores(alone), atol=1e-5)
        assert finished_result(task) == result
    assert len({result.checksum for result in results}) == len(stack)


def scores(task):
    signals = SignalStore(root=task.signals).read(task.variant.id, model_versions=[task.key], kind="oos")
    return signals.sort_values(["entity_key", "event_time"])["score"].to_numpy()


def test_a_stack_killed_between_its_results_ends_as_one_that_was_not(stack):
    undisturbed = train_folds(stack)
    for task in stack[1:]:
        shutil.rmtree(task.folder / task.variant.id)
    mark(stack[0])
    again = train_folds(stack)
    assert again[0].threshold == 123.0  # read back, not refitted
    for first, second in zip(undisturbed[1:], again[1:], strict=True):
        assert (first.checksum, first.threshold, first.key) == (second.checksum, second.threshold, second.key)
    shutil.rmtree(stack[2].folder / stack[2].variant.id)
    assert train_folds(stack)[2].checksum == undisturbed[2].checksum  # the last one missing, by itself


def mark(task):
    file = task.folder / task.variant.id / task.key / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "threshold": 123.0}))


def test_a_finished_stack_is_read_back(stack):
    first = train_folds(stack)
    for task in stack:
        mark(task)
    assert [result.threshold for result in train_folds(stack)] == [123.0] * len(stack)
    assert all(result.threshold != 123.0 for result in first)


def test_a_fit_that_fails_leaves_a_reason_and_does_not_touch_the_others(make_task, stack):
    wild = replace(make_task("dlinear", {"learning_rate": 1e38}), stacked=True)
    first, failed, *rest = train_folds([stack[0], wild, *stack[1:]])
    assert "ModelError: the network diverged" in failed.reason
    assert list((wild.folder / wild.variant.id).iterdir()) == []
    checksums = [result.checksum for result in (first, *rest)]
    for task in stack:
        shutil.rmtree(task.folder / task.variant.id)
    assert checksums == [result.checksum for result in train_folds(stack)]


def test_what_breaks_the_whole_stack_breaks_only_the_task_it_comes_from(make_task, stack):
    """Unknown parameters are refused before any fit; the others are then fitted one after another, to the same bits."""
    broken = replace(make_task("dlinear", {"leaves": 3}), stacked=True)
    *results, failed = train_folds([*stack, broken])
    assert "no parameters ['leaves']" in failed.reason
    checksums = [result.checksum for result in results]
    for task in stack:
        shutil.rmtree(task.folder / task.variant.id)
    assert checksums == [result.checksum for result in train_folds(stack)]


def test_a_kept_model_is_the_ordinary_artifact(stack):
    kept = [replace(task, keeps_model=True) for task in stack]
    results = train_folds(kept)
    for task, result in zip(kept, results, strict=True):
        assert FittedModel.load(model_folder(task)).checksum() == result.checksum


def test_tasks_that_are_not_stacked_are_fitted_alone(make_task):
    task = make_task("lightgbm", budget=Budget(max_trees=10))
    (result,) = train_folds([task])
    assert result.ok
    shutil.rmtree(task.folder / task.variant.id)
    assert train_fold(task).checksum == result.checksum


def test_validation_ics_are_those_of_fits_alone(make_task, stack):
    broken = replace(make_task("dlinear", {"learning_rate": 1e38}), stacked=True)
    *together, failed = validation_ics([*stack, broken])
    assert np.isnan(failed)
    np.testing.assert_allclose(together, [validation_ic(task) for task in stack], atol=1e-3)
    assert min(together) > 0.15
