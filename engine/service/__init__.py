"""The engine as a service: the only rooms that know both the runtime and the kernel's edge, and put them together."""
