"""What arrives at a device: `sniff.py DEVICE PORT`. For each line of standard input it answers with two numbers: the
bytes of TCP payload to that port, and the segments without any, since the line before."""

from __future__ import annotations

import socket
import struct
import sys

_ALL = 3
_ROOM = 64 << 20


def main() -> None:
    device, port = sys.argv[1], int(sys.argv[2])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as heard:
        heard.setsockopt(socket.SOL_SOCKET, 33, _ROOM)  # SO_RCVBUFFORCE: nothing may be missed
        heard.bind((device, _ALL))
        heard.setblocking(False)
        print("ready", flush=True)
        for _ in sys.stdin:
            payload = empty = 0
            while True:
                try:
                    frame, (_, _, kind, *_) = heard.recvfrom(1 << 18)
                except BlockingIOError:
                    break
                if kind == socket.PACKET_OUTGOING or (found := _payload(frame, port)) is None:
                    continue
                payload += found
                empty += not found
            print(payload, empty, flush=True)


def _payload(frame: bytes, port: int) -> int | None:
    """Return the payload bytes of an IPv4 TCP segment to a port, None of everything else."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    header = 4 * (frame[14] & 15)
    (total,) = struct.unpack_from("!H", frame, 16)
    tcp = 14 + header
    if struct.unpack_from("!H", frame, tcp + 2)[0] != port:
        return None
    # A segment larger than 64 KB, as offloading makes them, has no length in its header.
    end = 14 + total if total else len(frame)
    return end - tcp - 4 * (frame[tcp + 12] >> 4)


if __name__ == "__main__":
    main()
