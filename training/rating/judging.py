"""All gates on all variants at once: who may be promoted, who not, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.rating import evidence as handed_in
from training.rating.effective_trials import EffectiveTrials, effective_trials
from training.rating.evidence import LATENCY_BUDGET_MS, Evidence, Finding
from training.rating.gates import (
    GateError,
    GateResult,
    Verdict,
    deflated_sharpe,
    judgeable,
    leaks,
    skilled,
    track_record,
)
from training.rating.overfitting import Overfitting, overfitting

FloatArray = NDArray[np.float64]

# Tensor suffixes: V variants, T bars, J variants judged, S bars that all of those share.


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What the gates said: ``verdicts`` by variant, and what was found of the search as a whole.

    ``gate`` counts failed variants among its trials, last. ``num_tuning_trials`` came beside them; with them the
    effective number of trials is ``num_effective``.
    """

    verdicts: Mapping[str, Sequence[Verdict]]
    gate: GateResult
    trials: EffectiveTrials
    overfitting: Overfitting
    num_tuning_trials: int
    num_effective: float
    periods_per_year: float

    @property
    def warnings(self) -> list[Verdict]:
        """What is to be said of the whole search, of no variant in particular."""
        return [self.gate.spa(), self.overfitting.verdict()]

    @property
    def promotable(self) -> list[str]:
        """The variants that no gate vetoes."""
        return [variant for variant, said in self.verdicts.items() if not _vetoes(said)]

    @property
    def to_certify(self) -> list[str]:
        """The variants that only the certificate stands against: a refit each, which the others needn't cost."""
        return [variant for variant, said in self.verdicts.items() if _vetoes(said) == {"certificate"}]

    def certified(self, findings: Mapping[str, Finding]) -> Judged:
        """The same with the certificates of some variants."""
        if unknown := sorted(set(findings) - set(self.verdicts)):
            raise GateError(f"certificates of {len(unknown)} variants that were not judged: {', '.join(unknown[:5])}")
        verdicts = {
            variant: _with_certificate(said, findings[variant]) if variant in findings else said
            for variant, said in self.verdicts.items()
        }
        return replace(self, verdicts=verdicts)


def judge(
    variants: Sequence[str],
    residual_VT: FloatArray,
    evidence: Mapping[str, Evidence],
    *,
    seed: int,
    periods_per_year: float,
    num_failed: int = 0,
    num_tuning_trials: int = 0,
    require_certificate: bool = True,
    latency_budget_ms: float = LATENCY_BUDGET_MS,
) -> Judged:
    """Ask every gate about every variant.

    ``residual_VT`` are net returns residual to the market, in the order of ``variants``, NaN where a variant has
    none; drop the first bars, whose betas are not yet known. ``num_failed`` variants were tried too, without returns.
    StepM over all trials decides on skill at the level of one of a year's daily gates; track record, leaks,
    certificate, latency and drift can veto; deflated Sharpe, SPA and PBO warn. The last two and the effective number of
    trials are taken over the bars that all variants with a long enough track share. The same seed gives the same.
    """
    _check(variants, residual_VT, evidence)
    failed_VT = np.full((num_failed, residual_VT.shape[1]), np.nan)
    gate = skilled(np.vstack([residual_VT, failed_VT]), seed=seed, year_bars=round(periods_per_year))
    judged, shared = judgeable(residual_VT)
    returns_JS = residual_VT[judged][:, shared]
    trials = effective_trials(returns_JS)
    num_effective = trials.with_unseen(num_tuning_trials + num_failed + int((~judged).sum()))
    deflated = _deflated(residual_VT, trials, num_effective, gate.num_trials + num_tuning_trials)
    skill = gate.verdicts(periods_per_year=periods_per_year)
    verdicts = {
        variant: [
            skill[v],
            track_record(residual_VT[v]),
            leaks(evidence[variant].leaks, fingerprint=evidence[variant].fingerprint),
            handed_in.certificate(evidence[variant].certificate, required=require_certificate),
            handed_in.latency(evidence[variant].latency_p99_ms, budget_ms=latency_budget_ms),
            handed_in.drift(evidence[variant].drift),
            deflated[v],
        ]
        for v, variant in enumerate(variants)
    }
    return Judged(
        verdicts=verdicts,
        gate=gate,
        trials=trials,
        overfitting=overfitting(returns_JS),
        num_tuning_trials=num_tuning_trials,
        num_effective=num_effective,
        periods_per_year=periods_per_year,
    )


def _deflated(residual_VT: FloatArray, trials: EffectiveTrials, num_effective: float, num_all: int) -> list[Verdict]:
    """By the effective number of trials; what it would be were no two of them alike is said beside it."""
    lenient = deflated_sharpe(residual_VT, sharpe_std=trials.sharpe_std, num_trials=num_effective)
    strict = deflated_sharpe(residual_VT, num_trials=num_all)
    return [
        replace(one, why=f"{one.why}; were no two of {num_all} trials alike it would be {other.value:.2f}")
        if np.isfinite(other.value)
        else one
        for one, other in zip(lenient, strict, strict=True)
    ]


def _check(variants: Sequence[str], residual_VT: FloatArray, evidence: Mapping[str, Evidence]) -> None:
    if len(set(variants)) != len(variants) or len(variants) != len(residual_VT):
        num = len(set(variants))
        raise GateError(f"{num} different variants of {len(variants)} named, and {len(residual_VT)} rows of returns")
    if missing := [variant for variant in variants if variant not in evidence]:
        raise GateError(
            f"no evidence on {len(missing)} of {len(variants)} variants ({', '.join(missing[:5])}): "
            "hand in an Evidence each, with None for what is not known"
        )


def _vetoes(said: Sequence[Verdict]) -> set[str]:
    return {verdict.gate for verdict in said if verdict.veto and not verdict.ok}


def _with_certificate(said: Sequence[Verdict], finding: Finding) -> list[Verdict]:
    new = handed_in.certificate(finding, required=True)
    return [new if verdict.gate == new.gate else verdict for verdict in said]
