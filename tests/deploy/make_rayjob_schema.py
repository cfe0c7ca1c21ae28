"""Writes rayjob_schema.json: what KubeRay's operator takes as a RayJob, without the pods inside.

`python tests/deploy/make_rayjob_schema.py CRD`, where CRD is ray-operator/config/crd/bases/ray.io_rayjobs.yaml of
KubeRay's repository. Pods are left to Kubernetes' schemas. Unknown fields, which the cluster would drop, are refused.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

VERSION = "v1"
LEFT_TO_OTHERS = ("metadata", "status", "template", "submitterPodTemplate", "headService")


def strict(schema: Any) -> Any:
    """The schema without descriptions and pods; objects have no fields but those that are listed."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(part) for name, part in schema.items() if name != "description"}
    if isinstance(properties := schema.get("properties"), dict):
        found["properties"] = {
            name: {"type": "object"} if name in LEFT_TO_OTHERS else strict(part) for name, part in properties.items()
        }
        found["additionalProperties"] = False
    return found


def main() -> None:
    versions = yaml.safe_load(Path(sys.argv[1]).read_text())["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == VERSION)
    Path(__file__).with_name("rayjob_schema.json").write_text(json.dumps(strict(schema), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
