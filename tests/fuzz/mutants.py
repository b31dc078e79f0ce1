"""Seeded mutants of good files, and what a reader owes to each: a value, or one sentence, within a second."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headscope.errors import HeadscopeError

# What a field of JSON may turn into: every other type, numbers that are none, too large, too small, texts no console prints.
NASTY: tuple[Any, ...] = (
    None,
    True,
    "",
    "text",
    [],
    [1],
    [[["deep"]], {"a": [None]}],
    {},
    {"a": {"b": 1}},
    float("nan"),
    float("inf"),
    -1,
    0,
    1.5,
    2**70,
    -(2**70),
    "very long " * 2_000,
    "\ud800",
)
# What a cell of a table may turn into.
CELLS: tuple[Any, ...] = (None, -1, 2**40, -(2**63), 1e300, float("nan"), "", "text", [], [2**31], [None])
LONGEST = 1_000  # characters of a sentence that somebody still reads


def count() -> int:
    """Mutants of a kind: 200, or what the environment variable HEADSCOPE_FUZZ says."""
    return int(os.environ.get("HEADSCOPE_FUZZ", "200"))


def seeds(first: int = 0, part: int = 1) -> Iterator[tuple[int, random.Random]]:
    """(number, generator) of one `part` of the mutants of a kind: `count() / part` of them, numbered from `first`."""
    for number in range(first, first + count() // part):
        yield number, random.Random(number)


def survives(load: Callable[[], object], mutant: object = "") -> object:
    """Call `load`, and fail unless it returns or raises a HeadscopeError of one printable sentence, within a second.

    Args:
        load: reads one mutant, and does with it what a user would.
        mutant: which one it is, for the failure.

    Returns:
        What `load` returned, or the error.
    """
    began = time.process_time()
    try:
        result = load()
    except HeadscopeError as error:
        result = error
        said = str(error)
        assert said, f"mutant {mutant}: an error without a word"
        assert said.isprintable(), f"mutant {mutant}: no line that a console prints: {said!r}"
        assert "Traceback" not in said, f"mutant {mutant}: {said}"
        assert len(said) <= LONGEST, f"mutant {mutant}: {len(said)} characters: {said[:300]}"
    except BaseException as error:
        error.add_note(f"mutant {mutant}")
        raise
    seconds = time.process_time() - began
    assert seconds < 1, f"mutant {mutant}: took {seconds:.1f} s"
    return result


def all_survive(
    mutated: Callable[[bytes, random.Random], bytes], good: bytes, file: Path, use: Callable[[Path], object], part: int = 2
) -> None:
    """One `part` of the mutants of a kind, each as a file of its own beside `file`, survive `use`."""
    for number, rng in seeds(part=part):
        path = file.with_stem(f"{file.stem}-{number}")
        path.write_bytes(mutated(good, rng))
        survives(partial(use, path), number)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to three faults of a disk, a network or an editor; half of them in its first or last 512 bytes."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((_flip, _cut, _insert, _delete, _zero, _swap, _repeat))(data, rng)
    return data


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of `value` with one entry replaced, deleted or added somewhere in it; a value of its own is replaced."""
    value = copy.deepcopy(value)
    places = list(_containers(value))
    if not places or rng.random() < 0.1:
        return nasty(rng)
    place = rng.choice(places)
    what = rng.choice(("replace", "replace", "replace", "delete", "add"))
    if what == "add" or not place:
        if isinstance(place, dict):
            place[rng.choice(("note", "", "rows", "limit", "\ud800"))] = nasty(rng)
        else:
            place.insert(rng.randint(0, len(place)), nasty(rng))
        return value
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if what == "delete":
        del place[key]
    else:
        place[key] = nasty(rng)
    return value


def mutated_text(text: str, rng: random.Random) -> str:
    """JSON in a string, mutated as JSON; now and then it is no JSON any more."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(("pt", "", "{", "[1,", "nul", "0x10", "1e999", '"', "[" * 100_000))
    try:
        value = json.loads(text)
    except ValueError:  # a text of its own, such as a check sum
        value = text
    mutant = mutated_json(value, rng)
    return mutant if isinstance(mutant, str) and mutant.isascii() else json.dumps(mutant)


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with one entry of its header changed (dtype, shape, offsets, metadata); the numbers stay."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    kind = rng.random()
    if metadata and kind < 0.7:
        name = rng.choice(list(metadata))
        metadata[name] = mutated_text(metadata[name], rng)
    elif metadata and kind < 0.8:
        del metadata[rng.choice(list(metadata))]
    elif kind < 0.85:
        header.setdefault("__metadata__", {})[rng.choice(("format", "note", ""))] = "pt"
    elif kind < 0.95:
        _change_tensor(header, rng)
    else:
        header = mutated_json(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def mutated_parquet(data: bytes, rng: random.Random) -> bytes:
    """A parquet file with one fact of its metadata, one column or one cell changed, written anew as parquet."""
    table = pq.read_table(io.BytesIO(data))
    metadata = dict(table.schema.metadata or {})
    own = [name for name in metadata if name not in (b"pandas", b"ARROW:schema")]
    kind = rng.random()
    if own and kind < 0.4:
        name = rng.choice(own)
        metadata[name] = mutated_text(metadata[name].decode(), rng).encode()
    elif own and kind < 0.45:
        del metadata[rng.choice(own)]
    elif b"pandas" in metadata and kind < 0.5:
        metadata[b"pandas"] = mutated_text(metadata[b"pandas"].decode(), rng).encode()
    else:
        table = _changed_table(table, rng)
    made = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), made)
    return made.getvalue()


def nasty(rng: random.Random) -> Any:
    """One of NASTY, to keep."""
    return copy.deepcopy(rng.choice(NASTY))


def _change_tensor(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensor = header[name]
    kind = rng.choice(("dtype", "shape", "wide", "offsets", "name"))
    if kind == "dtype":
        tensor["dtype"] = rng.choice(("F16", "F32", "F64", "I8", "I32", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "C64", "X"))
    elif kind == "shape":  # the same numbers, so that only their reader can notice
        tensor["shape"] = rng.choice(([*tensor["shape"][::-1]], [*tensor["shape"], 1], [_product(tensor["shape"])]))
    elif kind == "wide":
        tensor["shape"] = rng.choice(([2**40, 2**20], [0], [0, 2**60], [], [2**63], [1] * 80))
    elif kind == "offsets":
        tensor["data_offsets"] = [rng.choice((0, 1, tensor["data_offsets"][0])), rng.choice((0, 8, 2**40, 2**63))]
    else:
        header[rng.choice(("note", "", name.upper()))] = header.pop(name)


def _changed_table(table: pa.Table, rng: random.Random) -> pa.Table:
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    cells = table.column(place).to_pylist()
    kind = rng.choice(("drop", "rename", "twice", "none", "text", "cell", "cell", "cell", "rows"))
    if kind == "drop":
        return table.remove_column(place)
    if kind == "rename":
        return table.rename_columns([f"{other}2" if other == name else other for other in table.column_names])
    if kind == "twice":
        return table.append_column(name, table.column(place))
    if kind == "none":
        return table.set_column(place, name, pa.nulls(len(cells)))
    if kind == "text":
        return table.set_column(place, name, pa.array([str(cell) for cell in cells]))
    if kind == "rows":
        return table.slice(0, rng.choice((0, len(cells) - 1)))
    cells[rng.randrange(len(cells))] = rng.choice(CELLS)
    try:
        return table.set_column(place, name, pa.array(cells))
    except (pa.ArrowException, TypeError):  # numbers beside texts: no column holds both
        return table.set_column(place, name, pa.array([str(cell) for cell in cells]))


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _containers(value: Any) -> Iterator[Any]:
    """Every dictionary and list in `value`, itself included."""
    if isinstance(value, dict | list):
        yield value
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _containers(entry)


def _place(data: bytes, rng: random.Random) -> int:
    if rng.random() < 0.5 or len(data) < 1_024:
        return rng.randrange(len(data) + 1)
    near = rng.randrange(512)
    return near if rng.random() < 0.5 else len(data) - near


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 4, 8, 64, 1_000)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8))):
        if changed:
            changed[min(_place(data, rng), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.randbytes(rng.choice((1, 4, 64))) + data[start:]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:start] + data[stop:]


def _zero(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_range(data, rng), _range(data, rng)))
    return data if c < b else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:stop] + data[start:stop] + data[stop:]
