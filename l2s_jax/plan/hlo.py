"""What a compiled program moves: bytes through memory, and between devices.

Lives here: a reader of the compiler's text of a program. Not here: how long it takes
(`plan/cost.py`), arithmetic (`plan/flops.py`), how much memory is held (`plan/memory.py`).

An instruction moves its operands and its result; one that reads or writes a slice moves that slice,
inside a fusion too. What stays in a core's fast memory (space 1 in the text) is not counted. Loops
count as often as the compiler says that they run, and of branches the dearest.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # others say it: f32, s8
SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)\s*\(.*\{\s*$")
LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
NAME = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition)=(%[\w.\-]+)|branch_computations=\{([^}]*)\}"
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id opt-barrier async-start async-update".split()
)
MOVES_NOTHING = ("AllocateBuffer", "AsyncCollective", "AssumeGather", "ConcatBitcast")  # on a TPU
SLICES = ("dynamic-slice", "gather", "slice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One exchange between devices, and how often it happens."""

    kind: str
    num_bytes: int  # of the whole array that a device gives, or gets, the larger
    groups: tuple[tuple[int, ...], ...]  # of devices, by their place in the mesh
    channel: str = ""  # one exchange may stand in several instructions: its start, its end
    count: float = 1.0

    @property
    def size(self) -> int:
        return max(map(len, self.groups), default=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a program moves on one device."""

    num_bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            num_bytes=self.num_bytes + other.num_bytes,
            collectives=self.collectives + other.collectives,
        )

    def times(self, count: int) -> "Traffic":
        repeated = (dataclasses.replace(c, count=c.count * count) for c in self.collectives)
        return Traffic(num_bytes=self.num_bytes * count, collectives=tuple(repeated))


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    kind: str  # of result, as the text has it
    opcode: str
    arguments: str  # between its parentheses: operands, or a parameter's number
    attributes: str
    is_root: bool

    @functools.cached_property
    def num_bytes(self) -> int:
        """Of the result."""
        return shape_bytes(self.kind)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(NAME.findall(self.arguments))

    @property
    def called(self) -> list[str]:
        found = CALLED.findall(self.attributes)
        return [name for names in found for part in names for name in NAME.findall(part)]


Computation = dict[str, Instruction]


def traffic(text: str, *, while_trips: tuple[int, ...] = ()) -> Traffic:
    """What the program of a compiled module's text moves.

    Args:
      while_trips: how often the body of a loop runs whose end depends on data, of one that lies in
        such a loop, and so on; deeper ones run once.
    """
    module, entry = read_module(text)
    return Reader(module).of_computation(entry, while_trips)


def read_module(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the name of the first that runs)."""
    module: dict[str, Computation] = {}
    entry, body = "", None
    for line in text.splitlines():
        if body is None:
            if head := HEAD.match(line):
                body = module.setdefault(head[1], {})
                entry = head[1] if line.startswith("ENTRY") else entry
        elif line.rstrip() == "}":  # an instruction's attributes may go on over several lines
            body = None
        elif found := _read_line(line):
            body[found.name] = found
    return module, entry


def _read_line(line: str) -> Instruction | None:
    head = LINE.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ") - 1
    kind, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    begin = rest.index("(")
    stop = _closing(rest, begin)
    return Instruction(
        name=head[1],
        kind=kind,
        opcode=rest[:begin],
        arguments=rest[begin + 1 : stop],
        attributes=rest[stop + 1 :],
        is_root=line.lstrip().startswith("ROOT "),
    )


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` closes."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no end of {text[begin : begin + 80]!r}")


def shape_bytes(kind: str, *, fast: bool = False) -> int:
    """Bytes of all arrays in a type; of those in fast memory too, where that is asked for."""
    total = 0
    for name, sizes, layout in SHAPE.findall(kind):
        if "S(1)" in layout and not fast:
            continue
        bits = BITS.get(name) or int(re.findall(r"\d+", name)[0])
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total


class Reader:
    """Adds up what computations move."""

    def __init__(self, module: dict[str, Computation]):
        self._module = module
        self._known: dict[tuple[str, tuple[int, ...]], Traffic] = {}

    def of_computation(self, name: str, trips: tuple[int, ...]) -> Traffic:
        """What a computation moves; `trips` are those of the loops in it that data ends."""
        if (name, trips) not in self._known:
            parts = (self._of(i, self._module[name], trips) for i in self._module[name].values())
            self._known[name, trips] = _once_each(sum(parts, Traffic()))
        return self._known[name, trips]

    def _of(self, one: Instruction, around: Computation, trips: tuple[int, ...]) -> Traffic:
        called = [name for name in one.called if name in self._module]
        if one.opcode == "while":
            often, deeper = self._trips_of(one), trips
            if often is None:
                often, *rest = trips or (1,)
                deeper = tuple(rest)
            return sum((self.of_computation(c, deeper) for c in called), Traffic()).times(often)
        found = [self.of_computation(name, trips) for name in called]
        if one.opcode == "conditional":
            return max(found, key=lambda branch: branch.num_bytes)
        if one.opcode in ("call", "async-start"):
            return sum(found, Traffic())
        if one.opcode == "fusion":
            [inside] = called
            exchanged = found[0].collectives
            moved = fusion_bytes(one, around, self._module[inside])
            return Traffic(num_bytes=float(moved), collectives=exchanged)
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            exchange = _collective(kind, one, around)
            return Traffic(num_bytes=float(_moved(one, around)), collectives=(exchange,))
        return Traffic(num_bytes=float(_moved(one, around)))

    def _trips_of(self, loop: Instruction) -> int | None:
        """How often a loop's body runs: what the text says, or a bound that its counter meets.

        None where data ends it.
        """
        if said := TRIPS.search(loop.attributes):
            return int(said[1])
        named = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        condition = self._module[named[1]] if named else {}
        root = next((i for i in condition.values() if i.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        bounds = [condition[name] for name in root.operands if name in condition]
        known = [int(i.arguments) for i in bounds if i.opcode == "constant"]
        return known[0] if len(known) == 1 else None


def _once_each(found: Traffic) -> Traffic:
    """The traffic of a computation, each of its channels once."""
    named = {c.channel: c for c in found.collectives if c.channel}
    others = tuple(c for c in found.collectives if not c.channel)
    return dataclasses.replace(found, collectives=(*named.values(), *others))


def _moved(one: Instruction, around: Computation) -> int:
    """Bytes that one instruction outside a fusion reads and writes."""
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0
    if one.opcode == "custom-call" and any(name in one.attributes for name in MOVES_NOTHING):
        return 0
    if one.opcode in SLICES:
        return 2 * one.num_bytes
    if one.opcode == "dynamic-update-slice":
        return 2 * _bytes_of(one.operands[1], around)
    return one.num_bytes + sum(_bytes_of(name, around) for name in one.operands)


def _bytes_of(name: str, around: Computation) -> int:
    return around[name].num_bytes if name in around else 0


def fusion_bytes(one: Instruction, around: Computation, inside: Computation) -> int:
    """What a fusion reads and writes: of an array from which it takes slices, those."""
    parameters = sorted(
        (i for i in inside.values() if i.opcode == "parameter"), key=lambda i: int(i.arguments)
    )
    users: dict[str, list[Instruction]] = {}
    for i in inside.values():
        for operand in i.operands:
            users.setdefault(operand, []).append(i)
    read = 0
    for parameter, operand in zip(parameters, one.operands, strict=False):
        whole = min(parameter.num_bytes, _bytes_of(operand, around))
        read += _read_of(parameter, users, inside, whole)
    root = next(i for i in inside.values() if i.is_root)
    return read + sum(_written(i, inside) for i in _results(root, inside))


def _read_of(
    source: Instruction, users: dict[str, list[Instruction]], inside: Computation, whole: int
) -> int:
    """Bytes that are read of a parameter, or of what is merely another view of it."""
    read = 0
    for user in users.get(source.name, []):
        if user.opcode == "bitcast":
            read += _read_of(user, users, inside, whole)
        elif user.opcode in SLICES and user.operands[0] == source.name:
            read += user.num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
            read += 0  # written over in place
        else:
            return whole
    return min(read, whole)


def _results(root: Instruction, inside: Computation) -> Iterator[Instruction]:
    if root.opcode == "tuple":
        yield from (inside[name] for name in root.operands)
    else:
        yield root


def _written(result: Instruction, inside: Computation) -> int:
    while result.opcode == "bitcast" and result.operands[0] in inside:
        result = inside[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return 2 * _bytes_of(result.operands[1], inside)
    return 0 if result.opcode == "parameter" else result.num_bytes


def _collective(kind: str, one: Instruction, around: Computation) -> Collective:
    given = sum(shape_bytes(around[name].kind, fast=True) for name in one.operands)
    made = shape_bytes(one.kind, fast=True)
    if one.opcode.endswith("-start") and kind != "all-reduce":
        made = max(0, made - given)  # a start's result holds its operands as well
    channel = re.search(r"channel_id=(\d+)", one.attributes)
    return Collective(
        kind=kind,
        num_bytes=max(given, made),
        groups=_groups(one.attributes),
        channel=channel[1] if channel else "",
    )


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    if found := IOTA.search(attributes):
        groups = _iota(found[2], found[3]).reshape(_numbers(found[1]))
        return tuple(tuple(map(int, row)) for row in groups)
    if found := MESH.search(attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        every = ",".join(map(str, sizes.values()))
        ids = _iota(found[2] or every, found[3]).reshape(list(sizes.values()))
        chosen = re.findall(r"\w+", found[4])
        rest = [axis for axis in sizes if axis not in chosen]
        ids = ids.transpose([list(sizes).index(axis) for axis in (*rest, *chosen)])
        groups = ids.reshape(-1, math.prod(sizes[axis] for axis in chosen))
        return tuple(tuple(map(int, row)) for row in groups)
    found = LISTED.search(attributes) or PAIRS.search(attributes)
    if found is None:
        return ()
    listed = re.findall(r"\{([\d,]+)\}", found[1])
    return tuple(tuple(int(n) for n in part.split(",")) for part in listed)


def _iota(shape: str, order: str | None) -> np.ndarray:
    """The numbers from 0 in some shape, its axes then in another order."""
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
