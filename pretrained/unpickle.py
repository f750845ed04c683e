"""A pickle interpreter for state_dicts: 30 operations that import and execute nothing.

Python's pickle calls any function that a file names. This interpreter supports only the
operations that dictionaries of tensors need. The few names that it accepts stand for
inert values of this module, and a file with anything else is refused.

It is one file because the interpreter's safety is checked by reading it whole.
"""

import dataclasses
import math
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# Limits for a pickle. torchvision's largest state_dict (efficientnet_v2_l) has 58,180
# operations, 14,779 of which fill the memo.
MAX_BYTES = 1 << 20
MAX_OPERATIONS = 100_000
MAX_MEMO = 50_000
MAX_DIMENSIONS = 8
MAX_NAME = 1_000

SAVE_AGAIN = "save it with torch.save(model.state_dict(), FILE)"
GET_AGAIN = "get the file again"


class Refusal(Exception):
    """Raised to refuse a file; gives the reason and the remedy, not the file's name."""


@dataclasses.dataclass(eq=False)
class Storage:
    """A flat array of numbers, declared by the pickle and filled from the file."""

    dtype: np.dtype
    numel: int
    array: np.ndarray = dataclasses.field(init=False)  # absent until it is filled

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(eq=False)
class Tensor:
    """A contiguous view of a storage; becomes an array once the storage is filled."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Return the view as an array; the storage must be filled."""
        end = self.offset + math.prod(self.shape)
        return self.storage.array[self.offset : end].reshape(self.shape)


class OrderedDict(dict):
    """A dict that stands for an OrderedDict of the file, so that BUILD accepts it."""


class _Global(NamedTuple):
    """An inert placeholder for a name that a state_dict may use."""

    name: str
    dtype: np.dtype | None = None  # of a storage type


_ORDERED_DICT, _TENSOR, _PARAMETER = map(_Global, ("dict", "tensor", "parameter"))
_GLOBALS = {
    ("collections", "OrderedDict"): _ORDERED_DICT,
    ("torch._utils", "_rebuild_tensor_v2"): _TENSOR,
    ("torch._utils", "_rebuild_parameter"): _PARAMETER,
    ("torch", "FloatStorage"): _Global("storage", np.dtype("<f4")),
    ("torch", "DoubleStorage"): _Global("storage", np.dtype("<f8")),
    ("torch", "HalfStorage"): _Global("storage", np.dtype("<f2")),
    ("torch", "BFloat16Storage"): _Global("storage", np.dtype(ml_dtypes.bfloat16)),
    ("torch", "LongStorage"): _Global("storage", np.dtype("<i8")),
}


class Machine:
    """An interpreter for the consecutive pickles in `data`, with only `_OPERATIONS`.

    Every length is compared with the remaining bytes before it is read. Containers nest
    at most as deep as there are operations, and only strings become keys, so that no
    comparison or hash recurses. `storage_fields` is the number of fields in a reference
    to a storage in this format; `storages` collects the storages by key.
    """

    def __init__(self, data: bytes, storage_fields: int):
        """Initialise the interpreter before the first pickle."""
        self.data, self.storage_fields = data, storage_fields
        self.position = 0
        self.operations = 0
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Run one pickle, and return its value."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack below each open mark
        self.memo: dict[int, Any] = {}
        if self._take(1) != b"\x80" or self._take(1) != b"\x02":
            raise Refusal(f"holds a pickle whose protocol is not 2; {SAVE_AGAIN}")
        while (code := self._take(1)) != b".":
            self.operations += 1
            if self.operations > MAX_OPERATIONS:
                raise Refusal(f"has over {MAX_OPERATIONS:,} operations; {SAVE_AGAIN}")
            operation = _OPERATIONS.get(code)
            if code in _NUMBERS_OF_PYTHON:
                raise Refusal(
                    "holds Python's floating-point numbers, as training checkpoints "
                    "do; save only the state_dict in it with torch.save"
                )
            if operation is None:
                raise Refusal(
                    f"uses pickle operation 0x{code.hex()}, which no state_dict needs: "
                    f"it may be an entire model or another object; {SAVE_AGAIN}"
                )
            operation(self)
        value = self._pop()
        if self.stack or self.below:
            raise self._broken()
        return value

    def expect_end(self) -> None:
        """Refuse bytes after the last pickle."""
        if self.position != len(self.data):
            raise Refusal(f"has bytes after the end of its pickle; {GET_AGAIN}")

    def _broken(self) -> Refusal:
        return Refusal(
            f"has a pickle that is invalid at byte {self.position}; {GET_AGAIN}"
        )

    def _take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise Refusal(f"has a pickle that ends early; {GET_AGAIN}")
        return self.data[start : self.position]

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME)
        if end < 0:
            raise self._broken()
        text = self._take(end + 1 - self.position)[:-1]
        return text.decode("ascii", "backslashreplace")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        if not self.stack:
            raise self._broken()
        return self.stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self.below:
            raise self._broken()
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _string(self) -> None:
        try:
            self._push(self._take(self._number("<I")).decode())
        except UnicodeDecodeError:
            raise self._broken() from None

    def _long(self) -> None:
        length = self._number("B")
        if length > 16:
            raise self._broken()
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _put(self, index: int) -> None:
        if not self.stack:
            raise self._broken()
        if index >= MAX_MEMO:
            raise Refusal(f"has a memo of over {MAX_MEMO:,} entries; {SAVE_AGAIN}")
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise self._broken()
        self._push(self.memo[index])

    def _set_items(self, items: list[Any]) -> None:
        target: Any = self.stack[-1] if self.stack else None
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise self._broken()
        for name, value in zip(items[::2], items[1::2], strict=True):
            # Names appear in messages, so they must be printable and not too long.
            if type(name) is not str or len(name) > MAX_NAME or not name.isprintable():
                raise Refusal(
                    f"has a key that is not a short printable string; {SAVE_AGAIN}"
                )
            target[name] = value

    def _append(self, items: list[Any]) -> None:
        if not self.stack or type(self.stack[-1]) is not list:
            raise self._broken()
        self.stack[-1].extend(items)

    def _find_global(self) -> None:
        module, name = self._line(), self._line()
        known = _GLOBALS.get((module, name))
        if known is None and module == "torch" and name.endswith("Storage"):
            raise Refusal(
                f"holds a tensor of torch's {name[:40]!a}, but only float16, bfloat16, "
                "float32, float64 and int64 are read; save other tensors separately"
            )
        if known is None:
            raise Refusal(
                f"refers to {f'{module}.{name}'[:120]!a}, not a tensor: it may be an "
                f"entire model, another kind of tensor, or an attack; {SAVE_AGAIN}"
            )
        self._push(known)

    def _build(self) -> None:
        # torch sets the attribute _metadata, whose version numbers are not needed here.
        state = self._pop()
        target = self.stack[-1] if self.stack else None
        if (
            type(target) is not OrderedDict
            or type(state) is not dict
            or state.keys() != {"_metadata"}
        ):
            raise self._broken()

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise self._broken()
        if function is _ORDERED_DICT and arguments == ():
            self._push(OrderedDict())
        elif function is _TENSOR and len(arguments) == 6:
            self._push(self._tensor(*arguments))
        elif function is _PARAMETER and len(arguments) == 3:
            tensor, requires_grad, hooks = arguments
            self._expect_plain(requires_grad, hooks)
            if type(tensor) is not Tensor:
                raise self._broken()
            self._push(tensor)
        else:
            raise self._broken()

    def _expect_plain(self, requires_grad: Any, hooks: Any) -> None:
        if type(requires_grad) is not bool or type(hooks) is not OrderedDict or hooks:
            raise self._broken()

    def _tensor(self, storage, offset, shape, stride, requires_grad, hooks) -> Tensor:
        self._expect_plain(requires_grad, hooks)
        if type(storage) is not Storage or type(offset) is not int or offset < 0:
            raise self._broken()
        for numbers in (shape, stride):
            if (
                type(numbers) is not tuple
                or len(numbers) > MAX_DIMENSIONS
                or not all(type(number) is int and number >= 0 for number in numbers)
            ):
                raise self._broken()
        # An empty tensor may declare other dimensions that are too large for NumPy.
        if len(shape) != len(stride) or math.prod(n for n in shape if n) >= 2**60:
            raise self._broken()
        numel = math.prod(shape)
        if offset + numel > storage.numel:
            raise Refusal(
                f"has a tensor of {numel:,} values at offset {offset:,} in a storage "
                f"of {storage.numel:,}; {GET_AGAIN}"
            )
        step = 1
        for length, found in zip(reversed(shape), reversed(stride), strict=True):
            # The stride of a dimension of size 1 has no effect, and torch writes any.
            if numel and length != 1 and found != step:
                raise Refusal(
                    "has a transposed or expanded tensor; save contiguous tensors with "
                    "torch.save({k: v.contiguous() for k, v in "
                    "model.state_dict().items()}, FILE)"
                )
            step *= length
        return Tensor(storage, offset, shape)

    def _storage(self) -> None:
        fields = self._pop()
        if type(fields) is not tuple or len(fields) != self.storage_fields:
            raise self._broken()
        tag, kind, key, location, numel, *view = fields
        if (
            not all(type(text) is str for text in (tag, key, location))
            or tag != "storage"
            or type(kind) is not _Global
            or kind.dtype is None
            or type(numel) is not int
            or numel < 0
            or view not in ([], [None])
        ):
            raise self._broken()
        known = self.storages.setdefault(key, Storage(kind.dtype, numel))
        if (known.dtype, known.numel) != (kind.dtype, numel):
            raise self._broken()
        self._push(known)


_NUMBERS_OF_PYTHON = (b"G", b"F")
_OPERATIONS = {
    b"(": Machine._mark,
    b")": lambda m: m._push(()),
    b"]": lambda m: m._push([]),
    b"}": lambda m: m._push({}),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": Machine._long,
    b"X": Machine._string,
    b"t": lambda m: m._push(tuple(m._pop_mark())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._pop_mark()),
    b"s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    b"u": lambda m: m._set_items(m._pop_mark()),
    b"q": lambda m: m._put(m._number("B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"h": lambda m: m._get(m._number("B")),
    b"j": lambda m: m._get(m._number("<I")),
    b"c": Machine._find_global,
    b"R": Machine._reduce,
    b"b": Machine._build,
    b"Q": Machine._storage,
}
