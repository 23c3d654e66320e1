# SPDX-License-Identifier: Apache-2.0
"""Every setting of this room says what it changes."""

from __future__ import annotations

import pytest

from wsss_ray.config import read_changes
from wsss_ray.data.augment import AugmentConfig, JitterConfig, NormalizeConfig
from wsss_ray.data.toy import ToyConfig


@pytest.mark.parametrize("config", [AugmentConfig, JitterConfig, NormalizeConfig, ToyConfig])
def test_every_field_changes_weights(config):
    assert {read_changes(config, name) for name in config.model_fields} == {"weights"}
