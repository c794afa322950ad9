"""What is generated or written down twice is current."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from grpc_tools import protoc
from support import operations

from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc
from boxlite_server.coordinator.http import handlers
from boxlite_server.coordinator.http.routing import find_handler
from boxlite_server.worker.service.servicer import WorkerService

ROOT = Path(__file__).parents[1]
OPERATIONS = {each.name: each.tag for each in operations.operations()}


def test_the_stubs_are_those_of_worker_proto(tmp_path: Path) -> None:
    """Where this fails: make proto."""
    code = protoc.main(
        ["protoc", f"-Iboxlite_server/_gen={ROOT}"]
        + [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
        + [str(ROOT / "worker.proto")]
    )
    assert code == 0
    made = {path.name: path.read_text() for path in (tmp_path / "boxlite_server" / "_gen").iterdir()}
    assert len(made) == 3
    checked_in = {name: (ROOT / "boxlite_server" / "_gen" / name).read_text() for name in made}
    assert made == checked_in


def test_every_handler_serves_an_operation_of_the_spec() -> None:
    served = {handler for name, tag in OPERATIONS.items() if (handler := find_handler(tag, name))}
    for module_info in pkgutil.iter_modules(handlers.__path__):
        module = importlib.import_module(f"{handlers.__name__}.{module_info.name}")
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert function in served, f"{module.__name__}.{name} serves no operation"


def test_the_docs_show_the_state_of_every_operation() -> None:
    """Where this fails: make docs."""
    assert operations.parts(operations.PAGE.read_text())[1] == operations.table()


def test_the_worker_serves_only_calls_of_the_proto() -> None:
    calls = {method.name for method in pb.DESCRIPTOR.services_by_name["WorkerService"].methods}
    served = {name for name in vars(WorkerService) if name[0].isupper()}
    assert served <= calls
    assert issubclass(WorkerService, worker_pb2_grpc.WorkerServiceServicer)
