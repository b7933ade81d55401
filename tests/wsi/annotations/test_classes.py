from __future__ import annotations

import pytest

from span_sparse.errors import ConfigError
from span_sparse.wsi.annotations import ClassMapping


def test_rules() -> None:
    mapping = ClassMapping.parse(["tumor=Tumor, _0,_1", "Invasive carcinoma"], ["_2"])
    assert mapping.classes == ("tumor", "Invasive carcinoma")
    assert mapping.known == ("Tumor", "_0", "_1", "Invasive carcinoma", "_2")
    assert mapping.unknown(["_2", "Tumor", "stroma", "fat", "fat"]) == ["fat", "stroma"]
    assert mapping.completed(["stroma"]) is mapping
    assert mapping.as_dict() == {
        "classes": {"tumor": ["Tumor", "_0", "_1"], "Invasive carcinoma": ["Invasive carcinoma"]},
        "excluded": ["_2"], "exclusive": False,
    }  # fmt: skip


def test_without_rules_every_name_is_a_class() -> None:
    mapping = ClassMapping.parse([], ["Exclusion"])
    assert mapping.unknown(["b", "a"]) == []
    assert mapping.completed(["b", "a", "b", "Exclusion"]).names_of == (("a", ("a",)), ("b", ("b",)))


@pytest.mark.parametrize(
    ("rules", "excluded", "message"),
    [
        (["tumor=a,b", "normal=b"], [], "annotation name, 'b', is given twice"),
        (["tumor=a", "tumor=b"], [], "class, 'tumor', is given twice"),
        (["tumor=a"], ["a"], "annotation name, 'a', is given twice"),
        (["tumor="], [], "an annotation name is empty"),
        (["=a"], [], "a class is empty"),
    ],
)
def test_rules_that_contradict_each_other(rules, excluded, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassMapping.parse(rules, excluded)
