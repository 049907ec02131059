"""``fastmlp doctor``: planted troubles are named, each with the command that mends it, whatever cannot be imported."""

import json
import math
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastmlp.backends.cpu import calibration, choices, limits
from fastmlp.backends.cuda import backend as cuda_backend
from fastmlp.backends.cuda import probe
from fastmlp.backends.decisions import Decisions
from fastmlp.doctor import checkup, looks, versions
from fastmlp.doctor.findings import Findings, Trouble

ROOT = Path(__file__).parent.parent.parent
THREADS = looks.THREAD_VARIABLES


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*THREADS, "OPENBLAS_CORETYPE", "NUMBA_DISABLE_JIT", "NUMBA_CPU_NAME", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Put modules, or the metadata of packages, before those that are installed, here and in every process started."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)

    def package(name, version, needs=()):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {n}" for n in needs),
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    write.package = package
    return write


def the_one(found, cause, cure, stops=False):
    """Assert that one of the troubles has this cause and this cure, both regular expressions; return it."""
    those = [t for t in found.troubles if re.search(cause, t.cause)]
    assert len(those) == 1, found
    assert re.search(cure, those[0].cure), those
    assert those[0].stops is stops
    return those[0]


# --- planted troubles -------------------------------------------------------------------------------------------------


def test_a_package_that_raises_on_import(plant):
    plant(numba="raise RuntimeError('no LLVM for you')")
    found = checkup.examine(("numba", "caches"))
    cure = r'^python -m pip install --force-reinstall --no-cache-dir "numba>=0\.61"$'
    the_one(found, "^numba cannot be used: RuntimeError: no LLVM for you$", cure, stops=True)
    assert found.facts["not looked at"] == [("caches", "cannot be told before numba can be used")]
    assert len(found.troubles) == 1


def test_a_package_that_is_missing(plant):
    plant(scipy_openblas32="raise ModuleNotFoundError(\"No module named 'scipy_openblas32'\", name='scipy_openblas32')")
    found = checkup.examine(("scipy_openblas32",))
    the_one(found, "^scipy-openblas32 is not installed$", r'^python -m pip install "scipy-openblas32>=0\.3', stops=True)


def test_a_package_of_a_package_that_is_missing(plant):
    plant(numba="import llvmlite_of_old")
    cure = "^python -m pip install llvmlite_of_old$"
    the_one(checkup.examine(("numba",)), "numba cannot be used: .*llvmlite_of_old", cure, stops=True)


def test_kernels_that_the_processor_cannot_run(plant, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "SkylakeX")
    plant(numpy="import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    found = checkup.examine(("numpy", "scipy"))
    cause = "OPENBLAS_CORETYPE=SkylakeX forces kernels that this processor cannot run: numpy ends the process by SIGILL"
    the_one(found, cause, "^unset OPENBLAS_CORETYPE$", stops=True)
    assert len(found.troubles) == 1


def test_kernels_that_are_forced_and_run(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell" if "x86" in os.uname().machine else "ARMV8")
    the_one(checkup.examine(("numpy",)), "^OPENBLAS_CORETYPE=.* keeps the BLAS from", "^unset OPENBLAS_CORETYPE$")


def test_a_package_that_hangs(plant, monkeypatch):
    monkeypatch.setattr(checkup, "SECONDS", 1)
    plant(rich="import time; time.sleep(60)")
    cure = '--force-reinstall --no-cache-dir "rich>=13'
    the_one(checkup.examine(("rich",)), "^rich cannot be used: took longer than 1 s: it hangs$", cure, stops=True)


def test_versions_that_do_not_go_together(plant):
    plant.package("numpy", "1.26.4")
    found = checkup.examine(())
    cause = r"^numpy 1\.26\.4 is installed, but fastmlp .* needs numpy>=2\.0"
    cure = the_one(found, cause, r'^python -m pip install "numpy', stops=True).cure
    assert ">=2.0" in cure  # and what numba and SciPy need


def test_versions_that_another_package_does_not_take(plant):
    plant.package("numba", "0.99", needs=["numpy<2.0"])
    the_one(checkup.examine(()), r"but numba 0\.99 needs numpy<2\.0$", '^python -m pip install "numpy<2.0,', stops=True)


def test_a_package_that_fails_for_its_versions_has_their_cure(plant):
    plant.package("numpy", "1.26.4")
    plant(numpy="raise ImportError('compiled for another Python')")
    found = checkup.examine(("numpy",))
    assert len({t.cure for t in found.troubles}) == 1
    the_one(found, "^numpy cannot be used: ImportError: compiled", '^python -m pip install "numpy', stops=True)


def test_two_cupys(plant):
    plant.package("cupy-cuda12x", "14.2.0")
    plant.package("cupy-cuda13x", "14.2.0")
    plant(cupy="")
    cause = "several CuPy packages are installed, cupy-cuda12x, cupy-cuda13x, and overwrite each other"
    cure = r"^pip uninstall cupy-cuda12x cupy-cuda13x, then pip install 'fastmlp\[cuda13\]'"
    the_one(checkup.examine(("cuda",)), cause, cure)


CUPY = """
import types

def no(*_):
    raise RuntimeError("libnvrtc.so: cannot open shared object file")

class Device:
    compute_capability = "90"

runtime = types.SimpleNamespace(
    driverGetVersion=lambda: {driver}, runtimeGetVersion=lambda: 13000, getDeviceCount=lambda: 1
)
cuda = types.SimpleNamespace(runtime=runtime, Device=Device, nvrtc=types.SimpleNamespace(getVersion=no))
"""


@pytest.mark.parametrize(
    ("driver", "cause", "cure"),
    [
        (0, "there is no NVIDIA driver, or no GPU$", "^install a driver: https"),
        (12090, "the driver is for CUDA 12, this CuPy for CUDA 13$", r"pip install 'fastmlp\[cuda12\]' instead$"),
        (13000, r"NVRTC is not found \(RuntimeError: libnvrtc.so", r"\[ctk\] extra: pip install 'fastmlp\[cuda13\]'"),
    ],
    ids=["no driver", "an old driver", "no toolkit"],
)
def test_a_cupy_that_cannot_run(plant, driver, cause, cure):
    plant.package("cupy-cuda13x", "14.2.0")
    plant(cupy=CUPY.format(driver=driver))
    the_one(checkup.examine(("cuda",)), f"^the backend cupy cannot run: .*{cause}", cure)


def test_a_gpu_without_cupy(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.12, 143771 MiB, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(probe, "cupy_wheels", list)
    the_one(looks.LOOKS["cuda"](), "^there is a GPU .NVIDIA H200, 570", r"^python -m pip install 'fastmlp\[cuda12\]'$")


def test_no_folder_for_compiled_kernels(monkeypatch):
    from fastmlp.kernels.cpu import kept

    monkeypatch.setattr(kept, "cache_folder", lambda: None)
    cause = "^compiled kernels are kept nowhere, .*: every process compiles anew$"
    the_one(looks.LOOKS["caches"](), cause, "^export NUMBA_CACHE_DIR=.* && fastmlp warmup$")


def test_a_folder_for_compiled_kernels_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    cause = "^NUMBA_CACHE_DIR=.*cache cannot be written, so compiled kernels are kept in "
    the_one(checkup.examine(("caches",)), cause, "^export NUMBA_CACHE_DIR=.* && fastmlp warmup$")


def test_info_and_warmup_tell_of_such_a_folder_too(tmp_path, monkeypatch):
    pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
    (tmp_path / "file").write_text("")
    for given, told in ((tmp_path / "file" / "cache", True), (tmp_path / "cache", False)):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(given))
        code = "from fastmlp.cli import main; main()"  # in a process of its own, since Numba reads the variable once
        done = subprocess.run([sys.executable, "-P", "-c", code, "info"], capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("compiled kernels "))
        assert line.endswith(f": NUMBA_CACHE_DIR={given} cannot be written") == told
        assert line.split(maxsplit=2)[2].startswith(f"in {given}") != told

    from fastmlp.kernels.cpu import kept

    monkeypatch.setattr(kept, "cache_folder", lambda: "/elsewhere/kernels")
    assert looks.where_kernels_are() == f"in /elsewhere/kernels: NUMBA_CACHE_DIR={given} cannot be written"
    monkeypatch.setattr(kept, "cache_folder", lambda: None)
    assert looks.where_kernels_are() == "nowhere: no cache folder can be written; set NUMBA_CACHE_DIR"


def test_kernels_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    found = checkup.examine(("caches",))
    assert found.troubles == []
    folder = Path(dict(found.facts["caches"])["compiled kernels"].partition(",")[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.train_thread-1.py311-hashed.0.nbc", "products-0-float32.json", "of_someone_else.nbc"):
        (folder / name).write_bytes(bytes(1000))
    cause = r"^2 files \(0.0 MB\) in .* are of other versions of fastmlp or Numba, or damaged"
    cure = the_one(checkup.examine(("caches",)), cause, "^find .* -delete && fastmlp warmup$").cure
    subprocess.run(cure.partition(" && ")[0], shell=True, check=True)
    assert [p.name for p in folder.iterdir()] == ["of_someone_else.nbc"]
    assert checkup.examine(("caches",)).troubles == []


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    the_one(looks.LOOKS["caches"](), "^the home folder .*file cannot be written", "^export CUPY_CACHE_DIR=")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
def test_threads_that_are_held_back(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(limits, "physical_cores", lambda: 8)
    monkeypatch.setattr(limits, "default_threads", lambda: 1)
    cause = f"^training takes 1 of 8 physical cores, because of {name}=1$"
    the_one(looks.LOOKS["threads"](), cause, f"^unset {name}$")


def test_kernels_that_are_not_compiled(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    the_one(checkup.examine(("numba",)), "^NUMBA_DISABLE_JIT is set", "^unset NUMBA_DISABLE_JIT$")


@pytest.mark.parametrize(("asked", "cause"), [("nunpy", "did you mean 'numpy'"), ("cupy", "it is a test")])
def test_a_backend_of_the_environment_that_there_is_not(monkeypatch, asked, cause):
    monkeypatch.setenv("FASTMLP_BACKEND", asked)
    monkeypatch.setattr(cuda_backend, "probe", lambda: probe.Availability(False, "it is a test; end it"))
    found = looks.LOOKS["backends"]()
    the_one(found, f"FASTMLP_BACKEND={asked}.*{cause}", "^unset FASTMLP_BACKEND$")
    assert dict(found.facts["backends"])["auto"].startswith("cannot be: ")


def test_what_was_decided_is_told(monkeypatch, tmp_path):
    made = Decisions(tmp_path / "steps.json", {})
    made.keep("4-8-2, batch 16", {"products": "blas blas blas, blas blas blas", "parts": 2})
    monkeypatch.setattr(choices, "decisions", lambda what, dtype: made)
    for rows in looks.products().facts.values():
        assert dict(rows)["4-8-2, batch 16"] == "blas blas blas, blas blas blas (in 2 parts)"
        assert "threads" in dict(rows)


@pytest.mark.parametrize(
    ("near", "told"),
    [(math.inf, "everywhere, and for a few rows"), (2048.0, "where rows take up to 2,048 bytes, and for a few rows")],
)
def test_where_weights_are_read_in_place_is_told(monkeypatch, near, told):
    monkeypatch.setattr(calibration, "known", lambda dtype: calibration.Measured(1e-4, 1e-7, 1e10, near))
    for rows in looks.products().facts.values():
        assert dict(rows)["weights read in place"].startswith(told)


def test_a_source_folder_without_kernels(monkeypatch):
    monkeypatch.setattr(checkup, "find_spec", lambda name: None)
    the_one(checkup.examine(()), "^fastmlp was imported from its source folder", "^python -m pip install -e .")


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments, code="from fastmlp.cli import main; main()", **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_it_runs_where_nothing_can_be_imported(tmp_path):
    for module in versions.REQUIRED:
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('{module} is broken')\n")
    done = command("doctor", "--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    found = Findings.from_dict(json.loads(done.stdout))
    first = set(versions.REQUIRED) - set(checkup.NEEDS)  # the others wait for those
    told = {t.cause for t in found.troubles if "cannot be used: ImportError: " in t.cause}
    assert told == {f"{versions.REQUIRED[m]} cannot be used: ImportError: {m} is broken" for m in first}
    assert {name for name, _ in found.facts["not looked at"]} >= {"scipy", "numba", "sklearn", "threads", "cuda"}

    done = command("train", "mnist", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: fastmlp cannot start (ImportError: typer is broken)" in done.stderr
    assert "fastmlp doctor tells what is wrong here, and what mends it" in done.stderr


def test_a_whole_look_at_this_machine(cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, ""), out
    for fact in ("of NumPy ", "of fastmlp's kernels ", "compiled kernels ", "physical cores ", "GPUs, by nvidia-smi "):
        assert fact in out


def test_options_and_help(cli, monkeypatch):
    found = Findings({"a": [("b", f"{os.path.expanduser('~')}/c")]}, [Trouble("broken", "mend it", stops=True)])
    monkeypatch.setattr("fastmlp.doctor.__main__.examine", lambda: found)
    code, out, _ = cli("doctor")
    assert code == 1
    assert "1. stops work: broken\n   mend it by: mend it\n" in out
    code, out, _ = cli("doctor", "--markdown")
    assert code == 1
    assert "- stops work: broken\n\n      mend it\n" in out
    assert "  b  ~/c\n```" in out
    code, out, _ = cli("doctor", "--json")
    assert Findings.from_dict(json.loads(out)) == found
    assert "--markdown" in cli("doctor", "--help")[1]
    assert "doctor    Say what is installed" in cli("--help")[1]
    assert cli("doctor", "--wrong")[0] == 2


def test_markdown_names_no_user_and_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    found = Findings({"paths": [("a", "/home/ada/x:/home/ada-2/y:/scratch/ada/z:/home/ada")]})
    assert "  a  ~/x:/home/ada-2/y:/scratch/USER/z:~\n" in found.markdown()


@pytest.mark.parametrize(
    ("troubles", "line"),
    [
        ([], "nothing is wrong"),
        ([Trouble("a", "b")], "1 thing is wrong, none of which stop work"),
        ([Trouble("a", "b", True), Trouble("c", "d")], "2 things are wrong, 1 of which stops work"),
    ],
)
def test_the_first_line_tells_how_many_troubles_there_are(troubles, line):
    assert str(Findings({}, troubles)).startswith(f"fastmlp doctor: {line}\n")


def test_every_package_that_is_needed_is_looked_at():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]}
    assert needed == set(versions.REQUIRED.values())
    assert set(versions.REQUIRED) <= set(looks.LOOKS)


# --- in short ---------------------------------------------------------------------------------------------------------


def test_info_tells_what_the_doctor_looks_at(plant, monkeypatch):
    def planted():
        found = Findings()
        found.add("backends", ("abacus", "can run"))
        return found

    monkeypatch.setitem(looks.LOOKS, "backends", planted)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plant.package("joblib", "9.9")
    plant.package("numba", "9.9")
    short = checkup.in_short()
    assert short["backends"] == [("abacus", "can run")]
    versions = dict(short["versions"])
    assert versions["numba"] == "9.9" and "joblib" not in versions
    assert short["versions"][1] == ("python", f"{platform.python_version()}, {platform.platform()}")
    threads, looked = dict(short["threads"]), dict(looks.LOOKS["threads"]().facts["threads"])
    assert looked.items() <= threads.items() and looked["OMP_NUM_THREADS"] == "1"
    assert threads["BLAS of NumPy"] == dict(looks.LOOKS["numpy"]().facts["BLAS"])["of NumPy"]


@pytest.mark.parametrize("there", [["cupy-cuda12x", "cupy-cuda13x"], []])
def test_the_version_of_cupy_is_told_in_one_way(plant, monkeypatch, there):
    monkeypatch.setattr(probe, "cupy_wheels", lambda: there)
    for number, wheel in enumerate(there):
        plant.package(wheel, f"14.{number}")
    text = "14.0 (cupy-cuda12x), 14.1 (cupy-cuda13x)" if there else "not installed"
    assert looks.cupy_packages() == text
    monkeypatch.setattr(probe, "cuda_availability", lambda: probe.Availability(False, "it is a test; end it"))
    assert dict(looks.LOOKS["cuda"]().facts["CUDA"])["CuPy"] == text


def test_what_was_measured_of_products_is_among_the_caches_and_in_short():
    pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
    found = looks.products().facts
    assert [title.partition(" (")[0] for title in found] == ["training steps, float32", "training steps, float64"]
    assert found.items() <= looks.LOOKS["caches"]().facts.items()
    assert found.items() <= checkup.in_short().items()
