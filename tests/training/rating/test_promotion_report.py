"""The promotion report: everybody is in it, with every gate's number, and it needs nothing from outside."""

from html.parser import HTMLParser

import numpy as np
import pytest

from tests.training.rating.judged_makers import VARIANTS, YEAR, evidence, judged
from training.rating.judging import judge
from training.rating.promotion_report import PromotionReport, html, summary


class Page(HTMLParser):
    """The page's headings, tables and variants; a tag left open is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.outside = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def report(result=None, **changes):
    stages = {variant: "Production" if variant == "skilled" else "None" for variant in VARIANTS} | {"slow": "Staging"}
    given = {
        "title": "Promotion report of us_stocks",
        "facts": {"cycle": "20200102-abc"},
        "judged": result or judged(),
        "stages": stages,
        "reasons": {variant: f"rank {rank}, because" for rank, variant in enumerate(VARIANTS, 1)},
        "failed": {"broken": "1 of 3 fits failed; the first: no <data>"},
    }
    return PromotionReport(**{**given, **changes})


def test_every_variant_is_there_with_every_gates_words():
    one = report()
    page = Page(html(one))
    said = set(page.words)
    for variant, verdicts in one.judged.verdicts.items():
        assert variant in said
        assert {verdict.why for verdict in verdicts} <= said
    assert {verdict.why for verdict in one.judged.warnings} <= said
    assert {"broken", "1 of 3 fits failed; the first: no <data>", "Failed (1)"} <= said
    assert {"Promoted: live (1)", "On paper (1)", "Not placed (6)"} <= said
    assert page.outside == []


def test_numbers_and_thresholds_stand_beside_the_words():
    words = Page(html(report())).words
    at = words.index("99% of its live answers came within 80.0 ms, over the budget of 50 ms")
    assert words[at - 4 : at] == ["Latency: live answers within the budget", "refuses", "80", "50"]


def test_what_gates_said_in_all_is_counted():
    words = Page(html(report())).words
    at = words.index("Certificate: it can be rebuilt from what is recorded")
    assert words[at + 1 : at + 4] == ["6", "2", "0"]


def test_the_summary_says_how_many_were_tried_and_what_it_took():
    tried, needed, promoted = summary(report())
    assert tried.startswith("10 variants were tried (1 failed) after 30 tuning trials; 8 have a track long enough")
    assert "no two of them alike enough to count as one, with the tuning worth 40 trials" in tried
    assert "6 did better" in needed
    assert promoted == "1 variant promoted."


def test_nobody_judged_and_nobody_promoted_is_said_too():
    nothing = judge(VARIANTS, np.full((8, 300), np.nan), evidence(), seed=0, periods_per_year=YEAR)
    one = report(nothing, stages=dict.fromkeys(VARIANTS, "None"), failed={})
    tried, promoted = summary(one)
    assert promoted == "No variants promoted."
    assert tried.endswith(
        "none have a track long enough to be judged, which takes 126 bars after the first 63, which its beta takes."
    )
    page = Page(html(one))
    assert "Not placed (8)" in page.words
    search = page.words[page.words.index("The search as a whole") : page.words.index("What each gate said")]
    assert not any("nan" in word for word in search)
    assert not any(word.startswith(("Promoted: live", "Failed")) for word in page.words)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a&b"])
def test_names_cannot_break_the_page(name):
    page = html(report(title=name))
    assert name not in page
    assert name in Page(page).words
