import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from training.plots import (
    MAX_ROWS,
    OTHER_COLOUR,
    STAGE_COLOURS,
    equity_curves,
    fold_heat_map,
    ranking_bars,
    score_heat_map,
)


def make_ranking(num_variants: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "variant": [f"v{number}" for number in range(num_variants)],
            "architecture": rng.choice(["lstm", "arima"], num_variants),
            "pipeline": rng.choice(["technical", "momentum"], num_variants),
            "score": np.linspace(1.0, -1.0, num_variants),
            "stage": ["Production", "Staging"] + ["None"] * (num_variants - 2),
        }
    )


def test_the_ranking_has_a_bar_a_variant_best_on_top_coloured_by_stage():
    ranking = make_ranking(MAX_ROWS + 10)
    axes = ranking_bars(ranking).axes[0]
    bars = axes.patches[::-1]
    assert [bar.get_width() for bar in bars] == ranking["score"].head(MAX_ROWS).tolist()
    assert [to_hex(bar.get_facecolor()) for bar in bars[:3]] == [*STAGE_COLOURS.values(), OTHER_COLOUR]


def test_the_heat_map_of_scores_averages_variants_that_share_a_cell():
    ranking = make_ranking(6).assign(architecture="lstm", pipeline=["a", "a", "b", "b", "b", "b"])
    axes = score_heat_map(ranking).axes[0]
    cells = axes.images[0].get_array()
    assert np.allclose(cells, [[ranking["score"][:2].mean(), ranking["score"][2:].mean()]])


def test_a_missing_fold_stays_blank_and_zero_is_in_the_middle_of_the_colours():
    image = fold_heat_map(pd.DataFrame([[0.1, np.nan], [0.0, -0.3]], index=["a", "b"])).axes[0].images[0]
    assert image.get_array().mask.tolist() == [[False, True], [False, False]]
    assert image.get_clim() == (-0.3, 0.3)


def test_equity_has_a_curve_a_variant():
    equity = pd.DataFrame({"a": [1.0, 1.1], "b": [1.0, 0.9]}, index=pd.date_range("2024-01-01", periods=2, tz="UTC"))
    lines = equity_curves(equity).axes[0].lines
    assert [(line.get_label(), list(line.get_ydata())) for line in lines] == [("a", [1.0, 1.1]), ("b", [1.0, 0.9])]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: ranking_bars(make_ranking(2).head(0)),
        lambda: score_heat_map(make_ranking(2).head(0)),
        lambda: score_heat_map(make_ranking(2).assign(score=np.nan)),
        lambda: fold_heat_map(pd.DataFrame(np.full((2, 2), np.nan))),
        lambda: fold_heat_map(pd.DataFrame(np.zeros((1, 1)))),
        lambda: equity_curves(pd.DataFrame(index=pd.DatetimeIndex([]))),
    ],
)
def test_nothing_to_show_is_an_empty_picture_without_a_warning(figure, tmp_path):
    figure().savefig(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0
