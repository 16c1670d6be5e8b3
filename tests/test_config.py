"""Settings and targets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nlptasks.config import (
    ABOVE_0,
    Target,
    TrainSettings,
    check_values,
    derived,
    naming,
    option,
    parse_options,
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
    size: int = option(1, "a size")
    share: float | None = option(None, "a share")
    on: bool = option(False, "a switch")
    kind: str = option("a", "a kind", choices=("a", "b"))
    names: tuple[str, ...] = option((), "names")
    labels: tuple[str, ...] = derived((), "labels")


def test_options_have_their_types() -> None:
    given = {"size": "3", "share": "0.5", "on": "true", "kind": "b", "names": "x,y"}
    assert parse_options(Options, given) == {
        "size": 3,
        "share": 0.5,
        "on": True,
        "kind": "b",
        "names": ("x", "y"),
    }
    assert parse_options(Options, {"size": 3}) == {"size": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": "3"}, "sise: is no option of this head; did you mean 'size'"),
        ({"labels": "a"}, "is no option"),
        ({"size": "x"}, "is 'x', not a value of type int"),
        ({"on": "yes"}, "use true or false"),
        ({"kind": "c"}, "use one of a, b"),
    ],
)
def test_wrong_options_are_refused(given: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options(Options, given)
    assert message in str(caught.value)


def test_errors_get_the_name_of_the_head_in_front() -> None:
    with pytest.raises(UsageError, match=r"^products\.sise: is no option"), naming("products"):
        parse_options(Options, {"sise": "3"})


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
