import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.kernel import MARK

ROOT = Path(__file__).parents[2]
CALLEE = "from headrace.kernel import kernel\n\n\n@kernel\ndef rate():\n    return {rate}\n"
CALLER = "from headrace.callee import rate\nfrom headrace.kernel import kernel\n\n\n@kernel\ndef price():\n    return 10 * rate()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package with one kernel that calls another."""
    package = tmp_path / "headrace"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernel.py").write_text((ROOT / "headrace" / "kernel.py").read_text())
    (package / "caller.py").write_text(CALLER)
    (package / "callee.py").write_text(CALLEE.format(rate=2))
    return tmp_path


def test_a_kept_kernel_is_compiled_again_when_a_kernel_that_it_calls_in_another_module_has_changed(
    folder: Path,
) -> None:
    assert told(ask(folder)) == "20 compiled"
    assert told(ask(folder)) == "20 kept"
    (folder / "headrace" / "callee.py").write_text(CALLEE.format(rate=3))
    assert told(ask(folder)) == "30 compiled"


def test_of_processes_that_need_a_kernel_at_once_one_compiles_it(folder: Path) -> None:
    asked = [ask(folder) for _ in range(4)]
    assert sorted(told(each) for each in asked) == ["20 compiled", "20 kept", "20 kept", "20 kept"]


def test_a_process_that_is_killed_while_it_compiles_holds_nobody_up(folder: Path) -> None:
    holder = run(
        folder,
        "from headrace.caller import price; turn = price._cache._take_turn(); print(turn.name, flush=True); input()",
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip().endswith(".turn")
    waiting = ask(folder)
    time.sleep(2)
    assert waiting.poll() is None
    holder.kill()
    holder.communicate()
    assert told(waiting) == "20 compiled"


def run(folder: Path, code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(folder: Path) -> "subprocess.Popen[str]":
    hits = "sum(price.stats.cache_hits.values())"
    return run(folder, f"from headrace.caller import price; print(price(), 'kept' if {hits} else 'compiled')")


def told(asked: "subprocess.Popen[str]") -> str:
    return asked.communicate(timeout=120)[0].strip()


def test_every_module_whose_code_or_constants_go_into_kernels_says_so() -> None:
    for path in [*(ROOT / "headrace").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        for name, source in _taken_into_kernels(ast.parse(path.read_bytes())):
            assert MARK in source.read_bytes(), (
                f"{source} says nothing of kernels, and {path} compiles its {name} into one"
            )


def _taken_into_kernels(module: ast.Module) -> Iterator[tuple[str, Path]]:
    """Functions and constants that kernels of this module, and constants that they read, take from other modules of ours."""
    imported = {
        alias.asname or alias.name: _source(node.module, alias.name)
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("headrace", "flows")
        for alias in node.names
    }
    constants = {
        node.target.id: node.value
        for node in module.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    kernels = [
        function
        for function in module.body
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(each) == "kernel" for each in function.decorator_list)
    ]
    waiting: list[ast.AST] = [statement for function in kernels for statement in function.body]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Name) and node.id in imported and imported[node.id].is_file():
                yield node.id, imported[node.id]
            elif isinstance(node, ast.Name) and node.id in constants:
                waiting.append(constants.pop(node.id))


def _source(module: str, name: str) -> Path:
    """Where `name`, a module or something in one, is written."""
    path = ROOT / module.replace(".", "/")
    return path / f"{name}.py" if (path / f"{name}.py").is_file() else path.with_suffix(".py")
