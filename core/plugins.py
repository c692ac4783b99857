"""Objects a user names as ``path/to/file.py:name`` in the configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from core.errors import ConfigError, Problem


def is_plugin(value: str) -> bool:
    """Whether `value` has the form ``FILE.py:NAME``.

    >>> is_plugin("mine.py:build"), is_plugin("convnet")
    (True, False)
    """
    path, separator, name = value.rpartition(":")
    return bool(separator) and path.endswith(".py") and name.isidentifier()


def plugin_content(value: str) -> str:
    """What `value` names, by content instead of by path: editing the file changes it.

    A file that cannot be read stands for itself by its path.
    """
    path_text, _, name = value.rpartition(":")
    path = Path(path_text).expanduser()
    if not path.is_file():
        return value
    return f"{path.name}:{name}#{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def load_plugin(key: str, value: str) -> Any:
    """Load the object that `value` names.

    The file is executed once per process and content, under a module name of its own, so that two
    files of the same name do not meet.

    Args:
        key: The configuration key, for error messages.
        value: ``FILE.py:NAME``; a relative path is looked up from the working directory.

    Raises:
        ConfigError: The file is missing, fails to import, or holds no such name.
    """
    path_text, _, name = value.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError([Problem(key, value, f"there is no file {path}; give FILE.py:NAME")])
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    module_name = f"tessera_plugin_{path.stem}_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            reason = f"{path} does not import: {type(error).__name__}: {error}"
            raise ConfigError([Problem(key, value, reason)]) from error
    if not hasattr(module, name):
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ConfigError([Problem(key, value, f"{path} defines no {name!r}; it has {public}")])
    return getattr(module, name)
