"""How fast training is."""

from __future__ import annotations


class Pace:
    """Seconds a step and tokens a second, on average since the last row; and a mean of seconds a step that follows.

    A step by itself cannot be timed on a GPU: most are only launched, and the one that waits, waits for all of them.
    """

    def __init__(self) -> None:
        self.step_s = self.tokens_per_s = self.mean = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """A row has been told."""
        self._mean_before, self._seconds, self._steps, self._tokens = self.mean, 0.0, 0, 0

    def took(self, seconds: float, tokens: int, ahead: int) -> None:
        """One more step, in `seconds` of the host's time; `ahead`: steps, of those since the last row, that the device has not ended"""
        self._seconds, self._steps, self._tokens = self._seconds + seconds, self._steps + 1, self._tokens + tokens
        ended = self._steps - ahead
        if ended > 0:  # else what was true at the last row still is
            self.step_s = self._seconds / ended
            self.tokens_per_s = self._tokens / self._steps / self.step_s
            kept = 0.9**ended if self._mean_before else 0.0
            self.mean = kept * self._mean_before + (1 - kept) * self.step_s
