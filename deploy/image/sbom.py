"""Finish the SBOM that `cyclonedx-py environment` makes: JSON on stdin, JSON on stdout. Run it where cyclonedx-bom is.

It gets the image as its subject, with the Python that runs it, and keeps no link: they are each package's own claim,
and change without it.
"""

import json
import platform
import sys
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def finish(bom: dict[str, Any], version: str) -> dict[str, Any]:
    """Return the image's SBOM with the image's own name and `version`."""
    subject = {"type": "container", "bom-ref": "trpo-tf-serving", "name": "trpo-tf-serving", "version": version}
    python = {"type": "platform", "bom-ref": "python", "name": "python", "version": platform.python_version()}
    components = [*bom["components"], python]
    needs = {"ref": subject["bom-ref"], "dependsOn": [component["bom-ref"] for component in components]}
    for component in [*components, *bom["metadata"]["tools"]["components"]]:
        component.pop("externalReferences", None)
    return {
        **bom,
        "metadata": {**bom["metadata"], "component": subject},
        "components": components,
        "dependencies": [needs, *bom["dependencies"], {"ref": "python"}],
    }


def main() -> None:
    """Read, finish, check against CycloneDX's schema, write."""
    text = json.dumps(finish(json.load(sys.stdin), sys.argv[1]), indent=1)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        sys.exit(f"error: the SBOM is not valid CycloneDX: {error}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
