"""Compiled kernels: rows of a sparse product, exponentials, a contrast with its gradient, the best items of a user.

Every row is worked on by one thread in a fixed order, so no result depends on the number of threads. All compiled code
lives in this one file, because numba's on-disk cache notices edits of a function's own file only.
"""

from math import factorial
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

# More chunks than threads: rows differ in length, and a chunk is the unit that a free thread takes next.
CHUNKS = 64
STRIP = 64  # columns that are summed at a time: the usual width of an embedding, and no more than registers hold


@intrinsic
def _add_strip(typing_context: Any, factors: Any, starts: Any, count: Any, dense: Any, offset: Any, out: Any,
               place: Any) -> Any:  # fmt: skip
    """out[place + k] += sum of factors[e] * dense[starts[e] + offset + k] over e < count, for k < STRIP.

    The sums stay in registers, which numba does not manage by itself.
    """
    flat, index = types.Array(types.float32, 1, "C"), types.intp
    signature = types.void(flat, types.Array(types.int64, 1, "C"), index, flat, index, flat, index)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, word = ir.VectorType(ir.FloatType(), STRIP), ir.IntType(64)
        data = {n: context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 1, 3, 5)}
        count, offset, place = (arguments[n] for n in (2, 4, 6))
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{STRIP}f32"
        )

        def strip(array: int, start: Any) -> Any:
            return builder.bitcast(builder.gep(data[array], [start]), vector.as_pointer())

        target = strip(5, place)
        start = builder.load(target, align=4)
        before = builder.block
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)

        builder.position_at_end(head)
        entry, total = builder.phi(word), builder.phi(vector)
        builder.cbranch(builder.icmp_signed("<", entry, count), body, after)

        builder.position_at_end(body)
        factor = builder.load(builder.gep(data[0], [entry]))
        lanes = builder.insert_element(ir.Constant(vector, ir.Undefined), factor, ir.Constant(ir.IntType(32), 0))
        first_lane = ir.Constant(ir.VectorType(ir.IntType(32), STRIP), [0] * STRIP)
        lanes = builder.shuffle_vector(lanes, ir.Constant(vector, ir.Undefined), first_lane)
        row = builder.add(builder.load(builder.gep(data[1], [entry])), offset)
        added = builder.call(fma, [lanes, builder.load(strip(3, row), align=4), total])
        next_entry = builder.add(entry, ir.Constant(word, 1))
        builder.branch(head)
        for phi, begin, then in ((entry, ir.Constant(word, 0), next_entry), (total, start, added)):
            phi.add_incoming(begin, before)
            phi.add_incoming(then, body)

        builder.position_at_end(after)
        builder.store(total, target, align=4)
        return context.get_dummy_value()

    return signature, emit


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def multiply_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    dense: np.ndarray,
    has_addend: bool,
    addend_places: np.ndarray,
    addend: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[r] = sum_e values[e] dense[places[indices[e]]] over the entries of row rows[r], + addend.

    Parameters
    ----------
    indptr, indices, values
        CSR arrays of a matrix (n, m): int32, int32, float32.
    rows
        Shape (U,), int64.
    places
        Shape (at least m,), int64: where row j of the dense factor stands in `dense`; -1 for a row of zeros.
    addend_places
        Shape (at least n,), int64: the same for the rows of `addend`, which is not read without `has_addend`.
    """
    width = dense.shape[1]
    flat, flat_out, strips = dense.reshape(-1), out.reshape(-1), width // STRIP * STRIP
    work = np.empty(rows.size + 1, np.int64)
    work[0] = 0
    longest = np.int64(0)
    for r in range(rows.size):
        length = np.int64(indptr[rows[r] + 1] - indptr[rows[r]])
        work[r + 1] = work[r] + length + 1
        longest = max(longest, length)
    for chunk in prange(CHUNKS):
        start = np.searchsorted(work, work[-1] * chunk // CHUNKS)
        end = np.searchsorted(work, work[-1] * (chunk + 1) // CHUNKS)
        factors, starts = np.empty(longest + 1, np.float32), np.empty(longest + 1, np.int64)
        for r in range(start, end):
            place = addend_places[rows[r]] if has_addend else -1
            for k in range(width):
                out[r, k] = addend[place, k] if place >= 0 else np.float32(0)
            count = np.uint64(0)  # unsigned: spares numba's test for indices from the end
            for entry in range(indptr[rows[r]], indptr[rows[r] + 1]):
                place = places[indices[entry]]
                factors[count] = values[entry]  # written over by the next one if there is no such row
                starts[count] = place * width
                count += np.uint64(place >= 0)
            for k in range(0, strips, STRIP):
                _add_strip(factors, starts, np.intp(count), flat, k, flat_out, r * width + k)
            if strips < width:
                for entry in range(np.intp(count)):
                    for k in range(strips, width):
                        out[r, k] += factors[entry] * flat[starts[entry] + k]


# e^x = 2^n e^r with |r| <= ln 2 / 2: e^r by Taylor's series, ln 2 in two parts so that n ln 2 is exact.
LOG2_E, LN_2, LN_2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
C2, C3, C4, C5, C6, C7 = (np.float32(1 / factorial(n)) for n in range(2, 8))
LEAST_POWER = np.float32(-87)  # e^-87 is the last that float32 holds in full


@njit(cache=True, fastmath={"contract"}, error_model="numpy", inline="always")
def _exp(x: np.float32) -> np.float32:
    """e^x to 1e-7 for x < 88, in a form that LLVM vectorises, other than a call of the C library."""
    x = max(x, LEAST_POWER)
    n = np.floor(x * LOG2_E + np.float32(0.5))
    r = x - n * LN_2 - n * LN_2_REST
    series = ((((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2) * r + np.float32(1)) * r + np.float32(1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))  # the bits of 2^n
    return series * power.view(np.float32)


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def exponentiate(rows: np.ndarray, sums: np.ndarray) -> None:
    """rows (b, n) float32 = e^rows, each number below 88, and sums (b,) = their sum over each row."""
    for i in prange(rows.shape[0]):
        row, total = rows[i], np.float32(0)
        for k in range(row.size):
            row[k] = _exp(row[k])
        for k in range(row.size):
            total += row[k]
        sums[i] = total


@njit(cache=True, fastmath={"contract", "reassoc"})
def _unit_row(row: np.ndarray, unit: np.ndarray) -> np.float32:
    """unit = row divided by its length, which is returned; for a zero row, zero and 1."""
    total = np.float32(0)
    for k in range(row.size):
        total += row[k] * row[k]
    length = np.sqrt(total) if total > 0 else np.float32(1)
    for k in range(row.size):
        unit[k] = row[k] / length
    return length


@njit(cache=True, fastmath={"contract", "reassoc"})
def _dot(left: np.ndarray, right: np.ndarray) -> np.float32:
    total = np.float32(0)
    for k in range(left.size):
        total += left[k] * right[k]
    return total


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def relation_contrast(
    anchors: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    temperature: float,
    anchor_gradients: np.ndarray,
    positive_gradients: np.ndarray,
    negative_gradients: np.ndarray,
) -> float:
    """Mean over targets of -log softmax of the cosines over τ at the positive (eq. 10), and its gradients.

    With w the softmax, the loss has the slope w_v / τ by a negative's cosine and (w_p - 1) / τ by the positive's. A
    gradient g by a unit row u becomes (g - (g u) u) / |x| by the row x itself.

    Parameters
    ----------
    anchors, positives
        Shape (n, d), float32.
    negatives
        Shape (n, |V|, d), float32.
    anchor_gradients, positive_gradients, negative_gradients
        Of the same shapes; they are written.
    """
    count, width = anchors.shape
    candidates = 1 + negatives.shape[1]
    inverse = np.float32(1 / temperature)
    losses = np.empty(count, np.float64)
    for t in prange(count):
        anchor, units = np.empty(width, np.float32), np.empty((candidates, width), np.float32)
        lengths, cosines = np.empty(candidates, np.float32), np.empty(candidates, np.float32)
        length = _unit_row(anchors[t], anchor)
        highest = np.float32(-1)
        for c in range(candidates):
            lengths[c] = _unit_row(positives[t] if c == 0 else negatives[t, c - 1], units[c])
            cosines[c] = _dot(anchor, units[c])
            highest = max(highest, cosines[c])
        total = np.float32(0)
        for c in range(candidates):
            total += np.exp((cosines[c] - highest) * inverse)
        losses[t] = np.log(total) - (cosines[0] - highest) * inverse
        along = np.float32(0)  # the part of the anchor's gradient that would only change its length
        gradient = anchor_gradients[t]
        for k in range(width):
            gradient[k] = 0
        for c in range(candidates):
            share = np.exp((cosines[c] - highest) * inverse) / total
            slope = (share - np.float32(c == 0)) * (inverse / np.float32(count))
            along += slope * cosines[c]
            target = positive_gradients[t] if c == 0 else negative_gradients[t, c - 1]
            for k in range(width):
                gradient[k] += slope * units[c, k]
                target[k] = slope * (anchor[k] - cosines[c] * units[c, k]) / lengths[c]
        for k in range(width):
            gradient[k] = (gradient[k] - along * anchor[k]) / length
    mean = 0.0
    for t in range(count):  # in order: `losses.sum()` would be shared out between threads, and round by their number
        mean += losses[t] / count
    return mean


LANES = 32  # scores that are compared at a time


@intrinsic
def _first_above(typing_context: Any, scores: Any, start: Any, stop: Any, floor: Any) -> Any:
    """The first place from `start` on whose score is above the floor or NaN, among whole groups of LANES before `stop`.

    Without one, the place where the last group ends.
    """
    flat, index = types.Array(types.float32, 1, "C"), types.intp

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, word, bits = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64), ir.IntType(LANES)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        start, stop, floor = arguments[1:]
        single = builder.insert_element(ir.Constant(vector, ir.Undefined), floor, ir.Constant(ir.IntType(32), 0))
        first_lane = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        floors = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), first_lane)
        before = builder.block
        head, body, hit, after = (builder.append_basic_block() for _ in range(4))
        builder.branch(head)

        builder.position_at_end(head)
        place = builder.phi(word)
        end = builder.add(place, ir.Constant(word, LANES))
        builder.cbranch(builder.icmp_signed("<=", end, stop), body, after)

        builder.position_at_end(body)
        group = builder.load(builder.bitcast(builder.gep(data, [place]), vector.as_pointer()), align=4)
        above = builder.bitcast(builder.fcmp_unordered(">", group, floors), bits)
        builder.cbranch(builder.icmp_unsigned("==", above, ir.Constant(bits, 0)), head, hit)

        builder.position_at_end(hit)
        lane = builder.cttz(above, ir.Constant(ir.IntType(1), 1))
        found = builder.add(place, builder.zext(lane, word))
        builder.branch(after)
        place.add_incoming(start, before)
        place.add_incoming(end, body)

        builder.position_at_end(after)
        result = builder.phi(word)
        result.add_incoming(place, head)
        result.add_incoming(found, hit)
        return result

    return types.intp(flat, index, index, types.float32), emit


@njit(nogil=True, cache=True)
def top_items(
    block: np.ndarray, indptr: np.ndarray, indices: np.ndarray, users: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k items with the highest scores that a user has not stored, and whether a user's scores hold a NaN.

    Parameters
    ----------
    block
        Scores (B, N), float32.
    indptr, indices
        CSR arrays, sorted, of the items (M, N) that are left out.
    users
        Shape (B,): their rows there.

    Returns
    -------
    top, damaged
        (B, k) int64, best first, ties to the lower id, -1 where there is no further item; (B,) bool.
    """
    rows, columns = block.shape
    top, damaged = np.full((rows, k), -1, dtype=np.int64), np.zeros(rows, dtype=np.bool_)
    for row in range(rows):
        scores, best = block[row], np.full(k, -np.inf, dtype=np.float32)
        found, masked, end = 0, indptr[users[row]], indptr[users[row] + 1]
        item = 0
        while item < columns:
            if found == k:  # from now on few items matter
                item = _first_above(scores, item, columns, best[k - 1])
                while item < columns and scores[item] <= best[k - 1]:  # what is left after the last whole group
                    item += 1
                if item == columns:
                    break
            score = scores[item]
            damaged[row] |= np.isnan(score)
            while masked < end and indices[masked] < item:
                masked += 1
            if not (masked < end and indices[masked] == item):
                rank = min(found, k - 1)
                while rank > 0 and best[rank - 1] < score:
                    best[rank], top[row, rank] = best[rank - 1], top[row, rank - 1]
                    rank -= 1
                best[rank], top[row, rank] = score, item
                found = min(found + 1, k)
            item += 1
    return top, damaged
