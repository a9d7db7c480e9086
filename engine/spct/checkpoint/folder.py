"""From what a user names to files on disk: a folder, a hub id or "embedded", and only files that lie within it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from spct.errors import CheckpointError, ConfigError

# What inference reads; scripts and pickled weights stay where they are.
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
# The same weights once more, under the names of another library.
_HUB_IGNORED = ["consolidated*", "original/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder.

    path   where the files stand
    root   what their links may point into: the folder itself, or for a snapshot in the hub's cache the model's cache
    """

    path: Path
    root: Path

    def file(self, name: str) -> Path | None:
        """The file of this name, or None where there is none.

        Raises: CheckpointError if the name, or a link behind it, leads out of the folder, or if it is no regular file.
        """
        path = self.path / name
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{self.path}: the file name {name!r} leaves the folder")
        try:
            target = path.resolve(strict=True)
            if not target.is_relative_to(self.root):
                raise CheckpointError(f"{path}: a link that leaves the folder; copy the file itself there")
            if not target.is_file():
                raise CheckpointError(f"{path}: expected a regular file")
        except FileNotFoundError:
            if path.is_symlink():
                raise CheckpointError(f"{path}: a link to nothing; fetch the file again") from None
            return None
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: can't be read ({error})") from None
        return path

    def required(self, name: str, remedy: str) -> Path:
        """The file of this name.

        Raises: CheckpointError as `file`, and with the remedy where it is missing.
        """
        path = self.file(name)
        if path is None:
            raise CheckpointError(f"{self.path / name}: missing; {remedy}")
        return path


def find_folder(name: str | os.PathLike[str], revision: str | None = None) -> Folder:
    """The folder of a checkpoint: "embedded", a path, or a hub id ("owner/name", fetched or taken from the hub's cache).

    Raises: ConfigError if there is no such folder and nothing can be fetched; CheckpointError if it holds no config.json.
    """
    if name == "embedded":
        path = Path(str(files("spct"))) / "embedded"
        if not path.is_dir():
            raise ConfigError("model 'embedded': this installation holds no embedded model; name a folder or a hub id")
    else:
        path = Path(name).expanduser()
        try:
            is_folder = path.is_dir()
        except (OSError, ValueError) as error:
            raise ConfigError(f"model {os.fspath(name)!r}: not a usable path ({error})") from None
        if not is_folder:
            path = _from_hub(os.fspath(name), path, revision)
    folder = _folder(path)
    folder.required("config.json", "expected a Hugging Face model folder")
    return folder


def _folder(path: Path) -> Folder:
    real = path.resolve()
    # In the hub's cache, models--owner--name/snapshots/revision/* are links to models--owner--name/blobs/*.
    if real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir():
        return Folder(real, real.parent.parent)
    return Folder(real, real)


def _from_hub(name: str, path: Path, revision: str | None) -> Path:
    if path.exists():
        raise ConfigError(f"model {name!r}: expected a folder with config.json, got a file")
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(f"model {name!r}: no such folder, and not a hub id such as 'owner/name'")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(f"model {name!r}: no such folder; to fetch it from the hub, install the extra: pip install 'spct[hub]'") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model {name!r}: no such folder, and the hub gave nothing ({reason}); check id and network, or download it first"
        ) from None
