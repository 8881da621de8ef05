"""Markdown of a model in a real browser: formatted as it should be, and unable to do anything but be read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.conftest import Pages
from tests.server.browser import FOUND, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="no browser here")]

#: Ways in which text has become a script, a request or a form elsewhere.
PAYLOADS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload='window.pwned = 1'><a href='javascript:window.pwned = 1'>x</a></svg>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "<body onload=window.pwned=1><style>@import 'http://evil.example'</style>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1></style></mglyph></table></mtext></math>",
    "<form action=http://evil.example><input name=key><button>Go</button></form>",
    "<base href=http://evil.example/><link rel=stylesheet href=http://evil.example/x.css>",
    "<details open ontoggle=window.pwned=1>x</details>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](java\tscript:window.pwned=1)",
    "[click](&#106;avascript:window.pwned=1)",
    "[click](%6aavascript:window.pwned=1)",
    "[click](\x01javascript:window.pwned=1)",
    "[click]( javascript:window.pwned=1)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    "[click](vbscript:msgbox(1))",
    "[click](blob:http://localhost/x) [click](file:///etc/passwd) [click](//evil.example) [click](/v1/adapters)",
    "[click](https:javascript:alert(1)) [click](http:/evil.example)",
    '[click](https://example.org/" onmouseover="window.pwned=1)',
    "[click](https://example.org/x 'title\" onclick=\"window.pwned=1')",
    '![beacon](https://evil.example/beacon.png) ![x](x" onerror="window.pwned=1)',
    "[![inner](https://evil.example/a.png)](javascript:window.pwned=1)",
    '<javascript:window.pwned=1> <https://example.org/"onclick=window.pwned=1>',
    "[a]: javascript:window.pwned=1\n\n[a]",
    "```html\n<script>window.pwned = 1</script>\n```",
    "`<img src=x onerror=window.pwned=1>` **<img src=x onerror=window.pwned=1>**",
    "| <img src=x onerror=window.pwned=1> |\n|---|\n| [x](javascript:window.pwned=1) |",
    "> - # <script>window.pwned=1</script>\n>   1. [x](javascript:window.pwned=1)",
    '![]("><script>window.pwned=1</script>)',
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1}",
    "\u2028<script>window.pwned=1</script>\u2029",
    "<!--><img src=x onerror=window.pwned=1>--> <![CDATA[<script>window.pwned=1</script>]]>",
    *("*" * 20000, "[" * 20000, "`" * 20001, "_a" * 10000, "> " * 5000 + "x", "- " * 5000 + "x"),
    *("**a" * 5000, "![" * 9000, "[a](" * 5000, "|" * 5000 + "\n" + "|-" * 5000, "https://" * 2000),
]

ALLOWED = {
    **{
        tag: []
        for tag in ("P", "H3", "H4", "H5", "H6", "UL", "LI", "PRE", "CODE", "STRONG", "EM", "S", "BR", "HR")
    },
    **{tag: [] for tag in ("BLOCKQUOTE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD")},
    "OL": ["start"],
    "DIV": ["class"],
    "A": ["href", "target", "rel"],
}


@pytest.fixture(scope="module")
def tab(pages: Pages) -> Page:
    return pages.open("/")


@pytest.fixture(autouse=True)
def _asked(pages: Pages, tab: Page) -> None:
    tab.see(
        "fetch('/healthz').then((response) => response.status)"
    )  # a request, so that there is one to look at


def shown(tab: Page, text: str) -> Any:
    """The HTML of a text."""
    return tab.see(
        f"import('/page/markdown.js').then((module) => {{ const box = document.createElement('div');"
        f" box.append(module.render({json.dumps(text)})); return box.innerHTML; }})"
    )


def test_no_payload_runs_asks_or_becomes_anything_but_text_and_links_to_the_web(tab: Page) -> None:
    found = tab.see(
        "import('/page/markdown.js').then(async (module) => {"
        f" const payloads = {json.dumps(PAYLOADS)}, found = {{}}, links = [], slow = [];"
        " const box = document.body.appendChild(document.createElement('div'));"
        " for (const payload of payloads) {"
        "   const began = performance.now();"
        "   box.replaceChildren(module.render(payload));"
        "   if (performance.now() - began > 5000) slow.push(payload.slice(0, 20));"
        "   for (const one of box.querySelectorAll('*')) {"
        "     found[one.tagName] = [...new Set([...(found[one.tagName] ?? []), ...one.getAttributeNames()])];"
        "     if (one.tagName === 'A') { links.push([one.protocol, one.rel]); one.target = ''; }"
        "     one.dispatchEvent(new Event('error')); one.dispatchEvent(new Event('mouseover'));"
        "   }"
        "   await new Promise((done) => setTimeout(done, 0));"
        " }"
        " box.remove();"
        " return { found, links, slow, pwned: window.pwned ?? null };"
        "})"
    )
    assert found["pwned"] is None and found["slow"] == []
    unexpected = {
        tag: names for tag, names in found["found"].items() if set(names) - set(ALLOWED.get(tag, ["?"]))
    }
    assert not unexpected and found["found"].keys() <= ALLOWED.keys()
    assert found["links"]
    for protocol, rel in found["links"]:
        assert protocol in ("http:", "https:") and "noopener" in rel.split()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** *c* _d_ `e<f` ~~g~~", "<p>a <strong>b</strong> <em>c</em> <em>d</em> <code>e&lt;f</code> "
         "<s>g</s></p>"),
        ("snake_case_name 2*3*4 **", "<p>snake_case_name 2<em>3</em>4 **</p>"),
        ("# A\ntext\n## B #", "<h3>A</h3><p>text</p><h4>B</h4>"),
        ("- a\n- b\n  - c\n\n1. d\n2. e", "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul></li></ul>"
         '<ol start="1"><li>d</li><li>e</li></ol>'),
        ("```py\nif a < b:\n    *c*\n```\nd", "<pre><code>if a &lt; b:\n    *c*</code></pre><p>d</p>"),
        ("```\nstill written", "<pre><code>still written</code></pre>"),
        ("> a\n> b\n\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"),
        ("| a | b |\n|---|---|\n| `1` | 2 |", '<div class="scroll"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
         "<tbody><tr><td><code>1</code></td><td>2</td></tr></tbody></table></div>"),
        ("\\*a\\* & <b>", "<p>*a* &amp; &lt;b&gt;</p>"),
        ("***\na\n---", "<hr><p>a</p><hr>"),
        ("see https://example.org/a_b_c. Yes", '<p>see <a href="https://example.org/a_b_c" target="_blank" '
         'rel="noopener noreferrer nofollow">https://example.org/a_b_c</a>. Yes</p>'),
        ("[a **b**](https://example.org/x)", '<p><a href="https://example.org/x" target="_blank" '
         'rel="noopener noreferrer nofollow">a <strong>b</strong></a></p>'),
        ("[x](ftp://example.org)", "<p>[x](ftp://example.org)</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markdown_is_formatted(tab: Page, text: str, html: str) -> None:
    assert shown(tab, text) == html
