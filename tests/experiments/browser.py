"""Does a real browser show the report as it should? python -m tests.experiments.browser PAGE

Chromium loads the page without a screen, runs it, and writes a picture beside it. Asked is what the
loaded document says of itself: every picture decoded, every table and section there, nothing wider
than the page, and no file that a link names missing.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

ASKED = """
<script>
addEventListener("load", () => {
  const pictures = [...document.images];
  const answer = {
    pictures: pictures.length,
    broken: pictures.filter(p => !p.complete || p.naturalWidth == 0).map(p => p.alt),
    sections: document.querySelectorAll("section").length,
    rows: document.querySelectorAll("tbody tr").length,
    dangling: [...document.links].map(a => a.getAttribute("href"))
      .filter(h => h.startsWith("#") && !document.getElementById(h.slice(1))),
    files: [...document.links].map(a => a.getAttribute("href")).filter(h => !/^(#|https:)/.test(h)),
    wide: document.documentElement.scrollWidth > innerWidth,
  };
  document.title = "ANSWER" + JSON.stringify(answer);
});
</script>
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def main(page: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"browser: none of {', '.join(BROWSERS)} is installed; apt install chromium")
    with tempfile.TemporaryDirectory() as directory:
        asking = Path(directory) / "page.html"
        asking.write_text(page.read_text() + ASKED)
        dom = _run(browser, "--dump-dom", "--window-size=1100,900", asking)
    found = re.search(r"<title>ANSWER(.*?)</title>", dom)
    if found is None:
        sys.exit(f"browser: {page} did not finish loading")
    answer = json.loads(found[1])
    missing = [name for name in answer["files"] if not (page.parent / unquote(name)).is_file()]
    print(f"{page}: {answer}")
    picture = page.with_suffix(".png")
    _run(browser, f"--screenshot={picture.resolve()}", "--window-size=1100,9000", page)
    print(f"picture: {picture}")
    wrong = [key for key in ("broken", "dangling", "wide") if answer[key]] + missing
    if wrong or not answer["sections"] == answer["rows"] > 0 or not answer["pictures"]:
        sys.exit(f"browser: {page} is not as it should be: {wrong or answer}")


def _run(browser: str, *arguments: object) -> str:
    *flags, page = arguments
    url = Path(str(page)).resolve().as_uri()
    command = [browser, *FLAGS, *map(str, flags), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
