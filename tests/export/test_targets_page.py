"""The example of docs/targets.md, run as a reader would."""

import re
from pathlib import Path

import numpy as np
import onnx
from zoo import case

from export.metadata import read_metadata

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def test_the_example_makes_every_target():
    tested = case("gaussian")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    policy = tested.policy
    names = {"function": policy.function, "spec": policy.spec, "visited": tested.visited, "noise": tested.noise}
    exec(code, names)
    expected = tested.reference.act(tested.visited, tested.noise)
    assert np.abs(names["actions"] - expected).max() < 0.2
    assert read_metadata(onnx.load_from_string(names["described"])) == {"environment": "Pendulum-v1"}
    assert "FusedGemm" in names["required_operators"]
