"""The kernel's edge: the only place that knows bcc, pyroute2, libbpf and packet sockets."""
