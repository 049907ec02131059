"""How threads that share a compiled call wait for each other, and take work from each other: atomics and a barrier.

With the JIT off there is one thread, and nothing to wait for.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compiling import OPTIONS, inline_part, part

SPINS = 4000
"""Looks at a barrier before the core is offered to others: about 50 microseconds, longer than most steps wait."""
YIELDS = 200
"""Offers of the core before the thread sleeps instead."""
SLEEP_MICROSECONDS = 50
LINE = 16
"""Numbers between what one thread counts and what another does: 128 bytes, as some processors fetch lines in pairs."""
HERE, GIVEN_UP = 1, 2
"""Where is noted that thread 0 has begun, and by whoever called that it will not, see `all_begin`."""
OPEN, SIZE = LINE, 2 * LINE
"""Where a barrier's counters are, and how many numbers it takes."""

_MACHINE = platform.machine().lower()
_WINDOWS = platform.system() == "Windows"


@intrinsic
def _fetch_add(typing, array, index, value):
    def codegen(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def _load(typing, array, index):
    def codegen(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def _store(typing, array, index, value):
    def codegen(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def _replace(typing, array, index, old, new):
    """Write `new` where `old` is; tell whether so."""

    def codegen(context, builder, signature, args):
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
        found = builder.cmpxchg(builder.gep(data, [args[1]]), args[2], args[3], "acq_rel", "acquire")
        return context.cast(builder, builder.extract_value(found, 1), types.boolean, types.boolean)

    return types.boolean(array, types.intp, types.int64, types.int64), codegen


@intrinsic
def _pause(typing):
    """Tell the core that this is a loop that waits, where it has an instruction for that."""

    def codegen(context, builder, signature, args):
        void = ir.FunctionType(ir.VoidType(), [])
        if _MACHINE in ("x86_64", "amd64", "i386", "i686"):
            builder.call(cgutils.get_or_insert_function(builder.module, void, "llvm.x86.sse2.pause"), [])
        elif _MACHINE in ("aarch64", "arm64"):
            hint = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            yield_ = ir.Constant(ir.IntType(32), 1)
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.aarch64.hint"), [yield_])
        return context.get_dummy_value()

    return types.void(), codegen


if _WINDOWS:
    _switch = types.ExternalFunction("SwitchToThread", types.int32())
    _sleep = types.ExternalFunction("Sleep", types.void(types.uint32))

    @part
    def _offer_core(spins):
        if spins < SPINS + YIELDS:
            _switch()
        else:
            _sleep(types.uint32(0))

else:
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())
    _usleep = types.ExternalFunction("usleep", types.int32(types.uint32))

    @part
    def _offer_core(spins):
        if spins < SPINS + YIELDS:
            _sched_yield()
        else:
            _usleep(SLEEP_MICROSECONDS)


@inline_part
def _wait_a_little(spins):
    """First the core alone, then whoever else wants it: threads may be more than cores."""
    if spins < SPINS:
        _pause()
    else:
        _offer_core(spins)


def all_begin(counter, t, threads):
    """Tell whether the work begins; thread 0 says so, which nothing in Python can keep from its end any more.

    Until then a handler of a signal may raise in it, and the others would wait at the first barrier for good; what
    called it notes at `GIVEN_UP` that it will not come.

    Parameters
    ----------
    counter : (`SIZE`,) int64
        0 at `HERE` and `GIVEN_UP` before threads begin.
    t, threads : int
    """
    return True


@overload(all_begin, jit_options=OPTIONS)
def _all_begin(counter, t, threads):
    def wait(counter, t, threads):
        if threads == 1:
            return True
        if t == 0:
            _store(counter, HERE, 1)
            return True
        spins = 0
        while _load(counter, HERE) == 0:
            if _load(counter, GIVEN_UP) != 0:
                return False
            spins += 1
            _wait_a_little(spins)
        return True

    return wait


def counters(threads: int) -> int:
    """Return how many numbers a barrier takes with what threads take from each other, see `next_part`."""
    return SIZE + LINE * threads


def take(counter, place, stop):
    """Count one more at a place, if `stop` is not reached, and return what was counted before; else -1.

    counter (...) int64.
    """


@overload(take, jit_options=OPTIONS)
def _take(counter, place, stop):
    def take(counter, place, stop):
        while True:
            count = _load(counter, place)
            if count >= stop:
                return -1
            if _replace(counter, place, count, count + 1):
                return count

    return take


@inline_part
def next_part(counter, t, threads, parts, passed, whose, last):
    """Return which part of the work this thread has next, and whose it was; -1 where there is no more.

    Of `parts` that are dealt out to threads in turn; where there are more than threads, a thread takes those of others
    when its own are done, so that a core that is slow, or that another program has, is not waited for.

    Parameters
    ----------
    counter : (`counters`,) int64
        How many parts of each thread have been taken, in all work of the call.
    t, threads, parts : int
        Which thread this is, of how many, and into how many parts the work is divided: at least as many.
    passed : int
        How many barriers have been passed: in the work before each of them, all parts were taken once.
    whose, last : int
        What was returned before; at first `t` and -1.
    """
    if threads == 1 or threads == parts:
        following = last + threads if last >= 0 else t
        return following if following < parts else -1, t
    return _next_untaken(counter, t, threads, parts, passed, whose)


@part
def _next_untaken(counter, t, threads, parts, passed, whose):
    while True:
        own = (parts - whose + threads - 1) // threads
        count = take(counter, SIZE + LINE * whose, (passed + 1) * own)
        if count >= 0:
            return whose + (count - passed * own) * threads, whose
        whose = (whose + 1) % threads
        if whose == t:
            return -1, whose


def barrier(counter, threads, passed):
    """Wait until all threads are here.

    Where they are more than two, all but the last look at a line of their own, which the last one writes: who looks at
    the line in which the others count themselves takes it from them, each time for each of them.

    Parameters
    ----------
    counter : (`SIZE`,) int64
        Arrivals so far, of all barriers of the call, and at `OPEN` how many have been met by all.
    threads : int
    passed : int
        How many barriers this thread has passed, this one included.
    """


@overload(barrier, jit_options=OPTIONS)
def _barrier(counter, threads, passed):
    def wait(counter, threads, passed):
        if threads == 1:
            return
        arrived = _fetch_add(counter, 0, 1) + 1
        place, wanted = 0, threads * passed
        if threads > 2:
            place, wanted = OPEN, passed
            if arrived == threads * passed:
                _store(counter, OPEN, passed)
                return
        spins = 0
        while _load(counter, place) < wanted:
            spins += 1
            _wait_a_little(spins)

    return wait
