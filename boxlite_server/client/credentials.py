"""The file of profiles: for each, a server's address, the API key for it and the prefix of its paths.

The file is `credentials.toml` in `~/.boxlite`, or in BOXLITE_HOME, and has a table `[profiles.NAME]` for each profile.
BoxLite's own command has the same file: what it keeps there beside these three fields stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BoxliteError
from .output import print_warning

DEFAULT_PROFILE = "default"
_MAX_BYTES = 1 << 20


class Profile(NamedTuple):
    """An empty text means that the profile does not say."""

    url: str = ""
    api_key: str = ""
    path_prefix: str = ""


def path() -> Path:
    home = Path(os.environ.get("BOXLITE_HOME") or "~/.boxlite").expanduser()
    return home / "credentials.toml"


def load(name: str) -> Profile | None:
    """The profile, or None if there is none of this name. Raises `BoxliteError` if the file cannot be used."""
    file = path()
    table = _read(file).get("profiles", {}).get(name)
    if table is None:
        return None
    fields = {field: table.get(field) or "" for field in Profile._fields}
    if not all(isinstance(value, str) for value in fields.values()):
        raise BoxliteError(f"{file}: url, api_key and path_prefix of profile '{name}' have to be texts")
    with suppress(FileNotFoundError):
        if file.stat().st_mode & 0o077:
            print_warning(f"others can read the API keys in {file}; type: chmod 600 {file}")
    return Profile(**fields)


def save(name: str, profile: Profile) -> None:
    """Add the profile, or replace its fields. The file is whole at each moment, and only its owner can read it."""
    with _edited() as document:
        table = document.setdefault("profiles", {}).setdefault(name, {})
        for field, value in profile._asdict().items():
            if value:
                table[field] = value
            else:
                table.pop(field, None)


def remove(name: str) -> bool:
    """Remove the profile, and the file with its last profile. Returns False if there was none of this name."""
    if load(name) is None:
        return False
    with _edited() as document:
        document["profiles"].pop(name, None)
    return True


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_BYTES).decode()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BoxliteError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BoxliteError(f"{file} is not TOML: {error}; correct it, or remove it and log in again") from error
    profiles = document.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise BoxliteError(f"{file}: profiles have to be tables [profiles.NAME]")
    return document


@contextmanager
def _edited() -> Iterator[dict[str, Any]]:
    """Yield the document to change, and write it when the `with` block ends. Other writers wait meanwhile."""
    file = path().resolve()  # a link stays a link
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            document = _read(file)
            yield document
            if document.get("profiles"):
                _write(file, _toml(document))
            else:
                file.unlink(missing_ok=True)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise BoxliteError(f"cannot write {file}: {error.strerror}") from error


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        part.unlink()  # of a process of this number that was killed
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _toml(document: dict[str, Any], above: str = "") -> str:
    """The document as TOML: values first, then tables."""
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    text = "".join(f"{_key(key)} = {_value(value)}\n" for key, value in document.items() if key not in tables)
    for key, table in tables.items():
        name = f"{above}.{_key(key)}" if above else _key(key)
        text += f"\n[{name}]\n{_toml(table, name)}"
    return text


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + "}"
    return str(value)  # of numbers and times, TOML's form is Python's
