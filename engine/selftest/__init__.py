"""The selftest: the gate tried on this very machine, in namespaces and a control group of its own.

`proofs` shows that the gate denies, passes, holds, and goes on with no engine; `note` signs what was seen. `attempts`
are ways around the gate that are known or feared; `bypass` tries each of them, and `witness`, on the other side of the
wire, is the judge of what got through.
"""
