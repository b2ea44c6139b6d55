"""A yacs node whose files inherit with `_BASE_` and whose mistakes read well."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as _YacsNode

from dassl.utils import UserError, read_yaml, suggest

from .public import UNCHANGED, PublicOption

BASE_KEY = "_BASE_"


class CfgNode(_YacsNode):
    """The configuration tree, or a branch of it.

    Differences from yacs: a file may name the files it builds upon (`_BASE_: ../common.yaml`, or a
    list, relative to the file, merged first and in order); whole numbers are taken where a float
    is expected; a wrong key, type or file is a `UserError` that names it; options that `public`
    declared are taken under their public names.
    """

    @property
    def public_options(self) -> dict[str, PublicOption]:
        """What was declared by `dassl.config.public`, by name."""
        return self.__dict__.setdefault("_public_options", {})

    @property
    def remarks(self) -> list[str]:
        """A line for each public option that was set: what it is here, or that it has no effect."""
        return [line for _, line in self.__dict__.get("_remarks", {}).values()]

    def remark(self, key: str, line: str) -> None:
        """Have `line` among the remarks, until `key` is set anew."""
        self.__dict__.setdefault("_remarks", {})[key] = (key, line)

    def clone(self) -> CfgNode:
        """Copy the tree: as yacs, without copying anew what can't change."""
        twin = type(self)()
        for key, value in self.items():
            copied = value.clone() if isinstance(value, _YacsNode) else copy.deepcopy(value)
            dict.__setitem__(twin, key, copied)  # of a frozen tree, too
        twin.__dict__.update({name: copy.copy(state) for name, state in self.__dict__.items()})
        return twin

    def merge_from_file(self, cfg_filename: str | os.PathLike) -> None:
        """Merge a YAML file, its bases first."""
        for path, content in _with_bases(Path(cfg_filename)):
            _merge(self, content, root=self, where=str(path))

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another tree."""
        _merge(self, cfg_other, root=self, where="merged config")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `[KEY, value, KEY, value, …]` with dotted keys, as given on the command line."""
        if len(cfg_list) % 2:
            raise UserError(
                f"options come in pairs KEY VALUE, but there are {len(cfg_list)} words: "
                + " ".join(map(str, cfg_list))
            )
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            for part in reversed(str(key).split(".")):
                value = {part: value}
            _merge(self, value, root=self, where="command line")


def file_values(path: str | os.PathLike) -> dict[str, Any]:
    """Return what a config file and its bases set, as {dotted key: value}."""
    values: dict[str, Any] = {}
    for _, content in _with_bases(Path(path)):
        values |= _flat(content)
    return {key: _decode(value) for key, value in values.items()}


def _flat(content: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        is_group = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return flat


def _with_bases(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict]]:
    """Yield (file, content) for the bases of `path`, depth first, then for `path` itself."""
    if path.resolve() in seen:
        raise UserError(f"{path}: {BASE_KEY} leads back to this file")
    content = _read(path)
    bases = content.pop(BASE_KEY, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {BASE_KEY} is {bases!r}, not a file's path or a list of such")
    for base in bases:
        yield from _with_bases(path.parent / base, (*seen, path.resolve()))
    yield path, content


def _read(path: Path) -> dict:
    if not path.exists():
        near = suggest(path.name, (p.name for p in path.parent.glob("*.y*ml")))
        raise UserError(f"no such config file: {path}{near}")
    return read_yaml(path)


def _merge(node: _YacsNode, new: Mapping, root: _YacsNode, where: str, prefix: str = "") -> None:
    """Merge `new` into `node`, the branch of `root` at `prefix` ("" or "OPTIM.")."""
    options = getattr(root, "public_options", {})
    for key, value in new.items():
        name = f"{prefix}{key}"
        option = options.get(name)
        if option and (key not in node or option.key == name):
            _merge_public(root, name, option, value, where)
        elif key not in node:
            if any(public.startswith(f"{name}.") for public in options):  # a group of theirs
                if not isinstance(value, Mapping):
                    raise UserError(f"{where}: {name} is a group of keys, not a value")
                _merge(CfgNode(), value, root, where, f"{name}.")
                continue
            if not node.is_new_allowed():
                near = suggest(name, [*_all_keys(root), *options])
                raise UserError(f"{where}: unknown config key {name}{near}")
            node[key] = CfgNode(value) if isinstance(value, Mapping) else _decode(value)
        elif isinstance(node[key], _YacsNode):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{where}: {name} is a group of keys ({', '.join(node[key])}), not a value"
                )
            _merge(node[key], value, root, where, f"{name}.")
        else:
            node[key] = _coerce(value, node[key], f"{where}: {name}")
            _forget_remarks(root, name)


def _merge_public(root: _YacsNode, name: str, option: PublicOption, value: Any, where: str) -> None:
    """Set our key for a public option, and remark on it."""
    decoded = _decode(value)
    try:
        ours = option.translate(decoded)
    except ValueError as error:
        raise UserError(f"{where}: {name} {decoded!r}: {error}") from None
    said = root.__dict__.setdefault("_remarks", {})
    if option.key is None or ours is UNCHANGED:
        said[name] = (name, f"{name} {decoded!r} has no effect: {option.why}")
        return
    if ours is None and not option.may_be_none():
        raise UserError(f"{where}: {name} takes a value, not {value!r}")
    same = option.key == name and ours is decoded
    *branch, key = option.key.split(".")
    node = root
    for part in branch:
        node = node[part]
    what = f"{where}: {name}" if option.key == name else f"{where}: {name}: {option.key}"
    node[key] = None if ours is None else _coerce(value if same else ours, node[key], what)
    _forget_remarks(root, option.key)
    if not same:
        said[name] = (option.key, f"{name} {decoded!r}: here {option.key} {ours!r}")


def _forget_remarks(root: _YacsNode, key: str) -> None:
    """Drop what was said of a key that is now set anew."""
    said = root.__dict__.get("_remarks", {})
    for name in [name for name, (set_key, _) in said.items() if set_key == key]:
        del said[name]


def _all_keys(node: _YacsNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, _YacsNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _decode(value: Any) -> Any:
    """Read a string as a Python literal where it is one ("1e-5", "(224, 224)")."""
    return _YacsNode._decode_cfg_value(value)


def _coerce(value: Any, old: Any, what: str) -> Any:
    """Return `value` as the type of `old`; `what` names the key in the error."""
    decoded = _decode(value)
    if isinstance(old, str) and isinstance(value, str):
        # A name that looks like a literal ("101") stays a name; quotes around one are dropped.
        return decoded if isinstance(decoded, str) else value
    if old is None or type(decoded) is type(old):
        return decoded
    if isinstance(old, float) and type(decoded) is int:
        return float(decoded)
    if isinstance(old, (list, tuple)) and isinstance(decoded, (list, tuple)):
        return type(old)(decoded)
    raise UserError(
        f"{what} takes a value of type {type(old).__name__} like {old!r}, not {value!r}"
    )
