"""Which annotation names are which class?

`tumor=Tumor,_0,_1 normal=Normal` makes two classes; a name in no class is an error or, on request, ignored. Without
such rules every name is its own class. Excluded names are holes: CAMELYON16's group `_2` lies inside tumour that it is
not. Where classes overlap, both count, unless they are exclusive: then the first class in the list has the area.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from span_sparse.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClassMapping:
    """Classes and the names that mean them.

    Attributes:
        names_of: each class with its annotation names, in the order of the columns; empty: every name is a class.
        excluded: names of holes, cut out of every class.
        exclusive: an area of several classes belongs to the first of them.
    """

    names_of: tuple[tuple[str, tuple[str, ...]], ...] = ()
    excluded: tuple[str, ...] = ()
    exclusive: bool = False

    @classmethod
    def parse(cls, rules: Sequence[str], excluded: Sequence[str] = (), *, exclusive: bool = False) -> ClassMapping:
        """From rules `class=name,name` or `name`.

        Raises:
            ConfigError: an empty name, or one that is given twice.

        >>> ClassMapping.parse(["tumor=Tumor,_0", "Normal"]).names_of
        (('tumor', ('Tumor', '_0')), ('Normal', ('Normal',)))
        """
        pairs: list[tuple[str, tuple[str, ...]]] = []
        for rule in rules:
            class_name, sign, names = rule.partition("=")
            given = tuple(name.strip() for name in names.split(",")) if sign else (class_name.strip(),)
            pairs.append((class_name.strip(), given))
        mapping = cls(tuple(pairs), tuple(excluded), exclusive)
        for what, names in (("a class", mapping.classes), ("an annotation name", mapping.known)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated or not all(names):
                raise ConfigError(
                    f"--classes {' '.join(rules)} --exclude {' '.join(excluded)}: "
                    + (f"{what}, {repeated[0]!r}, is given twice" if repeated else f"{what} is empty")
                    + "; write for example --classes tumor=Tumor,_0,_1 normal=Normal --exclude _2"
                )
        return mapping

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the columns."""
        return tuple(name for name, _ in self.names_of)

    @property
    def known(self) -> tuple[str, ...]:
        """Every name that a class or the exclusion mentions."""
        return (*(name for _, names in self.names_of for name in names), *self.excluded)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """The names that are in no class, sorted; none when every name is its own class."""
        return sorted(set(names) - set(self.known)) if self.names_of else []

    def completed(self, names: Iterable[str]) -> ClassMapping:
        """With every name as its own class, sorted, where no rules were given."""
        if self.names_of:
            return self
        own = sorted(set(names) - set(self.excluded))
        return replace(self, names_of=tuple((name, (name,)) for name in own))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the store."""
        return {
            "classes": {name: list(names) for name, names in self.names_of},
            "excluded": list(self.excluded),
            "exclusive": self.exclusive,
        }
