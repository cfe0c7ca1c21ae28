"""Draws the console of a bundle, for the documentation: `python tests/serving/draw_console.py BUNDLE FILE.png`."""

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from browser import browse
from conftest import serve


def draw(bundle: Path, file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, serve(bundle.resolve(), Path(folder)) as server:
        with browse(Path(folder) / "profile") as page:
            page.show(1180)
            page.open(f"http://127.0.0.1:{server.port}/")
            page.wait("document.querySelector('#action .element')")
            for selector, share in (("1", 0.56), ("3", 0.61), ("4", 0.4)):
                page.click(f".element:nth-of-type({selector}) input[type=range]", share)
            if not page.evaluate("document.getElementById('episode').hidden"):
                page.click("#play")
                page.wait("document.querySelector('video, #screen img')")
                time.sleep(5)  # into the episode, and until metrics have been looked at a few times
            page.evaluate("document.activeElement.blur()")
            page.screenshot(file)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
