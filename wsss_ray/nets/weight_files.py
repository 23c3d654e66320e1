# SPDX-License-Identifier: Apache-2.0
"""Readers of weight files to named tensors: MXNet ``.params``, torch ``.pth``, NumPy ``.npz``, ``.safetensors``."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsss_ray.config import UserError

MXNET_LIST = 0x112
MXNET_V1 = 0xF993FAC8
MXNET_DENSE = (0xF993FAC9, 0xF993FACA)
"""Records that state a storage type first. V1 states none; any other word is the oldest form's number of dimensions."""
MXNET_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file by name, on the CPU, in the types stored; the suffix picks the reader.

    Errors: ``UserError`` on an absent file, an unknown suffix, or a file that is cut short or no weight file at all.
    """
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        ".params": read_mxnet,
        ".pth": read_torch,
        ".pt": read_torch,
        ".npz": read_npz,
        ".safetensors": read_safetensors,
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of weight file; known: {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        return readers[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # a damaged file can make a reader fail in any way
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: not a readable {path.suffix} file ({reason}); fetch it again") from error


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """MXNet's list container in any of its record forms; names keep their ``arg:`` / ``aux:`` prefix."""
    with path.open("rb") as stream:
        magic, _, num_arrays = _unpack(stream, "<QQQ")
        if magic != MXNET_LIST:
            raise UserError(f"{path}: not an MXNet parameter file (it starts with {magic:#x}, not {MXNET_LIST:#x})")
        arrays = [_mxnet_record(stream) for _ in range(num_arrays)]
        (num_names,) = _unpack(stream, "<Q")
        names = [_read(stream, _unpack(stream, "<Q")[0]).decode() for _ in range(num_names)]
    if len(names) != len(arrays):
        raise UserError(f"{path}: {len(arrays)} arrays but {len(names)} names; fetch it again")
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True) if array is not None}


def _mxnet_record(stream: BinaryIO) -> np.ndarray | None:
    """One array, or None for an empty record; the device it was saved from does not matter."""
    (word,) = _unpack(stream, "<I")
    if word in MXNET_DENSE:
        (storage,) = _unpack(stream, "<i")
        if storage != 0:
            raise UserError(f"{stream.name}: sparse arrays (storage type {storage}) are not supported")
    if word in MXNET_DENSE or word == MXNET_V1:
        (num_dims,) = _unpack(stream, "<I")
        shape = _unpack(stream, f"<{num_dims}q")
    else:
        num_dims, shape = word, _unpack(stream, f"<{word}I")
    if num_dims == 0:
        return None
    _device_type, _device, kind = _unpack(stream, "<iii")
    if not 0 <= kind < len(MXNET_TYPES):
        raise UserError(f"{stream.name}: unknown type flag {kind}; fetch it again")
    dtype = np.dtype(MXNET_TYPES[kind])
    data = _read(stream, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _read(stream: BinaryIO, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    left = Path(stream.name).stat().st_size - stream.tell()
    if size < 0 or size > left:
        raise UserError(f"{stream.name}: cut short or damaged ({size} bytes wanted, {left} left); fetch it again")
    return stream.read(size)


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, _read(stream, struct.calcsize(form)))


def read_torch(path: Path) -> dict[str, Tensor]:
    """A torch state dict, also one inside ``state_dict``, ``model`` or ``net``; nothing but tensors is unpickled."""
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of numbers of a NumPy archive (no pickles); texts and dates are left out, in any byte order."""
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype.kind in "USMm":
                continue
            try:
                tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
            except TypeError as error:
                raise UserError(_refuse_tensor(path, name, f"NumPy's type {array.dtype}")) from error
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as the library reads it."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        for name in names:
            try:
                tensors[name] = file.get_tensor(name)
            except (SafetensorError, RuntimeError, TypeError) as error:
                raise UserError(_refuse_tensor(path, name, str(error))) from error
    return tensors


def _refuse_tensor(path: Path, name: str, reason: str) -> str:
    return f"{path}: tensor {name!r} cannot be used ({reason}); save it as float32"
