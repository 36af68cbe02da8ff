"""Every figure shows every model, or says which it does not show and why."""

import xml.etree.ElementTree as ET

import pytest
from matplotlib.image import imread

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures import style
from moe_outliers.report.figures.captions import caption
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.figures.draw import draw, function_of
from moe_outliers.storage import parquet

CRITERIA = Criteria(magnitude=6, layer_share=0.25, position_share=0.06)
OF_MODELS = [name for name, entry in FIGURES.items() if entry.of_models]


@pytest.fixture(scope="module")
def tables(demo):
    names = {table for entry in FIGURES.values() for table in entry.tables}
    folder = demo.folder / "results/tables"
    return {name: parquet.read(folder / f"{name}.parquet").to_pandas() for name in names}


@pytest.mark.parametrize("name", OF_MODELS)
def test_every_model_is_in_the_figure_or_named_as_missing(tables, name):
    with style.styled():
        figure, words = function_of(name)(tables, CRITERIA)
        written = style.texts(figure)
    for model in tables["models"]["model"]:
        assert model in written, f"{model} is silently missing"
    assert words


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_model_without_any_outlier_is_in_the_figure_or_named_as_missing(tables, name):
    """Take from one model every feature, number and expert, as if nothing had been found."""
    bare = "mini-qwen3"
    emptied = dict(tables)
    for table in FIGURES[name].tables:
        frame = tables[table]
        if table != "models" and "model" in frame:
            emptied[table] = frame[frame["model"] != bare]
    if "sensitivity" in emptied:
        emptied["sensitivity"] = tables["sensitivity"]
    if "features" in emptied:
        emptied["features"] = tables["features"].assign(**{"class": "none"})
    with style.styled():
        figure, words = function_of(name)(emptied, CRITERIA)
        assert bare in style.texts(figure)
    assert words


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_speaks_to_screen_readers_and_is_the_same_every_time(demo, tables, name, tmp_path):
    plots = demo.folder / "results/plots"
    root = ET.parse(plots / f"{name}.svg").getroot()
    words = (plots / f"{name}.txt").read_text()
    assert root.get("role") == "img"
    assert FIGURES[name].title in root.get("aria-label")
    assert words in root.get("aria-label")
    assert root[0].text == FIGURES[name].title
    assert root[1].text == words
    draw(name, tables, CRITERIA, tmp_path / name)
    for ending in ("svg", "pdf", "png"):
        again = (tmp_path / f"{name}.{ending}").read_bytes()
        assert again == (plots / f"{name}.{ending}").read_bytes(), ending


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_clipped_at_the_edge(demo, name):
    """The outermost pixels of the picture are white: no label is cut off."""
    picture = imread(demo.folder / f"results/plots/{name}.png")[..., :3]
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge > 0.99).all()


def test_shares_are_drawn_on_an_axis_from_zero_to_one(tables):
    for name in ("extent_by_size", "legacy_total_mean_layer_share"):
        with style.styled():
            figure, _ = function_of(name)(tables, CRITERIA)
            for axes in figure.axes:
                low, high = axes.get_ylim()
                assert low <= 0, name
                assert high >= 1, name


def test_a_threshold_is_drawn_and_told_as_the_settings_have_it(tables):
    other = Criteria(magnitude=8, layer_share=0.4, position_share=0.06)
    drawn = {}
    with style.styled():
        for name in ("consistency", "thresholds"):
            figure, _ = function_of(name)(tables, other)
            upright = [
                line.get_xdata()[0]
                for axes in figure.axes
                for line in axes.lines
                if list(line.get_ydata()) == [0, 1]
            ]
            drawn[name] = set(upright)
    assert drawn == {"consistency": {0.4, 0.75}, "thresholds": {8}}
    assert "a candidate (.4) and of a systematic feature (.75)" in caption("consistency", other)


def test_every_caption_can_be_filled_in():
    for name in FIGURES:
        assert "{" not in caption(name, CRITERIA)
