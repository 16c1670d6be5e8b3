"""Settings and targets."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import pytest

from nlptasks.cli.options import parse_option, to_text
from nlptasks.config import (
    ABOVE_0,
    Range,
    Target,
    TrainSettings,
    changed,
    check_options,
    check_values,
    derived,
    naming,
    option,
    parse_target,
)
from nlptasks.errors import UsageError


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ner", Target("ner", "ner")),
        ("ner=data", Target("ner", "ner", "data")),
        ("products:ner=a=b", Target("ner", "products", "a=b")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "=data", "ner=", "a b:ner", "../x:ner", ":ner", "x" * 41 + ":ner", "Ä:ner", "N:ner"]
)
def test_wrong_targets_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"batch_tokens": -5}, "batch_tokens"),
        ({"warmup": 1.5}, "warmup"),
        ({"precision": "fp8"}, "precision"),
        ({"tune": "none"}, "tune"),
        ({"seed": -1}, "seed"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_wrong_settings_are_refused_by_their_name(values: dict, name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: "):
        TrainSettings(**values)


@dataclass(frozen=True)
class Options:
    size: int = option(1, "a size", at_run=True)
    share: float | None = option(None, "a share")
    on: bool = option(False, "a switch")
    kind: str = option("a", "a kind", choices=("a", "b"))
    names: tuple[str, ...] = option((), "names")
    early: bool | str = option("auto", "a switch, or auto", choices=("auto",))
    order: str | tuple[str, ...] = option("auto", "names, or auto", choices=("auto",))
    span: tuple[float, float] = option((0.0, 1.0), "the lowest and the highest", within=Range(least=0))
    weights: str | Mapping[str, float] = option("none", "weights", choices=("none",), within=ABOVE_0)
    more: Mapping[str, float] = option({}, "other weights")
    labels: tuple[str, ...] = derived((), "labels")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 3),
        ("share", 0.5),
        ("share", 1),
        ("share", None),
        ("on", True),
        ("kind", "b"),
        ("names", ("x", "y")),
        ("early", False),
        ("early", "auto"),
        ("order", ("x", "y")),
        ("order", "auto"),
        ("span", (1, 2.5)),
        ("weights", {"a": 2, "b": 0.5}),
        ("weights", "none"),
        ("more", {"a": 1.0}),
    ],
)
def test_options_have_their_types(name: str, value: Any) -> None:
    assert check_options(Options, {name: value}) == {name: value}
    again = check_options(Options, json.loads(json.dumps({name: value})))
    assert Options(**again) == Options(**{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": 3}, "sise: is no option of this head; did you mean 'size'"),
        ({"labels": ("a",)}, "is no option"),
        ({"size": "3"}, "size: is '3'; use a whole number"),
        ({"size": 3.0}, "size: is 3.0; use a whole number"),
        ({"size": True}, "size: is True; use a whole number"),
        ({"share": "0.5"}, "share: is '0.5'; use one of a number, None"),
        ({"on": "true"}, "on: is 'true'; use one of True, False"),
        ({"on": 1}, "on: is 1; use one of True, False"),
        ({"kind": "c"}, "kind: is 'c'; use one of a, b"),
        ({"names": "x,y"}, "names: is 'x,y'; use a tuple of strings"),
        ({"names": (1, 2)}, "names: is (1, 2); use a tuple of strings"),
        ({"early": "true"}, "early: is 'true'; use one of True, False, auto"),
        ({"early": 1}, "early: is 1; use one of True, False, auto"),
        ({"order": "x,y"}, "order: is 'x,y'; use one of auto, a tuple of strings"),
        ({"span": (1,)}, "span: is (1,); use a tuple of 2 numbers"),
        ({"span": (-1, 1)}, "span: has -1; give a number of at least 0"),
        ({"weights": "a:2"}, "weights: is 'a:2'; use one of none, a dict of numbers by name"),
        ({"weights": {"a": "2"}}, "weights: is {'a': '2'}; use one of none, a dict of numbers by name"),
        ({"weights": {"a": 0}}, "weights: has 0 for 'a'; give a number above 0"),
        ({"more": "a:1"}, "more: is 'a:1'; use a dict of numbers by name"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(Options, given)
    assert message in str(caught.value)


def test_a_trained_config_takes_typed_values() -> None:
    assert changed(Options(), {"size": 3}).size == 3
    with pytest.raises(UsageError, match=r"^size: is '3'; use a whole number"):
        changed(Options(), {"size": "3"})
    with pytest.raises(UsageError, match=r"^more: is an option of training; those that can be changed: size"):
        changed(Options(), {"more": {}})


def test_weights_of_heads_are_copied_pickled_and_written() -> None:
    given = {"ner": 2.0}
    settings = TrainSettings(head_weights=MappingProxyType(given))
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert json.loads(json.dumps(asdict(settings)))["head_weights"] == given
    assert TrainSettings().head_weights == {}
    given["ner"] = 3.0
    assert settings.head_weights == {"ner": 2.0}
    for wrong, message in (
        ("ner:2", "use a dict of numbers by name"),
        ({"ner": 0}, "has 0 for 'ner'; give a number of"),
    ):
        with pytest.raises(UsageError, match=f"^head_weights: .*{message}"):
            TrainSettings(head_weights=wrong)


def test_errors_get_the_name_of_the_head_in_front() -> None:
    with pytest.raises(UsageError, match=r"^products\.sise: is no option"), naming("products"):
        check_options(Options, {"sise": 3})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "3", 3),
        ("share", "0.5", 0.5),
        ("on", "True", True),
        ("kind", "b", "b"),
        ("names", "x,y", ("x", "y")),
        ("names", "", ()),
        ("early", "auto", "auto"),
        ("early", "false", False),
        ("order", "auto", "auto"),
        ("order", "x", ("x",)),
        ("span", "1,2.5", (1.0, 2.5)),
        ("weights", "none", "none"),
        ("weights", "a:2,b:c:0.5", {"a": 2.0, "b:c": 0.5}),
        ("more", "", {}),
        ("more", "a:1", {"a": 1.0}),
    ],
)
def test_text_becomes_a_value_and_a_value_text(name: str, text: str, value: Any) -> None:
    assert parse_option(Options, name, text) == value
    assert parse_option(Options, name, value) == value
    assert parse_option(Options, name, to_text(value)) == value
    assert check_options(Options, {name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sise", "3", "sise: is no option of this head; did you mean 'size'"),
        ("size", "x", "size: is 'x'; use a whole number"),
        ("on", "yes", "on: is 'yes'; use one of true, false"),
        ("kind", "c", "kind: is 'c'; use one of a, b"),
        ("early", "maybe", "early: is 'maybe'; use one of true, false, auto"),
        ("span", "1", "span: is (1.0,); use a tuple of 2 numbers"),
        ("span", "a,b", "span: is 'a,b'; use NUMBER,NUMBER"),
        ("weights", "a", "weights: is 'a'; use one of none, NAME:NUMBER,..."),
        ("weights", "a:2,a:3", "weights: is 'a:2,a:3'; use one of none, NAME:NUMBER,..."),
        ("weights", "a:2,", "weights: is 'a:2,'; use"),
        ("weights", ":2", "weights: is ':2'; use"),
        ("weights", "", "weights: is ''; use"),
        ("more", "a:x", "more: is 'a:x'; use NAME:NUMBER,..."),
    ],
)
def test_wrong_text_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(Options, {name: parse_option(Options, name, text)})
    assert message in str(caught.value)


@dataclass(frozen=True)
class Fitted:
    temperature: float = derived(1.0, "divides logits", within=ABOVE_0)
    tags: tuple[str, ...] = derived((), "classes")
    pairs: bool | None = derived(False, "pairs, None for both")

    def __post_init__(self) -> None:
        check_values(self)


def test_derived_values_are_checked_too() -> None:
    assert Fitted(2.0, ("a",), None).pairs is None
    for wrong in ({"temperature": 0}, {"temperature": float("nan")}, {"tags": 5}, {"pairs": "x"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Fitted(**wrong)


def test_types_are_named_in_words_and_texts_may_be_mapped_to_texts() -> None:
    @dataclass(frozen=True)
    class Config:
        names: Mapping[str, str] = option({}, "other names")
        rate: float | None = option(None, "a rate")

    check_values(Config(names={"a": "b"}))
    with pytest.raises(UsageError, match=r"^names: is .*; use a dict of strings by name$"):
        check_values(Config(names={"a": 1}))  # type: ignore[dict-item]
    with pytest.raises(UsageError, match=r"^rate: is 'x'; use one of a number, None$"):
        check_values(Config(rate="x"))  # type: ignore[arg-type]
    assert hash(TrainSettings()) == hash(TrainSettings())
