"""Prose that ships with Python itself: the standard library's docstrings and comments, and pydoc's topics."""

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HELD_OUT_SHARE = 20


@dataclass
class Corpus:
    """Documents, a module or a pydoc topic each: paragraphs in source order, in name order of the files."""

    training: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


def read_corpus(wanted: Callable[[str], bool] = lambda name: True) -> Corpus:
    """The running interpreter's text, from files whose path below the standard library is wanted.

    A paragraph appears once in the whole corpus. One docstring (or run of comments) in twenty is held out, by the
    hash of its text, so that other Python versions hold out the same ones.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    corpus, seen = Corpus(), set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or not wanted(name):
            continue
        for blocks in _documents(name, path):
            training, held_out = [], []
            for block in blocks:
                new = [p for p in _paragraphs(block) if not (_key(p) in seen or seen.add(_key(p)))]
                (held_out if _is_held_out(block) else training).extend(new)
            corpus.training += ["\n\n".join(training)] if training else []
            corpus.held_out += ["\n\n".join(held_out)] if held_out else []
    return corpus


def _is_held_out(block: str) -> bool:
    digest = hashlib.blake2b(block.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def _key(paragraph: str) -> str:
    return re.sub(r"\W+", " ", paragraph).lower()


def _documents(name: str, path: Path) -> Iterator[list[str]]:
    """A source file's documents as blocks of raw text: one document, but pydoc's topics are one each."""
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):  # test data that is no Python on purpose
        return
    if name == "pydoc_data/topics.py":
        tables = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
        yield from ([ast.literal_eval(topic)] for table in tables for topic in table.values)
        return
    yield [text for _, text in sorted([*_docstrings(tree), *_comments(source)])]


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


def _paragraphs(block: str) -> Iterator[str]:
    """The paragraphs of prose, each on one line; code, tables, markup and licences are dropped."""
    for paragraph in re.split(r"\n\s*\n", block):
        text = " ".join(paragraph.split())
        words = re.findall(r"[A-Za-z][a-z']*\b", text)
        readable = sum(c.isalpha() or c in " ,.'" for c in text)
        if len(words) < 8 or readable < 0.88 * len(text) or _LICENCE.search(text) or _CODE.search(text):
            continue
        yield text
