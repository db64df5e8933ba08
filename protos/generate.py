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


def generate(out: Path) -> list[Path]:
    """Generate every stub under `out`; returns the .proto files. Raises: RuntimeError when protoc fails."""
    sources = sorted(ROOT.glob("csm/*/v1/*.proto"))
    plugins = Path(sys.executable).parent
    status = protoc.main([
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        *(str(path.relative_to(ROOT)) for path in sources),
    ])
    if status != 0:
        raise RuntimeError(f"protoc ended with {status}")
    for stub in out.glob("csm/common/v1/*_pb2_grpc.py*"):
        stub.unlink()  # common has no service
    return sources


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
