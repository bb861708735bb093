"""nginx with its names over TLS, and the certificate that makes its clients believe it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from engine.lab.errors import LabError
from engine.lab.place import Place
from engine.lab.waiting import until

NAMES = (
    "allowed.example", "protected.example", "www.denied.example", "later.example", "unseen.example", "answered.example",
)  # fmt: skip
PORT = 443
PROBE_PORT = 8443
"""The same names, for the probe that runs beside other traffic: a capture tells the two apart by port."""
PLAIN_PORT = 80

_MANY_FILES = 'ulimit -n 8192 2>/dev/null; exec "$@"'
"""A connection is a file, and the usual limit for files is 1024."""

_CONFIG = """
daemon off;
master_process off;
user root;
pid {work}/nginx.pid;
error_log {work}/nginx.err warn;
# A dropped hello leaves its connection here for a minute, and a client that never stops trying makes twenty a second:
# with too few places nginx closes the connections that others keep, and a scenario would blame the engine.
events {{ worker_connections 4096; }}
http {{
  access_log off;
  # Connections are kept over the whole of a lab, which takes long on an emulated machine.
  keepalive_timeout 1d;
  keepalive_requests 1000000;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  ssl_certificate {work}/server.pem;
  ssl_certificate_key {work}/server.key;
  server {{
    listen {plain};
    location / {{ return 200 "metadata\\n"; }}
  }}
{servers}
}}
"""
_SERVER = """
  server {{
    listen {port} ssl; listen [::]:{port} ssl; listen {probe} ssl;
    server_name {name};
    location / {{ return 200 "{name}\\n"; }}
  }}
"""


def make_certificates(work: Path, tools: Place) -> Path:
    """Make a throw-away authority and a certificate for all names; return the authority's file."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    authority = ["openssl", "req", "-x509", *key, "-keyout", f"{work}/ca.key", "-out", f"{work}/ca.pem"]
    authority += ["-subj", "/CN=Sallyport lab", "-addext", "keyUsage=critical,keyCertSign"]
    names = ",".join(f"DNS:{name}" for name in NAMES)
    leaf = ["openssl", "req", "-x509", *key, "-keyout", f"{work}/server.key", "-out", f"{work}/server.pem"]
    leaf += ["-CA", f"{work}/ca.pem", "-CAkey", f"{work}/ca.key", "-subj", "/CN=server"]
    leaf += ["-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"]
    for words in (authority, leaf):
        done = tools.run(words)
        if done.code != 0:
            raise LabError(f"openssl cannot make the lab's certificates: {done.last_words}")
    return work / "ca.pem"


class Nginx:
    """One nginx process on the server's side, listening when the constructor returns."""

    def __init__(self, place: Place, work: Path) -> None:
        servers = "".join(_SERVER.format(name=name, port=PORT, probe=PROBE_PORT) for name in NAMES)
        config = work / "nginx.conf"
        config.write_text(_CONFIG.format(work=work, plain=PLAIN_PORT, servers=servers))
        nginx = ["nginx", "-p", str(work), "-c", str(config)]
        self._process = place.start(["sh", "-c", _MANY_FILES, "sh", *nginx], stderr=subprocess.PIPE)
        # nginx writes its process id once its sockets listen.
        ready = until(lambda: (work / "nginx.pid").exists() or self._process.poll() is not None)
        if not ready or self._process.poll() is not None:
            self._process.kill()
            words = self._process.communicate()[1].decode(errors="replace").strip()
            raise LabError(f"nginx does not start: {words or 'it says nothing'}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
