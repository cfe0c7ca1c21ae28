import pytest

from tests.support.paths import BUNDLES
from tests.support.serving.server import serve


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serve(BUNDLES / "discrete", tmp_path_factory.mktemp("server")) as running:
        yield running
