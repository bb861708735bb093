"""The audit log with nothing in front of it: `log_alone DIR COUNT` prints entries a second, until they are signed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from audit import ocsf
from audit.log import AuditLog


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    log = AuditLog.open(folder)
    who = ocsf.Process(4711, "", "/usr/bin/client", 0, "root", "/guarded.slice/plain.service", "plain.service", "")
    began = time.monotonic()
    last = 0
    for number in range(count):
        flow = ocsf.Flow(
            "127.0.0.1", 32768 + number % 28000, "127.0.0.1", 5501, "tcp", "egress", locality="loopback",
            cookie=str(number), process=who,
        )  # fmt: skip
        if number % 2:
            entry = ocsf.socket_close(flow, bytes_in=1, bytes_out=1, duration_ns=70_000, time_ns=time.time_ns())
        else:
            entry = ocsf.socket_open(flow, time_ns=time.time_ns())
        last = log.append(entry) or last
    if not log.wait(last, 30.0):
        raise SystemExit("the entries did not reach the disk within 30 s")
    print(count / (time.monotonic() - began))
    log.close()


if __name__ == "__main__":
    main()
