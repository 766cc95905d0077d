import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_info

from tests.training.models.classical.tables import table, task
from tests.training.models.toys import learning_windows, toy_panel
from training.dataset import window
from training.models.classical.linear import Linear
from training.models.classical.tabular import Table, TabularRegressor, must_converge, subsample
from training.models.spec import Budget, ModelError
from training.models.windows import Scaler, summary_samples


@pytest.fixture(scope="module")
def windows():
    return learning_windows(toy_panel(memory=0.5), lookback=5)


class Recorder:
    """Learns the mean of the first summary, and remembers what it was handed."""

    def learn(self, train, check, asked):
        self.train, self.check, self.task, self.threads = train, check, asked, threadpool_info()
        slope = np.zeros(train.x_SK.shape[1])
        slope[0] = float(task("elastic_net").params["strength"])
        return Linear(slope_K=slope, offset_1=np.zeros(1))

    def fitted(self, windows, *, scaled, deadline_s=60.0):
        self.regressor = TabularRegressor(learn=self.learn, restore=Linear.restore, scaled=scaled)
        model = self.regressor({"strength": 0.3}, lookback=5)
        model.fit(*windows, seed=7, budget=Budget(deadline_s=deadline_s))
        return model


def test_a_learner_gets_the_labelled_summaries_as_they_are(windows):
    recorder = Recorder()
    recorder.fitted(windows, scaled=False)
    for got, part in zip((recorder.train, recorder.check), windows, strict=True):
        want = summary_samples(part, labelled=True)
        np.testing.assert_array_equal(got.x_SK, want.x_SK)
        np.testing.assert_array_equal(got.y_S, want.y_S)
    assert (recorder.task.seed, recorder.task.params) == (7, {"strength": 0.3})


def test_a_scaled_learner_gets_what_the_training_samples_scale(windows):
    recorder = Recorder()
    recorder.fitted(windows, scaled=True)
    train, check = (summary_samples(part, labelled=True) for part in windows)
    scaler = Scaler.fit(train.x_SK)
    np.testing.assert_array_equal(recorder.train.x_SK, scaler.transform(train.x_SK))
    np.testing.assert_array_equal(recorder.check.x_SK, scaler.transform(check.x_SK))


@pytest.mark.parametrize("scaled", [True, False])
def test_a_saved_model_scores_as_before(windows, scaled, tmp_path):
    recorder = Recorder()
    model = recorder.fitted(windows, scaled=scaled)
    model.save(tmp_path)
    loaded = recorder.regressor.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(windows[1]), model.predict(windows[1]))
    assert ("scaler.centre" in loaded.state()) is scaled


def test_a_fit_has_one_thread_and_gives_the_others_back(windows):
    before = threadpool_info()
    recorder = Recorder()
    recorder.fitted(windows, scaled=True)
    assert recorder.threads
    assert {pool["num_threads"] for pool in recorder.threads} == {1}
    assert threadpool_info() == before


def test_a_learner_that_never_looks_at_the_clock_fails_at_the_end(windows):
    with pytest.raises(ModelError, match="deadline_s"):
        Recorder().fitted(windows, scaled=True, deadline_s=0.0)


def test_too_few_labels_are_refused():
    panel = toy_panel(memory=0.5, num_times=60, num_entities=1)
    learn = np.ones(60, dtype=bool)
    windows = [window(panel, first, first + 20, lookback=5, learn_T=learn) for first in (10, 35)]
    with pytest.raises(ModelError, match="20 labelled"):
        Recorder().fitted(windows, scaled=True)


def test_a_subsample_is_the_seeds_and_keeps_the_order():
    rows = Table(x_SK=np.arange(1000, dtype=np.float32)[:, None], y_S=np.arange(1000.0))
    drawn = subsample(rows, 100, seed=3)
    np.testing.assert_array_equal(drawn.x_SK[:, 0], drawn.y_S)
    assert len(drawn.y_S) == 100
    assert (np.diff(drawn.y_S) > 0).all()
    np.testing.assert_array_equal(subsample(rows, 100, seed=3).y_S, drawn.y_S)
    assert not np.array_equal(subsample(rows, 100, seed=4).y_S, drawn.y_S)
    assert subsample(rows, 1000, seed=3) is rows


def test_a_subsample_sees_every_entity():
    """Ten entities in turn: every tenth row, a stride of the same size, would be one entity."""
    entity = np.tile(np.arange(10), 200)
    drawn = subsample(Table(x_SK=entity[:, None].astype(np.float32), y_S=entity.astype(float)), 200, seed=0)
    assert np.bincount(drawn.y_S.astype(int), minlength=10).min() >= 10


def test_a_solver_that_gives_up_fails_the_fit():
    with pytest.raises(ModelError, match=r"not converge.*raise strength"), must_converge("raise strength"):
        raise ConvergenceWarning("in 5 steps")


@pytest.mark.parametrize("name", ["random_forest", "xgboost", "svm", "logistic", "elastic_net", "knn", "hist_boosting"])
def test_a_score_does_not_depend_on_its_company(name):
    from training.models.registry import architecture

    train = table(lambda x: x[:, 0], num_samples=300, num_features=37)
    check = table(lambda x: x[:, 0], num_samples=100, num_features=37, seed=1)
    got = architecture(name).model.learn(train, check, task(name, num_trees=10))
    together = got.score(check.x_SK)
    np.testing.assert_array_equal(together, [got.score(row[None])[0] for row in check.x_SK])
    np.testing.assert_array_equal(together[13:47], got.score(check.x_SK[13:47]))
