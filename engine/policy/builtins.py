"""Which built-in functions a policy may call: those that both evaluators have and that mean the same in both.

Measured: OPA 1.22.2 (`opa capabilities --current`) against the regorus wheel 0.13.0 (each name called with no
arguments); a test repeats the measurement with the installed evaluators. The number is that of the inputs.
"""

from __future__ import annotations

_BY_ARITY: dict[int, tuple[str, ...]] = {
    0: (
        "opa.runtime", "time.now_ns",
    ),
    1: (
        "abs", "array.reverse", "base64.decode", "base64.encode", "base64.is_valid", "base64url.decode",
        "base64url.encode", "base64url.encode_no_pad", "bits.negate", "ceil", "count", "floor",
        "glob.quote_meta", "hex.decode", "hex.encode", "http.send", "intersection", "is_array",
        "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string", "json.is_valid",
        "json.marshal", "json.unmarshal", "json.verify_schema", "lower", "max", "min", "net.cidr_expand",
        "net.cidr_is_valid", "object.keys", "object.union_n", "product", "regex.is_valid", "round",
        "semver.is_valid", "sort", "strings.reverse", "sum", "time.clock", "time.date", "time.format",
        "time.parse_duration_ns", "time.parse_rfc3339_ns", "time.weekday", "to_number", "trace",
        "trim_space", "type_name", "union", "units.parse", "units.parse_bytes", "upper", "urlquery.decode",
        "urlquery.decode_object", "urlquery.encode", "urlquery.encode_object", "uuid.parse", "uuid.rfc4122",
        "walk", "yaml.is_valid", "yaml.marshal", "yaml.unmarshal",
    ),
    2: (
        "array.concat", "bits.and", "bits.lsh", "bits.or", "bits.rsh", "bits.xor", "concat", "contains",
        "endswith", "format_int", "graph.reachable", "graph.reachable_paths", "indexof", "indexof_n",
        "json.filter", "json.marshal_with_options", "json.match_schema", "json.patch", "json.remove",
        "net.cidr_contains", "numbers.range", "object.filter", "object.remove", "object.subset",
        "object.union", "rand.intn", "regex.match", "regex.split", "semver.compare", "split", "sprintf",
        "startswith", "strings.any_prefix_match", "strings.any_suffix_match", "strings.count",
        "strings.replace_n", "time.diff", "time.parse_ns", "trim", "trim_left", "trim_prefix", "trim_right",
        "trim_suffix",
    ),
    3: (
        "array.slice", "glob.match", "numbers.range_step", "object.get", "regex.find_all_string_submatch_n",
        "regex.find_n", "regex.replace", "replace", "substring",
    ),
    4: (
        "regex.template_match", "time.add_date",
    ),
}  # fmt: skip
ARITY: dict[str, int] = {name: count for count, names in _BY_ARITY.items() for name in names}
"""Functions that both evaluators have."""

VOLATILE: frozenset[str] = frozenset(
    {
        "http.send", "io.jwt.decode_verify", "io.jwt.encode_sign", "io.jwt.encode_sign_raw", "net.lookup_ip_addr",
        "opa.runtime", "rand.intn", "time.now_ns", "uuid.rfc4122",
    }
)  # fmt: skip
"""The answer may differ from one call to the next: a verdict decided from it could not be kept."""

DIFFERING: dict[str, str] = {
    "json.match_schema": "write the conditions as rules",
    "json.verify_schema": "write the conditions as rules",
    "print": "keep print in *_test.rego files",
    "strings.count": "use count(indexof_n(text, part))",
    "strings.replace_n": "use replace, one text at a time",
    "to_number": "the facts that are numbers are numbers already",
    "trace": "keep trace in *_test.rego files",
    "yaml.marshal": "use json.marshal",
    "yaml.unmarshal": "keep the data as JSON",
    "yaml.is_valid": "keep the data as JSON",
}
"""Functions that answer differently in the two evaluators without an error, and what to write instead."""

ASCII_ONLY: frozenset[str] = frozenset({"lower", "upper"})
"""Differ for some letters beyond ASCII: for facts that are ASCII by construction they are the same."""

PARTIAL: frozenset[str] = frozenset(
    {
        "base64.decode", "base64url.decode", "graph.reachable_paths", "hex.decode", "json.unmarshal", "max", "min",
        "net.cidr_expand", "object.union_n", "regex.find_all_string_submatch_n", "regex.find_n", "regex.match",
        "regex.replace", "regex.split", "regex.template_match", "semver.compare", "time.add_date", "time.clock",
        "time.date", "time.diff", "time.format", "time.parse_duration_ns", "time.parse_ns",
        "time.parse_rfc3339_ns", "time.weekday", "units.parse", "units.parse_bytes", "urlquery.decode",
        "urlquery.decode_object", "uuid.parse", "walk", "json.patch", "json.remove", "json.filter",
        "numbers.range_step", "substring", "format_int", "array.slice", "glob.match", "net.cidr_contains",
    }
)  # fmt: skip
"""Functions that may be undefined or fail on arguments of the right type, so that `not` of a call around their
result could mean two things."""
