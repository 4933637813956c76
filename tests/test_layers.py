"""Who may import whom: imports go down only (the order is the README's and DESIGN's)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ascl"
LAYERS = [
    {"run", "prepare", "copy_run", "ablate", "explain", "figures"},
    {"build"},
    {"analysis", "training"},
    {"image_copy", "retrieval", "features"},
    {"models", "data", "losses"},
    {"asymmetry"},
    {"errors", "files", "environment", "processes"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
APART = [{"models", "data", "losses"}]                      # the same floor, and still never one another
BASE = {"errors", "files"}
ALLOWED_CONFIG = {"run", "prepare", "build", "copy_run", "ablate", "explain", "figures"}
CONFIGS = {"config", "copy_config"}


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
    """What is wrong with a file of `room` that imports these rooms."""
    wrong = []
    for other in sorted(imports - {room}):
        if {room, other} <= CONFIGS:
            wrong += [] if room == "copy_config" else [f"{room} imports {other}; only copy_config imports config"]
        elif other in CONFIGS:
            wrong += [] if room in ALLOWED_CONFIG else [f"{room} reads config; only {sorted(ALLOWED_CONFIG)} may"]
        elif room in CONFIGS:
            wrong.append(f"{room} imports {other}; it imports nothing of ours")
        elif room == "training" and other not in BASE:
            wrong.append(f"training imports {other}; it is handed callables")
        elif LEVEL[other] < LEVEL[room]:
            wrong.append(f"{room} imports {other}, which lies above it")
        elif any({room, other} <= group for group in APART):
            wrong.append(f"{room} and {other} never import one another")
    return wrong


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(room, imported_rooms(path)) == []


@pytest.mark.parametrize(("room", "other"), [
    ("models", "data"), ("losses", "models"), ("data", "retrieval"), ("training", "retrieval"), ("training", "models"),
    ("config", "errors"), ("retrieval", "config"), ("image_copy", "copy_config"),
    ("config", "copy_config"), ("asymmetry", "losses"), ("features", "analysis"),
])
def test_the_gate_fails_on_a_planted_fault(room, other):
    assert len(violations(room, {other})) == 1


def test_every_room_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert rooms - set(LEVEL) <= CONFIGS
