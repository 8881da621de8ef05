"""Whether a page fits its screen and can be read, as a browser sees it."""

from __future__ import annotations

from tests.server.browser import Page

#: Contrast of each text with what is behind it, by the formula of WCAG 2; the smallest one.
_CONTRAST = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.disabled &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...texts.map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
})()"""

#: Fields and buttons that say nothing of themselves to those who can't see them.
_NAMELESS = """[...document.querySelectorAll("button, input, textarea, select, [role=img], [role=region]")]
  .filter((one) => !(one.closest("label")?.textContent.trim() || one.labels?.length || one.textContent.trim() ||
    one.getAttribute("aria-label") || one.getAttribute("aria-labelledby"))).map((one) => one.outerHTML)"""


def check_readable(page: Page, width: int, *, dark: bool) -> None:
    """The page is no wider than the screen, every text differs from what is behind it, and every control has a name."""
    assert page.see("document.documentElement.scrollWidth") <= width
    assert page.see(_CONTRAST) >= 4.5
    assert page.see(_NAMELESS) == []
    background = page.see("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 150) == dark


def show_on(page: Page, width: int, *, dark: bool) -> None:
    """Show the page that is open on another screen."""
    page.do(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=width < 700,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.do("Emulation.setEmulatedMedia", features=[scheme])
