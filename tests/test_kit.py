"""What type checkers see of the kit is what it has, and methods lean on it alone."""

import ast
import inspect
from pathlib import Path

from sage import kit

METHODS = Path(kit.__file__).parent / "methods"


def test_the_kit_shows_type_checkers_what_it_has():
    [shown] = [node for node in ast.parse(inspect.getsource(kit)).body
               if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = [(name.name, part.module) for part in shown.body for name in part.names]
    assert dict(imported) == kit._WHERE and len(imported) == len(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name) is not None


def test_a_method_leans_on_no_other_and_imports_no_network():
    """What two methods need stands in a room that both may use; a network is seen through its backbone alone."""
    for path in METHODS.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]:
            tree.body.remove(node)
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        rooms = "sage.methods", "sage.models.sd", "sage.models.flow"
        assert not [name for name in imported if name.startswith(rooms)], path.name
