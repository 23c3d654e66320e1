# SPDX-License-Identifier: Apache-2.0
"""Networks that are checked before a run cost neither memory nor the imports that drawing them on ``meta`` takes."""

from __future__ import annotations

import subprocess
import sys

BUILD = """
import sys
from wsss_ray.nets import BACKBONES, build_backbone
from wsss_ray.nets.shapes import shapes_only
for name in BACKBONES:
    with shapes_only():
        built = build_backbone(name)
    assert {one.device.type for one in built.parameters()} == {"meta"}, name
real = build_backbone("toy")
assert all(float(one.std()) > 0 for one in real.parameters() if one.ndim == 4)
print("sympy" in sys.modules)
"""


def test_every_backbone_is_built_without_sympy() -> None:
    told = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "False"
