"""A folder of safetensors files as one set of named tensors.

If there is a `model.safetensors.index.json`, it says which file holds which tensor, and must agree
with the files exactly. Otherwise `model.safetensors` is read, or else every `*.safetensors` file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gptoss_ref._files import outside, read_object
from gptoss_ref.checkpoint.reader import SafetensorsFile, TensorInfo
from gptoss_ref.errors import CheckpointError, ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Shards(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint folder: a mapping from name to TensorInfo.

    Raises CheckpointError for missing, unreadable, overlapping or contradictory shards, and for
    a shard that lies outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home: dict[str, SafetensorsFile] = {}
        index = folder / INDEX
        if index.exists():
            if reason := outside(index, folder):
                raise CheckpointError(f"{index}: {reason}")
            self.files = self._open_indexed(index)
        else:
            self.files = self._open_all()

    def __getitem__(self, name: str) -> TensorInfo:
        return self._home[name].tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.values())

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._home[name].path

    def array(self, name: str) -> NDArray[Any]:
        """A tensor, in its own shape, as a read-only mapped view; see SafetensorsFile.array."""
        return self._home[name].array(name)

    def common_dtype(self, names: Sequence[str], target: str) -> str:
        """The dtype of tensors that are joined into ``target``; CheckpointError if they differ."""
        dtypes = {self[name].dtype for name in names}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{self.folder}: {', '.join(names)} have dtypes {', '.join(sorted(dtypes))}; "
                f"{target} needs one"
            )
        return dtypes.pop()

    def check_sizes(self) -> None:
        """Raises CheckpointError if a shard has been truncated since it was mapped."""
        for file in self.files:
            file.check_size()

    def release(self) -> None:
        """Lets the operating system drop the pages of all shards."""
        for file in self.files:
            file.release()

    def _open_indexed(self, index: Path) -> tuple[SafetensorsFile, ...]:
        weight_map = _weight_map(index)
        if (self.folder / SINGLE).exists() and SINGLE not in weight_map.values():
            raise CheckpointError(
                f"{self.folder}: holds {SINGLE}, and an {INDEX} that does not list it; "
                "expected only one of the two"
            )
        names = sorted(set(weight_map.values()))
        paths = {name: _inside(self.folder, name, index) for name in names}
        missing = [name for name in names if not paths[name].is_file()]
        if missing:
            raise CheckpointError(
                f"{index}: lists the shard {missing[0]!r}, which does not exist "
                f"({len(missing)} of {len(names)} shards are missing)"
            )
        files = {name: SafetensorsFile(path) for name, path in paths.items()}
        self._collect(files.values())
        for tensor, name in weight_map.items():
            if tensor not in files[name].tensors:
                actual = self._home.get(tensor)
                where = f"it is in {actual.path.name!r}" if actual else "no shard holds it"
                raise CheckpointError(
                    f"{index}: places the tensor {tensor!r} in {name!r}, but {where}"
                )
        for tensor, file in self._home.items():
            if tensor not in weight_map:
                raise CheckpointError(
                    f"{index}: does not list the tensor {tensor!r}, which {file.path.name!r} holds"
                )
        return tuple(files.values())

    def _open_all(self) -> tuple[SafetensorsFile, ...]:
        single = self.folder / SINGLE
        paths = [single] if single.exists() else sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{self.folder}: holds no .safetensors file")
        files = tuple(SafetensorsFile(_inside(self.folder, p.name, self.folder)) for p in paths)
        self._collect(files)
        return files

    def _collect(self, files: Any) -> None:
        for file in files:
            for name in file.tensors:
                if name in self._home:
                    raise CheckpointError(
                        f"{self.folder}: the tensor {name!r} is in two shards, "
                        f"{self._home[name].path.name!r} and {file.path.name!r}"
                    )
                self._home[name] = file


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return parse_weight_map(read_object(index), index)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def parse_weight_map(content: Mapping[str, Any], index: Path) -> dict[str, str]:
    """The file of each tensor, from the JSON object of an index; errors begin with `index`.

    Raises CheckpointError if it is not such a mapping, or a file is not a plain name.
    """
    raw = content.get("weight_map")
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError(f"{index}: weight_map must map each tensor's name to its file")
    for tensor, name in raw.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: the file of {tensor!r} must be a name, not {name!r}")
    for name in {*raw.values()}:
        _check_plain(name, index)
    return raw


def _check_plain(name: str, source: Path) -> None:
    if any(c in name for c in "/\\:\0") or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{source}: the shard {name!r} is not the plain name of a .safetensors file "
            "in this folder"
        )


def _inside(folder: Path, name: str, source: Path) -> Path:
    """`folder / name`; CheckpointError if it is outside the folder, see `_files.outside`."""
    path = folder / name
    if reason := outside(path, folder):
        raise CheckpointError(f"{source}: the shard {name!r} {reason}")
    return path
