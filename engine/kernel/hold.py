"""The hold: frames that the gate redirected, and the way back out.

A packet socket on the hold device's far end reads each held frame with its virtio-net header (PACKET_VNET_HDR), so that
segmentation offload and partial checksums survive; the same bytes leave by the original device through a packet
socket with PACKET_QDISC_BYPASS, which does not pass TC again (packet(7), linux/if_packet.h).

A VLAN tag does not come in the frame: the receiving side of the stack takes it off before packet sockets see it and
tells it beside the frame (PACKET_AUXDATA). It is put back, or a released packet would leave for another network.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from engine.errors import KernelError, PrivilegeError

VNET_BYTES = 10
"""Size of struct virtio_net_hdr (linux/virtio_net.h)."""
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_QDISC_BYPASS = 20
_SO_RCVBUFFORCE = 33
_SO_PRIORITY, _SO_MARK = 12, 36
_MARK = struct.Struct("=I")
_FRAME_BYTES = 1 << 18
_STATISTICS = struct.Struct("=II")
# struct tpacket_auxdata: status, two lengths, two offsets, then the tag; its presence and its protocol's are bits.
_AUXDATA = struct.Struct("=III4xHH")
_ANCILLARY = socket.CMSG_SPACE(_AUXDATA.size)
_VLAN_VALID, _VLAN_TPID_VALID = 0x10, 0x40
_ETH_P_8021Q = 0x8100
_TAG = struct.Struct("!HH")
_ADDRESSES = 12
# struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_VNET = struct.Struct("<BBHHHH")
_NEEDS_CSUM = 1


def _tagged(frame: bytes, tci: int, protocol: int) -> bytes:
    """Put a tag back behind the addresses, and tell the virtio-net header that everything moved by four bytes."""
    flags, gso_type, header, gso_size, start, offset = _VNET.unpack_from(frame)
    vnet = _VNET.pack(
        flags,
        gso_type,
        header + _TAG.size if gso_type else header,
        gso_size,
        start + _TAG.size if flags & _NEEDS_CSUM else start,
        offset,
    )
    behind = VNET_BYTES + _ADDRESSES
    return vnet + frame[VNET_BYTES:behind] + _TAG.pack(protocol, tci) + frame[behind:]


@dataclass
class HoldCounts:
    taken: int = 0
    released: int = 0
    lost: int = 0
    """Frames that the socket did not hand over: gone, and sent again by TCP."""
    refused: int = 0
    """Frames that the device did not take back."""


class Hold:
    def __init__(self, held_device: str, queue_bytes: int, mark: int = 0) -> None:
        self.counts = HoldCounts()
        self._device = held_device
        self._mark = mark
        self._unread = 0
        self._back: dict[int, socket.socket] = {}
        self._buffer = bytearray(_FRAME_BYTES)
        self._view = memoryview(self._buffer)
        self._out: dict[str, socket.socket] = {}
        try:
            self._in = self._packet_socket()
            self._in.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, queue_bytes)
            self._in.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._in.bind((held_device, _ETH_P_ALL))
        except PermissionError as error:
            raise PrivilegeError("Reading held packets needs root (CAP_NET_RAW)", hint="Run it with sudo.") from error
        except OSError as error:
            raise KernelError(f"The hold device {held_device} cannot be read: {error.strerror}") from error

    @staticmethod
    def _packet_socket() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        opened.setblocking(False)
        return opened

    def fileno(self) -> int:
        return self._in.fileno()

    def receive(self) -> bytes | None:
        """Return the next held frame with its virtio-net header in front, None when there is none now."""
        while True:
            try:
                size, beside, _, _ = self._in.recvmsg_into((self._buffer,), _ANCILLARY)
                break
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENETDOWN:
                    return None
                if error.errno != errno.EINVAL:
                    raise
                # Before Linux 6.2 the virtio-net header has no word for datagrams with segmentation offload
                # (virtio_net_hdr_from_skb): the frame is gone. Not to count it would fill the hold queue for ever.
                self._unread += 1
                self.counts.lost += 1
        self.counts.taken += 1
        frame = bytes(self._view[:size])
        for level, kind, data in beside:
            if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
                status, _, _, tci, protocol = _AUXDATA.unpack_from(data)
                if status & _VLAN_VALID:
                    return _tagged(frame, tci, protocol if status & _VLAN_TPID_VALID else _ETH_P_8021Q)
        return frame

    def release(self, interface: str, frame: bytes) -> bool:
        """Send a frame that receive() returned out of its original device. False when the device does not take it."""
        out = self._out.pop(interface, None)
        # A socket stays bound to the device that had the name when it was made: another may have it by now.
        if out is not None and self._sent(out, frame):
            self._out[interface] = out
            return True
        out = self._packet_socket()
        try:
            out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            out.bind((interface, 0))
        except OSError:
            out.close()
        else:
            if self._sent(out, frame):
                self._out[interface] = out
                return True
        # A full device queue or a device that is gone: to TCP this is one lost packet, which it sends again.
        self.counts.refused += 1
        return False

    def deliver(self, ifindex: int, frame: bytes) -> bool:
        """Hand a frame to the stack as if it had come in by an interface; gate_release takes it there. False when the
        hold device does not take it."""
        back = self._back.pop(ifindex, None)
        if back is None:
            back = self._packet_socket()
            # As bytes: an int of more than 31 bits is none to setsockopt.
            back.setsockopt(socket.SOL_SOCKET, _SO_MARK, _MARK.pack(self._mark))
            back.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, ifindex)
            back.bind((self._device, 0))
        if self._sent(back, frame):
            self._back[ifindex] = back
            return True
        self.counts.refused += 1
        return False

    def _sent(self, out: socket.socket, frame: bytes) -> bool:
        try:
            out.send(frame)
        except OSError:
            out.close()
            return False
        self.counts.released += 1
        return True

    def lost(self) -> int:
        """Return how many frames were lost since the last call: the socket's buffer was full, or could not hand them
        over."""
        _, drops = _STATISTICS.unpack(self._in.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size))
        self.counts.lost += drops
        unread, self._unread = self._unread, 0
        return int(drops) + unread

    def close(self) -> None:
        self._in.close()
        for out in (*self._out.values(), *self._back.values()):
            out.close()
