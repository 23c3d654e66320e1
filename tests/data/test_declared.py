"""Every setting of this room says what it changes."""

from __future__ import annotations

import pytest

from wsss_ray.config import changes_of
from wsss_ray.data.augment import AugmentConfig, JitterConfig, NormalizeConfig
from wsss_ray.data.toy import ToyConfig


@pytest.mark.parametrize("config", [AugmentConfig, JitterConfig, NormalizeConfig, ToyConfig])
def test_every_field_changes_weights(config):
    assert {changes_of(config, name) for name in config.model_fields} == {"weights"}
