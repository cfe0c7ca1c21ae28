"""Writes kserve_models.json: the fields that KServe's Python SDK knows, of what deploy/kserve/ uses.

`python tests/deploy/make_kserve_models.py FOLDER`, where FOLDER is the SDK's `kserve` package, unpacked or installed;
it is read, not imported. Kubernetes' own types are left to Kubernetes' schemas.
"""

import ast
import json
import re
import sys
from pathlib import Path

MODELS = (
    *("V1alpha1ServingRuntime", "V1alpha1ServingRuntimeSpec", "V1alpha1SupportedModelFormat"),
    *("V1beta1InferenceService", "V1beta1InferenceServiceSpec", "V1beta1PredictorSpec", "V1beta1ModelSpec"),
    "V1beta1ModelFormat",
)


def fields(package: Path, model: str) -> dict[str, str]:
    """Each field's name in YAML, and its type."""
    path = package / "models" / (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", model).lower() + ".py")
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    return {tables["attribute_map"][name]: kind for name, kind in tables["openapi_types"].items()}


def main() -> None:
    package = Path(sys.argv[1])
    models = {model: fields(package, model) for model in MODELS}
    Path(__file__).with_name("kserve_models.json").write_text(json.dumps(models, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
