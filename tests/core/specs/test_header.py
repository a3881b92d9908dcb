from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from made_headers import entry, file_of, table_of

from stiefel.errors import InvalidInputError
from stiefel.specs import header as header_module
from stiefel.specs.dtypes import BITS

ONE = {"a": entry([1], 0, 4)}
ENTRY = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWICE = b"{" + ENTRY + b"," + ENTRY + b"}"


def one(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]", more: str = "") -> bytes:
    text = f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'
    return file_of(text.encode(), 4)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "file_too_short"),
    "seven bytes": (b"abcdefg", "file_too_short"),
    "no JSON": (b"abcdefghijklmnop" * 4, "not_safetensors"),
    "header over the limit": (
        (16 * 2**20 + 1).to_bytes(8, "little") + b"{" * 64,
        "header_too_long",
    ),
    "header longer than the file": ((5000).to_bytes(8, "little") + b"{}", "header_truncated"),
    "broken JSON": (file_of(b'{"a":'), "header_not_json"),
    "two objects": (file_of(b"{}{}"), "header_not_json"),
    "deeply nested": (
        file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header_not_json",
    ),
    "not UTF-8": (file_of(b'{"\xff":1}'), "header_not_utf8"),
    "the same name twice": (file_of(TWICE, 4), "duplicate_key"),
    "the same key twice": (one(more=',"dtype":"F32"'), "duplicate_key"),
    "metadata no strings": (file_of({"__metadata__": {"a": 1}}), "metadata_invalid"),
    "metadata null": (file_of({"__metadata__": None}), "metadata_invalid"),
    "metadata surrogate": (file_of(b'{"__metadata__":{"a":"\\ud800"}}'), "metadata_invalid"),
    "metadata bomb": (file_of({"__metadata__": {"a": "x" * 2**21}}), "metadata_too_long"),
    "empty name": (file_of({"": entry([1], 0, 4)}, 4), "tensor_name"),
    "long name": (file_of({"n" * 513: entry([1], 0, 4)}, 4), "tensor_name"),
    "long name in bytes": (file_of({"\u00fc" * 300: entry([1], 0, 4)}, 4), "tensor_name"),
    "control character": (file_of({"a\x00b": entry([1], 0, 4)}, 4), "tensor_name"),
    "surrogate name": (file_of(b'{"\\ud800":{}}'), "tensor_name"),
    "entry no object": (file_of({"a": 1}), "tensor_entry"),
    "missing key": (file_of({"a": {"dtype": "F32", "shape": []}}), "tensor_entry"),
    "unknown key": (one(more=',"x":1'), "tensor_entry"),
    "unknown dtype": (one(dtype='"F128"'), "tensor_dtype"),
    "dtype no string": (one(dtype="[]"), "tensor_dtype"),
    "shape no list": (one(shape="1"), "tensor_shape"),
    "shape of booleans": (one(shape="[true]"), "tensor_shape"),
    "rank nine": (one(shape="[1,1,1,1,1,1,1,1,1]"), "tensor_shape"),
    "negative size": (one(shape="[-1]"), "header_number"),
    "minus zero": (one(offsets="[-0,4]"), "header_number"),
    "fraction": (one(shape="[1.0]"), "header_number"),
    "exponent": (one(shape="[1e0]"), "header_number"),
    "NaN": (one(shape="[NaN]"), "header_number"),
    "huge number": (one(shape="[0,99999999999999999999]", offsets="[0,0]"), "header_number"),
    "three offsets": (one(offsets="[0,4,4]"), "tensor_offsets"),
    "offsets backwards": (one(offsets="[4,0]"), "tensor_offsets"),
    "shape does not fit": (one(shape="[2]"), "tensor_size"),
    "overflowing shape": (one(shape="[4294967296,4294967296]", offsets="[0,0]"), "tensor_size"),
    "half a byte": (file_of({"a": entry([3], 0, 1, "F4")}, 1), "tensor_size"),
    "overlap": (
        file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
        "overlapping_tensors",
    ),
    "the same bytes": (
        file_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4),
        "overlapping_tensors",
    ),
    "empty inside another": (
        file_of({"a": entry([1], 0, 4), "b": entry([0], 2, 2)}, 4),
        "overlapping_tensors",
    ),
    "gap": (file_of({"a": entry([1], 4, 8)}, 8), "gap_between_tensors"),
    "cut short": (file_of(ONE, 3), "file_truncated"),
    "trailing bytes": (file_of(ONE, 5), "trailing_bytes"),
    "trailing bytes, no tensor": (file_of({}, 1), "trailing_bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_each_get_their_own_code_and_a_remedy(case: str) -> None:
    content, code = HOSTILE[case]
    with pytest.raises(InvalidInputError) as caught:
        table_of(content)
    assert caught.value.code == code
    assert caught.value.fix
    assert len(caught.value.detail) < 400


FOREIGN = {
    "torch_zip_file": b"PK\x03\x04" + b"\0" * 600,
    "pickle_file": b"\x80\x02}q\x00(X\x06\x00\x00\x00weight" + b"\0" * 600,
    "html_page": b"<!DOCTYPE html><html><body>Please log in</body></html>",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "gzip_file": b"\x1f\x8b\x08" + b"\0" * 100,
    "gguf_file": b"GGUF\x03\0\0\0" + b"\0" * 100,
    "hdf5_file": b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
    "numpy_file": b"\x93NUMPY\x01\0" + b"\0" * 100,
    "json_file": b'{"weight_map": {"a": "model.safetensors"}}',
}


@pytest.mark.parametrize("code", FOREIGN)
def test_files_of_other_formats_are_recognised_by_content(code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        table_of(FOREIGN[code])
    assert caught.value.code == code
    assert caught.value.fix


def test_a_header_whose_length_looks_like_a_pickle_is_still_read() -> None:
    # 0x0280 bytes of header: the file begins with the two bytes of a pickle of protocol 2.
    text = json.dumps(ONE).encode()
    content = file_of(text + b" " * (0x0280 - len(text)), 4)
    assert content.startswith(b"\x80\x02")
    assert list(table_of(content).tensors) == ["a"]


def test_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "MAX_TENSORS", 3)
    content = file_of({f"t{i}": entry([0], 0, 0) for i in range(4)})
    with pytest.raises(InvalidInputError) as caught:
        table_of(content)
    assert caught.value.code == "too_many_tensors"


def test_the_largest_legal_header_is_read_in_seconds() -> None:
    content = file_of({f"t{i:06d}": entry([0], 0, 0) for i in range(200_000)})
    assert len(content) < 16 * 2**20
    assert len(table_of(content).tensors) == 200_000


def test_a_table_lists_tensors_in_file_order_with_absolute_offsets() -> None:
    content = file_of({"b": entry([1], 4, 8), "a": entry([1], 0, 4), "e": entry([0], 8, 8)}, 8)
    table = table_of(content)
    assert list(table.tensors) == ["a", "b", "e"]
    assert table.header_bytes == len(content) - 8
    assert table.tensors["a"].begin == table.header_bytes
    assert [tensor.nbytes for tensor in table.tensors.values()] == [4, 4, 0]


def test_every_dtype_of_the_library_is_known() -> None:
    for dtype, bits in BITS.items():
        content = file_of({"a": entry([8], 0, bits, dtype)}, bits)
        assert table_of(content).tensors["a"].dtype == dtype
        safetensors.deserialize(content)


NAMES = st.sampled_from(["a", "b", "c", "", "__metadata__", "\u00e4"])
COUNTS = st.integers(-2, 12) | st.sampled_from([2**31, 2**32, 2**63, 2**64, 2**64 + 1])
LOOSE = st.recursive(
    st.none() | st.booleans() | COUNTS | st.floats() | st.sampled_from(["F32", "I8", "F4", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F33"]) | LOOSE,
        "shape": st.lists(COUNTS, max_size=9) | LOOSE,
        "data_offsets": st.lists(COUNTS, min_size=1, max_size=3) | LOOSE,
    }
)


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """Files that are right, or wrong in one or two places."""
    position, tensors = 0, {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(["F32", "U8", "F4", "C64"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = BITS[dtype]
        for size in shape:
            count *= size
        shift = draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        tensors[name] = entry(list(shape), position + shift, position + count // 8 + shift, dtype)
        position += count // 8
    text = json.dumps(tensors).encode() + b" " * draw(st.integers(0, 2))
    return file_of(text, max(0, position + draw(st.sampled_from([0, 0, 0, 1, -1]))))


FILES = (
    plausible()
    | st.builds(file_of, st.dictionaries(NAMES, ENTRIES | LOOSE, max_size=3), st.integers(0, 64))
    | st.builds(file_of, st.binary(max_size=64), st.integers(0, 8))
    | st.binary(max_size=64)
)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(FILES)
def test_nothing_the_library_refuses_is_accepted(content: bytes) -> None:
    try:
        table = table_of(content)
    except InvalidInputError:
        return
    theirs: dict[str, Any] = dict(safetensors.deserialize(content))
    assert {name: (t.dtype, list(t.shape)) for name, t in table.tensors.items()} == {
        name: (t["dtype"], t["shape"]) for name, t in theirs.items()
    }
    for name, tensor in table.tensors.items():
        assert content[tensor.begin : tensor.end] == bytes(theirs[name]["data"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_flipped_byte_never_crashes_the_reader(data: st.DataObject) -> None:
    content = bytearray(file_of({"a": entry([2], 0, 8), "b": entry([4], 8, 12, "U8")}, 12))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        table_of(bytes(content))
    except InvalidInputError:
        return
    safetensors.deserialize(bytes(content))
