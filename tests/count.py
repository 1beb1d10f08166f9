"""`make count`: lines of code of each storey, without blank lines, comments and docstrings."""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_STOREYS = ("mbml", "actors", "pipeline")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of_code(text: str) -> int:
    """Lines of a module that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> int:
    """Print the counts; exit code 1 above the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.count", description=__doc__)
    parser.add_argument("--limit", type=int, help="the most that all of them together may have")
    limit = parser.parse_args().limit
    counts = {s: sum(lines_of_code(p.read_text()) for p in (_ROOT / s).rglob("*.py")) for s in _STOREYS}
    total = sum(counts.values())
    print(f"{total} lines of code: {', '.join(f'{storey} {count}' for storey, count in counts.items())}")
    if limit is not None and total > limit:
        print(f"That is above the limit of {limit}: delete before adding.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
