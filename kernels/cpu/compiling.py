"""How kernels are compiled, and kept on disk until one of them is edited; every file with a compiled function uses it.

Numba makes a library of each function: optimised, and written as machine code, before it is copied into its callers and
optimised there again.  A kernel here is a hundred small parts that are only ever called by each other, so `part` leaves
them as LLVM wrote them down, and only what Python calls (`entry`) is optimised: the first fit waits half as long.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import Linkage
from numba import _dynfunc, njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.core.untyped_passes import InlineClosureLikes

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


class _EntryLibrary(JITCodeLibrary):
    """The code of an entry, with that of all parts it calls, and of those that they call."""

    def finalize(self) -> None:
        waiting, found = list(self._linking_libraries), []
        while waiting:
            library = waiting.pop()
            if library not in found:
                found.append(library)
                waiting += library._linking_libraries if isinstance(library, _PartLibrary) else []
        self._linking_libraries = found
        super().finalize()

    def _optimize_final_module(self) -> None:
        _go_on_unless_given_up()
        if hasattr(_here, "wait"):
            _here.wait.in_llvm.set()
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


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """Numba's lowering, without the executable at its end."""

    _name = "fastmlp_part_lowering"

    def run_pass(self, state: Any) -> bool:
        _go_on_unless_given_up()
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered, described = state["cr"], state["cr"].fndesc
        state.library._ensure_finalized()
        function = _dynfunc.make_function(
            *(described.lookup_module(), described.qualname.split(".")[-1], "a part of a kernel"),
            *(_NOT_FOR_PYTHON, lowered.env, (state.library,)),
        )
        state.targetctx.insert_user_function(function, described, [state.library])
        state["cr"] = lowered._replace(cfunc=function)
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


def inline_part(function: Callable[..., Any]) -> Any:
    """Compile a function that other kernels call in their inner loops."""
    return part(function, INLINE)


def folder_stamp() -> str:
    """Return a hash of every kernel source and of the compiler's version.

    Numba stamps a cached function with the file it is in, and would go on using it after an edit in another file.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = folder_stamp()
"""Of this process."""
_VERSION = f"{numba.__version__} {STAMP}\n".encode()
"""How every file in the cache begins; of other kernels nothing is unpickled, which may name modules that are gone."""

_told: set[str] = set()


def _tell_once(trouble: str, message: str) -> None:
    """Warn, if a trouble of that kind was not told yet: every function has files of its own."""
    if trouble not in _told:
        _told.add(trouble)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _tell_damaged(path: str, why: str) -> None:
    _tell_once("damaged", f"{path}: what is kept of compiled kernels is damaged ({why}), so they are compiled anew")


class _KernelFiles(IndexDataCacheFile):
    """The files that keep the code of a function, one for each type, each with a hash of what is in it.

    Numba's own have none: a damaged one ends every run in an error of pickle's, or is run.  They are numbered by an
    index, which of several processes that compile at once the last one writes: what the others kept is compiled again
    and again.  So there is no index here; a file's name tells its types, processor and version of Numba.
    """

    def save(self, key: Any, data: Any) -> None:
        self._write(self._path_of(key), (key, data))

    def load(self, key: Any) -> Any:
        kept = self._read(self._path_of(key))
        return kept[1] if kept is not None and kept[0] == key else None

    def _path_of(self, key: Any) -> str:
        digest = hashlib.sha256(f"{numba.__version__} {key}".encode()).hexdigest()[:16]
        return f"{self._index_path.removesuffix('.nbi')}.{digest}.nbc"

    def _read(self, path: str) -> Any:
        """Return what is in a file; None where there is none, it is of other kernels, or damaged, which is said."""
        try:
            with open(path, "rb") as file:
                whole = file.read()
        except FileNotFoundError:
            return None
        except OSError as e:
            _tell_damaged(path, e.strerror or str(e))
            return None
        digest, contents = whole[:_DIGEST], whole[_DIGEST:]
        if hashlib.sha256(contents).digest() != digest:
            _tell_damaged(path, "it was altered or cut short")
            return None
        return pickle.loads(contents[len(_VERSION) :]) if contents.startswith(_VERSION) else None

    def _write(self, path: str, kept: Any) -> None:
        contents = _VERSION + self._dump(kept)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(contents).digest() + contents)


_DIGEST = hashlib.sha256().digest_size


def is_current(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file of the cache is whole, and of these kernels and this version of Numba."""
    try:
        whole = Path(path).read_bytes()
    except OSError:
        return False
    contents = whole[_DIGEST:]
    return contents.startswith(_VERSION) and hashlib.sha256(contents).digest() == whole[:_DIGEST]


class _KernelCache(FunctionCache):
    """Numba's cache on disk, stamped with all kernel files; what is wrong with it is said and ends no run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # under names of their own: files that Numba wrote itself would pass for damaged ones
        name = f"{self._impl.filename_base}-hashed"
        self._cache_file = _KernelFiles(cache_path=self._cache_path, filename_base=name, source_stamp=STAMP)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as e:  # whole, and yet no code for this process
            _tell_damaged(self._cache_path, f"{type(e).__name__}: {e}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as e:
            _tell_once(
                "full",
                f"{self._cache_path}: the folder for compiled kernels takes no more ({e.strerror or e}), so what was "
                "compiled now is compiled again the next time; make room, or set NUMBA_CACHE_DIR to another folder",
            )


def entry(function: Callable[..., Any], *, allocates: bool = False) -> Any:
    """Compile a function that Python calls, when it is first called, and keep the code on disk where that can be."""
    compiled = njit(**{**WHOLE, "_nrt": allocates})(function)
    if compiled is function:  # the JIT is off
        return function
    try:
        compiled._cache = _KernelCache(function)
    except (RuntimeError, OSError):  # no folder that can be written: compile in each process
        compiled._cache = NullCache()
    return compiled


def allocating_entry(function: Callable[..., Any]) -> Any:
    """Compile, as `entry`, a function that makes arrays of its own."""
    return entry(function, allocates=True)


def cache_folder() -> str | None:
    """Return where compiled code is kept, or None where no folder can be written."""
    try:
        path = FunctionCache(folder_stamp).cache_path
    except (RuntimeError, OSError):
        return None
    return os.fspath(path)
