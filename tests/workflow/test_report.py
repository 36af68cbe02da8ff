"""The report in a real browser: complete, offline, and saying what summary.json says."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from types import SimpleNamespace

import pytest

from moe_outliers.inference import comparison
from moe_outliers.report import sentences, words
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.page import TEMPLATE, costs, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --virtual-time-budget=10000
"""

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


class _Page(HTMLParser):
    """What a page holds: its tags with attributes, its words, its headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.headings = [], "", []
        self._heading = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append((int(tag[1]), ""))
            self._heading = tag

    def handle_endtag(self, tag):
        self._heading = None if tag == self._heading else self._heading

    def handle_data(self, data):
        self.words += data
        if self._heading:
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(demo):
    return _Page((demo.folder / "results/report.html").read_text())


@pytest.fixture(scope="module")
def summary(demo):
    return json.loads((demo.folder / "results/tables/summary.json").read_text())


def test_the_page_opens_with_the_answer(page, summary):
    levels = [heading for heading in page.headings if heading[0] == 2]
    assert levels[0][1] == "The answer"
    assert sentences.headline(summary) in page.words
    for model, found in summary["models"].items():
        assert sentences.how_sure(model, found) in page.words
        assert sentences.cross_batch(found) in page.words


def _outcome(kind, others, number):
    """What summary.json says of a model, as the rules that make it allow."""
    counts = {"systematic": 0, "banded": 0, "probabilistic": 0, "indeterminate": 0}
    for each in [] if kind in ("no_outliers", "out_of_reach") else [kind, *others]:
        counts[each if each in counts else "banded"] += number
    if kind == "mixed":
        counts["probabilistic"] += number
    some = sum(counts.values())
    share = {"estimate": 0.6, "low": 0.5, "high": 0.7}
    row = {"headline": "model_class", "along": "alpha", "basis": "z", "at": 6,
           "low": 5, "high": 8, "tried_low": 3, "tried_high": 8}  # fmt: skip
    return {
        "number": "01", "model_class": kind, "class_x": "banded", "class_y": None,
        "class_not_wide": "banded" if others == ("systematic",) else None,
        "candidates": some, "candidates_x": 3, "surrogate_n_dims": 0, "surrogate_wide": None,
        "at_threshold": kind == "no_outliers" and number == 1,
        "classes_of_features": counts,
        "systematic_in": {"all": counts["systematic"]} if number < 3 else {"mlp_in": number},
        "systematic_kinds": {"constant" if number == 2 else "spiky": counts["systematic"]},
        "relations": {"both": some, "absorbed": 0, "gain_made": 3},
        "class_energy": kind, "energy_alpha": 6.0, "sequences": 16, "documents": 16, "tokens": 512,
        "mass_shares": {name: share for name, n in counts.items() if n},
        "numbers": {"extent_site_share": {"z": share}}, "stable_ranges": [row],
        "nearest_change": None if number == 2 else {"alpha": 5.0, "model_class": "mixed"},
    }  # fmt: skip


KINDS = ("systematic", "banded", "probabilistic", "mixed", "indeterminate", "no_outliers",
         "out_of_reach")  # fmt: skip


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("others", [(), ("systematic",), ("banded", "probabilistic")])
@pytest.mark.parametrize("kind", KINDS)
def test_no_sentence_contradicts_another_or_the_summary(kind, others, number):
    """Over synthetic outcomes: what is said of a model follows from its row, and only that."""
    own = _outcome(kind, others, number)
    said = sentences.how_sure("m", own)
    counts = own["classes_of_features"]
    assert f"m is called {words.named(kind)}" in said
    narrow = own["class_not_wide"]
    assert ("without wide features" in said) == (narrow not in (None, kind))
    if not own["candidates"]:
        assert "the same for" not in said  # nothing above, so that "the same" says nothing
        assert "outlier mass" not in said
        assert sentences.by_class(own) == "none"
        assert sentences.evidence(own)["extent"] is None
    if counts["systematic"] and kind != "systematic":
        assert "systematic" in said.partition(";")[2]  # a class never hides what is systematic
    assert ("at 5 it would be mixed" in said) == (own["nearest_change"] is not None)
    assert ("no threshold that was tried" in said) == (
        own["nearest_change"] is None and kind != "out_of_reach"
    )
    constant = number == 2 and counts["systematic"] > 0
    assert ("effect not measured" in sentences.by_class(own)) == constant
    for name, many in counts.items():
        assert (f"{many} {words.named(name)}" in sentences.by_class(own)) == (many > 0)
    told = list(sentences.otherwise({"models": {"m": own}}))
    assert bool(told) == (own["class_x"] != kind)
    top = sentences.headline({"models": {"m": own}})
    assert ("not systematic" in top) == (kind in ("banded", "probabilistic", "mixed",
                                                  "no_outliers"))  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["systematic", "banded"], "1 of 2 models is systematic: a."),
        (["systematic", "systematic", "mixed"], "2 of 3 models are systematic: a and b."),
        (["banded", "no_outliers"], "None of 2 models is systematic."),
        (["systematic"], "a is systematic."),
        (["banded"], "a is not systematic."),
        (["banded", "unclassified"], "None of 2 models is systematic. It cannot be told for b."),
        (
            ["indeterminate", "out_of_reach"],
            "It cannot be told for any of 2 models whether it is systematic.",
        ),
        (["indeterminate"], "a: it cannot be told whether it is systematic."),
    ],
)
def test_the_first_sentence_says_which_models_are_systematic(classes, said):
    models = {
        name: {"number": f"0{n}", "model_class": kind}
        for n, (name, kind) in enumerate(zip("abc", classes, strict=False))
    }
    assert sentences.headline({"models": models}) == said


def test_every_figure_is_in_it_with_its_words_and_nothing_is_fetched(page):
    images = page.all("img")
    assert len(images) == len(FIGURES)
    assert all(
        image["alt"] and image["src"].startswith("data:image/svg+xml;base64,") for image in images
    )
    assert not page.all("script")
    assert not page.all("link")
    assert not [a for a in page.all("a") if not a["href"].startswith("#")]


def test_words_are_defined_before_the_tables_that_lead_to_them(demo):
    text = (demo.folder / "results/report.html").read_text()
    page = _Page(text)
    terms = {a["id"] for a in page.all("dt") if a.get("id", "").startswith("term-")}
    used = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#term-")}
    assert used <= terms
    assert len(used) >= 9
    assert text.index('id="glossary"') < text.index("<table")
    for term in ("alpha", "mass", "extent", "site", "feature", "basis"):
        assert f"term-{term}" in terms


def test_it_can_be_walked_by_keyboard_and_heard(page):
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    assert links
    assert set(links) <= targets
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attributes for attributes in page.all("th"))
    for region in (each for each in page.all("div") if each.get("class") == "table"):
        assert region["role"] == "region"
        assert region["tabindex"] == "0"
        assert region["aria-labelledby"] in targets
    assert page.all("a")[0]["class"] == "skip"
    assert [len(page.all(landmark)) for landmark in ("header", "nav", "main", "h1")] == [1] * 4
    marks = [each for each in page.all("span") if each.get("class") == "mark"]
    assert marks
    assert all(each["aria-hidden"] == "true" for each in [*marks, *page.all("svg")])
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_model_has_a_section_with_its_class_and_numbers(page, summary):
    for model, found in summary["models"].items():
        assert (2, f"{model}: {found['model_class'].replace('_', ' ')}") in page.headings
        for _, number, _ in sentences.numbers(found):
            assert number in page.words


def test_the_level_of_the_intervals_is_that_of_the_settings(demo, summary):
    assert summary["settings"]["confidence"] == 0.95
    settings = summary["settings"] | {"confidence": 0.9}
    told = summary | {"settings": settings}
    text = render(told, demo.folder / "results/plots", [])
    assert (
        "would be of 90 % confidence for independent texts; these are parts of 1 document" in text
    )
    assert "95 %" not in _Page(text).words
    apart = {name: own | {"documents": 16} for name, own in summary["models"].items()}
    text = render(told | {"models": apart}, demo.folder / "results/plots", [])
    assert "Intervals are of 90 % confidence, over sequences of independent texts." in text


def test_the_worst_coverage_stands_beside_the_level(page, summary):
    rows = [row for row in summary["validation"]["coverage"] if row["used"] and row["n"] == 16]
    for dependent, whose in ((False, "independent"), (True, "dependent")):
        worst = min(row["coverage_share"] for row in rows if row["dependent"] == dependent)
        assert f"{worst:.0%} of the time on {whose} texts" in page.words


def test_every_correlation_that_survives_is_told_in_words(demo, summary):
    kept = [
        {"property": name, "metric": "k90", "basis": "x", "models": 7, "rho": -0.9}
        for name in (*comparison.PROPERTIES, "bits_per_byte_common")
    ]
    text = render(summary | {"correlations": kept}, demo.folder / "results/plots", [])
    for said in words.PROPERTIES.values():
        assert f"goes with {said}: rank correlation -0.90 over 7 models." in _Page(text).words
    assert "No number goes with" not in text


def test_every_text_can_be_read_by_light_and_in_the_dark():
    """Contrast of WCAG 2.2: 4.5 for text, 3 for the ring around what has the focus."""
    style = (resources.files("moe_outliers") / "data" / TEMPLATE).read_text()
    roots = re.findall(r":root \{ (--.*?) \}", style)
    assert len(roots) == 3  # by light, in the dark, in print
    for root in roots:
        colours = dict(re.findall(r"--(\w+): (#\w{6});", root))
        for name in ("text", "quiet", "link"):
            assert _contrast(colours[name], colours["page"]) >= 4.5, (name, root)
        assert _contrast(colours["text"], colours["raised"]) >= 4.5
        if "focus" in colours:
            assert _contrast(colours["focus"], colours["page"]) >= 3


def _contrast(*colours):
    """Return the contrast of two colours: WCAG 2.2, relative luminance."""
    light = []
    for colour in colours:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


@pytest.mark.fault(95)
def test_a_hostile_name_stays_text(demo, summary):
    hostile = '<script>alert("x")</script>'
    models = {hostile: dict(next(iter(summary["models"].values())))}
    text = render(summary | {"models": models}, demo.folder / "results/plots", [])
    assert "<script>" not in text
    assert hostile in _Page(text).words


def test_costs_are_the_time_of_each_machine_at_its_price():
    def receipt(model, pod, seconds):
        machine = SimpleNamespace(id=pod, seconds=seconds, price_usd_per_h=0.36) if pod else None
        return SimpleNamespace(model=model, device="GPU", pod=machine, versions={"torch": "2"})

    rows = costs([receipt("a", "p1", 100.0), receipt("a", "p1", 1000.0), receipt("b", None, 0)])
    assert [(row["model"], row["pod"], row["dollars"]) for row in rows] == [
        ("a", "p1", pytest.approx(0.1)),
        ("b", None, None),
    ]


def _open(page, profile, *options):
    """Open a page of this disk in the browser; return its document, and what the console said."""
    done = subprocess.run(
        [
            CHROMIUM,
            *OPTIONS.split(),
            f"--user-data-dir={profile}",
            *options,
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@browser
@pytest.mark.parametrize("path", ["results/report.html", "report.html"])
def test_the_browser_shows_it_without_a_complaint(demo, tmp_path, path):
    shown, console = _open(demo.folder / path, tmp_path, "--enable-logging=stderr", "--v=0")
    assert not [line for line in console if re.search("error|refused|failed", line, re.I)], console
    assert "The answer" in shown


@browser
def test_the_first_table_in_the_browser_says_what_the_summary_says(demo, summary, tmp_path):
    shown, _ = _open(demo.folder / "results/report.html", tmp_path)
    table = re.search(r'<table class="glance">.*?<tbody>(.*?)</tbody>', shown, re.S)[1]
    rows = [
        [_Page(cell).words for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
        for row in re.findall(r"<tr.*?</tr>", table, re.S)
    ]
    assert [row[0] for row in rows] == sorted(
        summary["models"], key=lambda model: summary["models"][model]["number"]
    )
    for model, kind, by_x, by_y, features, mass, extent, stable in rows:
        found = summary["models"][model]
        name = found["model_class"]
        assert kind[1:] == name.replace("_", " ")
        assert by_x == found["class_x"].replace("_", " ")
        assert by_y == "not recorded"
        assert features == sentences.by_class(found)
        if name not in found["mass_shares"]:
            assert [mass, extent, stable] == ["\N{EN DASH}"] * 3
            continue
        assert mass.partition(" ")[0] == f"{found['mass_shares'][name]['estimate']:.0%}"
        number = found["numbers"]["extent_site_share"]["z"]
        ends = [number[each] for each in ("estimate", "low", "high")]
        told = [float(each) for each in re.findall(r"[\d.]+", extent)]
        assert told == pytest.approx(ends, abs=6e-4)
        (row,) = [
            row
            for row in found["stable_ranges"]
            if (row["headline"], row["along"], row["basis"]) == ("model_class", "alpha", "z")
        ]
        assert [float(each) for each in stable.split(" to ")] == [row["low"], row["high"]]


@browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_the_page_fits_its_window_and_follows_its_owners_colours(demo, tmp_path, width, dark):
    """No scrolling sideways but within tables; a copy of the page, in a frame, tells its sizes."""
    tells = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        "parent.postMessage([root.clientWidth, root.scrollWidth, "
        "getComputedStyle(document.body).backgroundColor].join(' '), '*'); })</script>"
    )
    text = (demo.folder / "results/report.html").read_text()
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{tells}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<title></title><script>onmessage = (told) => { document.title = told.data; }</script>"
        f'<iframe src="page.html" style="border: 0" width="{width}" height="900"></iframe>'
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown, _ = _open(frame, tmp_path / "profile", scheme)
    inner, whole, colour = re.search(r"<title>(\d+) (\d+) (.+?)</title>", shown).groups()
    assert width - 20 <= int(inner) <= width
    assert int(whole) <= int(inner)
    assert colour == ("rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)")


@browser
def test_every_figure_loads_in_the_browser(demo, tmp_path):
    """A copy of the page asks the browser itself how large each picture came out."""
    text = (demo.folder / "results/report.html").read_text()
    asked = (
        "<script>addEventListener('load', () => { document.title = "
        "[...document.images].filter(i => i.complete && i.naturalWidth > 100).length; })</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{asked}</body>"))
    shown, _ = _open(page, tmp_path / "profile")
    assert re.search(r"<title>(\d+)</title>", shown)[1] == str(len(FIGURES))
