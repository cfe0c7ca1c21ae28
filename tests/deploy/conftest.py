import pytest

from tests.serving.conftest import BUNDLES, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serve(BUNDLES / "discrete", tmp_path_factory.mktemp("server")) as running:
        yield running
