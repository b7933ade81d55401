from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from span_sparse.errors import StoreError
from span_sparse.store.naming import group_name, slide_id_of

IDS = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=18
)  # at most 12 bytes each, below the 255 of a name


@pytest.mark.parametrize(
    ("slide_id", "name"),
    [
        ("case-7", "case-7"),
        ("block 7/slide.1", "block=207=2fslide.1"),
        ("TCGA-3C.x", "TCGA-3C.x+1f"),  # T C G A C are letters 0 to 4, x is lower case
        ("a.B", "a.B+2"),
        ("..", "=2e=2e"),
        (".", "=2e"),
        ("a.", "a=2e"),
        ("__x", "=5f_x"),
        ("zarr.json", "=7aarr.json"),
        ("Con.svs", "=43on.svs+1"),
        ("com7", "=63om7"),
        ("company", "company"),
        ("a+b=c%", "a=2bb=3dc=25"),
        ("Zürich", "Z=c3=bcrich+1"),
        ("a\\b:c\0", "a=5cb=3ac=00"),
        ("/etc/passwd", "=2fetc=2fpasswd"),
    ],
)
def test_names_as_the_format_says(slide_id, name):
    assert group_name(slide_id) == name
    assert slide_id_of(name) == slide_id


@given(IDS)
@example("é")
@example("e\u0301")  # the same letter, decomposed: another id
def test_round_trip_and_only_safe_names(slide_id):
    name = group_name(slide_id)
    assert slide_id_of(name) == slide_id
    assert re.fullmatch(r"[A-Za-z0-9=-][A-Za-z0-9._=+-]*", name)
    assert not name.endswith((".", " "))
    assert name.lower() != "zarr.json"
    assert len(name) <= 255


@given(st.text("aAbB-", min_size=1, max_size=6), st.text("aAbB-", min_size=1, max_size=6))
def test_different_ids_differ_on_file_systems_that_ignore_case(first, second):
    same_name = group_name(first).lower() == group_name(second).lower()
    assert same_name == (first == second)


@pytest.mark.parametrize(
    "name",
    ["a b", "a=2F", "a=41", "ABC", "abc+1", "abc+", "abc+0", "Abc+01", "=ff", "a=zz", "..", "__tmp-1", ".git", "", "é"],
)
def test_other_folders_are_not_slides(name):
    with pytest.raises(StoreError, match="not the name of a slide group"):
        slide_id_of(name)


def test_long_ids_are_refused_with_the_remedy():
    assert len(group_name("a" * 255)) == 255
    with pytest.raises(StoreError, match=r"needs a folder name of 256 bytes.*255.*shorter slide_id"):
        group_name("a" * 256)
    with pytest.raises(StoreError, match=r"needs a folder name of 300 bytes"):
        group_name("é" * 50)


def test_empty_and_undecodable_ids_are_refused():
    with pytest.raises(StoreError, match="empty"):
        group_name("")
    with pytest.raises(StoreError, match="Unicode"):
        group_name("a\udcff")
