"""The architecture's rules, held over the source: layers, who may import what, where mesh axes may be named."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The rooms by floors: every room imports strictly downward; the modules of one may import each other.
FLOORS = (
    {"fields", "parallel"},
    {"archive", "model"},
    {"planning", "sources", "training", "forecasting"},
    {"prepare", "simulation", "verification"},
    {"runs"},
)
# Data and model know nothing of each other: models reach training, forecasting and verification as arguments.
NEVER = (
    ({"archive", "sources", "prepare", "simulation", "training", "forecasting", "verification"}, {"model"}),
    ({"model"}, {"archive"}),
    ({"verification", "forecasting", "training"}, {"sources", "prepare"}),
    ({"parallel"}, {"fields"}),
)
# package -> where it may be imported
ONLY_IN = {
    "tensorstore": ("weathermixer/archive/",),
    "orbax": ("weathermixer/training/checkpoint.py",),
    "ml_collections": ("experiments/",),
    "absl": (),
    "tensorboardX": ("weathermixer/training/trackers.py",),
    "wandb": ("weathermixer/training/trackers.py",),
    "mlflow": ("weathermixer/training/trackers.py",),
    "dinosaur": ("weathermixer/simulation/",),
    "pint": ("weathermixer/fields/units.py",),
    "experiments": ("experiments/",),
    "beartype": (),
    "torch": (),
    "tensorflow": (),
    "clu": (),
}

SOURCES = sorted(
    str(path.relative_to(ROOT))
    for package in ("weathermixer", "experiments")
    for path in (ROOT / package).rglob("*.py")
)


def imports(tree: ast.AST) -> set[str]:
    """Full names of everything that a source imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the package's full name"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str | None:
    """`weathermixer.archive.loader` -> `archive`; None for other packages and for weathermixer itself."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if package == "weathermixer" and any(name in rooms for rooms in FLOORS) else None


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def faults_of_imports(path: str, text: str) -> list[str]:
    faults = []
    imported = imports(ast.parse(text))
    for name in sorted({name.partition(".")[0] for name in imported}):
        allowed = ONLY_IN.get(name)
        if allowed is not None and not path.startswith(allowed):
            faults.append(f"{path} imports {name}: that is for {allowed or 'nobody'}")
    if not path.startswith("weathermixer/") or path == "weathermixer/__init__.py":
        return faults
    own = path.removeprefix("weathermixer/").removesuffix(".py").partition("/")[0]
    if not any(own in names for names in FLOORS):
        return [*faults, f"{path} is in no room: put it into one of FLOORS"]
    for other in sorted({room(name) for name in imported} - {None, own}):
        if floor(other) >= floor(own):
            faults.append(f"{path} imports {other}, which is not below it")
        if any(own in importers and other in imported for importers, imported in NEVER):
            faults.append(f"{path} imports {other}, which has to reach it as an argument")
    return faults


def faults_of_axes(path: str, text: str) -> list[str]:
    """Mesh axes named by a literal outside mesh.py.

    In the library any such string counts, but for a key of a dict display, which names a size. Programs have flags,
    parts of a config and columns of a table with these names: there, what counts is a mesh's shape and a PartitionSpec.
    """
    if path == "weathermixer/parallel/mesh.py":
        return []
    nodes = list(ast.walk(ast.parse(text)))
    keys = {id(key) for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
    if path.startswith("experiments/"):
        shapes = [
            n.slice for n in nodes if isinstance(n, ast.Subscript) and ast.unparse(n.value).endswith("mesh.shape")
        ]
        specs = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(("P", "PartitionSpec"))]
        nodes = [inner for node in (*shapes, *specs) for inner in ast.walk(node)]
    return [
        f"{path}:{node.lineno} names the mesh axis {node.value!r}: use the table and functions of mesh.py"
        for node in nodes
        if isinstance(node, ast.Constant) and node.value in ("data", "domain", "tensor") and id(node) not in keys
    ]


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_downward(path):
    assert not faults_of_imports(path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", SOURCES)
def test_mesh_axes_are_named_in_mesh_alone(path):
    assert not faults_of_axes(path, (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("weathermixer/parallel/mesh.py", "from weathermixer.fields.grid import Grid"),
        ("weathermixer/archive/loader.py", "import weathermixer.sources.sources"),
        ("weathermixer/archive/loader.py", "import weathermixer.model"),
        ("weathermixer/model/layers.py", "def f():\n    from weathermixer import archive"),
        ("weathermixer/training/steps.py", "from weathermixer.model.mixer import MixerBlock"),
        ("weathermixer/parallel/jigsaw.py", "import tensorstore as ts"),
        ("weathermixer/training/state.py", "import orbax.checkpoint as ocp"),
        ("weathermixer/training/optimizer.py", "from ml_collections import ConfigDict"),
        ("weathermixer/training/checkpoint.py", "from experiments import train"),
        ("weathermixer/unheard_of.py", ""),
    ],
)
def test_the_rules_find_what_they_forbid(path, text):
    assert faults_of_imports(path, text)


def test_the_rule_for_axes_finds_what_it_forbids():
    text = 'spec = P("data", ("domain", "tensor"))\nsizes = {"domain": 2}\n"""the domain"""\n'
    assert len(faults_of_axes("weathermixer/parallel/jigsaw.py", text)) == 3
    assert not faults_of_axes("weathermixer/parallel/mesh.py", text)
    text = 'flag = define("data")\nbatch = mesh.shape["data"] * mesh.shape["tensor"]\nspec = P(None, "domain")\n'
    assert len(faults_of_axes("experiments/train.py", text)) == 3
