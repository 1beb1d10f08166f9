"""Files that people give: regular ones alone, and what is in YAML."""

import errno
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml

_MOST_VALUES = 100_000
"""In a file that a person wrote; aliases of aliases can make a few lines stand for more than any memory holds."""


def regular(path: Path) -> Path:
    """The path of a file; raises OSError where there is none, or a pipe or a device, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return path


def read_yaml(path: Path, fault: type[ValueError]) -> Any:
    """What a YAML file holds, all keys text and each once in its mapping; raises `fault`, one sentence with the path,
    for any other."""
    try:
        return yaml.load(regular(path).read_bytes(), _Loader)
    except OSError as error:
        reason = error.strerror
    except RecursionError:
        reason = "it is nested too deeply"
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = f"{line}{error.problem}"
    except Exception as error:  # bytes that are no text, and escapes that are no characters, of which Python complains
        reason = str(error)
    raise fault(f"{path} is no readable YAML file ({' '.join(str(reason).split())}).")


class _Loader(yaml.SafeLoader):
    """Refuses keys that YAML allows and nothing here means: one that is no text, and one that stands in its mapping a
    second time, which would silently win; and says where a value is not what its tag or its form promises."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > _MOST_VALUES:
            self._refuse(node, f"stands for more than {_MOST_VALUES:,} values once its aliases are unfolded")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # PyYAML lets through whatever Python says of it
            self._refuse(node, f"is no {node.tag.rpartition(':')[2]}")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                self._refuse(key, "is no text; put it in quotes if it is a name")
            if key.value in seen:
                self._refuse(key, "stands here a second time")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _refuse(self, node: yaml.Node, why: str) -> NoReturn:
        shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a list or a map"
        raise yaml.constructor.ConstructorError(problem=f"{shown} {why}", problem_mark=node.start_mark)


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a node and below, what an alias names once for each; infinitely many where one names itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [each for pair in inner for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_unfolded(each, known) for each in parts)
    return known[id(node)]
