"""What is in the images, as CycloneDX: `python deploy/images/sbom.py [--tag TAG] [NAME …]` writes out/images/csm-….cdx.json.

Python packages as pip lists them inside the image, Debian's as dpkg does; no network is asked. Needs podman and cyclonedx-bom
(`pip install cyclonedx-bom`). A scanner that has its own database takes these files (grype, trivy, pip-audit by a
requirements file); none of those databases is here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from build import IMAGES, OUT  # type: ignore[attr-defined]  # the file beside, not the package


def inside(image: str, *command: str) -> str:
    """What a command prints in a container of the image, without a network."""
    argv = ["podman", "run", "--rm", "--network=none", f"--entrypoint={command[0]}", image, *command[1:]]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def of_python(frozen: str) -> dict[str, Any]:
    """A CycloneDX document of `pip freeze`."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    argv = [str(tool), "requirements", "--of", "JSON", "--output-reproducible", "-"]
    document: dict[str, Any] = json.loads(
        subprocess.run(argv, input=frozen, check=True, capture_output=True, text=True).stdout
    )
    return document


def of_debian(listing: str) -> list[dict[str, str]]:
    """Components of `dpkg-query -W` with ${Package} ${Version} ${Architecture} a line."""
    packages = [line.split() for line in listing.splitlines()]
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}?arch={arch}"}
        for name, version, arch in packages
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the images' bills of materials.")
    parser.add_argument("names", nargs="*", choices=[*IMAGES, []], metavar="NAME", help=f"of {', '.join(IMAGES)}")
    parser.add_argument("--tag", default="dev")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in options.names or IMAGES:
        image = f"csm-{name}:{options.tag}"
        document = of_python(inside(image, "python", "-m", "pip", "freeze"))
        document.setdefault("metadata", {})["component"] = {
            "type": "container",
            "name": f"csm-{name}",
            "version": options.tag,
        }
        debian = of_debian(inside(image, "dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}\\n"))
        document["components"] = [*document.get("components", ()), *debian]
        path = OUT / f"csm-{name}.cdx.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{path}: {len(document['components'])} components", flush=True)


if __name__ == "__main__":
    main()
