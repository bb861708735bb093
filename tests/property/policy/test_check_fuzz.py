"""Whatever stands in a Rego file, the check ends with findings: it never raises, and never loses a place."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy.bundle import Bundle, Module
from engine.policy.check import check
from engine.policy.interpreter import InterpreterError, parse

LIBRARY = Path(__file__).parents[3] / "policies"
TEXTS = [path.read_text() for path in sorted(LIBRARY.rglob("*.rego"))]
TOKENS = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in TEXTS]
KEYWORDS = ["input", "data", "not", "every", "walk", "with", "as"]
WORDS = [*sorted({token for tokens in TOKENS for token in tokens}), *KEYWORDS]


@st.composite
def mangled(draw: st.DrawFn) -> str:
    tokens = list(draw(st.sampled_from(TOKENS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(tokens) - 1))
        if draw(st.booleans()):
            tokens[at] = draw(st.sampled_from(WORDS))
        else:
            tokens.insert(at, draw(st.sampled_from(WORDS)))
    return "".join(tokens)


@settings(max_examples=150, deadline=None)
@given(text=mangled())
def test_the_check_always_ends_with_findings(text: str) -> None:
    module = Module("mangled.rego", text)
    bundle = Bundle(Path(), (module,), (), {"settings": {}}, {}, {}, "")
    try:
        tree = parse(module.file, text), ""
    except InterpreterError as error:
        tree = b"", str(error)
    checked = check(bundle, {module.file: tree})
    # Whatever says a default may pass: an unsafe variable is for the interpreter to find, when it evaluates.
    assert checked.errors or checked.default is not None
    lines = text.count("\n") + 1
    for finding in checked.findings:
        assert finding.message
        assert 0 <= finding.line <= lines or finding.file != module.file
