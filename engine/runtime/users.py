"""User names, from the file and nothing else.

Not getpwuid(): with LDAP or SSSD behind it the look-up goes over the network, and here it would wait for a
packet that the engine itself is holding. Users that only a directory service knows have a uid and no name.
"""

from __future__ import annotations

from pathlib import Path

from engine.model.facts import User

MOST_BYTES = 16 << 20


class Users:
    """Reads the file again when its mtime, inode or size changes."""

    def __init__(self, passwd: Path = Path("/etc/passwd")) -> None:
        self._passwd = passwd
        self._version: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def lookup(self, uid: int) -> User:
        """Return the user; the name is empty when the file has none, or cannot be read."""
        try:
            status = self._passwd.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._version:
                with self._passwd.open("rb") as stream:
                    self._names = parse_passwd(stream.read(MOST_BYTES))
                self._version = version
        except OSError:
            self._names, self._version = {}, None
        return User(uid, self._names.get(uid, ""))


def parse_passwd(data: bytes) -> dict[int, str]:
    """Return the names of passwd(5); of two lines with one uid the first counts, as for getpwuid()."""
    names: dict[int, str] = {}
    for line in data.splitlines():
        fields = line.split(b":")
        if len(fields) == 7 and fields[0] and fields[2].isdigit():
            names.setdefault(int(fields[2]), fields[0].decode("utf-8", "backslashreplace"))
    return names
