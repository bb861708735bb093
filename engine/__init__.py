"""Sallyport's engine: asks the policy about each thing not seen before and keeps the kernel's verdicts."""

__version__ = "0.1.0"
