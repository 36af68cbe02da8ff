"""Files are whole or absent, and JSON holds no surprises."""

import pytest

from moe_outliers.storage import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "some.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError), files.replacing(path) as part:
        part.write_text(3)
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        '{"a": 1e999}',
        "[" * 100_000,
        '{"a": ',
        "\ufeff{}",
        "",
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_json_with_surprises_is_refused_by_name(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"some\.json"):
        files.read_json(path)


def test_what_lies_below_a_folder_is_found_behind_links_and_removed_without_them(tmp_path):
    elsewhere, results = tmp_path / "elsewhere", tmp_path / "results"
    elsewhere.mkdir()
    results.mkdir()
    (elsewhere / "a").touch()
    (elsewhere / "loop").symlink_to(results)
    (results / "link").symlink_to(elsewhere)
    found = [str(path.relative_to(results)) for path in files.below(results)]
    assert found == ["link", "link/a", "link/loop"]
    files.remove(results / "link")
    files.remove(results / "link")
    assert (elsewhere / "a").exists()
    files.remove(elsewhere)
    assert not elsewhere.exists()
    assert results.exists()


def test_a_tree_is_hashed_by_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    before = files.tree_sha256(tmp_path)
    (tmp_path / "stamp").touch()
    assert files.tree_sha256(tmp_path, frozenset({"stamp"})) == before
    assert files.tree_sha256(tmp_path) != before
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.tree_sha256(tmp_path, frozenset({"stamp"})) != before
