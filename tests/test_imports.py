"""The architecture's rules, held over the source: layers, who may import what, where mesh axes may be named."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Every module imports strictly downward. A package counts as one: its modules may import each other.
LAYERS = (
    {"mesh", "grid", "variables"},
    {"schedule", "zero", "hlo", "losses", "metrics", "augment", "optimizer", "telemetry", "distributed", "scores"},
    {"jigsaw", "cost", "data"},
    {"model", "state", "account", "checkpoint", "rollout", "climatology", "figures"},
    {"steps", "evaluation"},
    {"forecasts"},
)
# Model and optimizer reach state, steps and rollout as arguments; data and model know nothing of each other.
NEVER = (
    ({"data"}, {"model"}),
    ({"model"}, {"data"}),
    ({"state", "steps", "rollout"}, {"model", "optimizer"}),
)
# package -> where it may be imported
ONLY_IN = {
    "tensorstore": ("weathermixer/data/",),
    "orbax": ("weathermixer/checkpoint.py",),
    "ml_collections": ("experiments/",),
    "absl": ("experiments/",),
    "tensorboardX": ("weathermixer/telemetry.py",),
    "dinosaur": ("weathermixer/data/",),
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


def part(module: str) -> str | None:
    """`weathermixer.data.loader` -> `data`; None for other packages and for weathermixer itself."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if package == "weathermixer" and any(name in layer for layer in LAYERS) else None


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


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
    if not any(own in names for names in LAYERS):
        return [*faults, f"{path} has no layer: put it into LAYERS"]
    for other in sorted({part(name) for name in imported} - {None, own}):
        if layer(other) >= layer(own):
            faults.append(f"{path} imports {other}, which is not below it")
        if any(own in importers and other in imported for importers, imported in NEVER):
            faults.append(f"{path} imports {other}, which has to reach it as an argument")
    return faults


def faults_of_axes(path: str, text: str) -> list[str]:
    """Mesh axes named by a literal outside mesh.py.

    In the library any such string counts, but for a key of a dict display, which names a size. Programs have flags,
    parts of a config and columns of a table with these names: there, what counts is a mesh's shape and a PartitionSpec.
    """
    if path == "weathermixer/mesh.py":
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
        ("weathermixer/mesh.py", "from weathermixer.grid import Grid"),
        ("weathermixer/data/loader.py", "import weathermixer.model"),
        ("weathermixer/model/layers.py", "def f():\n    from weathermixer import data"),
        ("weathermixer/steps.py", "from weathermixer.optimizer import make_optimizer"),
        ("weathermixer/jigsaw.py", "import tensorstore as ts"),
        ("weathermixer/state.py", "import orbax.checkpoint as ocp"),
        ("weathermixer/optimizer.py", "from ml_collections import ConfigDict"),
        ("weathermixer/checkpoint.py", "from experiments import train"),
        ("weathermixer/unheard_of.py", ""),
    ],
)
def test_the_rules_find_what_they_forbid(path, text):
    assert faults_of_imports(path, text)


def test_the_rule_for_axes_finds_what_it_forbids():
    text = 'spec = P("data", ("domain", "tensor"))\nsizes = {"domain": 2}\n"""the domain"""\n'
    assert len(faults_of_axes("weathermixer/jigsaw.py", text)) == 3
    assert not faults_of_axes("weathermixer/mesh.py", text)
    text = 'flag = define("data")\nbatch = mesh.shape["data"] * mesh.shape["tensor"]\nspec = P(None, "domain")\n'
    assert len(faults_of_axes("experiments/train.py", text)) == 3
