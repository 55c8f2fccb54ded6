"""Prose that ships with Python itself: the standard library's docstrings and comments, and pydoc's topics."""

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 20


@dataclass(frozen=True)
class Document:
    """A module's prose: `name` is its path in the standard library, `text` its paragraphs in source order."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.name)


def is_held_out(name: str) -> bool:
    """One name in twenty, by hash: the same ones in every Python version."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def read_corpus(wanted: Callable[[str], bool] = lambda name: True) -> list[Document]:
    """Documents of the running interpreter whose file is wanted, in name order; repeated paragraphs go."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or not wanted(name):
            continue
        for title, blocks in _split(name, path):
            paragraphs = [p for p in _paragraphs(blocks) if not (_key(p) in seen or seen.add(_key(p)))]
            if sum(map(len, paragraphs)) >= 200:
                documents.append(Document(title, "\n\n".join(paragraphs)))
    return documents


def _key(paragraph: str) -> str:
    return re.sub(r"\W+", " ", paragraph).lower()


def _split(name: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """A source file's documents as (name, blocks of raw text): one, but pydoc's topics are one each."""
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):  # test data that is no Python on purpose
        return
    if name == "pydoc_data/topics.py":
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                topics = zip(node.keys, node.values, strict=True)
                yield from ((f"{name}:{ast.literal_eval(k)}", [ast.literal_eval(v)]) for k, v in topics if k)
        return
    blocks = [*_docstrings(tree), *_comments(source)]
    yield name, [text for _, text in sorted(blocks)]


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield node.body[0].lineno, docstring


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Comments that stand on lines of their own, runs of them joined."""
    first, last, lines = 0, -1, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type != tokenize.COMMENT or token.line[:column].strip():
            continue
        if row != last + 1 and lines:
            yield first, inspect.cleandoc("\n".join(lines))
            lines = []
        if not lines:
            first = row
        last = row
        lines.append(token.string.lstrip("#!:").rstrip("#- "))
    if lines:
        yield first, inspect.cleandoc("\n".join(lines))


_LICENCE = re.compile(r"copyright|licen[sc]e|rights reserved|warrant|permission|-\*-|pylint|@|://", re.I)
_CODE = re.compile(r">>>|::=|[{}<>|\\^~]|==|\+=|\w\(\w*=|^\s*(def|class|import|from|return|if .*:$)\b|\w = ")


def _paragraphs(blocks: list[str]) -> Iterator[str]:
    """The paragraphs of prose, each on one line; code, tables, markup and licences are dropped."""
    for paragraph in (p for block in blocks for p in re.split(r"\n\s*\n", block)):
        text = " ".join(paragraph.split())
        words = re.findall(r"[A-Za-z][a-z']*\b", text)
        readable = sum(c.isalpha() or c in " ,.'" for c in text)
        if len(words) < 8 or readable < 0.9 * len(text) or _LICENCE.search(text) or _CODE.search(text):
            continue
        yield text
