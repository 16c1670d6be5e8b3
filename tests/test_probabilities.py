"""Temperatures and calibration error, against numbers worked out elsewhere or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nlptasks.errors import BackendError
from nlptasks.metrics.calibration import calibration_error, checked, fit_temperature, log_sigmoid, log_softmax

LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32))


@given(LOGITS, st.floats(0.1, 10))
@settings(deadline=None)
def test_probabilities_are_scipys(logits: np.ndarray, temperature: float) -> None:
    wanted = scipy.special.log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(log_softmax(logits, temperature), wanted, atol=1e-3, rtol=1e-5)
    wanted = scipy.special.log_expit(logits.astype(np.float64) / temperature)
    np.testing.assert_allclose(log_sigmoid(logits, temperature), wanted, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_give_no_answer(wrong: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        checked(np.array([0.0, wrong], np.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_answers_were_drawn_at_is_found(temperature: float) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20000, 3), scale=3).astype(np.float32)
    gumbel = draw.gumbel(size=logits.shape)
    gold = (logits / temperature + gumbel).argmax(axis=1)  # drawn with these probabilities

    def surprise(value: float) -> float:
        return -float(log_softmax(logits, value)[np.arange(len(gold)), gold].sum())

    assert fit_temperature(surprise) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_one_that_gradient_descent_finds() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(size=(5000, 4), scale=4).astype(np.float32)
    gold = np.where(draw.random(5000) < 0.7, logits.argmax(axis=1), draw.integers(0, 4, 5000))
    log = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=200, tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = torch.from_numpy(logits).double() / log.exp()
        value = torch.nn.functional.cross_entropy(scaled, torch.from_numpy(gold), reduction="sum") + 10 * log.sum() ** 2
        value.backward()
        return value

    optimizer.step(loss)
    found = fit_temperature(lambda t: -float(log_softmax(logits, t)[np.arange(5000), gold].sum(dtype=np.float64)))
    assert found == pytest.approx(log.exp().item(), abs=1e-3)


def test_a_few_rows_alone_do_not_move_it_far() -> None:
    sure = np.array([[4.0, 0.0]] * 5, np.float32)
    assert 0.5 < fit_temperature(lambda t: -float(log_softmax(sure, t)[:, 0].sum())) < 1.0
    assert fit_temperature(lambda t: 0.0) == pytest.approx(1.0, abs=1e-3)


def test_the_calibration_error_by_hand() -> None:
    # bins of a fifteenth: 0.95 and 0.97 in the last one, where 1 of 2 is right; 0.5 alone, right
    scored = [(0.95, True), (0.97, False), (0.5, True)]
    assert calibration_error(scored) == pytest.approx((abs(0.95 + 0.97 - 1) + abs(0.5 - 1)) / 3)
    assert calibration_error([(1.0, True), (0.0, False)]) == 0.0
    assert calibration_error([]) is None


def test_honest_scores_have_a_small_calibration_error() -> None:
    draw = np.random.default_rng(2)
    scores = draw.random(50000)
    honest = [(float(s), bool(r)) for s, r in zip(scores, draw.random(50000) < scores, strict=True)]
    assert calibration_error(honest) < 0.01
    assert calibration_error([(s**0.2, r) for s, r in honest]) > 0.2
