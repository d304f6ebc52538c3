"""Parse pickles without executing them: nothing in them is imported, called or assigned.

A pickle is a program for a stack machine. This interpreter knows its opcodes, but where `pickle` calls a function or
creates an object of a class, it records the name and the arguments. A file can therefore not execute anything.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeAlias

Key: TypeAlias = str | int | float | bytes | None
_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Hashing and comparing a tuple visits all tuples within it: deep ones overflow the stack of C, and ones that hold the
# same tuple many times take exponential time.
_DEEPEST_TUPLE, _LARGEST_TUPLE = 100, 1 << 24


class Name(NamedTuple):
    """Name of a class or function, which is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Handle(NamedTuple):
    """Persistent id: a reference to something outside of the pickle, such as a storage."""

    identity: Any


@dataclass(eq=False)
class Inert:
    """Record of a call or of an object of a class.

    Attributes:
        name: Name of the class or function; None if it is itself the result of a call.
        arguments: Arguments of the call.
        state: State from which the object would be restored.
        items: Items that would be assigned to the object as to a mapping.
    """

    name: Name | None
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Key, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Parsed:
    """A parsed pickle.

    Attributes:
        content: The object.
        handles: All persistent ids.
        calls: All calls of functions and classes.
    """

    content: Any
    handles: list[Handle]
    calls: list[Inert]


def read_pickle(file: bytes | IO[bytes]) -> tuple[Any, list[Handle]]:
    """Return the content of a pickle, and all persistent ids in it.

    Numbers, strings, lists, tuples and dicts are returned as such, sets as lists, and everything else as `Inert`.

    Args:
        file: The pickle. An open file is left at the end of the pickle.

    Raises:
        Exception: The pickle is damaged; mostly ValueError and IndexError.
    """
    parsed = parse_pickle(file)
    return parsed.content, parsed.handles


def parse_pickle(file: bytes | IO[bytes]) -> Parsed:
    """Return the content of a pickle, all persistent ids in it, and all calls that it makes.

    Args:
        file: The pickle. An open file is left at the end of the pickle.

    Raises:
        Exception: The pickle is damaged; mostly ValueError and IndexError.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    return Parsed(machine.result, machine.handles, machine.calls)


def outermost_class(file: IO[bytes]) -> str | None:
    """Return the class of the object in a pickle, or None if it is a container or a tensor."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            return None if name == "collections.OrderedDict" or name.startswith("torch._utils.") else name
        legacy_module = opcode.name in ("MARK", "BINPUT") or argument == "module"  # ("module", class, its source)
        if opcode.name not in ("PROTO", "FRAME") and not legacy_module:
            return None
    return None


class _Machine:
    """Stack machine of pickle: a stack, the stacks below each mark, and the memo."""

    def __init__(self) -> None:
        self.result: Any = None
        self.handles: list[Handle] = []
        self.calls: list[Inert] = []
        # Depth and number of items of tuples that hold tuples, which are kept so that their ids stay theirs.
        self._nested: dict[int, tuple[tuple[Any, ...], int, int]] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Interpret one opcode."""
        if opcode in _CONSTANTS:
            self._stack.append(argument)
        elif opcode in _EMPTY:
            self._stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            self._stack[-count:] = [self._tupled(self._last(count))]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif opcode not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_{opcode.lower()}", None)
            if handler is None:
                raise ValueError(f"the pickle has the unknown opcode {opcode}")
            if argument is None:
                handler()
            else:
                handler(argument)

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the pickle takes more items from its stack than there are")
        return self._stack[-count:]

    def _marked(self) -> list[Any]:
        """Remove the last mark and return the items above it."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _stop(self) -> None:
        self.result = self._stack.pop()

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _pop_mark(self) -> None:
        self._marked()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self) -> None:
        items = self._marked()
        self._stack.append(self._tupled(items))

    def _tupled(self, items: list[Any]) -> tuple[Any, ...]:
        """Return a tuple of items, after checking how much it holds."""
        result = tuple(items)
        within = [item for item in items if isinstance(item, tuple)]
        if within:
            known = [self._nested.get(id(item), (item, 1, len(item))) for item in within]
            depth, size = 1 + max(entry[1] for entry in known), len(items) + sum(entry[2] for entry in known)
            if depth > _DEEPEST_TUPLE or size > _LARGEST_TUPLE:
                raise ValueError("it nests tuples more deeply than any checkpoint needs")
            self._nested[id(result)] = (result, depth, size)
        return result

    def _list(self) -> None:
        items = self._marked()
        self._stack.append(items)

    _frozenset = _list

    def _dict(self) -> None:
        items = self._marked()
        self._stack.append({})
        self._put(items)

    def _append(self) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self) -> None:
        self._extend(self._marked())

    _additems = _appends

    def _extend(self, items: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def _setitem(self) -> None:
        items = self._last(2)
        del self._stack[-2:]
        self._put(items)

    def _setitems(self) -> None:
        self._put(self._marked())

    def _put(self, items: list[Any]) -> None:
        target = self._stack[-1]
        mapping = target.items if isinstance(target, Inert) else target
        if isinstance(mapping, dict):
            # Other keys are never looked up, and hashing nested tuples can take exponential time.
            pairs = zip(items[::2], items[1::2], strict=True)
            mapping.update((key, value) for key, value in pairs if isinstance(key, Key))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Name(module, name))

    def _stack_global(self) -> None:
        module, name = self._last(2)
        self._stack[-2:] = [Name(str(module), str(name))]

    def _ext1(self, code: int) -> None:
        self._stack.append(Name("extension", str(code)))

    _ext2 = _ext4 = _ext1

    def _inst(self, argument: str) -> None:
        arguments = self._marked()
        self._global(argument)
        self._stack[-1] = self._called(self._stack[-1], tuple(arguments))

    def _obj(self) -> None:
        name, *arguments = self._marked()
        self._stack.append(self._called(name, tuple(arguments)))

    def _reduce(self) -> None:
        name, arguments = self._last(2)
        self._stack[-2:] = [self._called(name, arguments)]

    _newobj = _reduce

    def _newobj_ex(self) -> None:
        name, arguments, _ = self._last(3)
        self._stack[-3:] = [self._called(name, arguments)]

    def _build(self) -> None:
        target, state = self._last(2)
        self._stack.pop()
        if isinstance(target, Inert):
            target.state = state

    def _binpersid(self) -> None:
        self._stack[-1] = Handle(self._stack[-1])
        self.handles.append(self._stack[-1])

    def _called(self, name: Any, arguments: Any) -> Inert:
        if isinstance(name, Handle) and isinstance(name.identity, tuple):  # ("module", class, …) of a legacy file
            name = next((part for part in name.identity if isinstance(part, Name)), None)
        call = Inert(name if isinstance(name, Name) else None, arguments if isinstance(arguments, tuple) else ())
        self.calls.append(call)
        return call
