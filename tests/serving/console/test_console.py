"""The console, in a real browser on a real server: what it shows is what the policy does, and it says what is wrong."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from tests.support.serving.browser import browse
from trpo_tf import serving
from trpo_tf.serving.bundle.files import MANIFEST_FILE, FileEntry

EPISODE = (Path(__file__).parent / "episode.mp4").read_bytes()
NO_METRICS = "network: Failed to load resource: the server responded with a status of 404 (Not Found)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browse(tmp_path_factory.mktemp("profile")) as tab:
        tab.show(1180)
        yield tab


@pytest.fixture(autouse=True)
def forgetful(request):
    """Each test has faults of its own. The page before goes first: it asks a server that has ended."""
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.open("about:blank")
        page.faults.clear()


@pytest.fixture
def filmed(discrete, tmp_path) -> Path:
    """A bundle with an episode."""
    folder = Path(shutil.copytree(discrete, tmp_path / "filmed"))
    (folder / "episode.mp4").write_bytes(EPISODE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"]["episode.mp4"] = vars(FileEntry.of(EPISODE))
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def visit(page, server) -> None:
    page.open(f"http://127.0.0.1:{server.port}/")
    resolve_source(page)


def resolve_source(page) -> None:
    """Wait until what is shown is the answer to what is asked."""
    page.wait("document.querySelector('#action .element')")
    told = "document.getElementById('request').textContent"
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    page.wait(f"(before => new Promise(done => setTimeout(() => done(before === {told}), 200)))({told})")


def observation_on(page, dtype: str) -> np.ndarray:
    return np.array(
        page.evaluate("[...document.querySelectorAll('.sliders input[type=number]')].map(e => +e.value)"), dtype
    )


def action_on(page) -> list[float]:
    return page.evaluate("[...document.querySelectorAll('#action .chosen')].map(e => +e.dataset.value)")


def focus(page, selector: str) -> None:
    page.evaluate(f"document.querySelector({selector!r}).focus()")


def test_sliders_move_by_keyboard_and_mouse_and_the_action_is_the_policy_s(page, continuous_server, continuous):
    policy = serving.load(continuous)
    visit(page, continuous_server)
    seen = [observation_on(page, "float64")]
    np.testing.assert_array_equal(seen[0], 0)
    focus(page, ".sliders input[type=range]")
    page.press(*["ArrowRight"] * 7)
    resolve_source(page)
    seen.append(observation_on(page, "float64"))
    np.testing.assert_allclose(seen[-1], [0.7, 0, 0])
    np.testing.assert_allclose(action_on(page), policy.act(seen[-1]), rtol=1e-6)
    page.press("Tab", "Tab")  # its number, and the next slider
    page.press(*["ArrowLeft"] * 3)
    page.click(".element:nth-of-type(3) input[type=range]", 0.9)
    resolve_source(page)
    seen.append(observation_on(page, "float64"))
    assert seen[-1][1] == pytest.approx(-0.3)
    assert 3 < seen[-1][2] < 5
    np.testing.assert_allclose(action_on(page), policy.act(seen[-1]), rtol=1e-6)
    focus(page, "#value-obs-0")
    page.type("123.25")  # beyond the slider
    resolve_source(page)
    seen.append(observation_on(page, "float64"))
    assert seen[-1][0] == 123.25
    np.testing.assert_allclose(action_on(page), policy.act(seen[-1]), rtol=1e-6)
    page.click("#random")
    resolve_source(page)
    seen.append(observation_on(page, "float64"))
    np.testing.assert_allclose(action_on(page), policy.act(seen[-1]), rtol=1e-6)
    assert len({tuple(values) for values in seen}) == len(seen)
    assert set(page.faults) <= {NO_METRICS}


def test_a_choice_is_sampled_with_a_seed_by_keyboard(page, server, discrete):
    policy = serving.load(discrete)
    visit(page, server)
    assert action_on(page) == [policy.act(observation_on(page, "float32"))]
    focus(page, "input[value=deterministic]")
    page.press("ArrowRight")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "seed"
    chosen = []
    for seed in range(8):
        page.type(str(seed))
        resolve_source(page)
        (action,) = action_on(page)
        rng = np.random.default_rng(seed)
        assert action == policy.act(observation_on(page, "float32"), deterministic=False, rng=rng)
        chosen.append(action)
    assert set(chosen) == {0, 1}
    assert set(page.faults) <= {NO_METRICS}


def test_every_control_is_reached_by_the_tab_key_and_has_a_name(page, server):
    visit(page, server)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(25):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel || ''"))
    order = ["model", "obs[0], slider", "value-obs-0", "obs[3], slider", "value-obs-3", "reset", "random", "seed"]
    assert [name for name in reached if name in order][: len(order)] == order
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("width", [400, 1180])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways(page, server, width, scheme):
    page.show(width, scheme=scheme)
    visit(page, server)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "(s => [s.color, s.backgroundColor].map(c => +c.match(/\\d+/)[0]))(getComputedStyle(document.body))"
    )
    assert (ink > 150 > paper) if scheme == "dark" else (ink < 100 < paper)
    page.show(1180)


def test_a_key_is_asked_for_and_a_wrong_one_is_told(page, start, filmed, tmp_path):
    keys = tmp_path / "keys"
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "me"], capture_output=True, text=True, check=True
    )
    keys.write_text(made.stdout)
    key = made.stderr.split()[-1]
    with start(filmed, "--keys", str(keys)) as server:
        assert server.request("GET", "/console/models")[0] == 401
        assert server.request("GET", "/console/models/discrete/versions/1/episode.mp4")[0] == 401
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("document.querySelector('[role=status]').textContent === 'The server asks for a key.'")
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.evaluate("document.getElementById('main').hidden")
        page.type("wrong")
        page.press("Enter")
        page.wait("document.querySelector('[role=status]').textContent === 'The server does not know this key.'")
        page.type(key)
        page.press("Enter")
        resolve_source(page)
        assert key not in page.evaluate("document.documentElement.outerHTML")
        # The episode is fetched with the key too, and plays.
        focus(page, "#play")
        page.press("Enter")
        page.wait("document.querySelector('video')?.currentTime > 0.1")
        assert page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))") == [120, 80]
    assert {fault.split(":")[0] for fault in page.faults} <= {"network"}
    page.evaluate("document.querySelector('#reset').click()")
    page.wait("document.querySelector('[role=status]').textContent.startsWith('The server does not answer.')")


def hold(port: int) -> socket.socket:
    """The server's only connection, with a request that never comes whole; the page may have it before."""
    while True:
        holder = socket.create_connection(("127.0.0.1", port), 0.3)
        holder.sendall(b"POST /v2/models/discrete/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        try:
            holder.recv(1)
        except TimeoutError:
            return holder
        holder.close()


def test_a_server_that_is_busy_is_told(page, start, discrete):
    with start(discrete) as server:
        visit(page, server)
    # Gone, and back with the one connection that it takes held by another client.
    with start(discrete, "--max-connections", "1", "--keep-alive", "0.2", "--port", str(server.port)) as again:
        holder = hold(again.port)
        page.evaluate("document.querySelector('#random').click()")
        page.wait("document.querySelector('[role=status]').textContent.includes('busy (503)')")
        holder.close()
        page.wait("document.querySelector('[role=status]').textContent.includes('discrete answers')")


def state_on(page) -> list[float]:
    return page.evaluate("document.querySelector('.numbers')?.textContent.split(', ').map(Number) ?? null")


def test_an_episode_is_played_step_by_step_and_begun_again(page, start):
    bundle = BUNDLES / "recurrent"
    session, rng = serving.load(bundle).start(), np.random.default_rng(0)
    with start(bundle) as server:
        visit(page, server)
        for number in range(6):
            if number == 4:
                page.click("#restart")
                session.reset()
                page.wait("document.getElementById('steps').textContent === 'The episode has not begun.'")
                assert state_on(page) is None
            for index, value in enumerate(rng.integers(-4, 5, 2)):
                focus(page, f"#value-obs-{index}")
                page.type(str(value))
            before = observation_on(page, "float32")
            (expected,) = session.act(before)
            # It is shown before the step is taken.
            page.wait(f"Math.abs(document.querySelector('#action .chosen').dataset.value - {expected}) < 1e-6")
            focus(page, "#step")
            page.press("Enter")
            taken = (number + 1) if number < 4 else number - 3
            page.wait(f"document.getElementById('steps').textContent.startsWith('{taken} step')")
            np.testing.assert_allclose(state_on(page), session.state["hidden"].ravel(), rtol=1e-3)
        page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('#step').click()")
        page.wait("document.getElementById('steps').textContent.startsWith('5 steps')")
        for _ in range(3):
            session.act(before)
        np.testing.assert_allclose(state_on(page), session.state["hidden"].ravel(), rtol=1e-3)
        sent = json.loads(page.evaluate("document.getElementById('request').textContent.split('\\n')[1]"))
        assert [given["name"] for given in sent["inputs"]] == ["obs", "hidden"]
        assert set(page.faults) <= {NO_METRICS}


def test_a_mask_has_a_box_for_each_option_and_the_action_is_legal(page, start):
    bundle = BUNDLES / "masked"
    policy = serving.load(bundle)
    boxes = "[...document.querySelectorAll('.mask input')]"

    def expected() -> list[int]:
        mask = np.array(page.evaluate(f"{boxes}.map(e => +e.checked)"), np.int8)
        return policy.act({"obs": observation_on(page, "float32"), "action_mask": mask}).tolist()

    with start(bundle) as server:
        visit(page, server)
        labels = page.evaluate(f"{boxes}.map(e => e.parentNode.textContent.trim())")
        assert labels == ["action[0] 0", "action[0] 1", "action[0] 2", "action[1] 0", "action[1] 1"]
        first = action_on(page)
        assert first == expected()
        page.click(f".mask label:nth-of-type({first[0] + 1}) input")
        resolve_source(page)
        second = action_on(page)
        assert (second == expected(), second[0] != first[0]) == (True, True)
        for _ in range(5):
            page.click("#random")
            resolve_source(page)
            assert action_on(page) == expected()
        page.evaluate(f"{boxes}.filter(e => e.checked).forEach(e => e.click())")
        page.wait("document.body.textContent.includes(\"'action_mask' allows no action\")")
        page.click("#reset")
        resolve_source(page)
        assert action_on(page) == first


def test_pages_are_open_and_hardened(server):
    connection = server.connect()
    for path, kind in (
        ("/", "html"),
        ("/console/console.js", "javascript"),
        ("/console/console.css", "css"),
    ):
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read().decode()
        assert response.status == 200
        assert response.headers["content-type"].startswith(f"text/{kind};")
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
        assert "unsafe" not in policy
        assert "http://" not in content.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in content
    connection.close()


def test_the_models_route_has_what_the_bundle_says(start, filmed):
    with start(filmed) as server:
        status, told = server.request("GET", "/console/models")
        assert status == 200
        (model,) = told["models"]
        assert (model["name"], model["version"]) == ("discrete", "1")
        parity = {"onnx": ANY, "savedmodel": ANY}  # the bundle is an old one, with former names of its targets
        manifest = json.loads((filmed / MANIFEST_FILE).read_text())
        assert model["manifest"] == manifest | {"name": "discrete", "parity": parity}
        connection = server.connect()
        connection.request("GET", f"/{model['episode']}")
        response = connection.getresponse()
        assert (response.status, response.headers["content-type"]) == (200, "video/mp4")
        assert response.read() == EPISODE
        connection.close()


def test_an_episode_that_was_changed_is_refused(filmed, start):
    (filmed / "episode.mp4").write_bytes(EPISODE[:-1] + b"x")
    with pytest.raises(AssertionError, match="is not what was exported"), start(filmed):
        pass


METRICS = """# HELP trpo_tf_requests_total Requests answered
# TYPE trpo_tf_requests_total counter
trpo_tf_requests_total{model="a \\"b\\"\\\\",version="1",protocol="http",code="200"} 40
trpo_tf_requests_total{model="a \\"b\\"\\\\",version="1",protocol="grpc",code="OK"} 2
trpo_tf_requests_total{model="other",version="1",protocol="http",code="200"} 1000
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="http",le="1e-05"} 10
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="http",le="0.001"} 30
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="http",le="+Inf"} 31
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="grpc",le="1e-05"} 0
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="grpc",le="0.001"} 1
trpo_tf_request_seconds_bucket{model="a \\"b\\"\\\\",protocol="grpc",le="+Inf"} 1
trpo_tf_observation_mean{model="a \\"b\\"\\\\",version="1",input="obs",element="0"} 1.5
trpo_tf_observation_mean{model="a \\"b\\"\\\\",version="1",input="obs",element="1"} -9
trpo_tf_observation_drift{model="a \\"b\\"\\\\",version="1"} 5
trpo_tf_drift_observations{model="a \\"b\\"\\\\",version="1"} 42
process_resident_memory_bytes 1.5e+08
"""

DRAWN = """import('/console/metrics.js').then(({parse, histogram, quantile, moved, requestsOf, Rates, showMetrics}) => {
  const model = {name: 'a "b"\\\\', version: '1', manifest: {statistics: {obs: {mean: [1, 1], stddev: [1, 2]}}}};
  const samples = parse(%s), rates = new Rates();
  rates.add(10, 100); rates.add(12, 150);
  const root = document.createElement('div');
  showMetrics(root, samples, rates, model);
  const buckets = histogram(samples, model.name);
  return {requests: requestsOf(samples, model.name), counts: buckets.map(b => b.count), rate: rates.points,
    half: quantile(buckets, 0.5), moved: moved(samples, model), text: root.textContent};
})"""


def test_metrics_are_read_and_drawn(page, server):
    visit(page, server)
    drawn = page.evaluate(DRAWN % json.dumps(METRICS))
    assert drawn["requests"] == 42
    assert drawn["counts"] == [10, 21, 1]
    assert drawn["rate"] == [25]
    assert drawn["half"] == 0.001
    assert drawn["moved"] == [{"label": "obs[1]", "distance": -5}, {"label": "obs[0]", "distance": 0.5}]
    assert "farthest mean 5 deviations off, of 42 observations" in drawn["text"]
    assert "half within 1 ms" in drawn["text"]
    assert "143.1 MiB" in drawn["text"]


FORM = """import('/console/form.js').then(({ObservationForm}) => {
  const root = document.createElement('div');
  const form = new ObservationForm(root, %s, () => {});
  form.randomize();
  const random = form.read().map(part => part.values);
  const area = root.querySelector('textarea');
  let told = '';
  if (area) { area.value = '[1, 2]'; try { form.read(); } catch (error) { told = error.message; } }
  return {random, told, sliders: root.querySelectorAll('input[type=range]').length,
    ranges: [...root.querySelectorAll('input[type=range]')].map(e => [+e.min, +e.max])};
})"""


def test_an_image_has_a_field_of_numbers_and_statistics_make_ranges(page, server):
    visit(page, server)
    image = {"name": "eye", "dtype": "uint8", "shape": [2, 18, 20], "low": 0, "high": 255}
    drawn = page.evaluate(FORM % json.dumps({"observation": [image]}))
    (values,) = drawn["random"]
    assert len(values) == 720
    assert all(value == int(value) and 0 <= value <= 255 for value in values)
    assert len(set(values)) > 50
    assert (drawn["sliders"], drawn["told"]) == (0, "eye has 2 numbers, not 720")
    choice = {"name": "choice", "dtype": "int64", "shape": [], "low": 2, "high": 4}
    free = {"name": "obs", "dtype": "float32", "shape": [2], "low": [None, -1], "high": [3.4e38, None]}
    statistics = {"obs": {"mean": [10, 0], "stddev": [2, 1]}}
    drawn = page.evaluate(FORM % json.dumps({"observation": [choice, free], "statistics": statistics}))
    assert drawn["ranges"] == [[2, 4], [4, 16], [-1, 3]]
