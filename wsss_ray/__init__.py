"""wsss-ray: weakly supervised semantic segmentation from image-level labels, run on Ray."""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    # cli/ and studies/ lie beside this folder there: a checkout that a job was sent runs its own, not the installed.
    __path__.append(str(_checkout))
