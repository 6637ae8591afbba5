"""Keys and values of tokens already read. How much is filled is kept here and only here.

Lives here: the records and the ways to fill them. Not here: attention over them
(`model/attention.py`), when a page is full and when a row begins anew (`sampling/loop.py`).

A prompt that several rows continue is held once [N, S]; a seat n * C + c is place c behind prompt
n, and a row that works on it reads that prompt. Rows take seats in any order, so that a row which
ends makes room for any other. Stored prompts are cut along positions into segments that grow:
attention reads whole segments where they lie, with no copy, and leaves out those that none has
reached.

What a row has written itself is its tail: one open page and any number of closed ones. All rows
write their next token at the same place of their open pages, one after the other from the first:
one write for all, nothing to look up. When the open pages are full they are closed: those of rows
at work move into a pool, which lends its lowest free pages, and a row that ends gives its pages
back. So attention reads the pages that somebody owns, whatever the longest row is. The pool is cut
into chunks of pages that grow, read or left out as segments are. It has room for the most that all
rows together can write: it never runs out.

Each layer has its own arrays. Heads stand before positions, so that what is read at once lies side
by side; keys lie with their positions last, since products over a last axis that is also the
other's are slow on a CPU.

Letters beyond `types.py`: P places of a page; C pages of a chunk, or seats behind a prompt.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128  # positions of the first segment; rooms are whole multiples of it
PAGE = 128  # places of a page, where rows may write so many tokens
PART = 64  # places of the first segment of open pages
LONGEST = 1024  # positions of a segment: what is read for nothing when a row has just reached it


@struct.dataclass
class Stored:
    """Keys and values of `lengths` tokens each, by layer and segment."""

    k: Any  # for each layer, for each segment: [B, K, E, S]
    v: Any  # likewise: [B, K, S, E]
    lengths: Any  # [B] int32

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return sum(v.shape[2] for v in self.v[0])

    def segments(self, layer: int) -> list[tuple[int, Any, Any]]:
        """(first position, keys, values) of each segment of a layer."""
        return _segments(self.k[layer], self.v[layer])


@struct.dataclass
class Shared:
    """Beginnings that several rows continue, each held once."""

    stored: Any  # Stored, or Tail: of N beginnings
    row_at: Any  # [N, C] int32, the row on each seat; B on a free one
    seat: Any  # [B] int32, each row's seat; N * C for an idle row

    @property
    def places(self) -> int:
        """Seats behind each beginning."""
        return self.row_at.shape[1]


@struct.dataclass
class Pages:
    """A pool of closed pages; each holds consecutive tokens of one row."""

    k: Any  # for each layer, for each chunk: [C, K, E, P]
    v: Any  # likewise: [C, K, P, E]
    owner: Any  # for each chunk: [C] int32, the row; B on a free page
    start: Any  # for each chunk: [C] int32, the first place that is the row's


@struct.dataclass
class Tail:
    """What each row has written itself."""

    k: Any  # the open pages: for each layer, for each segment: [B, K, E, S]
    v: Any  # likewise: [B, K, S, E]
    place: Any  # [1] int32, where all rows write next; the open pages are full at P
    lengths: Any  # [B] int32, tokens of each row, on closed pages too; 0 on an idle row
    pages: Pages

    @property
    def page(self) -> int:
        """Places of a page."""
        return sum(v.shape[2] for v in self.v[0])

    @property
    def full(self) -> Bool[Array, ""]:
        """Whether the open pages have no place left."""
        return self.place[0] == self.page

    @property
    def start(self) -> Int[Array, " B"]:
        """The first place of each open page that is its row's: a row at work writes at every one
        since it began."""
        return jnp.maximum(self.place - self.lengths, 0)

    def segments(self, layer: int) -> list[tuple[int, Any, Any]]:
        """(first place, keys, values) of each segment of a layer's open pages."""
        return _segments(self.k[layer], self.v[layer])

    def chunks(self, layer: int) -> list[tuple[Any, Any, Any, Any]]:
        """(keys, values, owners, starts) of each chunk of a layer's closed pages."""
        pages = self.pages
        return list(zip(pages.k[layer], pages.v[layer], pages.owner, pages.start, strict=True))


@struct.dataclass
class Cache:
    """What the rows of one pass can see beside their own tokens of that pass."""

    tail: Any  # Tail; Stored while prompts are read
    shared: tuple[Shared, ...] = ()  # what stands before the tail; none where that is all


def room(num_tokens: int) -> int:
    """Positions to hold `num_tokens`: whole blocks, or a power of two below one."""
    if num_tokens >= BLOCK:
        return -(-num_tokens // BLOCK) * BLOCK
    return max(16, 1 << (num_tokens - 1).bit_length())


def segment_sizes(capacity: int, first: int = BLOCK) -> list[int]:
    """Each as long as half of all before it, from `first` to LONGEST; the last one what is left."""
    sizes: list[int] = []
    while sum(sizes) < capacity:
        half = sum(sizes) // 2 // first * first
        sizes.append(min(max(half, first), LONGEST, capacity - sum(sizes)))
    return sizes


def most_pages(page: int, num_tokens: int) -> int:
    """Closed pages that a row of `num_tokens` can have while it writes its last token.

    At worst it began on the last place of a page.
    """
    return (num_tokens - 2) // page + 1 if num_tokens > 1 else 0


def chunk_sizes(rows: int, each: int) -> list[int]:
    """Pages of each chunk, for `each` pages of every row; a chunk is as large as all before it."""
    sizes: list[int] = []
    while sum(sizes) < each:
        sizes.append(min(max(sum(sizes), 1), each - sum(sizes)))
    return [rows * size for size in sizes]


def empty(shape: tuple[int, int, int, int, int], dtype: Any) -> Stored:
    """Room for [L, B, K, S, E] with nothing in it."""
    layers, rows, heads, capacity, size = shape
    k, v = _blank(layers, heads, size, [(rows, s) for s in segment_sizes(capacity)], dtype)
    return Stored(k, v, jnp.zeros(rows, jnp.int32))


def empty_tail(shape: tuple[int, int, int, int, int], pages: int, dtype: Any) -> Tail:
    """Open pages [L, B, K, P, E] with nothing in them, and a pool of `pages` for every row."""
    layers, rows, heads, page, size = shape
    parts = [(rows, s) for s in segment_sizes(page, PART)]
    k, v = _blank(layers, heads, size, parts, dtype)
    chunks = chunk_sizes(rows, pages)
    pool_k, pool_v = _blank(layers, heads, size, [(c, page) for c in chunks], dtype)
    return Tail(
        k=k,
        v=v,
        place=jnp.zeros(1, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        pages=Pages(
            k=pool_k,
            v=pool_v,
            owner=tuple(jnp.full(c, rows, jnp.int32) for c in chunks),
            start=tuple(jnp.zeros(c, jnp.int32) for c in chunks),
        ),
    )


def append(
    tail: Tail,
    new: Sequence[tuple[Float[Array, "B 1 K E"], Float[Array, "B 1 K E"]]],
    active_B: Bool[Array, " B"],
    finite_B: Bool[Array, " B"],
) -> Tail:
    """`tail` with one more token on each active row.

    Args:
      finite_B: False where the token's keys are not to be kept, since under a mask, too, what is no
        number spreads. Zeros are kept instead.
    """
    kept_B11 = (active_B & finite_B)[:, None, None]
    k, v = [], []
    for layer, (new_k, new_v) in enumerate(new):
        k_BKE, v_BKE = (jnp.where(kept_B11, x[:, 0], 0) for x in (new_k, new_v))
        parts = tail.segments(layer)
        at = [(inside(tail.place, start, part.shape[2])[0]) for start, _, part in parts]
        k.append(
            tuple(
                part.at[:, :, :, place].set(k_BKE, mode="drop")
                for place, (_, part, _) in zip(at, parts, strict=True)
            )
        )
        v.append(
            tuple(
                part.at[:, :, place].set(v_BKE, mode="drop")
                for place, (_, _, part) in zip(at, parts, strict=True)
            )
        )
    return dataclasses.replace(
        tail,
        k=tuple(k),
        v=tuple(v),
        place=tail.place + 1,
        lengths=tail.lengths + active_B.astype(jnp.int32),
    )


def close(tail: Tail) -> Tail:
    """`tail` with its open pages empty, if they are full: those of rows at work are in the pool.

    Without a branch, which would copy what it hands through: where nothing is full, nothing moves.
    """
    moves_B = tail.full & (tail.lengths > 0)
    order_B = jnp.argsort(~moves_B, stable=True).astype(jnp.int32)
    taken, idle = jnp.int32(0), tail.lengths.shape[0]
    k, v = ([list(layer) for layer in part] for part in (tail.pages.k, tail.pages.v))
    owners, starts = [], []
    for chunk, owner_C in enumerate(tail.pages.owner):
        free_C = owner_C == idle
        rank_C = taken + jnp.cumsum(free_C) - 1  # among the free pages of the pool
        takes_C = free_C & (rank_C < jnp.sum(moves_B))
        row_C = jnp.where(takes_C, jnp.take(order_B, rank_C, mode="clip"), idle)
        taken += jnp.sum(free_C)
        size = owner_C.shape[0]
        at_B = jnp.full(idle, size).at[row_C].set(jnp.arange(size), mode="drop")
        owners.append(jnp.where(takes_C, row_C, owner_C))
        start_C = jnp.take(tail.start, row_C, mode="clip")
        starts.append(jnp.where(takes_C, start_C, tail.pages.start[chunk]))
        for layer in range(len(k)):
            for first, open_k, open_v in tail.segments(layer):
                here = slice(first, first + open_v.shape[2])
                k[layer][chunk] = k[layer][chunk].at[at_B, :, :, here].set(open_k, mode="drop")
                v[layer][chunk] = v[layer][chunk].at[at_B, :, here].set(open_v, mode="drop")
    pages = Pages(
        k=tuple(map(tuple, k)), v=tuple(map(tuple, v)), owner=tuple(owners), start=tuple(starts)
    )
    return dataclasses.replace(
        tail, pages=pages, place=jnp.where(tail.full, 0, tail.place).astype(jnp.int32)
    )


def emptied(tail: Tail, rows_B: Bool[Array, " B"]) -> Tail:
    """`tail` with nothing on the rows of `rows_B`, and their pages free."""
    idle = rows_B.shape[0]

    def freed(owner_C: Array) -> Array:
        return jnp.where(jnp.take(rows_B, owner_C, mode="fill", fill_value=False), idle, owner_C)

    pages = dataclasses.replace(tail.pages, owner=tuple(map(freed, tail.pages.owner)))
    return dataclasses.replace(tail, pages=pages, lengths=jnp.where(rows_B, 0, tail.lengths))


def on_rows(tail: Tail, kept_B: Int[Array, " B"]) -> Tail:
    """`tail` of the kept rows alone, all those at work among them; the pool shrinks as they do."""
    before, rows, pages = tail.lengths.shape[0], kept_B.shape[0], tail.pages
    row_now = jnp.full(before + 1, rows, jnp.int32)
    row_now = row_now.at[kept_B].set(jnp.arange(rows, dtype=jnp.int32))
    owner_X = row_now[jnp.concatenate(pages.owner)] if pages.owner else jnp.zeros(0, jnp.int32)
    sizes = chunk_sizes(rows, owner_X.shape[0] // before)
    # The owned pages first: they all find room, since a row has no more than it may.
    page_X = jnp.argsort(owner_X == rows, stable=True)[: sum(sizes)]
    cuts = list(itertools.accumulate(sizes))[:-1]

    def of_pages(chunks: Sequence[Array]) -> tuple[Array, ...]:
        if not chunks:
            return ()
        return tuple(jnp.split(jnp.take(jnp.concatenate(chunks), page_X, axis=0), cuts))

    def of_layers(layers: Sequence[Sequence[Array]], take: Any) -> tuple[Any, ...]:
        return tuple(take(layer) for layer in layers)

    def of_rows(segments: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(jnp.take(part, kept_B, axis=0) for part in segments)

    return Tail(
        k=of_layers(tail.k, of_rows),
        v=of_layers(tail.v, of_rows),
        place=tail.place,
        lengths=tail.lengths[kept_B],
        pages=Pages(
            k=of_layers(pages.k, of_pages),
            v=of_layers(pages.v, of_pages),
            owner=of_pages([owner_X]) if pages.owner else (),
            start=of_pages(pages.start),
        ),
    )


def extend(
    stored: Stored,
    new: Sequence[tuple[Float[Array, "B T K E"], Float[Array, "B T K E"]]],
    place: Int[Array, ""],
) -> Stored:
    """`stored` with the same T places from `place` on written for every row; lengths stay."""
    place_T = place + jnp.arange(new[0][0].shape[1])
    k, v = [], []
    for layer, (new_k, new_v) in enumerate(new):
        parts = stored.segments(layer)
        at = [inside(place_T, start, part.shape[2]) for start, _, part in parts]
        k_BKET, v_BKTE = jnp.moveaxis(new_k, 1, 3), jnp.swapaxes(new_v, 1, 2)
        k.append(
            tuple(
                part.at[..., at_T].set(k_BKET, mode="drop")
                for at_T, (_, part, _) in zip(at, parts, strict=True)
            )
        )
        v.append(
            tuple(
                part.at[:, :, at_T].set(v_BKTE, mode="drop")
                for at_T, (_, _, part) in zip(at, parts, strict=True)
            )
        )
    return dataclasses.replace(stored, k=tuple(k), v=tuple(v))


def inside(place: Int[Array, " X"], start: int, size: int) -> Int[Array, " X"]:
    """Places within a segment; `size`, where a write is dropped, for those before or behind it."""
    place = place - start
    return jnp.where((place >= 0) & (place < size), place, size)


def _segments(k: Sequence[Array], v: Sequence[Array]) -> list[tuple[int, Any, Any]]:
    starts = itertools.accumulate((part.shape[2] for part in v), initial=0)
    return list(zip(starts, k, v, strict=False))


def _blank(layers: int, heads: int, size: int, parts: list[tuple[int, int]], dtype: Any) -> Any:
    """Zeros for the keys and the values of (rows, places) parts of every layer."""
    k = [tuple(jnp.zeros((r, heads, size, s), dtype) for r, s in parts) for _ in range(layers)]
    v = [tuple(jnp.zeros((r, heads, s, size), dtype) for r, s in parts) for _ in range(layers)]
    return tuple(k), tuple(v)
