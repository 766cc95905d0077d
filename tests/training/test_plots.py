import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from training.plots import (
    BLANK_COLOUR,
    MAX_NUMBERED,
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


def test_the_legend_shows_the_colours_of_the_bars():
    (legend,) = ranking_bars(make_ranking(3)).legends
    shown = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.texts, legend.get_patches(), strict=True)
    }
    assert shown == {**STAGE_COLOURS, "evaluated only": OTHER_COLOUR}


@pytest.mark.parametrize(("num_variants", "note"), [(MAX_ROWS, ""), (486, f", the first {MAX_ROWS} of 486 variants")])
def test_a_picture_says_when_it_leaves_variants_out(num_variants, note):
    fold_ic = pd.DataFrame(np.zeros((num_variants, 2)))
    assert ranking_bars(make_ranking(num_variants)).axes[0].get_title() == f"Ranking{note}"
    figure = fold_heat_map(fold_ic)
    assert figure.axes[0].get_title() == f"IC by fold{note}"
    assert figure.axes[0].images[0].get_array().shape == (MAX_ROWS, 2)


@pytest.mark.parametrize(
    "figure", [lambda: ranking_bars(make_ranking(486)), lambda: fold_heat_map(make_folds(486, 12))]
)
def test_no_label_runs_into_the_next_with_486_variants(figure):
    drawn = figure()
    drawn.savefig(io.BytesIO())  # lays it out
    boxes = [label.get_window_extent() for label in drawn.axes[0].get_yticklabels()]
    ends = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] for below, above in itertools.pairwise(ends))
    assert min(box.x0 for box in boxes) >= 0


def make_folds(num_variants: int, num_folds: int) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(0, 0.05, (num_variants, num_folds))
    return pd.DataFrame(values, index=[f"random_forest-l90-cross_asset-d{v}" for v in range(num_variants)])


def test_cells_have_numbers_until_there_are_too_many_folds():
    values = pd.DataFrame([[-0.001, 0.126]])
    assert [text.get_text() for text in fold_heat_map(values).axes[0].texts] == ["0.00", "0.13"]
    many = fold_heat_map(make_folds(2, 3 * MAX_NUMBERED)).axes[0]
    assert not many.texts
    ticks = {int(tick): label.get_text() for tick, label in zip(many.get_xticks(), many.get_xticklabels(), strict=True)}
    assert ticks == {fold: str(fold) for fold in range(0, 3 * MAX_NUMBERED, 3)}


def test_the_heat_map_of_scores_averages_variants_that_share_a_cell():
    ranking = make_ranking(6).assign(architecture="lstm", pipeline=["a", "a", "b", "b", "b", "b"])
    axes = score_heat_map(ranking).axes[0]
    cells = axes.images[0].get_array()
    assert np.allclose(cells, [[ranking["score"][:2].mean(), ranking["score"][2:].mean()]])


def test_an_average_score_is_in_the_middle_of_the_colours_and_what_was_not_trained_is_no_colour_of_the_scale():
    ranking = make_ranking(2).assign(architecture=["a", "b"], pipeline=["p", "q"], score=[0.5, 0.8])
    axes = score_heat_map(ranking).axes[0]
    (image,) = axes.images
    assert image.get_clim() == pytest.approx((0.2, 0.8))
    scale = {to_hex(image.cmap(level)) for level in np.linspace(0, 1, 256)}
    assert to_hex(axes.get_facecolor()) == BLANK_COLOUR
    assert BLANK_COLOUR not in scale


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
