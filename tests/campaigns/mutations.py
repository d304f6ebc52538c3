"""Mutations of files by what they consist of: bytes, pickles, archives, documents, tensors and messages."""

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeAlias

import numpy as np
import torch

Mutate: TypeAlias = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, -1, 2, 127, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 33, (1 << 63) - 1, -(1 << 63))
NUMBERS = (*INTEGERS, 0.0, -0.0, 0.5, -1.5, 1e308, 1e-308, float("nan"), float("inf"), -float("inf"), 1 << 70)
STRINGS = ("", "a", "\x00", "\x1b[31m", "../x", "/etc/passwd", "é" * 40, "a." * 3000, "weight", "__metadata__", "<!--")
NAMES = (
    "builtins bytearray",
    "builtins set",
    "collections OrderedDict",
    "os system",
    "torch FloatStorage",
    "torch FloatTensor",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._tensor _rebuild_from_type_v2",
)


def of_bytes(data: bytes, random: Random) -> bytes:
    """Change some bytes, mostly near the ends, where headers and directories are."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not content:
            break
        span = random.choice((len(content), min(len(content), 512)))
        at = random.randrange(span)
        at = len(content) - 1 - at if random.random() < 0.3 else at
        how = random.randrange(7)
        if how == 0:
            content[at] ^= 1 << random.randrange(8)
        elif how == 1:
            content[at] = random.choice((0, 1, 127, 128, 255))
        elif how == 2:
            del content[at:]
        elif how == 3:
            content[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 9)))
        elif how == 4:
            del content[at : at + random.randrange(1, 64)]
        elif how == 5:
            width, code = random.choice(((4, "<I"), (8, "<Q"), (2, "<H")))
            content[at : at + width] = struct.pack(code, random.choice(INTEGERS) & ((1 << 8 * width) - 1))
        else:
            start = random.randrange(len(content))
            content[at:at] = content[start : start + random.randrange(1, 200)]
    return bytes(content)


def _opcodes(data: bytes) -> list[tuple[str, Any, int, int]]:
    """Return the name, argument, start and end of each opcode of the pickles that data begins with."""
    file, found = io.BytesIO(data), []
    try:
        while file.tell() < len(data):
            items = [(op.name, argument, at) for op, argument, at in pickletools.genops(file)]
            ends = [at or 0 for _, _, at in items[1:]] + [file.tell()]
            found += [(name, argument, at or 0, end) for (name, argument, at), end in zip(items, ends, strict=True)]
    except Exception:  # the storages of legacy files follow their pickles
        return found
    return found


def of_pickle(data: bytes, random: Random) -> bytes:
    """Change an opcode of a pickle: its number, its text or its name, or remove, repeat or move it."""
    opcodes = _opcodes(data)
    if not opcodes or random.random() < 0.15:
        return of_bytes(data, random)
    for _ in range(random.choice((1, 1, 2))):
        name, argument, start, end = random.choice(opcodes)
        new = _opcode(name, argument, data[start:end], random)
        data = data[:start] + new + data[end:]
        opcodes = _opcodes(data) or opcodes[:1]
    return data


def _opcode(name: str, argument: Any, old: bytes, random: Random) -> bytes:
    if name == "GLOBAL" and random.random() < 0.8:
        module, attribute = random.choice(NAMES).split()
        return f"c{module}\n{attribute}\n".encode()
    if isinstance(argument, int) and "PUT" not in name and "GET" not in name and random.random() < 0.8:
        number = random.choice(INTEGERS)
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
    if isinstance(argument, str) and random.random() < 0.7:
        text = random.choice(STRINGS).encode()
        return b"X" + struct.pack("<I", len(text)) + text
    choice = random.randrange(6)
    others = (b"", old + old, b"N", b")", b"]" + old, b"2\x86" * random.choice((1, 60, 5000)))
    return others[choice]


def of_zip(inner: Callable[[str], Mutate]) -> Mutate:
    """Return a mutation of archives: of their members, by the name of each, or of their directory."""

    def mutate(data: bytes, random: Random) -> bytes:
        if random.random() < 0.2:
            return of_bytes(data, random)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        at = random.randrange(len(members))
        if random.random() < 0.6:  # the description is smaller than the data, and more can go wrong in it
            at = next((i for i, (name, _) in enumerate(members) if name.endswith((".pkl", ".json"))), at)
        name, content = members[at]
        how = random.random()
        if how < 0.75:
            members[at] = (name, inner(name)(content, random))
        elif how < 0.8:
            del members[at]
        elif how < 0.85:
            members[at] = (random.choice((*STRINGS[1:6], name + "x")), content)
        elif how < 0.9:
            members.append((name + random.choice(("", "2")), content))
        elif how < 0.95:
            members[at] = (name, random.choice(members)[1])
        else:
            members[at] = (name, content * random.randrange(3))
        file = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if random.random() < 0.04 else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w") as new, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of two members with one name
            for member, stored in members:
                new.writestr(zipfile.ZipInfo(member), stored, method)  # without the time
        return file.getvalue()

    return mutate


def of_json(data: bytes, random: Random) -> bytes:
    """Change a value of a JSON document, or its text."""
    try:
        document = json.loads(data)
    except ValueError:
        return of_bytes(data, random)
    if random.random() < 0.1:
        return of_bytes(data, random)
    return json.dumps(of_tree(document, random)).encode()


def of_lines(data: bytes, random: Random) -> bytes:
    """Change a line of a file of JSON lines."""
    lines = data.splitlines(keepends=True)
    if not lines or random.random() < 0.1:
        return of_bytes(data, random)
    at = random.randrange(len(lines))
    lines[at] = of_json(lines[at], random) + (b"\n" if random.random() < 0.9 else b"")
    return b"".join(lines)


def of_tree(tree: Any, random: Random) -> Any:
    """Change one place of nested dicts and lists."""
    places = list(_places(tree))
    if not places:
        return _value(tree, random)
    holder, key = random.choice(places)
    how = random.random()
    if how < 0.2:
        del holder[key]
    elif how < 0.27 and isinstance(holder, dict):
        holder[random.choice(STRINGS)] = holder.pop(key)
    elif how < 0.35:
        other, theirs = random.choice(places)
        holder[key] = other[theirs] if other is not holder[key] and not isinstance(other[theirs], dict | list) else None
    else:
        holder[key] = _value(holder[key], random)
    return tree


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        if depth < 12:
            yield from _places(tree[key], depth + 1)


def _value(old: Any, random: Random) -> Any:
    if isinstance(old, torch.Tensor) and random.random() < 0.7:
        return _tensor(old, random)
    if isinstance(old, int | float) and random.random() < 0.5:
        return random.choice(NUMBERS)
    deep: Any = []
    for _ in range(random.choice((3, 200))):
        deep = [deep]
    return random.choice((None, True, [], {}, [old], {"x": 1}, deep, random.choice(NUMBERS), random.choice(STRINGS)))


def _tensor(old: torch.Tensor, random: Random) -> torch.Tensor:
    """Return a tensor of another shape, dtype, layout or content."""
    changes: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: old.flatten(),
        lambda: old[..., :0],
        lambda: old.unsqueeze(0),
        lambda: old.to(torch.float64),
        lambda: old.to(torch.int32),
        lambda: old.to(torch.complex64),
        lambda: torch.full_like(old, float("nan") if old.is_floating_point() else 7),
        lambda: -old,
        lambda: old.to_sparse(),
        lambda: torch.empty_like(old, device="meta"),
        lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
        lambda: torch.cat([old.flatten(), old.flatten()]),
    )
    try:
        return random.choice(changes)()
    except (RuntimeError, IndexError, NotImplementedError):
        return torch.ones(3)


def of_torch(data: bytes, random: Random) -> bytes:
    """Change the content of a file of torch.save as an object, or its archive."""
    if random.random() < 0.4:
        return of_zip(lambda name: of_pickle if name.endswith(".pkl") else of_bytes)(data, random)
    content = torch.load(io.BytesIO(data), weights_only=True)
    file = io.BytesIO()
    torch.save(of_tree(content, random), file)
    return file.getvalue()


def of_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, a document within its metadata, or its data."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    how = random.random()
    if how < 0.2:
        return of_bytes(data, random)
    if how < 0.35 and body:
        at = random.randrange(0, max(len(body) - 8, 1), 4)
        body[at : at + 4] = struct.pack("<f", float(random.choice((np.nan, np.inf, -1.0, 1e38, 1e-40))))
    elif how < 0.7 and (own := [key for key in header.get("__metadata__", {}) if key.startswith("lrzip")]):
        key = random.choice(own)
        header["__metadata__"][key] = of_json(header["__metadata__"][key].encode(), random).decode(errors="replace")
    else:
        header = of_tree(header, random)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(body)


def of_npy(data: bytes, random: Random) -> bytes:
    """Change the header of an array or its data."""
    claims = (b"(99999999999,)", b"(-1, 2)", b"()", b"'|O'", b"'<U9'", b"(1000000, 1000000)", b"None")
    end = data.find(b"}")
    if random.random() < 0.6 and end > 0:
        at = random.choice([data.find(b"'shape'"), data.find(b"'descr'")]) + 9
        stop = data.find(b")" if data[at : at + 1] == b"(" else b",", at) + 1
        return data[:at] + random.choice(claims) + data[stop - (data[at : at + 1] != b"(") :]
    return of_bytes(data, random)


def of_message(data: bytes, random: Random) -> bytes:
    """Change a field of an ONNX model: a number, a text, a list or a message in it."""
    import onnx

    if random.random() < 0.2:
        return of_bytes(data, random)
    model = onnx.ModelProto.FromString(data)
    for _ in range(random.choice((1, 1, 2))):
        message: Any = model
        fields = message.ListFields()
        while fields and random.random() < 0.85:
            inner = [value for field, value in fields if field.message_type is not None]
            if not inner:
                break
            value = random.choice(inner)
            message = value if hasattr(value, "ListFields") else random.choice(value) if len(value) else message
            fields = message.ListFields()
        if fields:
            field, value = random.choice(fields)
            _change_field(message, field, value, random)
    return bytes(model.SerializeToString())


def _change_field(message: Any, field: Any, value: Any, random: Random) -> None:
    name, pick = field.name, random.random()
    try:
        if pick < 0.15:
            message.ClearField(name)
        elif isinstance(value, bool | int):
            setattr(message, name, random.choice(INTEGERS))
        elif isinstance(value, str):
            setattr(message, name, random.choice(STRINGS))
        elif isinstance(value, bytes):
            setattr(message, name, of_bytes(value, random))
        elif isinstance(value, float):
            setattr(message, name, random.choice((0.0, -1.0, float("nan"), 1e38)))
        elif len(value):
            at = random.randrange(len(value))
            if pick < 0.4:
                del value[at]
            elif field.message_type is not None:
                value.add().CopyFrom(value[at])
            elif isinstance(value[at], int):
                value[at] = random.choice(INTEGERS)
            elif isinstance(value[at], str):
                value[at] = random.choice((*STRINGS, *value))
            else:
                value.append(value[at])
    except (ValueError, TypeError, AttributeError):  # an enumeration or range of the schema
        message.ClearField(name)
