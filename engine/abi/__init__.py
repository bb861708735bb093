"""Bytes and values: the Python side of bpf/include/abi.h."""
