"""Write the Python stubs into the .proto files' folders: `python protos/generate.py [output folder]`.

Messages by protoc's own generator, services by grpcio-tools, types by mypy-protobuf. grpcio-tools
is the oldest release we support (requirements-nodeps.txt), because stubs refuse an older runtime
than their generator.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent


def generate(out: Path, foreign_out: Path) -> None:
    """Generate our own stubs under `out`, and those of Riva's API under `foreign_out`.

    Raises: RuntimeError when protoc fails.
    """
    _run(ROOT, sorted(ROOT.glob("csm/*/v1/*.proto")), out)
    _run(ROOT.parent, sorted(ROOT.parent.glob("gateway/riva/*.proto")), foreign_out)
    for folder in (out / "csm/common/v1", foreign_out / "gateway/riva"):
        for stub in folder.glob("*common_pb2_grpc.py*"):
            stub.unlink()  # common has no service


def _run(base: Path, sources: list[Path], out: Path) -> None:
    plugins = Path(sys.executable).parent
    status = protoc.main([
        "protoc",
        f"--proto_path={base}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        *(str(path.relative_to(base)) for path in sources),
    ])
    if status != 0:
        raise RuntimeError(f"protoc ended with {status}")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    generate(*(given * 2 if given else [ROOT, ROOT.parent]))
