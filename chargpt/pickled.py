"""Plain values out of a pickle that `torch.save` wrote: numbers, text, containers and tensors, and nothing else.

A pickle is a program, and a short one can ask for any amount of memory. What `torch.load(weights_only=True)` runs of
that language runs no foreign code, but it includes `bytearray(10**11)`, tensors that are only claimed, and copies of
copies. Here are the few instructions that checkpoints consist of, each with a price.
"""

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Global(str):
    """What a pickle calls by its name: a type of number, or a function. No data is of this type."""


DTYPES = {
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch ShortStorage": torch.int16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
}
PRICE_OF_A_TENSOR = 10  # instructions


class Reader:
    """Reads one pickle.

    Args:
        read_storage: gives the numbers stored under a key: (key, dtype, how many) to a tensor of one dimension.
        size: of the file, in bytes; neither the instructions nor the tensors may be out of proportion to it. A file of
            ours has 12 bytes or more for each instruction.
    """

    def __init__(self, read_storage: Callable[[str, torch.dtype, int], Tensor], size: int):
        self.read_storage = read_storage
        self.storages: dict[str, Tensor] = {}
        self.instructions_left = size // 4
        self.bytes_left = 2 * size

    def read(self, pickle: bytes) -> Any:
        """The value.

        Raises:
            Exception: it is no such pickle, damaged, or out of proportion; of which kind depends on what is wrong.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            mark = marks.pop()
            items = stack[mark:]
            del stack[mark:]
            return items

        argument: Any
        for instruction, argument, _ in pickletools.genops(pickle):
            self.pay(1)
            match instruction.name:
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self.again(memo[argument]))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(instruction.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    length = int(instruction.name[-1])
                    stack[-length:] = [tuple(stack[-length:])]
                case "APPEND":
                    item = stack.pop()
                    _of(list, stack[-1]).append(item)
                case "APPENDS":
                    items = since_mark()
                    _of(list, stack[-1]).extend(items)
                case "SETITEM":
                    item = stack.pop()
                    key = _key(stack.pop())
                    _of(dict, stack[-1])[key] = item
                case "SETITEMS":
                    items = since_mark()
                    _of(dict, stack[-1]).update(zip(map(_key, items[::2]), items[1::2], strict=True))
                case "GLOBAL":
                    stack.append(Global(argument))
                case "BINPERSID":
                    stack.append(self.storage(*stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(self.call(stack.pop(), arguments))
                case "BUILD":  # attributes of a state dict, its versions: they are not needed
                    _of(dict, stack.pop())
                    _of(OrderedDict, stack[-1])
                case "PROTO" | "STOP":
                    pass
                case other:
                    raise ValueError(f"unexpected in a checkpoint: {other}")
        return stack.pop()

    def pay(self, instructions: int) -> None:
        self.instructions_left -= instructions
        if self.instructions_left < 0:
            raise ValueError("too many values for the size of the file")

    def again(self, value: Any) -> Any:
        """A value that is used once more. Lists and dicts are not: whoever copies or shows one that holds another
        twice, which holds a third twice, would need any amount of memory."""
        if type(value) is Tensor:
            self.pay_for_bytes(value)
        elif not isinstance(value, str) and not (type(value) is tuple and all(map(_is_plain, value))):
            raise TypeError(f"a {type(value).__name__} that is used twice")
        return value

    def pay_for_bytes(self, tensor: Tensor) -> None:
        self.bytes_left -= math.prod(tensor.shape) * tensor.itemsize  # PyTorch's own product can overflow
        if self.bytes_left < 0:
            raise ValueError("tensors larger than the file")

    def call(self, function: Any, arguments: Any) -> Any:
        _of(Global, function)
        _of(tuple, arguments)
        if function == "collections OrderedDict" and not arguments:
            return OrderedDict()
        if function == "builtins set" or function == "__builtin__ set":
            [items] = arguments
            return set(map(_key, _of(list, items)))
        if function == "torch._utils _rebuild_parameter":
            tensor, _, _ = arguments
            return tensor
        if function == "torch._utils _rebuild_tensor_v2":
            return self.tensor(*arguments)
        raise ValueError(f"unexpected in a checkpoint: {function}")

    def storage(self, kind: str, dtype: Global, key: str, device: str, length: int) -> Tensor:
        if kind != "storage":
            raise ValueError("not a storage")
        wanted = DTYPES[_of(Global, dtype)]
        numbers = self.storages.get(_of(str, key))
        if numbers is None:
            numbers = self.storages[key] = self.read_storage(key, wanted, _of(int, length))
        if numbers.dtype != wanted or len(numbers) != length:
            raise ValueError("a storage of two kinds")
        return numbers

    def tensor(
        self, numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], grad: bool, hooks: Any
    ) -> Tensor:
        """A part of a storage; an expanded one, larger than its storage, is refused."""
        self.pay(PRICE_OF_A_TENSOR + len(_of(tuple, size)) + len(_of(tuple, stride)))
        tensor = numbers.as_strided(size, stride, offset)
        self.pay_for_bytes(tensor)
        if math.prod(tensor.shape) > len(numbers):
            raise ValueError("a tensor larger than its storage")
        return tensor


def _of(kind: type, value: Any) -> Any:
    """The value, if it is of this type, for `dict` also an `OrderedDict`."""
    if type(value) is not kind and not (kind is dict and type(value) is OrderedDict):
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


def _key(value: Any) -> Any:
    """A value that can be a key: text, or a number below 2**60. Larger ones, and tuples, can be many with one hash, and
    a dict of them takes time that grows with the square of their number."""
    if type(value) not in (str, int, bool, type(None)) or (type(value) is int and abs(value) >= 2**60):
        raise TypeError(f"not a key: {type(value).__name__}")
    return value


def _is_plain(value: Any) -> bool:
    return type(value) in (str, int, float, bool, type(None))
