"""Fuzzing: the kernel's parsers under libFuzzer, the engine's under atheris. docs/fuzzing.md says how and how long."""
