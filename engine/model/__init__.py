"""Pure values: no IO, nothing but the standard library."""
