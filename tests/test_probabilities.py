"""Temperatures and calibration errors, compared with other libraries and with values computed by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nlptasks.errors import BackendError
from nlptasks.heads.class_weights import class_weights
from nlptasks.metrics.calibration import (
    SigmoidLikelihood,
    SoftmaxLikelihood,
    SpanLikelihood,
    calibration_error,
    checked,
    fit_temperature,
    log_sigmoid,
    log_softmax,
)
from nlptasks.networks.losses import cross_entropy
from nlptasks.types import Floats, Ints

LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32))


@given(LOGITS, st.floats(0.1, 10))
@settings(deadline=None)
def test_probabilities_are_scipys(logits: np.ndarray, temperature: float) -> None:
    wanted = scipy.special.log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(log_softmax(logits, temperature), wanted, atol=1e-3, rtol=1e-5)
    wanted = scipy.special.log_expit(logits.astype(np.float64) / temperature)
    np.testing.assert_allclose(log_sigmoid(logits, temperature), wanted, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        checked(np.array([0.0, wrong], np.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_sampled_at_is_found(temperature: float) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20000, 3), scale=3).astype(np.float32)
    gumbel = draw.gumbel(size=logits.shape)
    gold = (logits / temperature + gumbel).argmax(axis=1)  # sampled with these probabilities
    assert fit_temperature(SoftmaxLikelihood(logits, gold)) == pytest.approx(temperature, rel=0.05)
    several = (draw.random(logits.shape) < scipy.special.expit(logits / temperature)).astype(np.int64)
    assert fit_temperature(SigmoidLikelihood(logits, several)) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("none_allowed", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_that_spans_were_sampled_at_is_found(temperature: float, none_allowed: bool) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4000, 2, 3), scale=3).astype(np.float32)
    flat = logits.reshape(len(logits), -1)
    if none_allowed:
        flat = np.append(flat, np.zeros((len(flat), 1), np.float32), axis=1)  # the logit of no span is 0
    sampled = (flat / temperature + draw.gumbel(size=flat.shape)).argmax(axis=1)
    gold = flat[np.arange(len(flat)), sampled].reshape(-1, 1)
    likelihood = SpanLikelihood([*logits], [*gold], none_allowed)
    assert fit_temperature(likelihood) == pytest.approx(temperature, rel=0.05)
    scaled = flat.astype(np.float64) / temperature
    wanted = (scipy.special.logsumexp(scaled, axis=1) - gold[:, 0] / temperature).sum()
    assert likelihood.nll(temperature) == pytest.approx(wanted, rel=1e-5)


def test_several_right_spans_share_the_probability_of_the_gold_answer() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    wanted = -np.log(np.exp([1.0, 3.0]).sum() / np.exp([1.0, 2.0, 3.0]).sum())
    assert SpanLikelihood([logits], [logits[[0, 2]]], none_allowed=False).nll(1.0) == pytest.approx(wanted)


def test_impossible_gold_answers_leave_the_temperature_at_1() -> None:
    logits = np.array([1.0, -np.inf], np.float32)
    assert fit_temperature(SpanLikelihood([logits], [logits[1:]], none_allowed=False)) == 1.0


def test_the_temperature_is_the_one_that_gradient_descent_finds() -> None:
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
    assert fit_temperature(SoftmaxLikelihood(logits, gold)) == pytest.approx(log.exp().item(), abs=1e-3)


def test_a_few_rows_change_the_temperature_only_a_little() -> None:
    certain = np.array([[4.0, 0.0]] * 5, np.float32)
    assert 0.5 < fit_temperature(SoftmaxLikelihood(certain, np.zeros(5, np.int64))) < 1.0
    nothing = SoftmaxLikelihood(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert fit_temperature(nothing) == pytest.approx(1.0, abs=1e-3)


def test_the_calibration_error_by_hand() -> None:
    # Bins have a width of 1/15: 0.95 and 0.97 are in the last one, where 1 of 2 is right; 0.5 is alone, and right.
    scored = [(0.95, True), (0.97, False), (0.5, True)]
    assert calibration_error(scored) == pytest.approx((abs(0.95 + 0.97 - 1) + abs(0.5 - 1)) / 3)
    assert calibration_error([(1.0, True), (0.0, False)]) == 0.0
    assert calibration_error([]) is None


def test_calibrated_scores_have_a_small_calibration_error() -> None:
    draw = np.random.default_rng(2)
    scores = draw.random(50000)
    scored = [(float(s), bool(r)) for s, r in zip(scores, draw.random(50000) < scores, strict=True)]
    assert calibration_error(scored) < 0.01
    assert calibration_error([(s**0.2, r) for s, r in scored]) > 0.2


@dataclass(frozen=True)
class TrainingLoss:
    """The loss of training as a function of the temperature, which `fit_temperature` must not use."""

    logits: Floats
    gold: Ints
    weights: Sequence[float]
    smoothing: float

    def nll(self, temperature: float) -> float:
        logits = torch.from_numpy(self.logits).double() / temperature
        total, _ = cross_entropy(logits, torch.from_numpy(self.gold), weights=self.weights, smoothing=self.smoothing)
        return total.item()


FEATURES, CLASSES = 30, 3


def noisy_data(seed: int, rows: int) -> tuple[Floats, Ints]:
    """Return features [N,F] and labels [N], sampled with the probabilities of a linear model; one class is rare."""
    truth = np.random.default_rng(99).normal(size=(FEATURES, CLASSES), scale=2 / np.sqrt(FEATURES))
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(rows, FEATURES)).astype(np.float32)
    logits = features @ truth + [2.0, 0.0, -1.5]
    return features, (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)


def trained_model(features: Floats, labels: Ints, weights: Sequence[float], smoothing: float) -> torch.nn.Linear:
    """Return a linear classifier that is fitted to the data."""
    model = torch.nn.Linear(FEATURES, CLASSES)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = model(torch.from_numpy(features))
        total, count = cross_entropy(logits, torch.from_numpy(labels), weights=weights, smoothing=smoothing)
        (total / count).backward()
        return total / count

    optimizer.step(loss)
    return model


def error_at(temperature: float, logits: Floats, gold: Ints) -> float:
    """Return the calibration error of the most likely classes."""
    probabilities = np.exp(log_softmax(logits, temperature))
    right = probabilities.argmax(axis=1) == gold
    error = calibration_error(list(zip(probabilities.max(axis=1).tolist(), right.tolist(), strict=True)))
    assert error is not None
    return error


def calibration_errors(weights: Sequence[float], smoothing: float) -> tuple[float, float]:
    """Return the errors after training, with temperatures fitted by the likelihood and by the training loss."""
    model = trained_model(*noisy_data(0, 500), weights, smoothing)
    (held_out, held_out_gold), (test, test_gold) = noisy_data(1, 2000), noisy_data(2, 20000)
    with torch.no_grad():
        held_out_logits, test_logits = (model(torch.from_numpy(one)).numpy() for one in (held_out, test))
    likelihoods = (
        SoftmaxLikelihood(held_out_logits, held_out_gold),
        TrainingLoss(held_out_logits, held_out_gold, weights, smoothing),
    )
    by_likelihood, by_loss = (error_at(fit_temperature(one), test_logits, test_gold) for one in likelihoods)
    return by_likelihood, by_loss


@pytest.mark.parametrize(("option", "smoothing"), [("none", 0.1), ("balanced", 0.0)])
def test_label_smoothing_and_class_weights_do_not_harm_the_calibration(option: str, smoothing: float) -> None:
    _, labels = noisy_data(0, 500)
    counts = Counter(map(str, labels.tolist()))
    weights = [class_weights(option, counts)[str(index)] for index in range(CLASSES)]
    plain, _ = calibration_errors((), 0.0)
    by_likelihood, by_loss = calibration_errors(weights, smoothing)
    assert plain < 0.01
    assert by_likelihood < plain + 0.01
    assert by_loss > by_likelihood + 0.03


def test_a_score_of_one_is_in_the_last_bin() -> None:
    assert calibration_error([(1.0, False), (0.95, True)]) == pytest.approx(0.95 / 2)
