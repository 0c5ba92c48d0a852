"""Pickles are followed, never executed."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.pickled import Refused, parsed

PIXELS = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_and_plain_values_come_back(protocol, order):
    held = {"data": np.array(PIXELS, order=order), "fine_labels": [0, 99], "coarse": np.array([1, -2]), "b": "tench"}
    found = parsed(pickle.dumps({**held, "same": [held["data"]] * 2, "one": np.int64(7)}, protocol=protocol), 1000)
    assert np.array_equal(found["data"], PIXELS)
    assert found["data"].dtype == np.uint8
    assert found["coarse"].tolist() == [1, -2]
    assert found["fine_labels"] == [0, 99]
    assert found["b"] == "tench"
    assert found["one"] == 7
    assert all(np.array_equal(each, PIXELS) for each in found["same"])


def test_a_file_as_python_2_wrote_it_is_read():
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\t(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x06abcdefq\ntb"
    )
    content = b"\x80\x02}q\x01(U\x04dataq\x02" + array + b"U\x0bfine_labelsq\x03]q\x04(K\x13K\x1deu."
    found = parsed(content, 100)
    assert found["data"].tolist() == [[97, 98, 99], [100, 101, 102]]
    assert found["fine_labels"] == [19, 29]


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Call(print, "pickled code ran"), "asks for builtins.print"),
        (Call(np.ndarray, (2,), np.dtype("O"), b"\x41" * 16), "array of 'O8'|asks for numpy.ndarray"),
        (Call(np.ndarray, (2,), np.dtype("u1"), b"\x41" * 16), "asks for numpy.ndarray"),
        (Call(np.dtype, "O"), "instead of whole numbers"),
        (np.array([object()]), "instead of whole numbers"),
        (np.ndarray, "numpy.ndarray"),
        ({1: 2}, "where a str must be"),
        (1j, "asks for builtins.complex"),
        ({1, 2}, "EMPTY_SET"),
    ],
)
def test_everything_else_is_refused(value, why, capsys):
    for protocol in (2, 4, 5):
        with pytest.raises(Refused, match=f"{why}|asks for|holds what"):
            parsed(pickle.dumps({"data": value}, protocol=protocol), 1000)
    assert capsys.readouterr().out == ""


def test_bytes_must_be_as_many_as_the_shape_says():
    content = pickle.dumps(PIXELS, protocol=4)
    wrong = content.replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86")
    assert wrong != content
    with pytest.raises(Refused, match=r"shape \(3, 3072\) with 6144 bytes"):
        parsed(wrong, 1000)


@pytest.mark.timeout(60)  # what is not refused takes years
def test_bombs_end_at_once():
    doubled = b"\x80\x02K\x01\x85" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    for content in (
        b"\x80\x02K\x012.",  # DUP, which CIFAR does not need
        b"\x80\x02}" + doubled[2:] + b"K\x01s.",  # a key whose hash would take 2**60 steps
        b"\x80\x02]r\xff\xff\xff\xff" + b"]" * 5000 + b".",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    ):
        with pytest.raises(Refused):
            parsed(content, 1000)


WHOLE = pickle.dumps({"data": PIXELS[:, :20].copy(), "fine_labels": [3, 4]}, protocol=4)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=300)
def test_damage_is_refused_or_gives_plain_values(changes):
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    try:
        found = parsed(bytes(data), 1000)
    except Refused:
        return
    assert isinstance(found, dict | list | tuple | str | bytes | int | float | np.ndarray | type(None))
