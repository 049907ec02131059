"""The folder in which a run of the command line leaves what it made."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from fastmlp.cli.settings import Settings
from fastmlp.errors import DataError, FileFormatError
from fastmlp.files.atomic import atomic_writer, is_temporary, remove_leftovers
from fastmlp.files.reading import refused_by_name

_SPOILT = " is not as fastmlp wrote it ({reason}); put it back, or start a new run in another folder"


class RunFolder:
    """The files of a run.

    Attributes
    ----------
    path : Path
    model, history, config, checkpoint : Path
        ``checkpoint.safetensors`` is there from the first second, or epoch, until the run is finished; with
        ``config.toml`` it is what ``--resume`` goes on from.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.model = self.path / "model.safetensors"
        self.history = self.path / "history.json"
        self.config = self.path / "config.toml"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self._begun = False
        self._made: list[Path] = []
        """What `begin` has made, and was not there before: a folder after what it holds."""

    @classmethod
    def new(cls, out: str | PathLike[str] | None, data: str) -> RunFolder:
        """Return a folder for a new run, not made yet.

        Raises
        ------
        FileExistsError
            `out` is there and not an empty folder; what killed runs left half written is removed, and counts for none.
        """
        if out is None:
            name = Path("runs") / f"{Path(data).name.partition('.')[0]}-{time.strftime('%Y%m%d-%H%M%S')}"
            out = name
            for number in range(2, 1000):
                if not out.exists():
                    break
                out = name.with_name(f"{name.name}-{number}")
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; --out names a folder")
        if path.is_dir() and all(is_temporary(file.name) for file in path.iterdir()):
            remove_leftovers(path)
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(
                f"{path} is not empty; choose another folder for --out, or go on with its run with --resume"
            )
        return cls(path)

    @classmethod
    def existing(cls, out: str | PathLike[str]) -> RunFolder:
        """Return the folder of a run that can go on; an OSError says why not."""
        folder = cls(out)
        if not folder.config.is_file():
            raise FileNotFoundError(
                f"{folder.path} holds no run to resume: there is no {folder.config.name}; leave out --resume"
            )
        if folder.model.exists() and not folder.checkpoint.exists():
            raise FileExistsError(f"the run in {folder.path} is finished; choose another folder for a new one")
        remove_leftovers(folder.path)
        return folder

    def begin(self, settings: Settings, made_with: Mapping[str, str]) -> None:
        """Make the folder, and write ``config.toml`` into it."""
        self._made = [path for path in (self.config, self.path, *self.path.parents) if not path.exists()]
        self._begun = True
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(settings, made_with)

    def withdraw(self, hopeless: bool) -> None:
        """Remove what `begin` made, after an error without a checkpoint: there is nothing to go on from.

        Else the folder would be refused to a new run, as not empty, and ``--resume`` could only fail in the same way.

        Parameters
        ----------
        hopeless : bool
            Whether the run fails with these settings wherever it begins again: a ``config.toml`` that was there before
            goes too.
        """
        if not self._begun or self.checkpoint.exists():
            return
        with suppress(OSError):  # the error that ended the run is what is to be told
            if hopeless or self.config in self._made:
                self.config.unlink()
            for path in self._made:
                if path != self.config:
                    path.rmdir()

    def write_config(self, settings: Settings, made_with: Mapping[str, str]) -> None:
        """Write ``config.toml``: all settings, the command that repeats the run, and on what it ran."""
        lines = [f"command = {_toml(settings.command())}", "", "[settings]"]
        lines += [f"{name} = {_toml(v)}" for name, v in asdict(settings).items() if v is not None]
        lines += ["", "[made_with]", *(f"{name} = {_toml(v)}" for name, v in made_with.items())]
        sums = _checksums(settings)
        if sums:
            lines += ["", "[sha256]", *(f"{_toml(name)} = {_toml(v)}" for name, v in sums.items())]
        with atomic_writer(self.config) as file:
            file.write("\n".join([*lines, ""]).encode())

    def settings(self) -> Settings:
        """Return the settings of the run, after checking that its data are what they were.

        Raises
        ------
        FileFormatError
            ``config.toml`` cannot be read, or lacks something.
        DataError
            The data have changed.
        """
        with refused_by_name(self.config, _SPOILT):
            contents = tomllib.loads(self.config.read_text("utf-8"))
            values: dict[str, Any] = contents["settings"]
            values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            settings = Settings(**values)
            settings.optimizer_record(1)
            then, now = dict(contents.get("sha256", {})), _checksums(settings)
        if changed := [name for name in now if now[name] != then.get(name)]:
            raise DataError(f"{changed[0]} has changed since the run in {self.path} began; start a new run")
        return settings

    @contextmanager
    def blaming_config(self) -> Iterator[None]:
        """Turn what is wrong with the value of a setting, read from ``config.toml``, into an error that names the file.

        Raises
        ------
        FileFormatError
        """
        try:
            yield
        except (DataError, FileFormatError):  # these name what they are about
            raise
        except (ValueError, TypeError) as e:
            raise FileFormatError(f"{self.config}{_SPOILT.format(reason=e)}") from e

    def write_history(self, history: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Write ``history.json``: the figures of every epoch, why the run stopped early, and the final figures.

        JSON has no NaN and no infinity: figures that are none are null.
        """
        text = json.dumps(_finite({**history, "result": result}), indent=1, allow_nan=False)
        with atomic_writer(self.history) as file:
            file.write(text.encode() + b"\n")


def model_file(path: str | PathLike[str]) -> Path:
    """Return the file of a model, given by itself or by the folder of its run.

    Raises
    ------
    FileNotFoundError
        The run was killed before it left one.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        return folder.path
    if folder.config.is_file() and not folder.model.exists():
        raise FileNotFoundError(
            f"{path} holds a run that was not finished, and no {folder.model.name}; go on with it, by fastmlp train "
            f"DATA --resume {shlex.join(['--out', str(path)])}"
        )
    return folder.model


def _checksums(settings: Settings) -> dict[str, str]:
    """Return the sha256 of the files that a run reads; MNIST is checked where it is loaded."""
    if settings.data == "mnist":
        return {}
    names = [settings.data]
    if settings.target is not None and Path(settings.target).is_absolute():
        names.append(settings.target)
    sums = {}
    for name in names:
        with open(name, "rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _finite(value: Any) -> Any:
    """Return values of JSON with None in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _toml(value: Any) -> str:
    if isinstance(value, (bool, str)):
        # a JSON string is a TOML one, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
