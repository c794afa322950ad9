"""The presets of isolation: what the processes of a box may do, and how much of it, whatever their image is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from ..errors import InvalidArgumentError, UnsupportedError

# What a container engine grants to every container by itself.
ENGINE_CAPABILITIES = frozenset(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP "
    "SETUID SYS_CHROOT".split()
)
# The least with which root of a box can install packages, change owners and become another user. Ports below 1024 need
# no capability: a sysctl opens them.
_LEAST_CAPABILITIES = frozenset("CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID".split())


class Preset(StrEnum):
    """The names of the presets, the weakest first."""

    DEVELOPMENT = "development"
    STANDARD = "standard"
    MAXIMUM = "maximum"

    @property
    def rank(self) -> int:
        return list(Preset).index(self)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a preset means. `processes`: at most, threads included. `open_files`: of one process, at most; None: as many
    as the engine gives."""

    capabilities: frozenset[str]
    processes: int
    open_files: int | None
    new_privileges: bool = False  # a program may give its caller privileges (set-user-ID, file capabilities)
    core_dumps: bool = False
    read_only: bool = False  # the root file system; /tmp, /run and /var/tmp are writable, in memory


ISOLATION = {
    Preset.DEVELOPMENT: Isolation(ENGINE_CAPABILITIES, 4096, None, new_privileges=True, core_dumps=True),
    Preset.STANDARD: Isolation(_LEAST_CAPABILITIES, 512, 16_384),
    Preset.MAXIMUM: Isolation(_LEAST_CAPABILITIES, 512, 16_384, read_only=True),
}


def resolve(asked: str, floor: Preset) -> Preset:
    """The preset of a box that asks for `asked`; empty: for no preset, which means `standard`, or more where `floor`,
    the least that the worker's operator allows, is more.

    Raises `UnsupportedError` for a preset below the floor, and `InvalidArgumentError` for an unknown preset.
    """
    if not asked:
        return max(Preset.STANDARD, floor, key=lambda preset: preset.rank)
    if asked not in list(Preset):
        raise InvalidArgumentError(f"{asked!r} is no security preset; there are {', '.join(Preset)}")
    preset = Preset(asked)
    if preset.rank < floor.rank:
        raise UnsupportedError(
            f"the security preset {preset} is not allowed on this worker; its operator can allow it with "
            f"--security {preset}"
        )
    return preset


def filters_system_calls(security_options: Collection[str]) -> bool:
    """Whether an engine with these options (`SecurityOptions` of its `/info`) gives containers a seccomp profile."""
    is_unconfined = any("name=seccomp,profile=unconfined" in option for option in security_options)
    return any("name=seccomp" in option for option in security_options) and not is_unconfined
