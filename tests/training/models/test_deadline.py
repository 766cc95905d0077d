import pytest

from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError


def test_fails_once_the_time_is_over_and_not_before():
    now = [100.0]
    deadline = Deadline(Budget(deadline_s=5.0), clock=lambda: now[0])
    now[0] = 104.9
    deadline.check("epoch 1")
    now[0] = 105.0
    with pytest.raises(ModelError, match=r"5\.0 s at epoch 2, allowed are 5 s.*deadline_s"):
        deadline.check("epoch 2")
