# SPDX-License-Identifier: Apache-2.0
"""``wsss doctor``: whether this machine has what a run needs; one line per thing, with the fix where it has not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from wsss_ray import storage
from wsss_ray.cluster.shared_memory import ENOUGH, FIX, read_free
from wsss_ray.cluster.submit import sends_token
from wsss_ray.config import UserError
from wsss_ray.refine.crf import CRFConfig
from wsss_ray.tracking import check_store, choose_store

Verdict = Literal["ok", "note", "bad"]
PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "pillow")
MIN_DISK_GB = 5.0
GB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """bad: runs fail; note: they work, but something a user may want is missing."""
    text: str
    fix: str = ""


def examine(out: str) -> Iterator[Check]:
    """Every check, each as soon as it is done; none starts Ray or writes below ``out``."""
    checks: tuple[Callable[[], Check], ...] = (
        _check_versions,
        _check_crf,
        _check_devices,
        _check_weights,
        lambda: _check_disk(out),
        _check_shm,
        lambda: _check_tracking(out),
        _check_ray,
    )
    for check in checks:
        try:
            yield check()
        except Exception as error:  # whatever a broken installation does is what is to be said
            name = getattr(check, "__name__", "check").removeprefix("_check_")
            yield Check(name, "bad", f"{type(error).__name__}: {error}", "install wsss-ray again in a new environment")


def _check_versions() -> Check:
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return Check("versions", "ok", f"Python {sys.version.split()[0]}, {', '.join(found)}")


def _check_crf() -> Check:
    import pydensecrf.densecrf  # noqa: F401

    reference = f"pydensecrf2 {importlib.metadata.version('pydensecrf2')}"
    if CRFConfig().engine == "fast":
        return Check("dense CRF", "ok", f"fast (numba {importlib.metadata.version('numba')}), {reference}")
    return Check("dense CRF", "note", reference, "the faster engine wants numba: pip install 'wsss-ray[fast]'")


def _check_devices() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        fix = "own images run at scale small; the paper's scale wants a GPU and a CUDA build of torch"
        return Check("devices", "note", f"{cores} CPU cores, no GPU that torch can use", fix)
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return Check("devices", "ok", f"{cores} CPU cores, {torch.cuda.device_count()} GPU: {', '.join(sorted(names))}")


def _check_weights() -> Check:
    from wsss_ray.nets.weight_registry import WEIGHTS
    from wsss_ray.nets.weight_store import check_weights

    states = {name: check_weights(name) for name in WEIGHTS}
    damaged = [state.message for state in states.values() if state.verdict == "damaged"]
    if damaged:
        return Check("weights", "bad", damaged[0], "remove the file and fetch it again")
    here = [name for name, state in states.items() if state.verdict != "absent"]
    return Check("weights", "ok", f"here: {', '.join(here) or 'none'}; others by 'wsss weights fetch NAME'")


def _check_disk(out: str) -> Check:
    folder = storage.find_local(out)
    if folder is None:
        return Check("disk", "ok", f"{out}: a remote location")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / GB
    if not os.access(there, os.W_OK):
        return Check("disk", "bad", f"{folder}: not writable", "choose another --out")
    if free < MIN_DISK_GB:
        return Check("disk", "note", f"{folder}: {free:.1f} GB free", "free some space, or see 'wsss clean'")
    return Check("disk", "ok", f"{folder}: {free:.1f} GB free")


def _check_shm() -> Check:
    free = read_free()
    if free is None:
        return Check("/dev/shm", "ok", "none on this system")
    if free < ENOUGH:
        return Check("/dev/shm", "note", f"{free / GB:.2f} GB free: Ray keeps its objects on the disk, slower", FIX)
    return Check("/dev/shm", "ok", f"{free / GB:.1f} GB free")


def _check_tracking(out: str) -> Check:
    uri = choose_store(out)
    try:
        return Check("MLflow", "ok", f"{uri}: {check_store(out)}")
    except UserError as error:
        return Check("MLflow", "bad", str(error))


def _check_ray() -> Check:
    address, mode = os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE", "")
    if not address:
        return Check("Ray", "ok", "no RAY_ADDRESS: runs start a local cluster")
    if mode.lower() != "token":
        fix = "where that cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        return Check("Ray", "note", f"RAY_ADDRESS={address}, no token", fix)
    if sends_token():
        return Check("Ray", "ok", f"RAY_ADDRESS={address}, with a token")
    return Check("Ray", "bad", f"RAY_ADDRESS={address}, RAY_AUTH_MODE=token, but no token", "set RAY_AUTH_TOKEN_PATH")
