# SPDX-License-Identifier: Apache-2.0
"""What the tests of faults share."""

from __future__ import annotations

import os

import pytest

from tests.faults.chain import Whole, make_whole


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An undisturbed run, which all chains are compared with."""
    mine = tmp_path_factory.getbasetemp()
    return make_whole((mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "whole")
