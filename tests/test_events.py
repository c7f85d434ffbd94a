"""events.py: a line says exactly what was meant, also when a number is not finite."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.events import Event, Kind, MalformedLine, decode, encode, number, spell

finite_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([kind for kind in Kind if kind is not Kind.METRICS]), st.dictionaries(st.text(max_size=8), finite_json, max_size=4))
def test_decode_undoes_encode(kind: Kind, data: dict[str, object]) -> None:
    data = {f"x{key}": value for key, value in data.items()}  # never one of the line's own names
    event = Event(3, 1700000000.25, kind, data)
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == event


@given(st.dictionaries(st.sampled_from(["loss", "grad_norm", "perplexity"]), st.floats(), max_size=3))
def test_metric_values_survive_whatever_they_are(values: dict[str, float]) -> None:
    """NaN is a measurement: it may turn into neither null nor a parse error."""
    back = decode(encode(Event(1, 0.0, Kind.METRICS, {"step": 1, "values": values}))).data["values"]
    assert {key: repr(value) for key, value in back.items()} == {key: repr(value) for key, value in values.items()}


def test_a_line_is_strict_json() -> None:
    """Browsers and jq refuse bare NaN."""
    line = encode(
        Event(1, 0.0, Kind.METRICS, {"step": 1, "values": {"loss": math.nan, "grad_norm": math.inf}, "progress": {"eta_s": -math.inf}})
    )

    def refuse(name: str) -> None:
        raise AssertionError(f"bare {name} in {line!r}")

    record = json.loads(line, parse_constant=refuse)
    assert record["values"] == {"loss": "NaN", "grad_norm": "Infinity"}
    assert record["progress"] == {"eta_s": "-Infinity"}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"seq":1,"at":0,"kind":"dance"}\n',
        b'{"seq":1,"at":0,"kind":"metrics"}\n',
        b"\xff\n",
        b'{"a":' + b"[" * 100_000 + b"\n",
        b'{"seq":1,"at":1e999999,"kind":"phase"}\n',
        b'{"seq":1e400,"at":1,"kind":"phase"}\n',
        b'{"seq":1,"at":17e11,"kind":"phase"}\n',  # milliseconds: a year that no date has
        b'{"seq":1,"at":-1,"kind":"phase"}\n',
    ],
    ids=range(11),
)
def test_a_line_that_is_no_event_is_said_to_be_malformed(line: bytes) -> None:
    with pytest.raises(MalformedLine):
        decode(line)


@pytest.mark.parametrize("value", [0.0, -1.5, math.inf, -math.inf])
def test_number_undoes_spell(value: float) -> None:
    assert number(spell(value)) == value
