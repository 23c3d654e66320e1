"""Parts by name: those of this package, and those that installed packages add through entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from wsss_ray.config import Config, UserError, suggest

log = logging.getLogger(__name__)
Part = TypeVar("Part")
OWN = "wsss-ray"


class Registry(Mapping[str, Part], Generic[Part]):
    """Name -> part; ``registry["cam"]`` raises UserError for an unknown name and lists the known ones.

    A package adds parts through the entry points of ``group`` (``own = "own_method:OwnConfig"``). One that cannot be
    loaded, that ``check`` refuses with an exception, or that takes a name which is taken, is left out and named once in
    a warning.
    """

    def __init__(
        self, group: str, kind: str, own: Mapping[str, Part], check: Callable[[str, object], None] | None = None
    ) -> None:
        self.group, self.kind, self._own, self._check = group, kind, dict(own), check
        self._broken: dict[str, str] = {}

    @cached_property
    def _parts(self) -> dict[str, tuple[Part, str]]:
        parts = {name: (part, OWN) for name, part in self._own.items()}
        for entry in entry_points(group=self.group):
            origin = _origin(entry)
            if entry.name in parts:
                self._leave_out(entry, f"{self.kind} {entry.name!r} is one of {parts[entry.name][1]}; rename it")
                continue
            try:
                part = entry.load()
                if self._check is not None:
                    self._check(entry.name, part)
                parts[entry.name] = (part, origin)
            except Exception as error:  # whatever the other package does
                self._leave_out(entry, f"{type(error).__name__}: {error}; repair or uninstall it")
        return parts

    def _leave_out(self, entry: EntryPoint, reason: str) -> None:
        line = f"{self.kind} {entry.name!r} of {_origin(entry)} cannot be loaded: {' '.join(reason.split())}"
        self._broken[entry.name] = line
        log.warning("wsss: %s", line)

    @property
    def broken(self) -> Mapping[str, str]:
        """Name of a part that was left out -> why, in one line."""
        return self._broken if self._parts else {}

    def __getitem__(self, name: str) -> Part:
        if name in self._parts:
            return self._parts[name][0]
        if name in self.broken:
            raise UserError(self.broken[name])
        meant = suggest(name, self._parts)
        raise UserError(f"unknown {self.kind} {name!r}; {meant}{' ' if meant else ''}known: {', '.join(self._parts)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def origin(self, name: str) -> str:
        """The package a part comes from, with its version where that is another one."""
        return self._parts[name][1]

    def list_names(self) -> list[str]:
        """Every name; behind that of another package's part, its package and version in brackets."""
        return [name if origin == OWN else f"{name} ({origin})" for name, (_, origin) in self._parts.items()]


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def require_settings(base: type[Config]) -> Callable[[str, object], None]:
    """A check for registries of settings: a class below ``base`` whose ``name`` is that of its entry."""

    def check(name: str, part: object) -> None:
        if not (isinstance(part, type) and issubclass(part, base)):
            raise TypeError(f"{part!r} is no subclass of {base.__name__}")
        declared = part.model_fields["name"].default
        if declared != name:
            raise ValueError(f"{part.__name__}.name is {declared!r}, its entry point {name!r}")

    return check
