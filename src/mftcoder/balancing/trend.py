"""Level and slope of one task's held-out loss, with their variances, from scattered noisy measurements: a Kalman filter.

State: level f, slope s per step, and an effect a_r for each validation row r. Between measurements dt steps apart
f <- f + s dt and s walks at random. Two kinds of measurement:

    fresh train loss       y = f + noise,           variance v / samples: v from squared differences of successive measurements
    validation row r       y = f + a_r + noise,     variance from this filter's own prediction errors on rows seen before

A row is compared with what the same row gave earlier, so that how hard it is does not enter the slope: a few rows measured now
and then say more about the slope than a large set measured once. The random walk is scaled so that the filter forgets over a third
of `window` steps at the noise of the train losses. numpy only; knows nothing of tasks or weights.
"""

from typing import Any

import numpy as np

from mftcoder.balancing.base import Float, as_array

LEVEL, SLOPE, FIRST_ROW = 0, 1, 2
MEMORY = 1 / 3  # of the window
NOISE_MEMORY = 50  # successive differences that the noise estimate averages over
FIRST_NOISE = 0.3  # standard deviation of a one-sample loss that is assumed at first, as a share of the first loss ...
FIRST_NOISE_COUNTS = 3  # ... and counts for so many differences: one small difference must not make the filter sure
ROW_NOISE_RATE = 0.1
SMALLEST_NOISE = 1e-10  # of the first loss squared: keeps the filter regular on losses without noise


class LossTrend:
    """Filtered level and slope; unknown (nan) before the first train loss."""

    def __init__(self, num_rows: int, window: float):
        self._window = window
        self._mean = np.full(FIRST_ROW + num_rows, np.nan)
        self._covariance = np.zeros((FIRST_ROW + num_rows, FIRST_ROW + num_rows))
        self._step = 0
        self._scale = np.nan  # first loss: sets the prior's size
        self._last = (np.nan, np.nan)  # last train loss and its samples
        self._noise = np.nan  # variance of a one-sample train loss
        self._differences = FIRST_NOISE_COUNTS
        self._samples = np.nan  # typical samples a measurement
        self._spacing = 1.0  # steps between train measurements
        self._row_noise = np.nan
        self._seen_rows = np.zeros(num_rows)

    @property
    def known(self) -> bool:
        """Whether there was a first measurement."""
        return self._step > 0

    @property
    def level(self) -> float:
        """Held-out loss now, in nats."""
        return float(self._mean[LEVEL])

    @property
    def slope(self) -> float:
        """Its change a step."""
        return float(self._mean[SLOPE])

    @property
    def level_variance(self) -> float:
        """Variance of `level`."""
        return float(self._covariance[LEVEL, LEVEL])

    @property
    def slope_variance(self) -> float:
        """Variance of `slope`."""
        return float(self._covariance[SLOPE, SLOPE])

    def add_train_loss(self, step: int, loss: float, samples: int) -> None:
        """A mean loss over `samples` samples that had not been trained on."""
        if not self.known:
            self._start(step, loss, samples)
            return
        self._learn_noise(loss, samples)
        self._spacing = max(1.0, float(step - self._step))
        self._samples = float(samples)
        self.advance(step)
        self._update(self._selector(None), loss, self._train_noise(samples))

    def add_row_loss(self, step: int, row: int, loss: float) -> None:
        """The mean loss of one validation row; left out before the first train loss."""
        if not self.known:
            return
        self.advance(step)
        selector = self._selector(row)
        noise = self._row_noise if np.isfinite(self._row_noise) else 0.1 * self._train_noise(self._samples)
        explained = float(selector @ self._covariance @ selector)
        error = self._update(selector, loss, noise)
        if self._seen_rows[row]:
            least = 0.01 * self._train_noise(self._samples)
            self._row_noise = noise + ROW_NOISE_RATE * (max(error**2 - explained, least) - noise)
        self._seen_rows[row] += 1

    def advance(self, step: int) -> None:
        """Predict to `step`: the level follows the slope, and both grow less certain."""
        elapsed = float(step - self._step)
        if not self.known or elapsed <= 0:
            return
        self._mean[LEVEL] += elapsed * self._mean[SLOPE]
        covariance = self._covariance
        covariance[LEVEL] += elapsed * covariance[SLOPE]
        covariance[:, LEVEL] += elapsed * covariance[:, SLOPE]
        walk = self._train_noise(self._samples) * self._spacing / (MEMORY * self._window) ** 4 * elapsed
        covariance[LEVEL, LEVEL] += walk * elapsed**2 / 3
        covariance[LEVEL, SLOPE] += walk * elapsed / 2
        covariance[SLOPE, LEVEL] += walk * elapsed / 2
        covariance[SLOPE, SLOPE] += walk
        self._step = step

    def _start(self, step: int, loss: float, samples: int) -> None:
        self._step, self._scale, self._last, self._samples = step, abs(loss), (loss, float(samples)), float(samples)
        self._noise = (FIRST_NOISE * self._scale) ** 2
        self._mean[:] = 0.0
        self._mean[LEVEL] = loss
        deviations = np.full(len(self._mean), 0.5 * self._scale)  # of the row effects
        deviations[LEVEL], deviations[SLOPE] = 0.2 * self._scale, 0.5 * self._scale / self._window
        self._covariance = np.diag(deviations**2)

    def _learn_noise(self, loss: float, samples: int) -> None:
        """Half the squared difference of neighbours is the noise's variance, whatever the (slow) trend."""
        last, last_samples = self._last
        one_sample = (loss - last) ** 2 / (1 / samples + 1 / last_samples)
        self._differences += 1
        self._noise += max(1 / self._differences, 1 / NOISE_MEMORY) * (one_sample - self._noise)
        self._last = (loss, float(samples))

    def _train_noise(self, samples: float) -> float:
        return max(self._noise / samples, SMALLEST_NOISE * self._scale**2, np.finfo(np.float64).tiny)

    def _selector(self, row: int | None) -> Float:
        selector = np.zeros(len(self._mean))
        selector[LEVEL] = 1.0
        if row is not None:
            selector[FIRST_ROW + row] = 1.0
        return selector

    def _update(self, selector: Float, measured: float, noise: float) -> float:
        """Fold in one measurement; returns the prediction error."""
        spread = self._covariance @ selector
        error = measured - float(selector @ self._mean)
        gain = spread / (float(selector @ spread) + noise)
        self._mean = self._mean + gain * error
        self._covariance = self._covariance - np.outer(gain, spread)
        return error

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        values = {name.removeprefix("_"): value for name, value in vars(self).items() if name != "_window"}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name, value in state.items():
            setattr(self, f"_{name}", as_array(value) if isinstance(value, list) and name != "last" else value)
        self._last = tuple(state["last"])
