"""The types of the command's flags: each converts a text, or raises ArgumentTypeError with what is wrong with it."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import re
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from .. import ids, references
from ..errors import InvalidArgumentError


class Formatter(argparse.HelpFormatter):
    """Shows the default of each flag, except where the help text names it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)" if "default" not in (action.help or "") else action.help


def from_env(variable: str, default: str) -> str:
    """The value of an environment variable, or `default`; argparse converts and checks it like a flag's text."""
    return os.environ.get(variable) or default


def port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no port; ports are 0 to 65535")


def port_range(text: str) -> range:
    """A port, or the first and the last of several."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if 1 <= first <= last <= 65535:
        return range(first, last + 1)
    raise argparse.ArgumentTypeError(f"'{text}' is no range of ports; an example is 8000-8999")


def worker_id(text: str) -> str:
    if re.fullmatch(rf"[0-9A-Za-z]{{{ids.ID_LENGTH}}}", text):
        return text
    raise argparse.ArgumentTypeError(f"'{text}' is no id of a worker; an id has {ids.ID_LENGTH} letters and digits")


def file_stem(text: str) -> str:
    if re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", text) and text != "ca":
        return text
    raise argparse.ArgumentTypeError(f"'{text}' is no name for files here; use letters, digits, _ and -, but not ca")


def address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no IP address") from None


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no IP address or network; an example is 10.0.0.0/24") from None


def registry(text: str) -> str:
    """A registry as it stands in the names of images, or `public`."""
    with contextlib.suppress(InvalidArgumentError):
        image = references.parse(f"{text}/image").repository
        if text == "public" or image in (f"{text}/image", f"{text}/library/image"):
            return text
    raise argparse.ArgumentTypeError(f"'{text}' is no registry; examples are ghcr.io, registry.local:5000, public")


def positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of 1 or more")


def count(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of 0 or more")


def quota(text: str) -> int | None:
    """A number of 0 or more, or `none`."""
    if text == "none":
        return None
    if text.isascii() and text.isdigit() and int(text) < 2**53:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is neither a number of 0 or more nor none")


def prefix_or_any(text: str) -> str:
    from ..coordinator.store import ANY_PREFIX

    return text if text == ANY_PREFIX else prefix(text)


def factor(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1 <= (factor := float(text)) <= 1000:
            return factor
    raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to 1000")


def cpus(text: str) -> tuple[int, ...]:
    """Numbers and ranges of cpus of this machine, such as 0-3,6."""
    count = os.sysconf("SC_NPROCESSORS_CONF")
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise argparse.ArgumentTypeError(f"'{text}' does not name cpus of this machine; an example is 0-3,6")
        chosen |= set(range(first, last + 1))
    return tuple(sorted(chosen))


def seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")


def lifetime(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 31_536_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no whole number of seconds up to 31536000, 0 for never")


def http_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text.rstrip("/")
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is no URL of the form http://HOST:PORT")


def origin(text: str) -> str:
    from ..coordinator.http.origins import ANY, normal

    with contextlib.suppress(ValueError):
        parts, plain = urlsplit(text), text.rstrip("/")
        is_origin = parts.scheme and parts.hostname and not parts.username and parts.port != 0
        if text == ANY or (is_origin and plain == f"{parts.scheme}://{parts.netloc}"):
            return normal(plain)
    raise argparse.ArgumentTypeError(f"'{text}' is neither * nor an origin of the form https://HOST[:PORT]")


def database(text: str) -> Path | str:
    from ..coordinator.store.connection import is_url

    return text if is_url(text) else Path(text).expanduser()


def directory(text: str) -> Path:
    path = Path(text)
    if path.is_absolute() and path.is_dir():
        return path
    raise argparse.ArgumentTypeError(f"'{text}' is not the absolute path of a directory")


def key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key and equals:
        return key, value
    raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")


def warm_image(text: str) -> tuple[str, int]:
    """An image and how many warm boxes of it are to be kept."""
    image, _, count = text.rpartition("=")
    with contextlib.suppress(InvalidArgumentError):
        if count.isascii() and count.isdigit() and int(count) <= 1000:
            return str(references.parse(image).tagged()), int(count)
    raise argparse.ArgumentTypeError(f"'{text}' is not IMAGE=N, with N up to 1000")


def network_of_boxes(text: str) -> IPv4Network:
    with contextlib.suppress(ValueError):
        return IPv4Network(text)
    raise argparse.ArgumentTypeError(
        f"'{text}' is no network of IPv4 addresses such as 10.1.0.0/16 (boxes have no IPv6 beyond their own loopback)"
    )


def capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name and name.replace("_", "").isalpha():
        return name
    raise argparse.ArgumentTypeError(f"'{text}' is no Linux capability; an example is SYS_PTRACE")


def duration(text: str) -> float:
    """A number of seconds, or a number with a unit: s, m, h or d."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match:
        return float(int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])
    raise argparse.ArgumentTypeError(f"'{text}' is no duration; examples are 30m, 12h and 90d")


def kept(text: str) -> float:
    """A duration of a day at least."""
    seconds = duration(text)
    if seconds >= 86400:
        return seconds
    raise argparse.ArgumentTypeError(f"'{text}' is less than a day")


def statuses(text: str) -> range:
    """The statuses of HTTP that are meant: one, or those of a class, for example 4xx."""
    match = re.fullmatch(r"([1-5])xx|[0-9]{1,3}", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no status; examples are 403 and 4xx")
    first = int(match[1]) * 100 if match[1] else int(text)
    return range(first, first + (100 if match[1] else 1))


def key_name(text: str) -> str:
    from ..coordinator.tenants.keys import is_name

    if is_name(text):
        return text
    raise argparse.ArgumentTypeError("a name has 1 to 128 printable characters")


def prefix(text: str) -> str:
    from ..coordinator.tenants.prefixes import is_prefix

    if is_prefix(text):
        return text
    raise argparse.ArgumentTypeError(f"'{text}' cannot be a prefix")


def scopes(text: str) -> tuple[str, ...]:
    """Names of scopes, separated by commas."""
    from ..coordinator.tenants.scopes import CLIENT

    given = tuple(text.split(","))
    for scope in given:
        if scope not in CLIENT:
            raise argparse.ArgumentTypeError(f"'{scope}' is no scope of a client's key; there are {', '.join(CLIENT)}")
    return given
