"""Which room may import which: imports go down only, in the order of the floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ascl"
FLOORS = [
    {"cli"},
    {"analysis"},
    {"retrieval", "image_copy"},
    {"datasets", "scenes"},
    {"index", "training", "features"},
    {"models", "data", "losses", "images"},
    {"asymmetry", "settings", "samples"},
    {"core"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of `ascl` that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" if node.module == "ascl" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name and name.startswith("ascl.")}
    return rooms


def violations(room: str, imports: set[str]) -> list[str]:
    """What is wrong with a file of `room` that imports these rooms: a room on its own floor, or on one above."""
    return [
        f"{room} imports {other}, which lies {'above it' if LEVEL[other] < LEVEL[room] else 'on the same floor'}"
        for other in sorted(imports - {room})
        if other in LEVEL and LEVEL[other] <= LEVEL[room]
    ]


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem == "asymmetry")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(room, imported_rooms(path)) == []


@pytest.mark.parametrize(("room", "other"), [
    ("models", "data"), ("losses", "models"), ("data", "retrieval"), ("training", "retrieval"), ("index", "image_copy"),
    ("settings", "data"), ("retrieval", "image_copy"), ("image_copy", "retrieval"), ("core", "settings"),
    ("asymmetry", "losses"), ("features", "analysis"), ("retrieval", "cli"), ("training", "index"),
])
def test_the_gate_fails_on_a_planted_fault(room, other):
    assert len(violations(room, {other})) == 1


def test_every_room_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert rooms == set(LEVEL)


def test_every_room_says_what_belongs_there():
    for folder in {path.parent for path in files()} - {PACKAGE}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_tests_read_no_private_name_of_ours(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "ascl" for alias in node.names}
    read = {f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in ours and node.attr.startswith("_")
            and not node.attr.startswith("__")}
    assert {name for name in ours if name.startswith("_") and not name.startswith("__")} | read == set()
