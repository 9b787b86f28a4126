"""The pickle reader: arrays come back equal; attacks and memory bombs are refused."""

import collections
import copyreg
import os
import pickle
import pickletools
import struct
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weights.safe_pickle import UnsafePickleError, _Reader, read_pickle

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big": np.arange(3, dtype=">f4"),
    "ints": np.array([[1, -2]], np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "flag": np.array([True, False]),
}
PYTHON2_ARRAY = (  # what Python 2's cPickle and NumPy write for {"w": array([1.5, 2.5], float32)}
    b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    b"K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02\x85q\tcnumpy\ndtype\nq\nU\x02f4q\x0bK\x00"
    b"K\x01\x87q\x0cRq\r(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08"
    + np.array([1.5, 2.5], "<f4").tobytes()
    + b"q\x0ftq\x10bs."
)


def read(data, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(data)
    return read_pickle(path)


def refused(data, tmp_path):
    with pytest.raises(UnsafePickleError) as caught:
        read(data, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_come_back_equal(protocol, tmp_path):
    content = {
        **ARRAYS,
        "scalar": np.float32(1.5),
        "again": ARRAYS["big"],
        "plain": [1, -(2**70), 2.5, None, True, "é", b"\xff", (1, (2,))],
    }
    result = read(pickle.dumps(content, protocol), tmp_path)
    assert list(result) == list(content) and result["again"] is result["big"]
    assert result["plain"] == content["plain"] and result["scalar"] == np.float32(1.5)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(result[name], array)
        assert result[name].dtype == array.dtype.newbyteorder("=")  # NumPy swaps as it reads


def test_python_2_pickle(tmp_path):
    np.testing.assert_array_equal(read(PYTHON2_ARRAY, tmp_path)["w"], np.float32([1.5, 2.5]))


# Every way a pickle can reach code, each ending in a file that must not appear.

EMPTY_ARRAY = np.empty(0).__reduce__()[:2]
TOUCH = "__import__('pathlib').Path({!r}).touch()"


class Reduced:
    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce_ex__(self, protocol):
        return self.reduction


def short(*texts):
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in texts)


def attacks(marker):
    code = TOUCH.format(str(marker))
    argument = b"X" + struct.pack("<I", len(code)) + code.encode()
    array = Reduced(*EMPTY_ARRAY, {"x": 1})
    return {
        "GLOBAL": b"\x80\x02cbuiltins\neval\n.",
        "REDUCE": b"\x80\x02cbuiltins\neval\n" + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + short("builtins", "eval") + b"\x93" + argument + b"\x85R.",
        "dotted STACK_GLOBAL": b"\x80\x04" + short("numpy", "ndarray.__init__") + b"\x93.",
        "INST": b"(" + argument + b"ibuiltins\neval\n.",
        "INST of a known name": b"(" + argument + b"inumpy\ndtype\n.",
        "OBJ": b"(cbuiltins\neval\n" + argument + b"o.",
        "OBJ of a known name": b"(cnumpy\ndtype\n" + argument + b"o.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + short("numpy", "ndarray") + b"\x93K\x01\x85}\x92.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x01.",
        "EXT4": b"\x80\x02\x84\x01\x01\x01\x01.",
        "PERSID": b"Pid\n.",
        "BINPERSID": b"\x80\x02K\x01Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05\x97\x98.",
        "BUILD of a function": b"\x80\x02cnumpy\nndarray\n}b.",
        "BUILD of a dict": b"\x80\x02}}(X\x09\x00\x00\x00__class__K\x01ub.",
        "BUILD with __dict__": pickle.dumps(array, 2),
        "BUILD of slots": b"\x80\x02cnumpy\ndtype\nU\x02f4\x85RN}\x86b.",
        "os.system": pickle.dumps(Reduced(os.system, ("true",)), 4),
        "copyreg": pickle.dumps(types.SimpleNamespace(a=1), 2),
        "copy_reg": b"ccopy_reg\n_reconstructor\n(cbuiltins\nobject\nc__builtin__\nobject\nNtR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncnumpy\nndarray\nU\x01T\x86R.",
        "numpy.load": b"\x80\x02cnumpy\nload\n" + argument + b"\x85R.",
        "numpy.f2py": b"\x80\x02cnumpy.f2py\ncompile\n" + argument + b"\x85R.",
        "OrderedDict": pickle.dumps(collections.OrderedDict(a=1), 2),
        "set": pickle.dumps({1}, 4),
        "calling data": b"\x80\x02U\x01a)R.",
        "object array": pickle.dumps(np.array([Reduced(os.system, ("true",))], object), 2),
    }


def test_refusal_names_the_global(tmp_path):
    message = refused(b"\x80\x02cposix\nsystem\nU\x04true\x85R.", tmp_path)
    assert message == "names 'posix.system', which is no NumPy array and could run code"


def test_extension_registry_is_not_consulted(tmp_path):
    copyreg.add_extension("builtins", "eval", 240)
    try:
        pickle.loads(b"\x80\x02\x82\xf0.")  # the cache that the standard unpickler trusts
        refused(b"\x80\x02\x82\xf0.", tmp_path)
    finally:
        copyreg.remove_extension("builtins", "eval", 240)


@pytest.mark.parametrize("code", [op.code for op in pickletools.opcodes])
def test_instructions_that_are_not_allowed_are_refused(code, tmp_path):
    if ord(code) not in _Reader.dispatch:
        refused(b"\x80\x02" + code.encode("latin1") + b"\x00" * 16 + b".", tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02c_codecs\nencode\nU\x01aU\x04zlib\x86R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"J\xff\xff\xff\x7f\x85U\x01O\x87R.",
        b"\x80\x02]cnumpy\nndarray\na.",
        b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
        b"\x80\x02]q\x00h\x00a.",
        b"}r\x00\x00\x00\x10.",  # the standard unpickler takes 4 GB for it
    ],
)
def test_harmless_oddities_take_no_memory(data, tmp_path):
    tracemalloc.start()
    try:
        read(data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def array_pickle(shape, dtype="f4", data=b"\x00" * 8, state=None):
    class Fake:
        def __reduce_ex__(self, protocol):
            described = Reduced(np.dtype, (dtype, False, True), state) if state else np.dtype(dtype)
            values = (1, shape, described, False, data)
            return *EMPTY_ARRAY, values

    return pickle.dumps(Fake(), 2)


FIELDS = (3, "<", None, ("a",), {"a": (np.dtype("f4"), 0)}, -1, -1, 0)
SUBARRAY = (3, "|", (np.dtype("f4"), (2,)), None, None, 8, 1, 0)
SWAPPED = 1, (10_000,), np.dtype(">f4"), False, b"\x00" * 40_000
NUMBERS = [number * (2**61 - 1) for number in range(20_000)]  # all of the same hash
BOMBS = {
    "enormous shape": array_pickle((2**40,)),
    "overflowing shape": array_pickle((2**32, 2**32, 2)),
    "negative shape": array_pickle((-1,)),
    "zero and enormous": array_pickle((0, 2**70)),
    "bool in the shape": array_pickle((True, 2)),
    "too many dimensions": array_pickle((1,) * 65 + (2,)),
    "shape too small": array_pickle((1,)),
    "shape as a list": array_pickle([2]),
    "data missing": array_pickle((2,), data=None),
    "object dtype": array_pickle((1,), "O"),
    "void dtype": array_pickle((1,), "V8"),
    "text dtype": array_pickle((1,), "U2"),
    "dtype of fields": array_pickle((2,), state=FIELDS),
    "dtype of sub-arrays": array_pickle((1,), state=SUBARRAY),
    "dtype expression": array_pickle((1,), data=b"\x00" * 8).replace(b"f4", b"2d"),
    "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "LONG1": b"\x80\x02\x8a\xff\x01.",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"a.",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b"a.",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "long decimal": b"L" + b"9" * 100_000 + b"L\n.",
    "stack underflow": b"\x80\x02R.",
    "tuple underflow": b"\x80\x02K\x01\x87.",
    "mark underflow": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x05.",
    "only a mark": b"\x80\x02(.",
    "odd dict": b"\x80\x02(K\x01d.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "no stop": b"\x80\x02K\x01",
    "empty": b"",
    "html": b"<html><title>403 Forbidden</title></html>",
    # 60 tuples, each holding the one before it twice: hashing the last would take 2**60 steps
    "tuple of tuples as a key": b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "one text encoded again and again": b"\x80\x02("
    + b"X"
    + struct.pack("<I", 100_000)
    + b"a" * 100_000
    + b"q\x000c_codecs\nencode\nq\x01U\x06latin1q\x020"
    + b"h\x01h\x00h\x02\x86R" * 10
    + b"t.",
    # NumPy copies numbers whose bytes are swapped: a small file could make many large arrays.
    "one text as many arrays": pickle.dumps([Reduced(*EMPTY_ARRAY, SWAPPED) for _ in range(9)], 4),
    # As keys of one dict they keep the standard unpickler busy for a minute.
    "numbers of the same hash as keys": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + number.to_bytes(10, "little") + b"N" for number in NUMBERS)
    + b"u.",
    "a number as a key": pickle.dumps({1: 2}, 2),
    "a tuple as a key": pickle.dumps({(1,): 2}, 2),
    "far too many parts": b"\x80\x02(" + b"}" * 300_000 + b"t.",
}


@pytest.mark.parametrize("name", [*attacks("x"), *BOMBS])
def test_attacks_and_impossible_claims_are_refused(name, tmp_path):
    marker = tmp_path / "ran"
    message = refused({**attacks(marker), **BOMBS}[name], tmp_path)
    assert not marker.exists()
    assert "\n" not in message and len(message) < 200


def test_the_classes_of_an_index_are_read(tmp_path):
    classes = {f"{row:07}.jpg": row % 1000 for row in range(50_000)}
    for protocol in (2, 4):
        path = tmp_path / "imagenet.pickle"
        path.write_bytes(pickle.dumps(classes, protocol))
        assert read_pickle(path, 8 * len(classes)) == classes
        with pytest.raises(UnsafePickleError, match="far too many parts"):
            read_pickle(path, 5 * len(classes))


def test_huge_file_is_refused_before_reading(tmp_path):
    with open(tmp_path / "big.pkl", "wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(UnsafePickleError, match="bytes"):
        read_pickle(tmp_path / "big.pkl")


FUZZ = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OPCODES = [bytes([ord(op.code)]) for op in pickletools.opcodes]
VALID = pickle.dumps({"w": np.arange(4, dtype=np.float32), "n": [1, "a", (2.5,)]}, 2)


def read_or_refused(data, tmp_path):
    try:
        read(data, tmp_path)
    except UnsafePickleError as error:
        assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")  # pickletools'
@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6))
def test_damaged_pickles_raise_nothing_else(tmp_path, changes):
    damaged = bytearray(VALID)
    for position, value in changes:
        damaged[position] = value
    read_or_refused(bytes(damaged), tmp_path)


@FUZZ
@given(st.lists(st.sampled_from(OPCODES), max_size=30))
def test_random_opcodes_raise_nothing_else(tmp_path, opcodes):
    data = b"".join(opcode + b"\x00" for opcode in opcodes)
    read_or_refused(b"\x80\x02" + data + b".", tmp_path)
