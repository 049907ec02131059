"""The vectors of a tile where they are loaded and stored, and what of them is there at the edges of a matrix."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from . import vectors


class Vectors:
    """Loads and stores of `width` vectors side by side, of which only `valid` numbers may be touched in memory.

    With masks (AVX-512, where they cost nothing) every load and store has one.  Without, the last of several vectors
    ends where the row ends, and so may hold numbers of the one before: what is computed twice is the same.  A single
    vector is loaded whole, which whoever calls sees to, and stored by a half, a quarter ... where it is not.
    """

    def __init__(self, builder, number, lanes, width, valid):
        self.builder, self.number, self.lanes, self.width, self.valid = builder, number, lanes, width, valid
        self.vector = ir.VectorType(number, lanes)
        self.pointer = self.vector.as_pointer()
        self.align = 8 if isinstance(number, ir.DoubleType) else 4
        self.kind = f"v{lanes}f{8 * self.align}"
        self.zeros = self.zeros_of(lanes)
        self.bits = ir.VectorType(ir.IntType(1), lanes)
        self.places = [vectors.integer(j * lanes) for j in range(width)]
        if vectors.MASKS:
            self.masks = [self._mask(self._less(valid, j * lanes)) for j in range(width)]
        elif width > 1:
            self.places[-1] = self._less(valid, lanes)

    def zeros_of(self, count):
        return ir.Constant(ir.VectorType(self.number, count), [0.0] * count)

    def _mask(self, count):
        """Return a mask of the first `count` lanes.

        From an integer's bits: LLVM puts a comparison of vectors off until its result is used, which is in each pass
        of the inner loop, and there it takes the port of every second multiplication.
        """
        builder, lanes, none = self.builder, vectors.integer(self.lanes), vectors.integer(0)
        count = builder.select(builder.icmp_signed("<", count, lanes), count, lanes)
        count = builder.select(builder.icmp_signed("<", count, none), none, count)
        bits = self._less(builder.shl(vectors.integer(1), count), 1)
        return builder.bitcast(builder.trunc(bits, ir.IntType(self.lanes)), self.bits)

    def _less(self, value, amount):
        return self.builder.sub(value, vectors.integer(amount))

    def _function(self, result, arguments, name):
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), name)

    def fma(self, a, b, c):
        name = f"llvm.fma.v{a.type.count}f{8 * self.align}"
        return self.builder.call(self._function(a.type, [a.type] * 3, name), [a, b, c])

    def splat(self, value):
        return vectors.splat(self.builder, value, self.lanes)

    def _place(self, row, j):
        return self.builder.bitcast(self.builder.gep(row, [self.places[j]]), self.pointer)

    def load(self, row, j):
        place = self._place(row, j)
        return self._load_masked(place, self.masks[j]) if vectors.MASKS else self.builder.load(place, align=self.align)

    def _load_masked(self, place, mask):
        alignment = ir.Constant(ir.IntType(32), self.align)
        arguments = [self.pointer, alignment.type, self.bits, self.vector]
        load = self._function(self.vector, arguments, f"llvm.masked.load.{self.kind}.p0{self.kind}")
        return self.builder.call(load, [place, alignment, mask, self.zeros])

    def initial_sums(self, rows, onward, count, first, stride):
        """Return the vectors that the sums of so many rows begin with: 0, or with `onward` what is in out."""
        builder, found = self.builder, []
        before = builder.basic_block
        with builder.if_then(onward, likely=False):
            for r in range(rows):
                last = builder.sub(count, vectors.integer(1))
                own = builder.select(builder.icmp_signed("<", vectors.integer(r), last), vectors.integer(r), last)
                row = builder.gep(first, [builder.mul(own, stride)])
                found += [self._load_valid(row, j) for j in range(self.width)]
            there = builder.basic_block
        sums = [builder.phi(self.vector) for _ in found]
        for phi, value in zip(sums, found, strict=True):
            phi.add_incoming(self.zeros, before)
            phi.add_incoming(value, there)
        return sums

    def _load_valid(self, row, j):
        """Load a vector of out, of which no more may be read than there is."""
        if vectors.MASKS or self.width > 1:
            return self.load(row, j)
        builder, size, rest = self.builder, 1, self.zeros_of(1)  # rest: what follows the part of this size
        while size < self.lanes:
            there, place = self._part(row, size)
            part, none = self._load_where(there, place), self.zeros_of(size)
            both = range(2 * size)
            rest = builder.select(
                there, vectors.shuffle(builder, part, rest, both), vectors.shuffle(builder, rest, none, both)
            )
            size *= 2
        whole = builder.icmp_signed("==", self.valid, vectors.integer(size))
        return builder.select(whole, self._load_where(whole, self._place(row, 0)), rest)

    def _load_where(self, wanted, place):
        builder, zeros = self.builder, self.zeros_of(place.type.pointee.count)
        before = builder.basic_block
        with builder.if_then(wanted):
            found, within = builder.load(place, align=self.align), builder.basic_block
        value = builder.phi(zeros.type)
        value.add_incoming(zeros, before)
        value.add_incoming(found, within)
        return value

    def _part(self, row, size):
        """Return whether there is a part of this size, of a half, a quarter ... that add up to `valid`, and where.

        A loop over single numbers would be a call of memcpy: LLVM makes one of it.
        """
        builder, kind = self.builder, ir.VectorType(self.number, size)
        there = builder.icmp_signed("!=", builder.and_(self.valid, vectors.integer(size)), vectors.integer(0))
        start = builder.and_(self.valid, vectors.integer(-2 * size))
        return there, builder.bitcast(builder.gep(row, [start]), kind.as_pointer())

    def store_sums(self, sums, count, alpha, beta, first, stride):
        """Write ``out = beta out + alpha sums`` for `count` rows; with a `beta` of 0, out is not looked at."""
        builder, zero, one = self.builder, ir.Constant(self.number, 0.0), ir.Constant(self.number, 1.0)
        keeps = builder.fcmp_unordered("!=", beta, zero)  # else what is there may be NaN
        factor, scale = self.splat(alpha), self.splat(beta)
        if vectors.MASKS:
            scales = builder.or_(keeps, builder.fcmp_unordered("!=", alpha, one))
            with builder.if_else(scales) as (scaled, plain):
                with scaled:
                    self._store_masked(sums, count, (factor, scale, keeps), first, stride)
                with plain:
                    self._store_masked(sums, count, None, first, stride)
            return
        with builder.if_else(keeps) as (more, fresh):
            for block, old_scale in ((more, scale), (fresh, None)):
                with block:
                    for r, row_sums in enumerate(sums):
                        with builder.if_then(builder.icmp_signed("<", vectors.integer(r), count)):
                            row = builder.gep(first, [builder.mul(vectors.integer(r), stride)])
                            self._store_row(row_sums, row, factor, old_scale)

    def _store_row(self, sums, row, factor, scale):
        builder = self.builder

        def whole():
            new = [builder.fmul(factor, total) for total in sums]
            if scale is not None:  # all are loaded before one is stored
                new = [self.fma(scale, self.load(row, j), total) for j, total in enumerate(new)]
            for j, value in enumerate(new):
                builder.store(value, self._place(row, j), align=self.align)

        if self.width > 1:
            whole()
            return
        is_whole = builder.icmp_signed("==", self.valid, vectors.integer(self.lanes))
        with builder.if_else(is_whole) as (all_, some):
            with all_:
                whole()
            with some:
                value, size = builder.fmul(factor, sums[0]), self.lanes // 2
                while size:
                    low, high = (vectors.shuffle(builder, value, value, range(n, n + size)) for n in (0, size))
                    there, place = self._part(row, size)
                    with builder.if_then(there):
                        new = low
                        if scale is not None:
                            part = vectors.shuffle(builder, scale, scale, range(size))
                            new = self.fma(part, builder.load(place, align=self.align), low)
                        builder.store(new, place, align=self.align)
                    value, size = builder.select(there, high, low), size // 2

    def _store_masked(self, sums, count, scaling, first, stride):
        builder, alignment = self.builder, ir.Constant(ir.IntType(32), self.align)
        arguments = [self.vector, self.pointer, alignment.type, self.bits]
        store = self._function(ir.VoidType(), arguments, f"llvm.masked.store.{self.kind}.p0{self.kind}")
        nothing = ir.Constant(self.bits, [0] * self.lanes)
        for r, row_sums in enumerate(sums):
            there = builder.icmp_signed("<", vectors.integer(r), count)
            row = builder.gep(first, [builder.mul(vectors.integer(r), stride)])
            for j in range(self.width):
                mask, place = builder.select(there, self.masks[j], nothing), self._place(row, j)
                new = row_sums[j]
                if scaling is not None:
                    factor, scale, keeps = scaling
                    old = self._load_masked(place, builder.select(keeps, mask, nothing))
                    new = self.fma(scale, old, builder.fmul(factor, new))
                builder.call(store, [new, place, alignment, mask])
