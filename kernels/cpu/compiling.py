"""How kernels are compiled, and found again in the files of `kept`; every file with a compiled function uses it.

Numba makes a library of each function: optimised, and written as machine code, before it is copied into its callers and
optimised there again.  A kernel here is a hundred small parts that are only ever called by each other, so `part` leaves
them as LLVM wrote them down, and only what Python calls (`entry`) is optimised: the first fit waits half as long.  What
takes the compiler long and several entries call (`shared`) is code of its own, which they call where it lies.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from llvmlite.binding import Linkage
from numba import _dynfunc, njit, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import register_pass
from numba.core.targetconfig import ConfigStack
from numba.core.typed_passes import NativeLowering
from numba.core.untyped_passes import InlineClosureLikes

from .kept import STAMP, KernelFiles, tell_damaged, tell_once

# Products may become fused multiply-adds and zeros may lose their sign; nothing else is loosened: infinities and NaN
# keep their meaning, and compensated arithmetic is not reassociated away.
FASTMATH = {"nsz", "contract"}

# What Python gets for a part: calling it is a TypeError.
_NOT_FOR_PYTHON = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value


CHECK_SECONDS = 0.1
"""How often whoever waits for the compiler looks up."""
LET_GO_SECONDS = 2.0
"""How long whoever gives up waits at most until the compiler lets go; it cannot where another thread has its lock."""

_here = threading.local()


class _GivenUp(BaseException):
    """Nobody waits any more for what this thread compiles."""


class _Wait:
    """What a thread that compiles and the one that waits for it tell each other."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.in_llvm = threading.Event()
        """Until then Numba may have changed how the whole process shows warnings, and has to put that back."""


def compile_aside(call: Callable[[], object], check: Callable[[], None]) -> None:
    """Make a call that compiles, in a thread of its own, and call `check` meanwhile, every tenth of a second.

    What `check` raises, and Ctrl-C, end the wait: between two parts, or at once where LLVM has the floor, which cannot
    be stopped; the thread then ends by itself.  What was compiled until then is kept.

    Raises
    ------
    BaseException
        What the call raised, or `check`.
    """
    wait = _Wait()
    raised: list[BaseException] = []

    def work() -> None:
        _here.wait = wait
        try:
            call()
        except _GivenUp:
            pass
        except BaseException as e:
            raised.append(e)
        finally:
            wait.in_llvm.set()

    thread = threading.Thread(target=work, name="fastmlp's compiler")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(CHECK_SECONDS)
            check()
    except BaseException:
        wait.given_up.set()
        wait.in_llvm.wait(LET_GO_SECONDS)
        raise
    if raised:
        raise raised[0]


def _go_on_unless_given_up() -> None:
    if hasattr(_here, "wait") and _here.wait.given_up.is_set():
        raise _GivenUp


class _PartLibrary(JITCodeLibrary):
    """The code of a part: linked into its callers as it is, never optimised or made executable by itself."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True


class _Shared(NamedTuple):
    """By what a shared function is found again."""

    module: str
    name: str
    arguments: tuple[types.Type, ...]
    symbol: str
    """What LLVM knows its code by."""


class _SharedLibrary(JITCodeLibrary):
    """The code of a shared function, with that of all parts it calls, and of those that they call.

    Attributes
    ----------
    needs : list of _Shared
        The shared functions that it calls.
    """

    def finalize(self) -> None:
        waiting, found, needs = list(self._linking_libraries), [], []
        while waiting:
            library = waiting.pop()
            if library in _shared:
                needs.append(_shared[library])
            elif library not in found:
                found.append(library)
                waiting += library._linking_libraries if isinstance(library, _PartLibrary) else []
        self._linking_libraries = found
        self.needs = list(dict.fromkeys(needs))
        super().finalize()

    def _optimize_final_module(self) -> None:
        _go_on_unless_given_up()
        super()._optimize_final_module()
        _go_on_unless_given_up()
        self._keep_parts_to_itself()

    def _keep_parts_to_itself(self) -> None:
        """Let no other code in the process find the parts in here by their names, nor this code those of others.

        Numba makes a name unique by a number that counts what its process has compiled, and links what has the same
        name once.  In code that other processes compiled and kept, the same name may be another function.
        """
        for function in self._final_module.functions:
            if function.linkage == Linkage.linkonce_odr and not function.is_declaration:
                function.linkage = Linkage.internal


class _EntryLibrary(_SharedLibrary):
    """The code of an entry; that of shared functions is called where it lies."""

    def _optimize_final_module(self) -> None:
        _go_on_unless_given_up()
        if hasattr(_here, "wait"):
            _here.wait.in_llvm.set()
        super()._optimize_final_module()


_shared: WeakKeyDictionary[JITCodeLibrary, _Shared] = WeakKeyDictionary()
"""The libraries of shared functions."""


def _no_function(described: Any, environment: Any, library: Any) -> Any:
    """Return what Python gets for a function that only kernels call."""
    name = described.qualname.split(".")[-1]
    module = described.lookup_module()
    return _dynfunc.make_function(module, name, "a part of a kernel", _NOT_FOR_PYTHON, environment, (library,))


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """Numba's lowering, without the executable at its end."""

    _name = "fastmlp_part_lowering"

    def _library(self, state: Any) -> Any:
        return _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)

    def run_pass(self, state: Any) -> bool:
        _go_on_unless_given_up()
        state.library = self._library(state)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        state.library._ensure_finalized()
        function = _no_function(lowered.fndesc, lowered.env, state.library)
        state.targetctx.insert_user_function(function, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=function)
        return True


class _FlagsOfOneName(Flags):
    """Flags that make no difference to a symbol: sets of them are written down in any order."""

    def get_mangle_string(self) -> str:
        return "shared"


@register_pass(mutates_CFG=True, analysis_only=False)
class _SharedLowering(_PartLowering):
    """The same, of a shared function, with machine code of its own."""

    _name = "fastmlp_shared_lowering"

    def _library(self, state: Any) -> Any:
        who, state.flags = state.func_id, _FlagsOfOneName(state.flags)
        # what entries call it by, once they are kept on disk; Numba's number is another one in each process
        who.unique_id = int(STAMP[:15], 16)
        who.unique_name = f"{who.func_qualname}${who.unique_id}"
        library = _SharedLibrary(state.targetctx.codegen(), who.func_qualname)
        library.enable_object_caching()
        return library

    def run_pass(self, state: Any) -> bool:
        super().run_pass(state)
        who, symbol = state.func_id, state["cr"].fndesc.mangled_name
        _shared[state.library] = _Shared(who.modname, who.func_qualname, tuple(state.args), symbol)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _EntryLowering(NativeLowering):
    """Numba's lowering, into a library of ours."""

    _name = "fastmlp_entry_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _EntryLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


class _PartCompiler(CompilerBase):
    lowering: Any = _PartLowering

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (self.lowering if step is NativeLowering else step, why)
            for step, why in passes.passes
            if step is not InlineClosureLikes  # there are none, and looking for them takes time
        ]
        return [passes]


class _SharedCompiler(_PartCompiler):
    lowering = _SharedLowering


class _EntryCompiler(_PartCompiler):
    lowering = _EntryLowering

    def _compile_core(self) -> Any:
        # a compiler makes millions of objects that live until it is done; looking through them again and again for
        # garbage is a tenth of its time
        collects = gc.isenabled()
        gc.disable()
        try:
            return super()._compile_core()
        finally:
            if collects:
                gc.enable()


OPTIONS: dict[str, Any] = {
    "fastmath": FASTMATH,
    "error_model": "numpy",
    "nogil": True,
    "pipeline_class": _PartCompiler,
    "no_rewrites": True,  # of expressions on whole arrays, of which there are none
    "_nrt": False,  # no array is counted: whoever calls an entry holds them all until the call is over
}
"""Of a part; also for `overload(..., jit_options=)`."""
INLINE: dict[str, Any] = {**OPTIONS, "forceinline": True}
"""For what is called in inner loops: only what is inlined can be vectorised."""

VIEW: dict[str, Any] = {**INLINE, "_nrt": True}
"""For what returns a part of an array; Numba insists, though nothing is counted there either."""

WHOLE: dict[str, Any] = {**OPTIONS, "pipeline_class": _EntryCompiler, "no_cfunc_wrapper": True}
"""Of a function that Python calls."""


def part(function: Callable[..., Any], options: Mapping[str, Any] = OPTIONS) -> Any:
    """Compile a function that other kernels call: once for all values of an argument, also where one is written there.

    Numba would compile it anew for each number that a call names, of which there are many.
    """
    compiled = njit(**options)(function)
    if compiled is not function:  # the JIT is on
        template = compiled.get_call_template
        compiled.get_call_template = lambda args, kws: template(
            tuple(map(types.unliteral, args)), {name: types.unliteral(kind) for name, kind in kws.items()}
        )
    return compiled


def shared(function: Callable[..., Any]) -> Any:
    """Compile a function of a module, which several entries call, once for all of them, and keep it as they are.

    It is neither inlined nor made to fit a call: that is for what works on whole rows and matrices.
    """
    compiled = part(function, {**OPTIONS, "pipeline_class": _SharedCompiler})
    if compiled is function:
        return function
    compile_within = compiled.compile

    def compile_alone(signature: Any) -> Any:
        # Numba hands a caller's options on, but whoever comes first compiles for all
        with ConfigStack().enter(Flags()):
            return compile_within(signature)

    compiled.compile = compile_alone
    return _kept_on_disk(compiled, function)


def inline_part(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call in their inner loops."""
    return part(function, INLINE)


class _KernelCode(CompileResultCacheImpl):
    """What is kept of a function: its code, by what entries find it, and the shared functions that it calls itself."""

    def reduce(self, cres: Any) -> Any:
        return _shared.get(cres.library), cres.library.needs, super().reduce(cres)

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        own, needs, code = payload
        for needed in needs:  # a symbol that is not there when LLVM looks for it ends the process
            function = getattr(importlib.import_module(needed.module), needed.name)
            function.compile(needed.arguments)
            symbol = function.overloads[needed.arguments].fndesc.mangled_name
            if symbol != needed.symbol:
                raise LookupError(f"it calls {needed.symbol}, where there is {symbol}")
        found = super().rebuild(target_context, code)
        found.library.needs = needs
        if own is None:
            return found
        _shared[found.library] = own
        return found._replace(entry_point=_no_function(found.fndesc, found.environment, found.library))


class _KernelCache(FunctionCache):
    """Numba's cache on disk, stamped with all kernel files; what is wrong with it is said and ends no run."""

    _impl_class = _KernelCode

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # under names of their own: files that Numba wrote itself would pass for damaged ones
        name = f"{self._impl.filename_base}-hashed"
        self._cache_file = KernelFiles(cache_path=self._cache_path, filename_base=name, source_stamp=STAMP)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as e:  # whole, and yet no code for this process
            tell_damaged(self._cache_path, f"{type(e).__name__}: {e}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as e:
            tell_once(
                "full",
                f"{self._cache_path}: the folder for compiled kernels takes no more ({e.strerror or e}), so what was "
                "compiled now is compiled again the next time; make room, or set NUMBA_CACHE_DIR to another folder",
            )


def entry(function: Callable[..., Any], *, allocates: bool = False) -> Any:
    """Compile a function that Python calls, when it is first called, and keep the code on disk where that can be."""
    compiled = njit(**{**WHOLE, "_nrt": allocates})(function)
    return compiled if compiled is function else _kept_on_disk(compiled, function)  # the JIT is off


def _kept_on_disk(compiled: Any, function: Callable[..., Any]) -> Any:
    try:
        compiled._cache = _KernelCache(function)
    except (RuntimeError, OSError):  # no folder that can be written: compile in each process
        compiled._cache = NullCache()
    return compiled


def allocating_entry(function: Callable[..., Any]) -> Any:
    """Compile, as `entry`, a function that makes arrays of its own."""
    return entry(function, allocates=True)
