"""Would the tests notice a bug? Plant one at a time into a copy of the project, run the tests there, count what they catch.

    python -m experiments.planted_bugs --files pecker.py unet.py train.py --count 20 --seed 0

A bug is one small change: another operator or number, a lost sign, a flipped condition, swapped arguments, a dropped slice, call
or statement. Not every survivor has an effect. About a minute per bug and core: 60 bugs on two cores in half an hour.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

OTHER = {  # what an operator is mistaken for
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def changes(node):
    """[the fields of this node that could be wrong, and how]"""
    match node:
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OTHER:
            yield {"op": OTHER[type(operator)]()}
        case ast.Compare(ops=[operator, *others]) if type(operator) in OTHER:
            yield {"ops": [OTHER[type(operator)](), *others]}
        case ast.UnaryOp(operator, operand):
            yield {"operand": ast.UnaryOp(operator, operand)}  # --x
        case ast.Constant(bool() | int() | float() as value):
            yield {"value": not value if isinstance(value, bool) else value + 1}
        case ast.Slice() if ast.unparse(node) != ":":
            yield {"lower": None, "upper": None, "step": None}
        case ast.Call(f, [one, two, *others]) if ast.dump(one) != ast.dump(two) and ast.unparse(f) not in ("min", "max"):
            yield {"args": [two, one, *others]}
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield {"test": ast.UnaryOp(ast.Not(), test)}
        case ast.Expr(ast.Call(function)) if ast.unparse(function) != "print":
            yield {"value": ast.Constant(None)}
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield {"targets": [ast.Name("_")]}
    for name, part in ast.iter_fields(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and not (part.args or isinstance(node, ast.Expr)):
            yield {name: part.func.value}  # x instead of x.detach()


def plant(source, count, seed):
    """So many bugs, chosen by chance among all that fit into this text: [(line, old text, new text, the text with the bug)]."""
    tree, planted = ast.parse(source), []
    code = [part for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for part in node.body]
    nodes = dict.fromkeys(node for part in code for node in ast.walk(part))  # each once, also in a function within another
    bugs = [(node, fields) for node in nodes for fields in changes(node)]
    for node, fields in random.Random(seed).sample(bugs, min(count, len(bugs))):
        right, old = vars(node).copy(), ast.unparse(node)
        vars(node).update(fields)
        planted.append((getattr(node, "lineno", 0), old, ast.unparse(node), ast.unparse(tree)))
        vars(node).update(right)
    return planted


def survives(original, file, text):
    """Whether the tests pass in a copy of the folder `original` with this text in this file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as copy:
        shutil.copytree(original, copy, dirs_exist_ok=True)
        Path(copy, file).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "test_pecker.py"]
        how = dict(cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return subprocess.run(command, **how, timeout=300).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", nargs="+", default=["pecker.py", "unet.py", "train.py"], metavar="FILE")
    parser.add_argument("--count", type=int, default=20, help="bugs in each file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, ThreadPool() as pool:  # nobody edits this copy while the tests run
        shutil.copytree(".", folder, ignore=shutil.ignore_patterns(".*", "*venv*", "__py*", "data", "runs"), dirs_exist_ok=True)
        for file in args.files:
            source = Path(folder, file).read_text("utf-8")
            if not survives(folder, file, ast.unparse(ast.parse(source))):
                parser.error("the tests are red without any bug: make them pass first")
            bugs, caught = plant(source, args.count, args.seed), 0
            for (line, old, new, _), survived in zip(bugs, pool.imap(lambda bug: survives(folder, file, bug[-1]), bugs)):
                caught += not survived
                if survived:
                    print(f"survived: {file}:{line}  {old.splitlines()[0][:70]} -> {new.splitlines()[0][:70]}", flush=True)
            print(f"{file}: {caught} of {len(bugs)} caught", flush=True)


if __name__ == "__main__":
    main()
