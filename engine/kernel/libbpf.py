"""The few calls of libbpf that the engine needs, by ctypes.

Opening pins this way costs the engine 13 MiB and 2 ms where importing bcc costs 75 MiB for good, so bcc stays in the
loader's short-lived process. Ubuntu 22.04 has libbpf.so.0, the others libbpf.so.1; both set errno, so errno is what is
read (their return values differ).
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from pathlib import Path

from engine.errors import KernelError

_HINT = "Install the distribution's libbpf (Debian, Ubuntu: apt install libbpf1, or libbpf0 on Ubuntu 22.04)."

BPF_ANY = 0
BPF_F_REPLACE = 4


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise KernelError("libbpf is not installed", hint=_HINT)


def _call(function: str, *arguments: object) -> int:
    """Call and return the result; OSError with the kernel's errno when it is negative."""
    ctypes.set_errno(0)
    result = int(getattr(_library(), function)(*arguments))
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, os.strerror(code), function)
    return result


def obj_get(path: Path) -> int:
    """Open a pinned map, program or link; return its fd. FileNotFoundError when there is none."""
    return _call("bpf_obj_get", os.fsencode(path))


def obj_pin(fd: int, path: Path) -> None:
    """Pin `fd`, in place of what is pinned there: rename(2) over a pin is atomic in bpffs."""
    fresh = path.with_name(f"{path.name}_new")
    fresh.unlink(missing_ok=True)
    _call("bpf_obj_pin", fd, os.fsencode(fresh))
    fresh.rename(path)


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 192),
        ("verified_insns", ctypes.c_uint32),
    )


def map_info(fd: int) -> MapInfo:
    info = MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size))
    return info


def program_info(fd: int) -> ProgramInfo:
    """Return what the kernel says of a program; `verified_insns` is 0 before 5.16."""
    info = ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size))
    return info


class LinkInfo(ctypes.Structure):
    """The head of struct bpf_link_info (linux/bpf.h) for a link to a control group."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64),
        ("attach_type", ctypes.c_uint32),
    )


def link_cgroup(link: int) -> int:
    """Return the id of the control group that a link is attached to (its directory's inode), 0 when that is gone."""
    info = LinkInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _call("bpf_obj_get_info_by_fd", link, ctypes.byref(info), ctypes.byref(size))
    return int(info.cgroup_id)


def map_update(fd: int, key: bytes, value: bytes) -> None:
    _call("bpf_map_update_elem", fd, key, value, ctypes.c_uint64(BPF_ANY))


def map_lookup(fd: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> bool:
    """Fill `value`; False when the key is not there."""
    try:
        _call("bpf_map_lookup_elem", fd, key, value)
    except FileNotFoundError:
        return False
    return True


def map_delete(fd: int, key: bytes) -> bool:
    try:
        _call("bpf_map_delete_elem", fd, key)
    except FileNotFoundError:
        return False
    return True


def map_next_key(fd: int, key: bytes | None, following: ctypes.Array[ctypes.c_char]) -> bool:
    """Fill `following` with the key after `key` (the first for None); False at the end."""
    try:
        _call("bpf_map_get_next_key", fd, key, following)
    except FileNotFoundError:
        return False
    return True


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Update many entries from packed keys and values. OSError in UNSUPPORTED where the kernel cannot (LPM, 5.10)."""
    done = ctypes.c_uint32(count)
    _call("bpf_map_update_batch", fd, keys, values, ctypes.byref(done), None)


def link_create(program: int, target: int, attach_type: int) -> int:
    return _call("bpf_link_create", program, target, attach_type, None)


def link_update(link: int, program: int) -> None:
    _call("bpf_link_update", link, program, None)


def raw_tracepoint_open(name: str, program: int) -> int:
    return _call("bpf_raw_tracepoint_open", name.encode(), program)


UNSUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, 524})
"""What an older kernel says to a call it does not have (524: ENOTSUPP, which has no errno name)."""
