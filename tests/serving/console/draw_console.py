"""Draws the console of a bundle: `python -m tests.serving.console.draw_console BUNDLE FILE.png`."""

import sys
import tempfile
import time
from pathlib import Path

from tests.support.serving.browser import browse
from tests.support.serving.server import serve


def draw(bundle: Path, file: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(bundle.resolve(), Path.cwd()) as server,
        browse(Path(folder)) as page,
    ):
        page.show(1180)
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("document.querySelector('#action .element')")
        for place, share in ((1, 0.56), (3, 0.61), (4, 0.4)):
            if page.evaluate(f"!!document.querySelector('.sliders .element:nth-of-type({place})')"):
                page.click(f".sliders .element:nth-of-type({place}) input[type=range]", share)
        if not page.evaluate("document.getElementById('episode').hidden"):
            page.click("#play")
            page.wait("document.querySelector('video, #screen img')")
        time.sleep(5)  # into the episode, and until metrics have been looked at a few times
        page.evaluate("document.activeElement.blur()")
        page.screenshot(file)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
