"""Pure parsers: bytes in, typed values out, no IO. What cannot be read is a stated value, never an exception.

The one exception is `capture`, which reads a file's stream and raises InputError for what is no capture.
"""
