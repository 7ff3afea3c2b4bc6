"""Level and slope of one task's held-out loss, with their variances, from scattered noisy measurements: a Kalman filter.

The state is the level f, the slope s, the level f_0 at the first measurement, and an effect a_r for each validation row r. Between
measurements dt apart (in the caller's unit of time) f <- f + s dt, and s follows a random walk. f_0 is constant, and later measurements
still correct it (a fixed-point smoother). So the drop f_0 - f is known with its variance even if the first measurement was noisy.
There are three kinds of measurement:

    fresh train loss       y = f + noise,           variance v / samples: v from squared differences of successive measurements
    validation row r       y = f + a_r + noise,     variance from this filter's own prediction errors on rows seen before
    whole validation set   as one more row, with a variance of its own

A row is compared with earlier losses of the same row, so the difficulty of a row does not change the slope. A few rows measured
repeatedly tell more about the slope than a large set measured once. The random walk is scaled such that the filter forgets over a third
of `window` at the noise of the train losses.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import Float, as_array

LEVEL, SLOPE, FIRST_LEVEL, FIRST_ROW = 0, 1, 2, 3
MEMORY = 1 / 3  # of the window
NOISE_MEMORY = 50  # successive differences that the noise estimate averages over
FIRST_NOISE = 0.3  # first estimate of the standard deviation of a one-sample loss, as a fraction of the first loss ...
FIRST_NOISE_COUNTS = 3  # ... and its weight, in differences: one small difference must not make the filter certain
ROW_NOISE_RATE = 0.1
FIRST_REPEATED_NOISE = (
    0.1  # variance on samples measured before, as a fraction of that on new samples: first estimate ...
)
LEAST_REPEATED_NOISE = 0.01  # ... and lower limit
SMALLEST_SCALE = 1e-8  # nats; stands in for a first loss of 0, which says nothing about the size of later ones
SMALLEST_NOISE = 1e-10  # of the first loss squared; keeps the filter regular if the losses have no noise


class LossTrend:
    """Filtered level, slope and drop since the start; unknown (nan) before the first measurement."""

    def __init__(self, num_rows: int, window: float):
        effects = num_rows + 1  # the last one belongs to the whole validation set
        self._window = window
        self._mean = np.full(FIRST_ROW + effects, np.nan)
        self._covariance = np.zeros((FIRST_ROW + effects, FIRST_ROW + effects))
        self._time = np.nan
        self._scale = np.nan  # the first loss, which scales the prior
        self._last = (np.nan, np.nan)  # last train loss and its number of samples
        self._noise = np.nan  # variance of a one-sample train loss
        self._differences = FIRST_NOISE_COUNTS
        self._last_time = np.nan  # of a train loss
        self._samples = 1.0  # number of samples of the last train loss
        self._spacing = np.nan  # time between train measurements
        self._row_noise, self._set_noise = np.nan, np.nan
        self._seen_rows = np.zeros(effects)

    @property
    def known(self) -> bool:
        """Whether a train loss or a validation of the whole set was added."""
        return bool(np.isfinite(self._scale))

    @property
    def level(self) -> float:
        """The held-out loss at the current time, in nats."""
        return float(self._mean[LEVEL])

    @property
    def slope(self) -> float:
        """Change of the level per unit of time."""
        return float(self._mean[SLOPE])

    @property
    def drop(self) -> float:
        """How far the level has fallen since the first measurement."""
        return float(self._mean[FIRST_LEVEL] - self._mean[LEVEL])

    @property
    def drop_variance(self) -> float:
        """Variance of `drop`."""
        covariance = self._covariance
        found = covariance[FIRST_LEVEL, FIRST_LEVEL] + covariance[LEVEL, LEVEL] - 2 * covariance[FIRST_LEVEL, LEVEL]
        return max(0.0, float(found))  # rounding can make it slightly negative

    @property
    def slope_variance(self) -> float:
        """Variance of `slope`."""
        return float(self._covariance[SLOPE, SLOPE])

    def add_train_loss(self, time: float, loss: float, samples: int) -> None:
        """Add a mean loss over `samples` samples that were not trained on before."""
        if self.known:
            self._learn_noise(loss, samples)
            self._spacing = time - self._last_time
            self._samples = float(samples)
            self.advance(time)
            self._update(self._selector(None), loss, self._train_noise(samples))
        else:
            self._samples = float(samples)
            self._start(time, loss)
        self._last_time, self._last = time, (loss, float(samples))

    def add_row_loss(self, time: float, row: int, loss: float) -> None:
        """Add the mean loss of one validation row; ignored before the first measurement of another kind."""
        if self.known:
            self._row_noise = self._add_effect(time, row, loss, self._row_noise, self._samples)

    def add_set_loss(self, time: float, loss: float, samples: int) -> None:
        """Add the mean loss of the whole validation set, over `samples` samples."""
        if not self.known:
            self._start(time, loss)
        self._set_noise = self._add_effect(time, len(self._seen_rows) - 1, loss, self._set_noise, samples)

    def _add_effect(self, time: float, row: int, loss: float, noise: float, samples: float) -> float:
        """Add a measurement that has an effect of its own. Returns the new noise estimate of its kind."""
        self.advance(time)
        selector = self._selector(row)
        if not np.isfinite(noise):
            noise = FIRST_REPEATED_NOISE * self._train_noise(samples)
        explained = float(selector @ self._covariance @ selector)
        error = self._update(selector, loss, noise)
        if self._seen_rows[row]:
            least = LEAST_REPEATED_NOISE * self._train_noise(samples)
            noise += ROW_NOISE_RATE * (max(error**2 - explained, least) - noise)
        self._seen_rows[row] += 1
        return noise

    def advance(self, time: float) -> None:
        """Predict the state at `time`: the level follows the slope, and both variances grow."""
        elapsed = time - self._time
        if not self.known or elapsed <= 0:
            return
        self._mean[LEVEL] += elapsed * self._mean[SLOPE]
        covariance = self._covariance
        covariance[LEVEL] += elapsed * covariance[SLOPE]
        covariance[:, LEVEL] += elapsed * covariance[:, SLOPE]
        spacing = self._spacing if np.isfinite(self._spacing) else elapsed
        walk = self._train_noise(self._samples) * spacing / (MEMORY * self._window) ** 4 * elapsed
        covariance[LEVEL, LEVEL] += walk * elapsed**2 / 3
        covariance[LEVEL, SLOPE] += walk * elapsed / 2
        covariance[SLOPE, LEVEL] += walk * elapsed / 2
        covariance[SLOPE, SLOPE] += walk
        self._time = time

    def _start(self, time: float, loss: float) -> None:
        """Set the prior: the level is near the first loss, and the first level equals the level."""
        self._time, self._scale = time, max(abs(loss), SMALLEST_SCALE)
        self._noise = (FIRST_NOISE * self._scale) ** 2
        self._mean[:] = 0.0
        self._mean[LEVEL] = self._mean[FIRST_LEVEL] = loss
        deviations = np.full(len(self._mean), 0.5 * self._scale)  # of the row effects
        deviations[LEVEL] = deviations[FIRST_LEVEL] = 0.2 * self._scale
        deviations[SLOPE] = 0.5 * self._scale / self._window
        self._covariance = np.diag(deviations**2)
        self._covariance[LEVEL, FIRST_LEVEL] = self._covariance[FIRST_LEVEL, LEVEL] = deviations[LEVEL] ** 2

    def _learn_noise(self, loss: float, samples: int) -> None:
        """Update the noise variance: half the squared difference of successive losses, where the slow trend hardly counts."""
        last, last_samples = self._last
        if not np.isfinite(last):
            return
        one_sample = (loss - last) ** 2 / (1 / samples + 1 / last_samples)
        self._differences += 1
        self._noise += max(1 / self._differences, 1 / NOISE_MEMORY) * (one_sample - self._noise)

    def _train_noise(self, samples: float) -> float:
        return max(self._noise / samples, SMALLEST_NOISE * self._scale**2, np.finfo(np.float64).tiny)

    def _selector(self, row: int | None) -> Float:
        selector = np.zeros(len(self._mean))
        selector[LEVEL] = 1.0
        if row is not None:
            selector[FIRST_ROW + row] = 1.0
        return selector

    def _update(self, selector: Float, measured: float, noise: float) -> float:
        """Add one measurement. Returns the prediction error."""
        spread = self._covariance @ selector
        error = measured - float(selector @ self._mean)
        gain = spread / (float(selector @ spread) + noise)
        self._mean = self._mean + gain * error
        self._covariance = self._covariance - np.outer(gain, spread)
        return error

    def state_dict(self) -> dict[str, Any]:
        """Everything but the window, as values that JSON can hold."""
        values = {name.removeprefix("_"): value for name, value in vars(self).items() if name != "_window"}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, f"_{name}", as_array(value) if isinstance(value, list) and name != "last" else value)
        self._last = tuple(state["last"])
