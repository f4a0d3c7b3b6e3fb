"""What holds the project together: make, pins, the wheel, the changelog, the documents, and imports without circles."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def make(tmp_path):
    """Run make with a stub in the place of .venv, which prints its arguments, one a line."""
    for name in ("sage", "python"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)
    for name in ("ready", "testing"):
        (tmp_path / name).write_text("")

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(["make", "--no-print-directory", "-s", *arguments, f"BIN={tmp_path}",
                               f"READY={tmp_path}/ready", f"TESTING={tmp_path}/testing"], cwd=ROOT, capture_output=True,
                              text=True, check=True, env={"PATH": os.environ["PATH"]})
        return done.stdout.splitlines()

    return run


def test_make_edit_alone_edits_the_example(make):
    out = make("edit")
    example = out[1]
    assert out[0] == "edit" and example.startswith("examples/")
    assert out[2].startswith("--source=a ") and out[3].startswith("--target=a ") and out[4:] == [
        "--model=stilllife", "--sheet"]
    assert make("edit", "TGT=a green mug")[3] == "--target=a green mug"
    assert make("edit", "MODEL=sd-1.4")[4] == "--model=sd-1.4"


def test_a_description_of_a_picture_that_is_not_named_is_an_error_before_anything_is_installed(tmp_path):
    done = subprocess.run(["make", "-s", "edit", "SRC=a cat", "TGT=a dog", f"BIN={tmp_path}", "READY=gone"], cwd=ROOT,
                          capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 2 and done.stdout == "" and not any(tmp_path.iterdir())
    assert done.stderr.splitlines()[0] == (
        "make edit: SRC describes a picture, and none is named: give IMG=picture.jpg too")


def test_make_edit_leaves_the_default_model_to_sage(make):
    assert make("edit", "IMG=cat.jpg", "SRC=a cat", "TGT=a dog", "OUT=o.png", "ARGS=--steps 9 --replace 'a b,c'") == [
        "edit", "cat.jpg", "--source=a cat", "--target=a dog", "--out=o.png", "--steps", "9", "--replace", "a b,c"]
    assert make("edit", "IMG=cat.jpg", "ARGS=--config-from old.png") == ["edit", "cat.jpg", "--config-from", "old.png"]


@pytest.mark.parametrize("text", ["it's", 'say "hi"', "$HOME costs $$5", "`id`", "$(id)", "a; rm -rf x", "a\\b", "-v",
                                  "a # b", "*", "犬  two  blanks", "$(shell id)", "${PATH}"])
def test_make_edit_passes_prompts_untouched(make, text):
    assert make("edit", f"IMG={text}.png", f"SRC={text}", f"TGT={text}", f"MODEL={text}", f"OUT={text}.png") == [
        "edit", f"{text}.png", f"--source={text}", f"--target={text}", f"--model={text}", f"--out={text}.png"]


def installs(target: str, *variables: str) -> str:
    """What make would do for a target where nothing is there yet."""
    done = subprocess.run(["make", "-n", target, "BIN=gone", "READY=gone/ready", "TESTING=gone/testing", *variables],
                          cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    return done.stdout


def test_an_edit_installs_what_it_needs_and_tests_what_they_need():
    for target in ("edit", "generate", "demo", "weights", "bench", "ui"):
        assert "[test" not in installs(target) and "--editable ." in installs(target), target
    for target in ("setup", "test", "lint", "bench-speed", "experiments"):
        assert "'.[test,lint,ui,docs]'" in installs(target), target
    assert not re.search("gone/pip install.*--quiet", installs("setup"))  # whose bars are then seen


def test_torch_comes_without_cuda_where_no_gpu_is_seen():
    index = re.search(r"PIP_EXTRA_INDEX_URL: (\S+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())[1]
    without = installs("edit", "HAS_GPU=", "ON_LINUX=Linux")
    assert f"--extra-index-url={index} torch" in without
    assert re.search("1.2 GB of disk: no GPU is seen and torch comes without CUDA", without)
    for variables in (["HAS_GPU=/dev/nvidia0", "ON_LINUX=Linux"], ["HAS_GPU=", "ON_LINUX=Linux", "TORCH_INDEX="]):
        made = installs("edit", *variables)
        assert "index-url" not in made and "6 GB of disk" in made
    assert made.index("of disk") < made.index("pip install")


def test_make_weights(make):
    assert make("weights", "MODEL=sd-2.1") == ["fetch", "sd-2.1"]


def test_make_bench_measures_the_quick_set(make):
    assert make("bench") == ["bench", "stilllife", "--quick", "--out=runs/bench/quick"]
    assert make("bench", "OUT=my runs", "ARGS=--config plain") == [
        "bench", "stilllife", "--quick", "--out=my runs", "--config", "plain"]
    assert make("bench-speed", "ARGS=--rounds 4") == ["-m", "benchmarks.speed", "--rounds", "4"]


def test_make_ui_serves_the_studio(make, tmp_path):
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    assert make("ui")[1:] == ["ui"]
    assert make("ui", "MODEL=sd-2.1", "ARGS=--port 80")[1:] == ["ui", "--model=sd-2.1", "--port", "80"]


def test_what_installs_without_a_bar_says_first_what_it_does():
    rules = (ROOT / "Makefile").read_text().split("\n\n")
    quiet = [rule.splitlines() for rule in rules if re.search(r"^\t.* (--quiet|--silent)\b", rule, re.MULTILINE)]
    assert len(quiet) >= 7
    for rule in quiet:
        first = next(i for i, line in enumerate(rule) if re.search(r" (--quiet|--silent)\b", line))
        assert any(line.startswith('\t@echo "adding ') for line in rule[:first]), rule[0]


def test_help_lists_every_target(make):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in make()} == targets
    assert targets >= {"setup", "edit", "demo", "weights", "train", "test", "test-slow", "lint", "bench", "bench-speed"}


def documents() -> list[Path]:
    """The project's Markdown files."""
    return [path for path in ROOT.rglob("*.md") if not {"runs", "out", ".venv"} & {*path.relative_to(ROOT).parts}]


def test_the_readme_and_the_phony_targets_name_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"help"}
    named = re.search(r"`make help` lists the targets: ([^.]*)", (ROOT / "README.md").read_text())[1]
    assert set(re.split(r",\s+", named)) == targets
    assert set(re.search(r"^.PHONY: (.*)", makefile, re.MULTILINE)[1].split()) == targets | {"help"}


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_a_document_has_one_row_for_each_method_with_its_paper(page):
    import sage
    from sage.method import METHODS
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .*\[(\d{4}\.\d{5})\]", (ROOT / page).read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((name, sage.method(name).paper) for name in METHODS)


def test_targets_that_the_documents_name_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in documents():
        code = re.findall(r"^```.*?^```|`[^`]+`", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        named = {name for part in code for name in re.findall(r"^`?make ([a-z-]+)", part, re.MULTILINE)}
        assert named <= targets, document.name


def test_links_in_the_documents_lead_somewhere():
    for document in documents():
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_the_changelog_begins_with_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert f'__version__ = "{version}"' in (ROOT / "sage" / "__init__.py").read_text()


def test_the_workflow_runs_what_has_to_pass_on_every_python_that_is_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["run"]
    promised = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert job["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert {"run": ".ci/run"} in job["steps"] and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_hooks_call_what_make_has_installed_and_make_lint_runs():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["lint"]
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    assert tools == set(re.findall(r"\$\(BIN\)/(\w+)", lint))
    assert all(any(needed.startswith(tool) for needed in extra) for tool in tools)
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_a_wheel_holds_the_types_the_models_and_no_tests(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "sage_start.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sage", "weights/stilllife", "weights/stilllife-turbo"):
        shutil.copytree(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--target", "wheel"], cwd=tmp_path, check=True,
                   capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sage/py.typed", "sage/__init__.py", "sage/studio/page/studio.css", "sage/machine/speed.json",
            "sage/weights/stilllife/words.txt", "sage/weights/stilllife-turbo/auto.json",
            "sage/weights/stilllife/unet/diffusion_pytorch_model.fp16.safetensors"} <= names
    about = f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"sage", "sage_start.py", about}


def test_everything_needed_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["test"], *extras["lint"], *extras["cluster"],
                        *extras["ui"], *extras["fast"], *extras["browser"]):
        assert re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") in pinned


@pytest.mark.parametrize("package", ["sage", "benchmarks", "training"])
def test_no_modules_import_each_other(package):
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in (ROOT / package).rglob("*.py")}
    imports = {name: {next((other for other in meant if other in files), "another's")
                      for meant in imported(ast.parse(path.read_text()))} for name, path in files.items()}
    TopologicalSorter(imports).prepare()  # a CycleError names the modules of a circle


def imported(tree: ast.AST) -> Iterator[list[str]]:
    """What each import may mean, a module in a package before the package.

    Those inside functions count too, those for the eyes of type checkers alone do not.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ([name.name] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([f"{node.module}.{name.name}", node.module] for name in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)


def test_files_that_the_documents_name_are_there():
    files = [str(path.relative_to(ROOT)) for folder in ("sage", "training", "benchmarks", "tests", "examples", "space")
             for path in (ROOT / folder).rglob("*.py")]
    for document in documents():
        for name, contents in re.findall(r"`([\w/]+\.py)(?:: ([\w., ]+))?`", document.read_text(encoding="utf-8")):
            found = [file for file in files if f"/{file}".endswith(f"/{name}")]
            theirs = name in ("image_eval.py", "lend.py")  # MagicBrush's, and the reader's own
            assert found or theirs, f"{document.name} names {name}"
            for word in re.findall(r"\w+", contents):
                assert any(word in (ROOT / file).read_text() for file in found), f"{document.name}: {name}: {word}"


def test_no_two_files_of_tests_have_the_same_name():
    """They are imported by it, and the second one would not run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
