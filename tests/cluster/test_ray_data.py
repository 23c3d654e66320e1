# SPDX-License-Identifier: Apache-2.0
"""Ray Data is told what no setting tells it, and gets its own back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import DataContext, ExecutionResources
from ray.data._internal.execution.resource_manager import ResourceManager

from wsss_ray.cluster.ray_data import FIRST_LOOKS, adapt_ray_data


def test_all_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S", 1)
    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    with adapt_ray_data(), adapt_ray_data():
        assert not context.enable_progress_bars
        manager = ResourceManager.__new__(ResourceManager)
        manager._global_limits = ExecutionResources.zero()
        assert manager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == FIRST_LOOKS
        manager._global_limits = ExecutionResources(cpu=2)
        assert manager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == 1
    assert (context.enable_progress_bars, context.print_on_execution_start) == before
    assert ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == 1


def test_a_ray_without_that_number_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")
    with adapt_ray_data():
        assert not hasattr(ResourceManager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S")


def _note(batch: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    Path(folder, str(batch["item"][0])).write_text(str(time.time()))
    time.sleep(1.5)
    return batch


@pytest.mark.usefixtures("ray_cluster")
def test_the_second_task_does_not_wait_for_the_second_look(tmp_path: Path) -> None:
    """A second after the first one it began before, on an idle machine."""
    waits = []
    for place in range(3):
        folder = tmp_path / str(place)
        folder.mkdir()
        with adapt_ray_data():
            ray.data.from_items([0, 1], override_num_blocks=2).map_batches(
                _note, fn_args=(str(folder),), batch_size=1, num_cpus=1
            ).materialize()
        first, second = sorted(float(file.read_text()) for file in folder.iterdir())
        waits.append(second - first)
    assert min(waits) < 0.9
