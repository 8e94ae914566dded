"""Icon sets: aliases, turns and mirrors, against images that are turned and mirrored afterwards."""

import numpy as np
import pytest
from PIL import Image

from hf_cots.data.sets.iconify import (
    IconSet,
    describe_license,
    make_svg,
    read_collections,
    read_sets,
    render_svg,
)
from tests.support.icon_packages import make_info, write_iconify


pytest.importorskip("resvg_py")

L_SHAPE = '<path fill="currentColor" d="M2 2h4v8h6v4h-10z"/>'


def make_set(aliases=None, **fields):
    icons = {"l": {"body": L_SHAPE} | fields}
    return IconSet("a", {"icons": icons, "aliases": aliases or {}, "width": 16, "height": 16}, make_info())


def render(icon_set, name, size=32):
    return np.asarray(render_svg(make_svg(icon_set.resolve(name)[1], size), size).convert("L"))


@pytest.mark.parametrize(
    ("alias", "operations"),
    [
        ({"hFlip": True}, [Image.Transpose.FLIP_LEFT_RIGHT]),
        ({"vFlip": True}, [Image.Transpose.FLIP_TOP_BOTTOM]),
        ({"rotate": 1}, [Image.Transpose.ROTATE_270]),  # clockwise
        ({"rotate": 2}, [Image.Transpose.ROTATE_180]),
        ({"rotate": 3, "hFlip": True}, [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90]),
    ],
)
def test_turns_and_mirrors(alias, operations):
    icon_set = make_set({"other": {"parent": "l"} | alias})
    expected = Image.fromarray(render(icon_set, "l"))
    for operation in operations:
        expected = expected.transpose(operation)
    assert np.abs(render(icon_set, "other").astype(int) - np.asarray(expected).astype(int)).max() <= 2
    assert (render(icon_set, "other") != render(icon_set, "l")).any()


def test_aliases_of_aliases_add_up():
    aliases = {"a": {"parent": "l", "rotate": 3, "hFlip": True}, "b": {"parent": "a", "rotate": 1, "hFlip": True}}
    name, fields = make_set(aliases).resolve("b")
    assert (name, fields["rotate"], fields["hFlip"]) == ("l", 0, False)
    circle = {f"c{i}": {"parent": f"c{(i + 1) % 7}"} for i in range(7)}
    assert make_set(circle).resolve("c0") is None
    assert make_set().resolve("gone") is None


def test_the_aspect_is_kept_and_the_drawing_stands_in_the_middle():
    wide = make_set(width=32, height=16, body='<rect width="32" height="16"/>')
    pixels = render(wide, "l", 32)
    assert (pixels[:8] == 255).all()
    assert (pixels[8:24] == 0).all()
    assert (pixels[24:] == 255).all()
    turned = make_set({"t": {"parent": "l", "rotate": 1}}, width=32, height=16, body='<rect width="32" height="16"/>')
    assert (render(turned, "t", 32) == pixels.T).all()


def test_the_view_box_is_the_icons_own_or_its_sets():
    icon_set = make_set(left=2, top=2, width=4, height=4, body='<rect x="2" y="2" width="4" height="4"/>')
    assert (render(icon_set, "l") == 0).all()


def test_only_true_synonyms_are_other_names():
    aliases = {"same": {"parent": "l"}, "turned": {"parent": "l", "rotate": 1}, "wider": {"parent": "l", "width": 20}}
    assert make_set(aliases).other_names() == [("same", "l")]


def test_sets_and_their_licenses_are_read_from_the_package(tmp_path):
    package = write_iconify(tmp_path / "i.tgz", {"a": {"icons": {"x": {"body": L_SHAPE}}}, "b": {"icons": {}}})
    collections = read_collections(package)
    assert sorted(collections) == ["a", "b"]
    (icon_set,) = read_sets(package, {"a"}, collections)
    assert (icon_set.prefix, list(icon_set.icons), icon_set.license) == ("a", ["x"], "MIT")
    line = describe_license("a", collections["a"], 7)
    assert all(text in line for text in ("| a |", "[An author](https://example.org)", "[MIT](https://", "| 7 |"))
    with pytest.raises(ValueError, match=r"has no json/c\.json"):
        list(read_sets(package, {"a", "c"}, collections))
