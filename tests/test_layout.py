"""The shape of the package: what is shipped, and who may import whom."""

import ast
import configparser
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders at the top level and the names under which they are imported.
MAPPED = {
    "s3prl_distiller": "s3prl_distiller",
    "upstream": "s3prl_distiller.upstream",
    "downstream": "s3prl_distiller.downstream",
    "config": "s3prl_distiller.config",
}
SCRIPTS = ["hubconf.py", "run_pretrain.py", "run_downstream.py"]


def sources() -> list[Path]:
    files = [path for folder in MAPPED for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts]
    return sorted(files + [ROOT / name for name in SCRIPTS if (ROOT / name).is_file()])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([MAPPED.get(parts[0], parts[0]), *parts[1:]]).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sources()}


def imports(path: Path, body: ast.AST | None = None) -> Iterator[str]:
    """Full names of what a file imports, functions' own imports included; of ``from a import b``, a.b too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(body or tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports; a package stands for its ``__init__``."""
    return {name for name in imports(path) if name in modules()} - {module_name(path)}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_there_is_something_to_look_at():
    assert len(sources()) > 30
    assert "s3prl_distiller.upstream.distiller.model" in modules()
    assert "s3prl_distiller.upstream.distiller.encoder" in own_imports(ROOT / "upstream/distiller/model.py")


def test_nothing_is_imported_as_bare_upstream_or_downstream():
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts]
    for path in [*sources(), *tests]:
        for name in imports(path):
            assert name.split(".")[0] not in ("upstream", "downstream", "config"), f"{path}: {name}"
        for function, call in calls(path):
            if function.endswith("import_module") and call.args and isinstance(call.args[0], ast.Constant):
                assert str(call.args[0].value).split(".")[0] not in ("upstream", "downstream"), path


def test_mapped_folders_import_each_other_relatively():
    """By an absolute name a type checker, which sees the folders where they lie, finds nothing."""
    for path in sources():
        if path.name in SCRIPTS:
            continue
        for name in ast.walk(tree(path)):
            if isinstance(name, ast.ImportFrom) and not name.level and name.module:
                assert not name.module.startswith(("s3prl_distiller.upstream", "s3prl_distiller.downstream")), path


def test_package_list_is_complete(setup_cfg):
    listed = set(setup_cfg["options"]["packages"].split())
    folders = {module_name(path / "x").rsplit(".", 1)[0] for path in {source.parent for source in sources()} - {ROOT}}
    assert listed == folders | {"s3prl_distiller.config"}
    directories = dict(line.split(" = ") for line in setup_cfg["options"]["package_dir"].strip().splitlines())
    assert {folder: name for name, folder in directories.items()} == MAPPED


def test_every_package_has_an_init():
    for folder in {path.parent for path in sources()} - {ROOT}:
        assert (folder / "__init__.py").is_file(), folder


def test_every_data_file_is_shipped(setup_cfg):
    patterns = {
        name: [glob.strip() for glob in globs.split(",")] for name, globs in setup_cfg["options.package_data"].items()
    }
    found = 0
    for folder, package in MAPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc") or "__pycache__" in path.parts:
                continue
            relative = path.relative_to(ROOT / folder)
            # setuptools' globs do not cross a folder's border, fnmatch's do.
            matched = any(
                len(relative.parts) == glob.count("/") + 1 and fnmatch(relative.as_posix(), glob)
                for glob in patterns.get(package, [])
            )
            assert matched, f"{path} is in no package_data of {package}"
            found += 1
    assert found > 100


def test_entry_points_name_what_is_there(setup_cfg):
    for group in setup_cfg["options.entry_points"].values():
        for line in group.strip().splitlines():
            module, name = line.split(" = ")[1].split(":")
            defined = {getattr(node, "name", None) for node in tree(modules()[module]).body}
            assert name in defined, line


FLOORS = {
    0: ["audio", "checkpoint", "registry", "settings", "hub"],
    1: [f"upstream.distiller.{name}" for name in ("model", "encoder", "frontend", "model_config", "similarity")],
    2: [
        f"upstream.distiller.{name}"
        for name in (
            "convert",
            "derive",
            "expert",
            "export",
            "hub_expert",
            "hubconf",
            "initialise",
            "objective",
            "student",
            "teacher",
            "twin",
        )
    ],
    3: ["data", "engine", "report"],
    4: ["upstream.distiller.pretrain_expert", "upstream.distiller.probe", "downstream"],
    5: ["cli"],
}


def floor(module: str) -> int | None:
    for number, names in FLOORS.items():
        for name in names:
            full = f"s3prl_distiller.{name}"
            if module == full or module.startswith(full + "."):
                return number
    return None


def test_imports_run_downwards():
    for path in sources():
        here = floor(module_name(path))
        if here is None:
            continue
        for name in own_imports(path):
            there = floor(name)
            assert there is None or there <= here, f"{module_name(path)} (floor {here}) imports {name} (floor {there})"


def test_leaves_import_nothing_of_ours():
    for name in ("audio", "checkpoint", "registry", "settings"):
        assert own_imports(ROOT / "s3prl_distiller" / f"{name}.py") - {"s3prl_distiller"} == set(), name


def test_arithmetic_knows_no_files():
    """Tensors in, tensors out."""
    barred = {
        "io",
        "json",
        "logging",
        "omegaconf",
        "os",
        "pathlib",
        "pickle",
        "s3prl",
        "safetensors",
        "transformers",
        "yaml",
    }
    models = [
        ROOT / "upstream" / "distiller" / f"{name}.py"
        for name in ("frontend", "encoder", "model_config", "model", "similarity")
    ]
    for path in [*models, *(ROOT / "downstream" / "heads").glob("*.py")]:
        assert not {found.split(".")[0] for found in imports(path)} & barred, path
        assert "open" not in {function for function, _ in calls(path)}, path


def test_modules_in_downstream_are_tasks():
    """What they share lies in folders, so that a newcomer sees SUPERB's ten and one for any language; metrics know
    nothing of tasks and upstreams."""
    names = {path.stem for path in (ROOT / "downstream").glob("*.py")} - {"__init__"}
    assert names == {"asr", "pr", "ks", "ic", "sf", "sid", "asv", "sd", "er", "qbe", "same_different"}
    for name in names:
        tasks = [node.name for node in tree(ROOT / "downstream" / f"{name}.py").body if isinstance(node, ast.ClassDef)]
        assert "Task" in tasks, name
        assert (ROOT / "config" / "downstream" / f"{name}.yaml").is_file(), name
    for path in (ROOT / "downstream" / "metrics").glob("*.py"):
        own = {name.split(".")[2] for name in own_imports(path) if name.startswith("s3prl_distiller.downstream.")}
        assert own <= {"metrics"}, f"{path}: {own}"


def test_the_loop_does_not_know_what_it_trains():
    for folder in ("engine", "data"):
        for path in (ROOT / "s3prl_distiller" / folder).glob("*.py"):
            names = {name for name in imports(path) if name.startswith("s3prl_distiller.")}
            assert not {name for name in names if name.split(".")[1] in ("upstream", "downstream", "cli")}, path


def test_no_circles():
    graph = {name: own_imports(path) for name, path in modules().items()}
    # A module imports its package, whose __init__ only gathers names: that is no circle of meaning.
    graph = {name: {other for other in others if not name.startswith(other + ".")} for name, others in graph.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_is_printed_evaluated_or_unpickled():
    for path in sources():
        for function, call in calls(path):
            assert function not in ("print", "eval", "exec", "pickle.load", "pickle.loads"), f"{path}:{call.lineno}"
            if function == "torch.load":
                safe = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
                assert [ast.unparse(value) for value in safe] == ["True"], f"{path}:{call.lineno}"


def test_every_module_says_what_it_is():
    for path in sources():
        assert ast.get_docstring(tree(path)), path
