"""Finds calls and imports in Python source that could run code hidden in a file that is read.

Syntax, not text: aliases (`import numpy as np`, `from torch import load`) are followed within the module.
"""

import ast
from collections.abc import Iterator

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "runs text as a command",
    "os.popen": "runs text as a command",
    "torch.load": "reads a pickle, and the filter weights_only has been got round before",
    "torch.serialization.load": "reads a pickle",
    "torch.save": "writes a pickle",
    "torch.jit.load": "runs the code in the file",
    "torch.package.PackageImporter": "runs the code in the file",
    "yaml.unsafe_load": "builds any object the file names",
    "yaml.full_load": "builds more than plain values",
    "pandas.read_pickle": "reads a pickle",
}
SAFE_YAML_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def unsafe(source: str) -> list[str]:
    """One line of text for each unsafe import or call in `source`, as `line N: what`."""
    tree = ast.parse(source)
    names = _imported_names(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        found += [(line, f"import of {module}") for line, module in _forbidden_imports(node)]
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            reason = _why_unsafe(called, node, names)
            if reason:
                found.append((node.lineno, f"{called} {reason}"))
    return [f"line {line}: {what}" for line, what in sorted(found)]


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """The local name of each import -> the dotted name it stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _forbidden_imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    else:
        return
    yield from ((node.lineno, module) for module in modules if module.split(".")[0] in FORBIDDEN_MODULES)


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` -> `numpy.load`; an expression that is no plain dotted name -> an empty string."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _why_unsafe(called: str, call: ast.Call, names: dict[str, str]) -> str | None:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}

    def given(name: str, *values: object) -> bool:
        value = keywords.get(name)
        return isinstance(value, ast.Constant) and value.value in values

    if called in FORBIDDEN_CALLS:
        return FORBIDDEN_CALLS[called]
    if called == "numpy.load" and "allow_pickle" in keywords and not given("allow_pickle", False):
        return "with allow_pickle reads a pickle"
    if called in {"yaml.load", "yaml.load_all"}:
        loader = keywords.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or _dotted(loader, names) not in SAFE_YAML_LOADERS:
            return "without the safe loader builds any object the file names"
    if called.startswith("subprocess.") and "shell" in keywords and not given("shell", False):
        return "with a shell runs text as a command"
    if (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in {"extractall", "unpack_archive"}
        and not given("filter", "data")
    ):
        return "without filter='data' writes wherever the archive says"
    return None
