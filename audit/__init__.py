"""The signed audit log: entries, tree, heads, writer, verifier. FORMAT.md is its specification.

This package imports nothing of the engine, so that an auditor can take it alone (standard library,
`cryptography` and `msgspec`).
"""
