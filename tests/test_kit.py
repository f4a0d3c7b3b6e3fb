"""What type checkers see of the kit is what it has."""

import ast
import inspect

from sage import kit


def test_the_kit_shows_type_checkers_what_it_has():
    [shown] = [node for node in ast.parse(inspect.getsource(kit)).body
               if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = [(name.name, part.module) for part in shown.body for name in part.names]
    assert dict(imported) == kit._WHERE and len(imported) == len(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name) is not None
