"""How is a misspelt setting reported in one or two lines?

jsonargparse answers a typo with every alternative it tried, nested, and with the whole block it was given: thirty lines
in which the one that matters is hidden. `explain` keeps the reasons that name a setting or a class, says which
names would have been right, and leaves the rest away.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
_SUBCOMMAND_OPTION = re.compile(r"Subcommand '\w+' does not accept option '([\w.+-]+)'")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')
_VALUE = re.compile(r"Expected an? (.+?)\. Got value: (.*)")
_TYPE = re.compile(r"<class '(\w+)'>|typing\.Literal\[(.+)\]")
_NOISE = re.compile(
    r"^\s*(Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value type: |Given value: \{"
    r"|- Expected a <class 'NoneType'>|- Subclasses are disabled for )"
)


def explain(message: str, known_options: Iterable[str]) -> str:
    """What is wrong with a configuration, without what is not.

    Args:
        message: of jsonargparse.
        known_options: names the parser accepts, with dots.

    >>> explain("Subcommand 'fit' does not accept option 'trainer.max_epoch'", ["trainer.max_epochs", "trainer.fast"])
    "there is no setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"
    """
    if found := _SUBCOMMAND_OPTION.search(message):
        return f"there is no setting {found[1]!r}{_suggestion(found[1], known_options)}"
    if found := _OPTION.search(message):
        return _unknown_argument(message[: found.start()], found[1])
    if found := _NO_ATTRIBUTE.search(message):
        names = vars(importlib.import_module(found[1]))
        return f"there is no {found[1]}.{found[2]}{_suggestion(found[2], names)}"
    if found := _VALUE.search(message):
        keys = ".".join(_PARSER_KEY.findall(message[: found.start()]))
        expected = _TYPE.sub(lambda kind: kind[1] or f"one of {kind[2]}", found[1])
        return f"{keys}: expected {expected}, found {found[2]}"
    lines = [line for line in message.splitlines() if not _NOISE.match(line)]
    return "\n".join(dict.fromkeys(line[:300] for line in lines))


def _unknown_argument(before: str, option: str) -> str:
    """The class that was tried last before the complaint is the one that does not know the option."""
    classes = _CLASS.findall(before)
    if not classes:
        return f"there is no setting {option!r}"
    module, _, name = classes[-1].rpartition(".")
    owner = getattr(importlib.import_module(module), name, None) if module else None
    keys = ".".join(_PARSER_KEY.findall(before))
    return f"{keys}: {name} has no setting {option!r}{_suggestion(option, _parameters(owner))}"


def _parameters(owner: object) -> list[str]:
    """Settings of a class, with those that it hands on to its base by `**settings`."""
    names: list[str] = []
    for base in inspect.getmro(owner) if isinstance(owner, type) else ():
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        if not any(one.kind == one.VAR_KEYWORD for one in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    names = [name for name in known if not name.startswith("_")]
    close = difflib.get_close_matches(wrong, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(names)}" if 0 < len(names) <= 30 else ""
