"""What a cycle is asked: its choices are those of the packages below, which its module does not import."""

from typing import get_args

from flows import cycle
from training import labels
from training.rating import selection


def test_choices_are_those_that_there_are():
    assert get_args(cycle.LabelKind) == get_args(labels.LabelKind) == tuple(labels.KINDS)
    assert get_args(cycle.Policy) == get_args(selection.Policy)


def test_another_catalogue_is_another_cycle(tmp_path):
    def cycle_id(catalogue):
        config = cycle.CycleConfig(catalogue=catalogue)
        return config.cycle_id(last_bar="2020-01-01", market_fingerprint="m", code="c")

    mine = tmp_path / "mine.toml"
    mine.write_text("ids = ['a']")
    first = cycle_id(str(mine))
    mine.write_text("ids = ['b']")
    assert len({first, cycle_id(str(mine)), cycle_id("")}) == 3
    assert first.startswith("20200101-")
