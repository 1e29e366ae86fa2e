# SPDX-License-Identifier: GPL-2.0-or-later
"""The report in a real browser: it fits a phone, follows the theme, and asks for no network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastsocket.cli.report import command

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.apps,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser chromium is not installed"),
]

PROBE = """
<script>
addEventListener('load', () => {
  const root = document.documentElement, wide = innerWidth;
  const seen = [...document.querySelectorAll('body *')];
  const luminance = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map(part => {
      const c = part / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backdrop = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!color.startsWith('rgba(0, 0, 0, 0')) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const contrast = element => {
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [low, high] = [luminance(ink), luminance(backdrop(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = seen.filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    && !['TITLE', 'DESC', 'title', 'desc', 'SCRIPT'].includes(one.tagName));
  const report = {
    width: wide,
    overflow: root.scrollWidth - wide,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    paper: getComputedStyle(document.body).backgroundColor,
    contrast: Math.min(...texts.map(contrast)),
    smallest: Math.min(...[...document.querySelectorAll('svg text')]
      .map(text => text.getBoundingClientRect().height)),
    outside: [...document.querySelectorAll('svg')].flatMap(svg => {
      const frame = svg.closest('figure').getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left || box.right > frame.right;
      }).map(text => text.textContent);
    }),
    headings: seen.filter(one => /^H[1-6]$/.test(one.tagName)).map(one => one.tagName),
    resources: performance.getEntriesByType('resource').map(entry => entry.name),
  };
  parent.postMessage(JSON.stringify(report), '*');
});
</script>
"""

# Chromium's own window is never narrower than 500 pixels; a frame may be.
WIDTHS = (390, 1200)
FRAME = """<!doctype html><html style="color-scheme: light dark"><script>
addEventListener('message', event => {
  const out = document.createElement('pre');
  out.className = 'probe';
  out.textContent = event.data;
  document.body.append(out);
});
</script><body>
""" + "\n".join(
    f'<iframe src="probed.html" width="{width}" height="900" style="border: 0"></iframe>'
    for width in WIDTHS
)


def browser(profile: Path, *words: str) -> str:
    """Run headless Chromium once, without its own background traffic, and return its stdout."""
    assert CHROMIUM is not None
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    done = subprocess.run(
        [CHROMIUM, *quiet, *words], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    files = sorted(str(path) for path in GOLDEN.glob("*.json"))
    result = CliRunner().invoke(command, [*files, "--with-2014", "-o", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_fits_its_screen_and_is_readable(page: Path, tmp_path: Path, theme: str) -> None:
    # The page forbids scripts; the copy that carries the probe lifts only that.
    probed = tmp_path / "probed.html"
    text = page.read_text()
    loosened = text.replace(
        "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
    )
    assert loosened != text
    probed.write_text(loosened.replace("</body>", PROBE + "</body>"))
    # Blink numbers the schemes: 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME)
    wait = "--virtual-time-budget=2000"
    dom = browser(tmp_path / "profile", scheme, wait, "--dump-dom", frame.as_uri())
    found = re.findall(r'<pre class="probe">(.*?)</pre>', dom, re.DOTALL)
    reports = [json.loads(text) for text in found]
    assert sorted(seen["width"] for seen in reports) == list(WIDTHS)
    for seen in reports:
        assert seen["overflow"] <= 0
        assert seen["outside"] == []
        assert seen["dark"] is (theme == "dark")
        assert (seen["paper"] == "rgb(255, 255, 255)") is (theme == "light")
        assert seen["contrast"] >= 4.5
        assert seen["smallest"] >= 9
        assert seen["headings"][0] == "H1"
        assert seen["headings"].count("H1") == 1
        assert seen["resources"] == []


def test_screenshot_of_the_page_is_drawn(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    browser(tmp_path / "profile", "--window-size=1200,1600", f"--screenshot={shot}", page.as_uri())
    data = shot.read_bytes()
    assert data.startswith(b"\x89PNG")
    # An empty page of this size compresses to a few kilobytes.
    assert len(data) > 50_000
