"""Checks of panels and their labels. A panel builder makes a panel of a market, by whatever way the platform goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.leakage.challenges import changed_past, known_times
from feature_repo.leakage.findings import (
    WHOLE_ROW,
    Checked,
    LeakFinding,
    Place,
    Places,
    compare,
    found,
    micros,
    together,
)
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market
from training.dataset import FloatArray, Panel, TimeArray
from training.labels import WINSOR

PanelBuilder: TypeAlias = Callable[[Market], Panel]

TOO_GOOD: Final = 0.9
"""A correlation of a feature with its label that no market ever gave."""
_SAME_SHARE: Final = 0.01  # of the samples, whose feature is the label itself
_MIN_PAIRS: Final = 30
_TICK: Final = np.timedelta64(1, "us")

# Tensor suffixes: T sample times, N entities, F features, E events of the panel that are compared, P pairs, R rows.


def check_panels(
    builders: Mapping[str, PanelBuilder],
    market: Market,
    moments: Sequence[pd.Timestamp],
    *,
    rng: np.random.Generator,
) -> dict[str, Checked]:
    """Whether a panel's samples know the future, or its labels the past.

    At every moment t: what samples taken by t hold is the same when all that became known later is deleted; so are
    labels that were over by t and whose prices were final then (a price restated later corrects a label); and no
    label of a sample taken at t or after changes when all prices up to t do.
    """
    panels = {name: build(market) for name, build in builders.items()}
    parts = {name: [check_label_times(panel), check_label_in_features(panel)] for name, panel in panels.items()}
    for moment in moments:
        known, other_past = known_at(market, moment), changed_past(market, moment, rng=rng)
        for name, build in builders.items():
            cut = build(known)
            parts[name].append(_check_samples(panels[name], cut, moment))
            parts[name].append(_check_settled_labels(panels[name], cut, market, moment))
        for name, build in builders.items():
            parts[name].append(_check_labels_after(panels[name], build(other_past), moment))
    return {name: together(checked) for name, checked in parts.items()}


def check_label_times(panel: Panel) -> Checked:
    """Whether every label lies wholly after its sample time, as its interval says."""
    start_T, end_T, taken_T = panel.labels.start_T, panel.labels.end_T, panel.sample_times_T
    places = for_all_entities(panel)
    why = "a label must start at the first price after its sample time and end later, or it holds what was known"
    findings = []
    for name, bad_T, times_T in (
        ("label start", start_T <= taken_T, start_T),
        ("label end", (end_T <= start_T) | (np.isnat(start_T) & ~np.isnat(end_T)), end_T),
    ):
        rows = np.flatnonzero(bad_T)
        if len(rows):
            place = Place(places=places, row=int(rows[0]), feature=name)
            got = str(times_T[rows[0]])
            findings.append(found("label times", why, place, expected="a later time", got=got, num=len(rows)))
    return Checked(findings=tuple(findings), num_compared=2 * int((~np.isnat(start_T)).sum()))


def check_label_in_features(panel: Panel) -> Checked:
    """Whether a feature is the label in disguise: equal to it in some samples, or correlated as no market allows.

    Pearson and rank correlation, over all samples of all entities, with the scaled label and the plain return.
    """
    findings, num_compared = [], 0
    for f, feature in enumerate(panel.feature_names):
        x_TN = np.asarray(panel.x_TNF[..., f], dtype=np.float64)
        for name in ("y", "forward"):
            label_TN = getattr(panel.labels, f"{name}_TN")
            pairs_TN = np.isfinite(x_TN) & np.isfinite(label_TN)
            num_compared += int(pairs_TN.sum())
            if said := _likeness(x_TN[pairs_TN], label_TN[pairs_TN]):
                findings.append(_disguised(panel, feature, name, said, pairs_TN))
                break
    return Checked(findings=tuple(findings), num_compared=num_compared)


def for_all_entities(panel: Panel) -> Places:
    """The panel's samples as places, whichever the entity."""
    return Places(
        entity_R=np.full(len(panel.sample_times_T), WHOLE_ROW, dtype=object),
        event_R=panel.event_times_T,
        moment_R=panel.sample_times_T,
    )


def for_each_entity(entities: Sequence[str], event_E: TimeArray, moment: np.datetime64) -> Places:
    """Events times entities, in that order, all looked at at one moment."""
    num = len(event_E) * len(entities)
    return Places(
        entity_R=np.tile(np.array(entities, dtype=object), len(event_E)),
        event_R=np.repeat(event_E, len(entities)).astype("datetime64[us]"),
        moment_R=np.full(num, moment, dtype="datetime64[us]"),
    )


def _likeness(x_P: FloatArray, label_P: FloatArray) -> str | None:
    """How a feature resembles a label too much, if it does."""
    if len(x_P) < _MIN_PAIRS or np.ptp(x_P) == 0 or np.ptp(label_P) == 0:
        return None
    # values that many labels share tell nothing: winsorised ones, ties, signs and touched barriers
    telling_P = ~np.isin(label_P, (-WINSOR, -1.0, 0.0, 1.0, WINSOR))
    same = float(((x_P == label_P.astype(np.float32)) & telling_P).mean())
    if same > _SAME_SHARE:
        return f"equal to it in {same:.1%} of the samples"
    correlations = (np.corrcoef(x_P, label_P)[0, 1], np.corrcoef(_ranks(x_P), _ranks(label_P))[0, 1])
    strongest = max(correlations, key=abs)
    return f"correlated {strongest:.4f} with it" if abs(strongest) >= TOO_GOOD else None


def _ranks(values_P: NDArray[np.floating]) -> NDArray[np.float64]:
    return pd.Series(values_P).rank().to_numpy()


def _disguised(panel: Panel, feature: str, label: str, said: str, pairs_TN: NDArray[np.bool_]) -> LeakFinding:
    t, n = np.argwhere(pairs_TN)[0]
    places = for_each_entity(panel.entities, panel.event_times_T[t : t + 1], panel.sample_times_T[t])
    why = f"the feature is the label {label!r} in disguise"
    place = Place(places=places, row=int(n), feature=feature)
    num = int(pairs_TN.sum())
    return found("label in features", why, place, expected="less like the label", got=said, num=num)


def _check_samples(panel: Panel, cut: Panel, moment: pd.Timestamp) -> Checked:
    """Features, return and volatility of the samples taken by the moment, for all assets that either panel has."""
    until = _naive(moment)
    is_taken_T = (panel.sample_times_T <= until) & (panel.event_times_T >= cut.event_times_T[0])
    event_E = panel.event_times_T[is_taken_T]  # a shorter market may start at another of them
    entities = tuple(sorted({*panel.entities, *cut.entities}))
    names = tuple(dict.fromkeys([*cut.feature_names, *panel.feature_names]))
    expected_RF, got_RF = (_samples_at(each, event_E, entities, names) for each in (cut, panel))
    why = "the sample changes when what became known after its time is deleted"
    places = for_each_entity(entities, event_E, until)
    return compare(
        "panel", why, places=places, names=(*names, "returns", "vol"), expected_RF=expected_RF, got_RF=got_RF
    )


def _samples_at(panel: Panel, event_E: TimeArray, entities: Sequence[str], names: Sequence[str]) -> FloatArray:
    """(events x entities, features + 2), NaN where the panel has no such sample, entity or feature."""
    absent_TN = np.full(panel.returns_TN.shape, np.nan)
    own = {name: panel.x_TNF[..., f] for f, name in enumerate(panel.feature_names)}
    arrays = [own.get(name, absent_TN) for name in names] + [panel.returns_TN, panel.vol_TN]
    return np.stack([_at(panel, array, event_E, entities).ravel() for array in arrays], axis=1)


def _at(panel: Panel, values_TN: NDArray[np.floating], event_E: TimeArray, entities: Sequence[str]) -> FloatArray:
    """A panel's values at given events and entities, NaN where it has them not: (E, entities)."""
    frame = pd.DataFrame(np.asarray(values_TN, dtype=np.float64), index=panel.event_times_T, columns=panel.entities)
    at: FloatArray = frame.reindex(index=event_E, columns=list(entities)).to_numpy()
    return at


def _check_settled_labels(panel: Panel, cut: Panel, market: Market, moment: pd.Timestamp) -> Checked:
    """Labels that were over by the moment, of assets whose prices up to the label's end were final by then."""
    settled_N = np.array([_settled(market, entity, moment) for entity in panel.entities], dtype="datetime64[us]")
    is_over_TN = panel.labels.end_T[:, None] < settled_N
    is_over_TN &= (panel.event_times_T >= cut.event_times_T[0])[:, None]
    places = for_each_entity(panel.entities, panel.event_times_T, _naive(moment))
    expected_RF, got_RF = (_labels_at(each, panel, is_over_TN) for each in (cut, panel))
    why = "its interval was over, yet it changes when what became known later is deleted"
    return compare(
        "label truncation", why, places=places, names=("y", "forward"), expected_RF=expected_RF, got_RF=got_RF
    )


def _settled(market: Market, entity: str, moment: pd.Timestamp) -> np.datetime64:
    """The first time whose prices were not final, or not there, at the moment.

    A bar that became known later takes all its prices with it, its opening price too: so it is the time right after the
    bar before it.
    """
    until = _naive(moment)
    settled = until + _TICK
    for name, table in market.tables.items():
        if name.startswith("bars_"):
            rows = table[table["entity_key"] == entity]
            ends, is_later = micros(rows["event_time"]), known_times(name, rows) > until
            if is_later.any():
                before = ends[ends < ends[is_later].min()]
                settled = min(settled, before.max() + _TICK if len(before) else ends.min())
    return settled


def _labels_at(panel: Panel, wanted: Panel, is_wanted_TN: NDArray[np.bool_]) -> FloatArray:
    """(T x N of ``wanted``, 2): y and forward, NaN where they are not asked for."""
    labels = (panel.labels.y_TN, panel.labels.forward_TN)
    at_TN = [_at(panel, label_TN, wanted.event_times_T, wanted.entities) for label_TN in labels]
    return np.stack([np.where(is_wanted_TN, each_TN, np.nan).ravel() for each_TN in at_TN], axis=1)


def _check_labels_after(panel: Panel, changed: Panel, moment: pd.Timestamp) -> Checked:
    """Returns of samples taken at the moment or after, with all prices up to it changed."""
    event_E = panel.event_times_T[panel.sample_times_T >= _naive(moment)]
    expected_R1, got_R1 = (
        _at(each, each.labels.forward_TN, event_E, panel.entities).reshape(-1, 1) for each in (changed, panel)
    )
    why = "it changes with prices that were there at its sample time; a label must rest on later ones only"
    places = for_each_entity(panel.entities, event_E, _naive(moment))
    return compare(
        "label from the past", why, places=places, names=("forward",), expected_RF=expected_R1, got_RF=got_R1
    )


def _naive(moment: pd.Timestamp) -> np.datetime64:
    return micros(pd.DatetimeIndex([moment]))[0]
