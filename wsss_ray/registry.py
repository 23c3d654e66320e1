# SPDX-License-Identifier: Apache-2.0
"""Parts by name: those of this package, and those that installed packages add through entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from wsss_ray.config import Config, UserError, suggest

log = logging.getLogger(__name__)
Part = TypeVar("Part")
OWN = "wsss-ray"


@dataclass(frozen=True)
class Lazy(Generic[Part]):
    """A part by the place of its code, ``module:name`` as in an entry point; imported when it is asked for.

    Names are then listed without what their parts import (torch takes seconds). ``options`` are set in advance, as by
    ``functools.partial``.
    """

    place: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Part:
        """The part itself."""
        part = EntryPoint(self.place, self.place, "").load()
        return partial(part, **self.options) if self.options else part  # type: ignore[return-value]


class Registry(Mapping[str, Part], Generic[Part]):
    """Name -> part; ``registry["cam"]`` raises UserError for an unknown name and lists the known ones.

    A package adds parts through the entry points of ``group`` (``own = "own_method:OwnConfig"``). One that cannot be
    loaded, that ``check`` refuses with an exception, or that takes a name which is taken, is left out and named once in
    a warning.
    """

    def __init__(
        self,
        group: str,
        kind: str,
        own: Mapping[str, Lazy[Part]],
        check: Callable[[str, object], None] | None = None,
    ) -> None:
        self.group, self.kind, self._own, self._check = group, kind, dict(own), check
        self._loaded: dict[str, Part] = {}
        self._broken: dict[str, str] = {}

    @cached_property
    def _outside(self) -> dict[str, tuple[Part, str]]:
        parts: dict[str, tuple[Part, str]] = {}
        for entry in entry_points(group=self.group):
            taken = OWN if entry.name in self._own else parts[entry.name][1] if entry.name in parts else None
            if taken is not None:
                self._leave_out(entry, f"{self.kind} {entry.name!r} is one of {taken}; rename it")
                continue
            try:
                part = entry.load()
                if self._check is not None:
                    self._check(entry.name, part)
                parts[entry.name] = (part, _origin(entry))
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
        return self._broken if self._outside is not None else {}

    def __getitem__(self, name: str) -> Part:
        if name in self._own:
            if name not in self._loaded:
                self._loaded[name] = self._own[name].load()
            return self._loaded[name]
        if name in self._outside:
            return self._outside[name][0]
        if name in self.broken:
            raise UserError(self.broken[name])
        meant = suggest(name, self)
        raise UserError(f"unknown {self.kind} {name!r}; {meant}{' ' if meant else ''}known: {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._outside

    def __len__(self) -> int:
        return len(self._own) + len(self._outside)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._outside

    def origin(self, name: str) -> str:
        """The package a part comes from, with its version where that is another one."""
        return OWN if name in self._own else self._outside[name][1]

    def list_outside(self) -> list[str]:
        """The names of other packages' parts."""
        return list(self._outside)

    def list_names(self) -> list[str]:
        """Every name; behind that of another package's part, its package and version in brackets."""
        return [*self._own, *(f"{name} ({origin})" for name, (_, origin) in self._outside.items())]


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def require_settings(base: Lazy[type[Config]]) -> Callable[[str, object], None]:
    """A check for registries of settings: a class below ``base`` whose ``name`` is that of its entry."""

    def check(name: str, part: object) -> None:
        wanted = base.load()
        if not (isinstance(part, type) and issubclass(part, wanted)):
            raise TypeError(f"{part!r} is no subclass of {wanted.__name__}")
        declared = part.model_fields["name"].default
        if declared != name:
            raise ValueError(f"{part.__name__}.name is {declared!r}, its entry point {name!r}")

    return check
