# SPDX-License-Identifier: Apache-2.0
"""What a score reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from wsss_ray.config import Changes, Config
from wsss_ray.score.confusion import Absent


class ScoreConfig(Config):
    """What is reported beside the matrix itself."""

    background: Annotated[float | None, Changes("scores")] = Field(default=None, ge=0, le=1)
    """Fixed background threshold of the seeds; None takes the one of the method's paper."""
    thresholds: Annotated[PositiveInt, Changes("scores")] = 100
    """Points of the threshold curve, evenly spaced in [0, 1)."""
    at: Annotated[tuple[float, ...], Changes("scores")] = ()
    """Further thresholds of the curve, never the best one: a sweep over ``background`` reads its scores there."""
    absent: Annotated[Absent, Changes("scores")] = "skip"
    """A class in neither truth nor prediction is left out of the mean, or counts as 0 (KTSE, SSSS)."""

    @property
    def curve_thresholds(self) -> list[float]:
        """The thresholds of the curve, ascending."""
        return sorted({*self.even_thresholds, *self.at})

    @property
    def even_thresholds(self) -> list[float]:
        """The evenly spaced thresholds, among which the best one is chosen."""
        return [step / self.thresholds for step in range(self.thresholds)]
