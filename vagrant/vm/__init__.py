"""Throw-away machines for Sallyport: boots Debian's kernels in QEMU and runs the tests and the lab in them."""
