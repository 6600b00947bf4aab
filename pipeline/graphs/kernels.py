"""Compiled kernels: dot products, top-k selection, orthogonal matching pursuit.

Every similarity is one chain of fused multiply-adds over the feature axis, in order, whatever tile, block or thread
it is computed in. So a similarity depends on its two rows alone: identical rows tie exactly, S(i, j) = S(j, i) bit for
bit, and a graph is the same for every memory budget and thread count. A BLAS promises none of this.

Loops are spelt out where numba would compile an array expression ten times as long. All compiled code lives in this
one file, because numba's on-disk cache notices edits of a function's own file only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import config, get_num_threads, njit, prange, set_num_threads, types
from numba.core import cgutils
from numba.extending import intrinsic

# ------------------------------------------------------------------------------------------------- tile product


def _lanes() -> int:
    """Number of float32 in the widest vector register of this machine."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx") else 4


LANES = _lanes()
ROWS, VECTORS = (12, 2) if LANES == 16 else (6, 2)  # accumulators that just fill 32 or 16 vector registers
COLUMNS = LANES * VECTORS
STRIP = 4 * LANES  # columns of a one-row product: four independent chains hide the latency of a multiply-add
DEPTH = 384  # features per pass: a (DEPTH, COLUMNS) panel slice stays in L1
# Rows and columns of a task, a multiple of ROWS and COLUMNS: its products stay in L2, of which processors with 16 lanes
# have 1 MB or more, and many others half.
TILE = 480 if LANES == 16 else 240


def _tile_product(rows: int, vectors: int) -> Callable[..., None]:
    """Make `product(a, a_start, b, b_start, depth, c, c_start, c_stride, fresh)` for flat float32 arrays.

    It adds (fresh: writes) the product of a (depth, rows) panel slice of `a` and a (depth, vectors * LANES) slice of
    `b` to a (rows, vectors * LANES) tile of `c`. LLVM's loop vectoriser does not find this form, so it is spelt out.
    """

    @intrinsic
    def product(typing_context: Any, a: Any, a_start: Any, b: Any, b_start: Any, depth: Any,
                c: Any, c_start: Any, c_stride: Any, fresh: Any) -> Any:  # fmt: skip
        flat, index = types.Array(types.float32, 1, "C"), types.intp
        signature = types.void(flat, index, flat, index, index, flat, index, index, types.boolean)
        return signature, emit

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        lane, word = ir.FloatType(), ir.IntType(64)
        vector = ir.VectorType(lane, LANES)
        broadcast = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )

        def start(array: int, offset: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            return builder.gep(data, [arguments[offset]])

        def step(pointer: Any, offset: Any) -> Any:
            return builder.gep(pointer, [ir.Constant(word, offset) if isinstance(offset, int) else offset])

        def load(pointer: Any) -> Any:
            return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)

        a, b, c = start(0, 1), start(2, 3), start(5, 6)
        depth, stride, fresh = arguments[4], arguments[7], arguments[8]
        cells = [(row, part) for row in range(rows) for part in range(vectors)]
        places = {
            (row, part): step(step(c, builder.mul(ir.Constant(word, row), stride)), part * LANES) for row, part in cells
        }
        before = builder.block
        resume, body, after = (builder.append_basic_block(name) for name in ("resume", "body", "after"))
        builder.cbranch(fresh, body, resume)

        builder.position_at_end(resume)
        partial = {cell: load(places[cell]) for cell in cells}
        builder.branch(body)

        builder.position_at_end(body)
        k = builder.phi(word)
        sums = {cell: builder.phi(vector) for cell in cells}
        a_k = step(a, builder.mul(k, ir.Constant(word, rows)))
        b_k = step(b, builder.mul(k, ir.Constant(word, vectors * LANES)))
        columns = [load(step(b_k, part * LANES)) for part in range(vectors)]
        following = {}
        for row in range(rows):
            scalar = builder.load(step(a_k, row), align=4)
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
            spread = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), broadcast)
            for part in range(vectors):
                following[row, part] = builder.call(fma, [spread, columns[part], sums[row, part]])
        k_next = builder.add(k, ir.Constant(word, 1))
        for block, value in ((before, ir.Constant(word, 0)), (resume, ir.Constant(word, 0)), (body, k_next)):
            k.add_incoming(value, block)
        for cell in cells:
            sums[cell].add_incoming(ir.Constant(vector, [0.0] * LANES), before)
            sums[cell].add_incoming(partial[cell], resume)
            sums[cell].add_incoming(following[cell], body)
        builder.cbranch(builder.icmp_signed("<", k_next, depth), body, after)

        builder.position_at_end(after)
        for cell in cells:
            builder.store(following[cell], builder.bitcast(places[cell], vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return product


@intrinsic
def _transpose(typing_context: Any, source: Any, starts: Any, offset: Any, target: Any, place: Any, stride: Any) -> Any:
    """target[place + stride * k + lane] = source[starts[lane] + offset + k], for LANES lanes and as many k."""
    flat, index = types.Array(types.float32, 1, "C"), types.intp

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, word = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        read, begin, write = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 1, 3)
        )
        block = []
        for lane in range(LANES):
            start = builder.add(builder.load(builder.gep(begin, [ir.Constant(word, lane)])), arguments[2])
            block.append(builder.load(builder.bitcast(builder.gep(read, [start]), vector.as_pointer()), align=4))
        step = 1
        while step < LANES:  # swap one bit of the row number with the same bit of the lane number
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            low, high = (ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask) for mask in (low, high))
            for i in range(LANES):
                if not i & step:
                    upper, lower = block[i], block[i + step]
                    block[i] = builder.shuffle_vector(upper, lower, low)
                    block[i + step] = builder.shuffle_vector(upper, lower, high)
            step *= 2
        for k in range(LANES):
            row = builder.add(arguments[4], builder.mul(arguments[5], ir.Constant(word, k)))
            builder.store(block[k], builder.bitcast(builder.gep(write, [row]), vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(flat, types.Array(types.int64, 1, "C"), index, flat, index, index), emit


_multiply_tile = _tile_product(ROWS, VECTORS)
_multiply_row = _tile_product(1, 4)


# ------------------------------------------------------------------------------------------------------- products


@njit(parallel=True, cache=True)
def squared_norms(features: np.ndarray, norms: np.ndarray) -> None:
    """Sum of squares of each row of `features` (n, d) float32, in float64; it is not finite where a value is not."""
    for i in prange(features.shape[0]):
        total = 0.0
        for k in range(features.shape[1]):
            total += np.float64(features[i, k]) * np.float64(features[i, k])
        norms[i] = total


@njit(parallel=True, cache=True)
def scale_rows(features: np.ndarray, kept: np.ndarray, norms: np.ndarray, units: np.ndarray) -> None:
    """units[r] = features[kept[r]] / norms[kept[r]]."""
    for r in prange(kept.shape[0]):
        inverse = 1.0 / norms[kept[r]]
        for k in range(features.shape[1]):
            units[r, k] = features[kept[r], k] * inverse


@njit(parallel=True, cache=True)
def _pack(rows: np.ndarray, ids: np.ndarray, width: int, panels: np.ndarray) -> None:
    """Lay rows[ids] (n, d) out as panels (ceil(n / width), d, width), the last one filled up with zeros."""
    for panel in prange(panels.shape[0]):
        for lane in range(width):
            place = panel * width + lane
            if place < ids.shape[0]:
                row = rows[ids[place]]
                for k in range(rows.shape[1]):
                    panels[panel, k, lane] = row[k]
            else:
                for k in range(rows.shape[1]):
                    panels[panel, k, lane] = 0.0


def pack(rows: np.ndarray, width: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Panels (ceil(n / width), d, width) of the rows (m, d), or of those that `ids` (n,) names, all float32."""
    ids = np.arange(rows.shape[0], dtype=np.int32) if ids is None else ids.astype(np.int32, copy=False)
    panels = np.empty((-(-ids.size // width), rows.shape[1], width), np.float32)
    _pack(rows, ids, width, panels)
    return panels


@njit(cache=True)
def _fill_tile(left: np.ndarray, right: np.ndarray, i: int, j: int, tile: np.ndarray) -> None:
    """tile (TILE * TILE,) = products of rows i * TILE ... with columns j * TILE ... ."""
    depth = left.shape[1]
    a, b = left.reshape(-1), right.reshape(-1)
    a_first, b_first = i * (TILE // ROWS), j * (TILE // COLUMNS)
    a_last, b_last = min(left.shape[0], a_first + TILE // ROWS), min(right.shape[0], b_first + TILE // COLUMNS)
    for k in range(0, depth, DEPTH):
        size = min(DEPTH, depth - k)
        for q in range(b_first, b_last):
            for p in range(a_first, a_last):
                place = (p - a_first) * ROWS * TILE + (q - b_first) * COLUMNS
                _multiply_tile(a, (p * depth + k) * ROWS, b, (q * depth + k) * COLUMNS, size, tile, place, TILE, k == 0)


@njit(cache=True)
def _store_tile(tile: np.ndarray, i: int, j: int, out: np.ndarray) -> None:
    for row in range(i * TILE, min(out.shape[0], (i + 1) * TILE)):
        target = out[row, j * TILE : min(out.shape[1], (j + 1) * TILE)]
        source = tile[(row - i * TILE) * TILE : (row - i * TILE + 1) * TILE]
        for column in range(target.shape[0]):
            target[column] = source[column]


@njit(cache=True)
def _turn(tile: np.ndarray, turned: np.ndarray) -> None:
    """turned = transpose of tile, both (TILE * TILE,)."""
    starts = np.empty(LANES, np.int64)
    for row in range(0, TILE, LANES):
        for lane in range(LANES):
            starts[lane] = (row + lane) * TILE
        for column in range(0, TILE, LANES):
            _transpose(tile, starts, column, turned, column * TILE + row, TILE)


@njit(parallel=True, cache=True)
def multiply(left: np.ndarray, right: np.ndarray, first: int, out: np.ndarray) -> None:
    """Products of the rows in `left` (panels of ROWS) with those in `right` (panels of COLUMNS).

    They go to the columns of `out` from tile `first` on, that is from first * TILE.
    """
    across = (right.shape[0] * COLUMNS + TILE - 1) // TILE
    for task in prange((out.shape[0] + TILE - 1) // TILE * across):
        tile = np.empty(TILE * TILE, np.float32)
        _fill_tile(left, right, task // across, task % across, tile)
        _store_tile(tile, task // across, first + task % across, out)


@njit(parallel=True, cache=True)
def multiply_self(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """As `multiply` for one set of rows in both layouts: only the upper triangle is computed, then mirrored."""
    across = (out.shape[0] + TILE - 1) // TILE
    pairs = np.empty((across * (across + 1) // 2, 2), np.int64)
    count = 0
    for i in range(across):
        for j in range(i, across):
            pairs[count, 0], pairs[count, 1] = i, j
            count += 1
    for task in prange(count):
        i, j = pairs[task, 0], pairs[task, 1]
        tile = np.empty(TILE * TILE, np.float32)
        _fill_tile(left, right, i, j, tile)
        _store_tile(tile, i, j, out)
        if j > i:
            turned = np.empty(TILE * TILE, np.float32)
            _turn(tile, turned)
            _store_tile(turned, j, i, out)


@njit(parallel=True, cache=True)
def group_means(rows: np.ndarray, order: np.ndarray, starts: np.ndarray, means: np.ndarray) -> None:
    """means[g] (d,) float32 = mean of rows[order[starts[g] : starts[g + 1]]]; that of an empty group stays as it is."""
    for g in prange(means.shape[0]):
        count = starts[g + 1] - starts[g]
        if count > 0:
            total = np.zeros(rows.shape[1], np.float64)
            for place in range(starts[g], starts[g + 1]):
                row = rows[order[place]]
                for k in range(rows.shape[1]):
                    total[k] += row[k]
            for k in range(rows.shape[1]):
                means[g, k] = total[k] / count


# ------------------------------------------------------------------------------------------------------ selection


SAMPLE = 512  # entries of a row that its floor is judged by
GROUP = 16  # entries that are held against their floors at a time; a tile's rows are whole groups


def likely_rank(k: int, columns: int) -> int:
    """Rank in a sample of a row which at least k entries of the whole row reach, and few more do.

    One or two rows in a hundred have fewer and are searched again, which costs less than a surer rank's candidates.
    """
    expected = k * SAMPLE / columns
    return int(expected + 2.5 * expected**0.5 + 1.0)


_likely_rank = njit(cache=True)(likely_rank)


@njit(cache=True)
def _floor(sample: np.ndarray, rank: int) -> float:
    """A value that at least `rank` entries reach and hardly more, by a histogram; minus infinity if there are fewer."""
    if rank > sample.shape[0]:
        return -np.inf
    low = high = sample[0]
    for value in sample:
        low, high = min(low, value), max(high, value)
    if low == high:
        return low
    histogram = np.zeros(SAMPLE, np.int32)
    scale = (SAMPLE - 1) / (high - low)
    for value in sample:
        histogram[int((value - low) * scale)] += 1
    cell, count = SAMPLE, 0
    while count < rank:
        cell -= 1
        count += histogram[cell]
    return low + cell / scale


@intrinsic
def _reach(typing_context: Any, entries: Any, start: Any, floors: Any, place: Any) -> Any:
    """Bit i of the result: entries[start + i] >= floors[place + i], for i < GROUP."""
    flat, index = types.Array(types.float32, 1, "C"), types.intp

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), GROUP).as_pointer()
        data = [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2)]
        places = [builder.gep(array, [offset]) for array, offset in zip(data, arguments[1::2], strict=True)]
        left, right = (builder.load(builder.bitcast(pointer, vector), align=4) for pointer in places)
        bits = builder.bitcast(builder.fcmp_ordered(">=", left, right), ir.IntType(GROUP))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(flat, index, flat, index), emit


@intrinsic
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set; there has to be one."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), emit


@njit(cache=True)
def _reaching(
    row: np.ndarray, floor: float, start: int, ids: np.ndarray, values: np.ndarray, count: int | np.int64
) -> np.int64:
    """Append the entries of the row that reach the floor, with their place + start; returns the new count.

    `ids` and `values` need room for one entry more than they take.
    """
    place, least = np.uint64(count), np.float32(floor)  # unsigned: spares numba's test for indices from the end
    if np.float64(least) < floor:  # of two floats around the floor the upper one
        least = np.nextafter(least, np.float32(np.inf))
    floors = np.full(GROUP, least)
    grouped = row.shape[0] - row.shape[0] % GROUP
    for first in range(0, grouped, GROUP):
        bits = _reach(row, first, floors, 0)
        while bits:
            i = first + _lowest_bit(bits)
            bits &= bits - 1
            ids[place] = start + i
            values[place] = row[i] + np.float32(0.0)  # -0.0 becomes 0.0, so that they tie
            place += np.uint64(1)
    for i in range(grouped, row.shape[0]):
        ids[place] = start + i
        values[place] = row[i] + np.float32(0.0)
        place += np.uint64(row[i] >= least)
    return np.int64(place)


@njit(cache=True)
def _rank_descending(
    values: np.ndarray, count: int, ranks: np.ndarray, order: np.ndarray, spare: np.ndarray
) -> np.ndarray:
    """Stable radix sort: ranks[i] grows as values[i] falls. The first `count` entries returned are the order."""
    bits = values.view(np.int32)
    top, bottom = np.int64(-(2**31)), np.int64(2**31)
    for i in range(count):
        key = np.int64(bits[i] ^ ((bits[i] >> 31) & np.int32(0x7FFFFFFF)))  # ordered like the floats themselves
        ranks[i] = key
        order[i] = i
        top, bottom = max(top, key), min(bottom, key)
    for i in range(count):
        ranks[i] = top - ranks[i]
    starts = np.empty(257, np.int64)
    shift = 0
    while (top - bottom) >> shift:
        for digit in range(257):
            starts[digit] = 0
        for i in range(count):
            starts[((ranks[i] >> shift) & 255) + 1] += 1
        for digit in range(256):
            starts[digit + 1] += starts[digit]
        for i in range(count):
            digit = (ranks[order[i]] >> shift) & 255
            spare[starts[digit]] = order[i]
            starts[digit] += 1
        order, spare = spare, order
        shift += 8
    return order


@njit(cache=True)
def _choose(
    ids: np.ndarray,
    found: np.ndarray,
    count: int | np.int64,
    by_id: bool,
    sorting: tuple,
    chosen: np.ndarray,
    values: np.ndarray,
) -> None:
    """The len(chosen) largest of `count` found entries, whose ids ascend; largest first, or by id."""
    k = chosen.shape[0]
    ranks, order, spare = sorting
    order = _rank_descending(found, count, ranks, order, spare)
    if not by_id:
        for place in range(k):
            chosen[place] = ids[order[place]]
            values[place] = found[order[place]]
        return
    last = ranks[order[k - 1]]
    ties = 0  # entries equal to the last one chosen that have a place
    while ties < k and ranks[order[k - 1 - ties]] == last:
        ties += 1
    place = 0
    for c in range(count):
        if ranks[c] < last or (ranks[c] == last and ties > 0):
            ties -= ranks[c] == last
            chosen[place] = ids[c]
            values[place] = found[c]
            place += 1


@njit(cache=True)
def _scratch(size: int) -> tuple:
    """Ids, values, and what sorting them takes."""
    sorting = np.empty(size, np.int64), np.empty(size, np.int32), np.empty(size, np.int32)
    return np.empty(size, np.int32), np.empty(size, np.float32), sorting


@njit(parallel=True, cache=True)
def select(similarities: np.ndarray, own: np.ndarray, by_id: bool, chosen: np.ndarray, values: np.ndarray) -> None:
    """The largest entries of each row of `similarities` (n, m), equal ones in favour of the lower column.

    own (n,) is a column to leave out of each row, or -1. `chosen` (n, k) int32 takes the columns, `values` (n, k)
    float32 their entries: largest first, or in column order if `by_id`. k must not exceed the columns that are left.
    """
    n, m = similarities.shape
    k = chosen.shape[1]
    rank = _likely_rank(k, m)
    chunk = 32  # rows that share one allocation of scratch
    for task in prange((n + chunk - 1) // chunk):
        ids, found, sorting = _scratch(m + 1)
        for i in range(task * chunk, min(n, (task + 1) * chunk)):
            row = similarities[i]
            split = m if own[i] < 0 else own[i]
            likely = _floor(row[:: m // SAMPLE], rank) if m > SAMPLE else -np.inf
            for floor in (likely, -np.inf):
                count = _reaching(row[:split], floor, 0, ids, found, 0)
                count = _reaching(row[split + 1 :], floor, split + 1, ids, found, count)
                if count >= k:
                    break
            _choose(ids, found, count, by_id, sorting, chosen[i], values[i])


# ---------------------------------------------------------------------------------------------------------- sweep
# The nearest neighbours of one set in itself without its Gram matrix, each product computed once: strip after strip of
# rows, from the diagonal on. A product also counts for its column's row, if it reaches that one's floor.


@njit(parallel=True, cache=True)
def find_floors(products: np.ndarray, rank: int, floors: np.ndarray) -> None:
    """floors (b,) = a value that `rank` entries of each row of products (b, sample size) reach."""
    for i in prange(products.shape[0]):
        floors[i] = _floor(products[i], rank)


@njit(parallel=True, cache=True)
def sweep(
    left: np.ndarray,
    right: np.ndarray,
    first: int,
    strip: np.ndarray,
    floors: np.ndarray,
    chosen: np.ndarray,
    similarities: np.ndarray,
    spill: tuple,
    counts: np.ndarray,
) -> None:
    """strip (b, n - first * TILE) = products of the b rows from tile `first` on with themselves and all later rows.

    Each later row j takes those of its products with the b rows that reach floors[j]. The first k go to chosen[j],
    similarities[j] (k,), where the result will be, others to its part of the spill, of which `starts[j]` is the first
    and `starts[j + 1]` the end. counts[j] counts them, and becomes -1 when they are more than fit.
    """
    starts, ids, values = spill
    k = chosen.shape[1]
    tiles, across = (strip.shape[0] + TILE - 1) // TILE, (floors.shape[0] + TILE - 1) // TILE
    for task in prange(across - first):
        start = (first + task) * TILE
        tile, least = np.empty(TILE * TILE, np.float32), np.full(TILE, np.float32(np.inf))
        for lane in range(min(TILE, floors.shape[0] - start)):
            least[lane] = floors[start + lane]
        for i in range(first, first + tiles):
            _fill_tile(left, right, i, first + task, tile)
            _store_tile(tile, i - first, task, strip)
            if task < tiles:
                continue
            for row in range(TILE):
                for group in range(0, TILE, GROUP):
                    bits = _reach(tile, row * TILE + group, least, group)
                    while bits:
                        lane = group + _lowest_bit(bits)
                        bits &= bits - 1
                        column = start + lane
                        count = counts[column]
                        if count < 0:
                            continue
                        value = tile[row * TILE + lane] + np.float32(0.0)
                        place = starts[column] + count - k
                        if count < k:
                            chosen[column, count], similarities[column, count] = i * TILE + row, value
                        elif place < starts[column + 1]:
                            ids[place], values[place] = i * TILE + row, value
                        else:
                            counts[column] = -1
                            continue
                        counts[column] = count + 1


@njit(parallel=True, cache=True)
def finish(
    strip: np.ndarray,
    start: int,
    floors: np.ndarray,
    chosen: np.ndarray,
    similarities: np.ndarray,
    spill: tuple,
    counts: np.ndarray,
) -> None:
    """Choose for each row of the strip, which is row `start` + its number, from what it took and what the strip holds.

    chosen, similarities (n, k): as `select` has them; -1 and 0 in a row that took too much or finds too little.
    """
    starts, ids, values = spill
    chunk = 32
    k = chosen.shape[1]
    for task in prange((strip.shape[0] + chunk - 1) // chunk):
        last = min(strip.shape[0], (task + 1) * chunk)
        near, found, sorting = _scratch(k + starts[start + last] - starts[start + last - 1] + strip.shape[1] + 1)
        for r in range(task * chunk, last):
            count, i = counts[start + r], start + r
            if count >= 0:
                for hit in range(min(count, k)):
                    near[hit] = chosen[i, hit]
                    found[hit] = similarities[i, hit]
                for hit in range(k, count):
                    near[hit] = ids[starts[i] + hit - k]
                    found[hit] = values[starts[i] + hit - k]
                count = _reaching(strip[r, :r], floors[i], start, near, found, count)
                count = _reaching(strip[r, r + 1 :], floors[i], i + 1, near, found, count)
            if count >= k:
                _choose(near, found, count, False, sorting, chosen[i], similarities[i])
            else:
                for place in range(k):
                    chosen[i, place], similarities[i, place] = -1, 0.0


# -------------------------------------------------------------------------------------------------------- pursuit

STOP = 1e-6  # of the target's norm: residual or best correlation at which the pursuit ends
DEPENDENT = 1e-6  # squared distance from the span of the chosen atoms under which an atom counts as inside it
CAREFUL = 1e-3  # squared residual or distance, and correlation, under which float32 correlations no longer decide


@njit(cache=True)
def _pack_dictionary(candidates: np.ndarray, ids: np.ndarray, panels: np.ndarray) -> None:
    """panels (ceil(k_s / STRIP), d, STRIP) = the dictionary's rows; what lanes past the last hold has no meaning."""
    depth = candidates.shape[1]
    flat, packed = candidates.reshape(-1), panels.reshape(-1)
    starts = np.empty(LANES, np.int64)
    for first in range(0, ids.shape[0], LANES):
        for lane in range(LANES):
            starts[lane] = np.int64(ids[min(first + lane, ids.shape[0] - 1)]) * depth
        place = first // STRIP * depth * STRIP + first % STRIP
        for k in range(0, depth - LANES + 1, LANES):
            _transpose(flat, starts, k, packed, place + k * STRIP, STRIP)
        for k in range(depth - depth % LANES, depth):
            for lane in range(LANES):
                packed[place + k * STRIP + lane] = flat[starts[lane] + k]


@njit(cache=True)
def _dot(left: np.ndarray, right: np.ndarray) -> float:
    """Dot product in float64, four interleaved chains in a fixed order."""
    a = b = c = d = 0.0
    size = left.shape[0]
    for k in range(0, size - 3, 4):
        a += np.float64(left[k]) * np.float64(right[k])
        b += np.float64(left[k + 1]) * np.float64(right[k + 1])
        c += np.float64(left[k + 2]) * np.float64(right[k + 2])
        d += np.float64(left[k + 3]) * np.float64(right[k + 3])
    for k in range(size - size % 4, size):
        a += np.float64(left[k]) * np.float64(right[k])
    return (a + b) + (c + d)


@njit(cache=True)
def _orthogonalise(vector: np.ndarray, basis: np.ndarray, count: int) -> float:
    """Take out of `vector` what lies along the first rows of `basis`; returns what is left of its squared norm."""
    for _ in range(2):  # twice is enough (Kahan)
        for s in range(count):
            share = _dot(basis[s], vector)
            for k in range(vector.shape[0]):
                vector[k] -= share * basis[s, k]
    return _dot(vector, vector)


@njit(cache=True)
def _orthonormal(atom: np.ndarray, basis: np.ndarray, count: int) -> bool:
    """Make basis[count] the unit vector of `atom` beside the earlier ones; False if the atom depends on them."""
    for k in range(atom.shape[0]):
        basis[count, k] = atom[k]
    distance = _orthogonalise(basis[count], basis, count)
    inverse = 1.0 / np.sqrt(max(distance, DEPENDENT))
    for k in range(atom.shape[0]):
        basis[count, k] *= inverse
    return distance >= DEPENDENT


@njit(cache=True)
def _pursue_exactly(
    target: np.ndarray, candidates: np.ndarray, ids: np.ndarray, support: np.ndarray, count: int
) -> None:
    """Go on from `count` chosen atoms with the residual itself, in float64."""
    sparsity, depth = support.shape[0], target.shape[0]
    basis, residual = np.empty((sparsity, depth), np.float64), np.empty(depth, np.float64)
    is_open = np.empty(ids.shape[0], np.bool_)
    for i in range(ids.shape[0]):
        is_open[i] = True
        for s in range(count):
            is_open[i] &= ids[i] != support[s]
    for s in range(count):
        _orthonormal(candidates[support[s]], basis, s)
    for k in range(depth):
        residual[k] = target[k]
    threshold = STOP * np.sqrt(_dot(residual, residual))
    left = _orthogonalise(residual, basis, count)
    while count < sparsity and np.sqrt(left) > threshold:
        best, atom = threshold, -1
        for i in range(ids.shape[0]):
            if is_open[i]:
                correlation = abs(_dot(candidates[ids[i]], residual))
                if correlation > best:
                    best, atom = correlation, i
        if atom < 0:
            break
        is_open[atom] = False
        if _orthonormal(candidates[ids[atom]], basis, count):
            support[count] = ids[atom]
            count += 1
            left = _orthogonalise(residual, basis, count)


@njit(cache=True, fastmath={"nnan"})
def _largest_absolute(values: np.ndarray) -> np.float32:
    """Largest absolute value. No NaN comes here, and without a check for it no branch is mispredicted: a search with
    branches held up the next round's loads, and the pursuit took a quarter longer.
    """
    largest = np.float32(0.0)
    for value in values:
        largest = max(largest, abs(value))
    return largest


@njit(cache=True)
def _pursue_one(
    target: np.ndarray,
    candidates: np.ndarray,
    ids: np.ndarray,
    similarities: np.ndarray,
    gram: np.ndarray,
    support: np.ndarray,
    alpha: np.ndarray,
    lines: np.ndarray,
    panels: np.ndarray,
) -> bool:
    """Orthogonal matching pursuit of one target in correlation space; says whether it ended there, in float32.

    With the chosen atoms orthonormalised to q_1 ... q_s, lines[s, i] = <D_i, q_s> and alpha[i] = <D_i, residual>, a
    round needs only one line of the Gram matrix: no product of length d. `ids` ascend, so the first of equal
    correlations is the lowest candidate.
    """
    size, sparsity, depth = ids.shape[0], support.shape[0], target.shape[0]
    columns = ids.view(np.uint32)  # not negative: spares the gather numba's test for indices from the end
    chosen = np.empty(sparsity, np.int64)
    for i in range(size):
        alpha[i] = similarities[i]
    residual, count = 1.0, 0
    while count < sparsity:
        best = _largest_absolute(alpha)
        if best < CAREFUL:
            _pursue_exactly(target, candidates, ids, support, count)
            return False
        atom = 0
        while abs(alpha[atom]) != best:
            atom += 1
        distance = 1.0
        for s in range(count):
            distance -= np.float64(lines[s, atom]) * np.float64(lines[s, atom])
        if distance < CAREFUL:
            _pursue_exactly(target, candidates, ids, support, count)
            return False
        if count == sparsity - 1:
            support[count] = ids[atom]
            return True
        line = lines[count]
        if gram.shape[0] > 0:
            products = gram[ids[atom]]
            for i in range(size):
                line[i] = products[columns[i]]
        else:
            if count == 0:
                _pack_dictionary(candidates, ids, panels)
            flat, start = candidates.reshape(-1), np.int64(ids[atom]) * depth
            for p in range(panels.shape[0]):
                _multiply_row(flat, start, panels.reshape(-1), p * depth * STRIP, depth, line, p * STRIP, STRIP, True)
        for s in range(count):
            share = lines[s, atom]
            for i in range(size):
                line[i] -= share * lines[s, i]
        inverse = np.float32(1.0 / np.sqrt(distance))
        coefficient = alpha[atom] * inverse
        for i in range(size):
            line[i] *= inverse
            alpha[i] -= coefficient * line[i]
        support[count], chosen[count] = ids[atom], atom
        count += 1
        for s in range(count):
            alpha[chosen[s]] = 0.0
        residual -= np.float64(coefficient) * np.float64(coefficient)
        if residual < CAREFUL:
            _pursue_exactly(target, candidates, ids, support, count)
            return False
    return False


@njit(parallel=True, cache=True)
def pursue(
    targets: np.ndarray,
    candidates: np.ndarray,
    ids: np.ndarray,
    similarities: np.ndarray,
    gram: np.ndarray,
    supports: np.ndarray,
) -> np.ndarray:
    """Supports of orthogonal matching pursuit, one target a row.

    targets (n, d), candidates (m, d): unit rows, float32. ids (n, k_s) int32 ascending in each row, with their
    similarities (n, k_s) to the target. gram (m, m): products of all candidates, or (0, 0), and then the products a
    round needs are computed from the gathered dictionary, to the same bits. supports (n, k_o) int32, filled with -1
    by the caller, takes the candidates in the order of their choice.

    Returns (n,) bool: float32 correlations decided every round of the target.
    """
    n, size = ids.shape
    chunk = 32  # targets that share one allocation of scratch
    strips = (size + STRIP - 1) // STRIP
    plain = np.empty(n, np.bool_)
    for task in prange((n + chunk - 1) // chunk):
        alpha = np.empty(size, np.float32)
        lines = np.empty((supports.shape[1], strips * STRIP), np.float32)
        panels = np.zeros((0 if gram.shape[0] > 0 else strips, targets.shape[1], STRIP), np.float32)
        for t in range(task * chunk, min(n, (task + 1) * chunk)):
            plain[t] = _pursue_one(
                targets[t], candidates, ids[t], similarities[t], gram, supports[t], alpha, lines, panels
            )
    return plain


# -------------------------------------------------------------------------------------------------------- upkeep
# What is left of neighbours and supports after some candidates went and others came.


@njit(parallel=True, cache=True)
def merge(
    rows: np.ndarray,
    ids: np.ndarray,
    similarities: np.ndarray,
    complete: np.ndarray,
    moved: np.ndarray,
    come: np.ndarray,
    come_similarities: np.ndarray,
    size: int,
    merged: np.ndarray,
    values: np.ndarray,
    joined: np.ndarray,
) -> None:
    """Bring lists of nearest candidates up to date: nearest first, equal ones by ascending id, -1 after the last.

    List r is made of the old list rows[r] in `ids`, `similarities` (n, w), whose candidates have now the ids `moved`,
    ascending, or -1 where they are gone, and of the candidates that came: `come`, `come_similarities` (r, e), ordered
    like the lists. An old list that is not `complete` (n,) leaves out candidates that are no nearer than its last one,
    so the new one, `merged`, `values` (r, w), ends where they might have a place. joined (r, w) says which of its
    entries were not among the first `size` of the old list.
    """
    width = merged.shape[1]
    for r in prange(rows.shape[0]):
        old, i, e, count = rows[r], 0, 0, 0
        length = ids.shape[1]
        while length > 0 and ids[old, length - 1] < 0:
            length -= 1
        while count < width:
            while i < length and moved[ids[old, i]] < 0:
                i += 1
            is_left, comes = i < length, e < come.shape[1] and come[r, e] >= 0
            if is_left and comes:
                near, far = come_similarities[r, e], similarities[old, i]
                comes = near > far or (near == far and come[r, e] < moved[ids[old, i]])
            elif comes and not complete[old]:
                comes = come_similarities[r, e] > similarities[old, length - 1]
            if comes:
                merged[r, count], values[r, count], joined[r, count] = come[r, e], come_similarities[r, e], True
                e += 1
            elif is_left:
                merged[r, count], values[r, count] = moved[ids[old, i]], similarities[old, i]
                joined[r, count] = i >= size
                i += 1
            else:
                break
            count += 1
        for place in range(count, width):
            merged[r, place], values[r, place], joined[r, place] = -1, 0.0, False


@njit(cache=True)
def _deciding(
    ids: np.ndarray,
    similarities: np.ndarray,
    joined: np.ndarray,
    support: np.ndarray,
    few: np.ndarray,
    near: np.ndarray,
) -> int:
    """Atoms that joined or are in the support, by ascending id; their number, 0 if an atom left or there is no room."""
    count, missing = 0, support.shape[0]
    for place in range(ids.shape[0]):
        known = False
        for atom in support:
            known |= ids[place] == atom
        if not known and not joined[place]:
            continue
        if count == few.shape[0]:
            return 0
        at = count
        while at > 0 and few[at - 1] > ids[place]:
            few[at], near[at] = few[at - 1], near[at - 1]
            at -= 1
        few[at], near[at] = ids[place], similarities[place]
        count += 1
        missing -= known
    return count if missing == 0 else 0


@njit(parallel=True, cache=True)
def still_chosen(
    targets: np.ndarray,
    candidates: np.ndarray,
    ids: np.ndarray,
    similarities: np.ndarray,
    joined: np.ndarray,
    supports: np.ndarray,
) -> np.ndarray:
    """Whether each target's pursuit chooses the same atoms as before, now that its dictionary is another; (n,) bool.

    An atom's correlations depend on itself and on the atoms chosen before it, so the old support and the atoms that
    joined decide alone: if a pursuit among these chooses the old support in the old order, so does one among all. Only
    for targets whose last pursuit was decided by float32 correlations throughout. False also where more atoms joined
    than can be told here.

    targets (n, d), candidates (m, d): unit rows. ids, similarities, joined (n, k_s): the dictionary, in any order.
    supports (n, k_o): the old atoms in the order of their choice.
    """
    n, sparsity = supports.shape
    same = np.zeros(n, np.bool_)
    gram = np.empty((0, 0), np.float32)
    chunk = 32  # targets that share one allocation of scratch
    for task in prange((n + chunk - 1) // chunk):
        few, near = np.empty(STRIP, np.int32), np.empty(STRIP, np.float32)
        alpha, lines = np.empty(STRIP, np.float32), np.empty((sparsity, STRIP), np.float32)
        panels = np.zeros((1, targets.shape[1], STRIP), np.float32)
        found = np.empty(sparsity, np.int32)
        for t in range(task * chunk, min(n, (task + 1) * chunk)):
            count = _deciding(ids[t], similarities[t], joined[t], supports[t], few, near)
            if count > 0:
                found[:] = -1
                plain = _pursue_one(
                    targets[t], candidates, few[:count], near[:count], gram, found, alpha[:count], lines, panels
                )
                same[t] = plain and np.array_equal(found, supports[t])
    return same


# -------------------------------------------------------------------------------------------------------- threads


@contextmanager
def thread_pool(threads: int | None) -> Iterator[None]:
    """Run the kernels on this many threads (None: all that numba has), and put the old number back afterwards."""
    previous = get_num_threads()
    set_num_threads(min(threads or config.NUMBA_NUM_THREADS, config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        set_num_threads(previous)
