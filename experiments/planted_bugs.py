"""Would the tests notice a bug? Plant one at a time into a copy of the project, run the tests there, count what they catch.

    python -m experiments.planted_bugs --files pecker.py unet.py train.py --count 60 --seed 0

A bug is one small change of the code: another operator or number, a flipped condition, swapped arguments, a dropped call,
argument, slice or assignment; not in docstrings, messages and settings. Every change is equally likely. A survivor need not
be a missing test: some changes have no effect. At worst a minute per bug and core: 60 bugs on two cores in half an hour.
"""

import argparse
import ast
import atexit
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

COPIED = (".py", ".md", ".txt", "experiments")  # what the tests need, by the ends of the names
MESSAGE = r"(fail|print)\(|raise |f['\"]|(help|description|metavar)="  # the code of one starts like this
OTHER = {  # what an operator is mistaken for, by their names in ast
    "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Div", "Mod": "FloorDiv", "Pow": "Mult",
    "MatMult": "Mult", "BitAnd": "BitOr", "BitOr": "BitAnd", "And": "Or", "Or": "And", "Eq": "NotEq", "NotEq": "Eq",
    "Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE", "GtE": "Gt Lt", "In": "NotIn", "NotIn": "In", "Is": "IsNot", "IsNot": "Is",
}  # fmt: skip


def walk(parent):
    """Every node below and its parent, without what is left alone."""
    aside = [getattr(parent, "annotation", None), getattr(parent, "returns", None), *getattr(parent, "decorator_list", [])]
    for node in ast.iter_child_nodes(parent):
        setting = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(parent, ast.Module | ast.ClassDef)
        if not setting and node not in aside and not re.match(MESSAGE, ast.unparse(node)):
            yield node, parent
            yield from walk(node)


def changes(node, parent):
    """What could wrongly stand in the place of this node: another node, or a dict of the fields that differ."""
    operators = getattr(node, "ops", [getattr(node, "op", None)])
    for i, operator in enumerate(operators):
        for other in [getattr(ast, name)() for name in OTHER.get(type(operator).__name__, "").split()]:
            yield {"op": other} if hasattr(node, "op") else {"ops": [*operators[:i], other, *operators[i + 1 :]]}
    match node:
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(bool() | int() | float() as value):
            yield {"value": not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value or 1.0}
        case ast.Slice(lower):
            yield from (ast.Slice(), {"lower": ast.BinOp(lower or ast.Constant(0), ast.Add(), ast.Constant(1))})
        case ast.keyword():
            yield ast.keyword(None, ast.Dict([], []))  # **{}: no argument
        case ast.Call(function, arguments):
            for i in range(1, 0 if ast.unparse(function) in ("min", "max", "math.gcd") else len(arguments)):
                yield {"args": [*arguments[: i - 1], arguments[i], arguments[i - 1], *arguments[i + 1 :]]}
            if isinstance(function, ast.Attribute) and not isinstance(parent, ast.Expr):
                yield function.value  # x instead of x.detach()
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Assign([ast.Name(name)], value) if name in ast.unparse(value):
            yield ast.Pass()  # x = f(x); without another assignment, a NameError would give the bug away
    if node in (getattr(parent, "test", None), *getattr(parent, "ifs", ())) and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)  # a comparison and a `not` are turned round above


def sites(source):
    """All bugs that can be planted into this text, in its order: (line, old text, new text, the whole text with the bug)."""
    tree, lines = ast.parse(source), source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    modules = "|".join(["self", *(name.asname or name.name for name in ast.walk(tree) if isinstance(name, ast.alias))])
    for node, parent in walk(tree):
        for change in changes(node, parent):
            changed = type(node)(**dict(ast.iter_fields(node)) | change) if isinstance(change, dict) else change
            old, new = ast.unparse(node), ast.unparse(changed)
            before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
            after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
            planted = new if isinstance(node, ast.stmt | ast.Slice | ast.keyword) else f"({new})"
            if new != old and not re.fullmatch(rf"({modules})(\.\w+)*", new):  # equal arguments swapped; torch for torch.exp(x)
                yield node.lineno, old, new, (before + planted.encode() + after).decode()


def run_tests(original, file, text):
    """In a copy of the folder `original` with this text in this file: the first test that fails, "" if none does."""
    with tempfile.TemporaryDirectory(dir=original.parent, ignore_cleanup_errors=True) as copy:
        shutil.copytree(original, copy, dirs_exist_ok=True)
        Path(copy, file).write_bytes(text.encode())
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "test_pecker.py"]
        how = dict(cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        tests = subprocess.Popen(command, **how, text=True, errors="replace", start_new_session=True)
        atexit.register(lambda: tests.poll() is None and os.killpg(tests.pid, 9))  # after Ctrl-C
        try:
            output, _ = tests.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(tests.pid, 9)  # SIGKILL, for the tests and all that they have started
            return "the limit of 300 seconds"
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE) or [f"exit status {tests.returncode}"]
    return failed[-1] if tests.returncode else ""


def main(argv=None):
    files = [str(path) for pattern in ("*.py", "experiments/*.py") for path in Path().glob(pattern)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", nargs="+", choices=files, default=["pecker.py", "unet.py", "train.py"], metavar="FILE")
    parser.add_argument("--count", type=int, default=60, help="bugs to plant (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        original = Path(folder, "original")  # nobody edits it while the tests run
        shutil.copytree(".", original, ignore=lambda _, names: {name for name in names if not name.endswith(COPIED)})
        if failed := run_tests(original, "test_pecker.py", Path("test_pecker.py").read_text("utf-8")):
            parser.exit(2, f"planted_bugs: {failed} is red without any bug: make the tests pass first\n")
        bugs = [(file, *site) for file in args.files for site in sites((original / file).read_bytes().decode())]
        bugs, tried = random.Random(args.seed).sample(bugs, max(0, min(args.count, len(bugs)))), []
        with ThreadPool() as pool:
            for (file, line, old, new, _), failed in pool.imap_unordered(lambda b: (b, run_tests(original, b[0], b[-1])), bugs):
                first = max(0, len(os.path.commonprefix([old, new])) - 30)  # long ones are cut to where they differ
                what = f"{file}:{line}  {old[first : first + 70]} -> {new[first : first + 70]}"
                print(f"caught by {failed}:  {what}" if failed else f"SURVIVED:  {what}", flush=True)
                tried.append((file, failed, what))
    for name in [*args.files, "all"]:
        caught = [bool(failed) for file, failed, _ in tried if name in (file, "all")]
        print(f"{name}: {sum(caught)} of {len(caught)} caught")
    print("survivors:", *(what for _, failed, what in tried if not failed), sep="\n  ")


if __name__ == "__main__":
    main()
