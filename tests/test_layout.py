"""How the tests are laid out: what several modules share is a helper, never another test."""

from __future__ import annotations

import ast

from tests.helpers.paths import ROOT


def imported(text):
    """Full names of all that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def out_of_a_test(text):
    """Those imported names that lie in a test module, or are one."""
    return [
        name
        for name in imported(text)
        if name.startswith((".", "tests.")) and any(part.startswith("test_") for part in name.split("."))
    ]


def test_no_module_imports_a_test_module():
    modules = {path: out_of_a_test(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert modules
    assert {str(path.relative_to(ROOT)): names for path, names in modules.items() if names} == {}


def test_every_way_to_import_a_test_module_is_seen():
    assert out_of_a_test("from tests.models.test_loading import A") == ["tests.models.test_loading.A"]
    assert out_of_a_test("from tests.models import test_loading") == ["tests.models.test_loading"]
    assert out_of_a_test("def f():\n    import tests.test_docs") == ["tests.test_docs"]
    assert out_of_a_test("from .test_loading import A") == [".test_loading.A"]
    assert not out_of_a_test("from tests.helpers.nets import SpotNet\nimport test_support.test_a")


MOST_LINES, LONGEST_FUNCTION = 450, 40


def bodies(text):
    """Functions of a module, with the lines of their bodies, without the docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, code[-1].end_lineno - code[0].lineno + 1 if code else 0


def test_modules_and_functions_hold_one_idea():
    """Or at least not many: what grows beyond this mostly holds two."""
    files = sorted((ROOT / "wsi_saliency").rglob("*.py"))
    texts = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    assert [name for name, text in texts.items() if text.count("\n") > MOST_LINES] == []
    long = [(f, name, n) for f, text in texts.items() for name, n in bodies(text) if n > LONGEST_FUNCTION]
    assert long == []


def test_the_lines_of_a_function_are_those_of_its_body():
    text = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n\n    return b\n'
    assert list(bodies(text)) == [("f", 3)]
    assert list(bodies('def f():\n    """Nothing."""\n')) == [("f", 0)]
