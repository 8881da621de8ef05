// Markdown of a model as elements. Nothing of it is ever read as HTML: elements are made here, and all text goes into text
// nodes; links lead to http and https only, and images aren't fetched. What isn't understood is shown as it was written.
import { element } from "./dom.js";

const DEEPEST = 8; // quotes, lists and emphasis in one another
const LONGEST = 20000; // characters of a paragraph that are looked through for emphasis and links

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

export function render(text) {
  const made = document.createDocumentFragment();
  blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), made, 0);
  return made;
}

function blocks(lines, into, depth) {
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    if (!line.trim()) { at += 1; continue; }
    const block = depth < DEEPEST && [fence, heading, rule, quote, list, table].find((one) => one.begins(lines, at));
    at = block ? block.read(lines, at, into, depth) : paragraph(lines, at, into, depth);
  }
}

const fence = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, at, into) {
    const mark = lines[at].match(FENCE)[1];
    let end = at + 1;
    while (end < lines.length && !(lines[end].trim().startsWith(mark) && !lines[end].trim().replaceAll(mark[0], ""))) end += 1;
    into.append(element("pre", "", element("code", "", lines.slice(at + 1, end).join("\n"))));
    return end + 1;
  },
};

const heading = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, at, into, depth) {
    const [, marks, text] = lines[at].match(HEADING);
    const made = element("h" + Math.min(6, marks.length + 2)); // below the page's own headings
    inline(text, made, depth);
    into.append(made);
    return at + 1;
  },
};

const rule = {
  begins: (lines, at) => RULE.test(lines[at]),
  read(lines, at, into) {
    into.append(element("hr"));
    return at + 1;
  },
};

const quote = {
  begins: (lines, at) => QUOTE.test(lines[at]),
  read(lines, at, into, depth) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    const made = element("blockquote");
    blocks(lines.slice(at, end).map((line) => line.replace(QUOTE, "")), made, depth + 1);
    into.append(made);
    return end;
  },
};

const list = {
  begins: (lines, at) => ITEM.test(lines[at]),
  read(lines, at, into, depth) {
    const [, indent, first] = lines[at].match(ITEM);
    const isOrdered = /\d/.test(first);
    const made = element(isOrdered ? "ol" : "ul");
    if (isOrdered) made.start = parseInt(first, 10);
    while (at < lines.length) {
      const found = lines[at].match(ITEM);
      if (!found || found[1].length > indent.length + 3 || /\d/.test(found[2]) !== isOrdered || RULE.test(lines[at])) break;
      const inner = found[1].length + found[2].length + 1;
      const body = [found[4]];
      for (at += 1; at < lines.length; at += 1) {
        const spaces = lines[at].length - lines[at].trimStart().length;
        const isBlank = !lines[at].trim();
        if (isBlank && !(at + 1 < lines.length && /^ {2,}\S/.test(lines[at + 1]))) break;
        if (!isBlank && spaces < inner && (ITEM.test(lines[at]) || body[body.length - 1] === "" || begins(lines, at))) break;
        body.push(lines[at].slice(Math.min(spaces, inner)));
      }
      const item = element("li");
      tight(body, item, depth + 1);
      made.append(item);
      while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
    }
    into.append(made);
    return at;
  },
};

// An item of one paragraph has no paragraph of its own.
function tight(lines, item, depth) {
  if (lines.length === 1) inline(lines[0], item, depth);
  else blocks(lines, item, depth);
}

const table = {
  begins: (lines, at) => lines[at].includes("|") && at + 1 < lines.length && TABLE_RULE.test(lines[at + 1]) && lines[at + 1].includes("-"),
  read(lines, at, into, depth) {
    const head = cells(lines[at]);
    const made = element("table"), body = element("tbody");
    made.append(element("thead", "", row(head, "th", depth)), body);
    for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) {
      body.append(row(cells(lines[at]).slice(0, head.length), "td", depth));
    }
    into.append(element("div", "scroll", made));
    return at;
  },
};

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function row(texts, tag, depth) {
  const made = element("tr");
  for (const text of texts) {
    const cell = element(tag);
    inline(text, cell, depth);
    made.append(cell);
  }
  return made;
}

const begins = (lines, at) => [fence, heading, rule, quote].some((one) => one.begins(lines, at));

function paragraph(lines, at, into, depth) {
  const first = at;
  do at += 1;
  while (at < lines.length && lines[at].trim() && !(depth < DEEPEST && (begins(lines, at) || list.begins(lines, at))));
  const made = element("p");
  inline(lines.slice(first, at).join("\n"), made, depth);
  into.append(made);
  return at;
}

// Emphasis reaches no further than a thousand characters, so that a text of nothing but marks is read in good time.
const INLINE = new RegExp([
  /\\(?<escaped>[\\`*_{}[\]()#+.!|~<>-])/,
  /(?<ticks>`{1,3})(?!`)(?<code>[^]{1,1000}?)(?<!`)\k<ticks>(?!`)/,
  /(?<image>!?)\[(?<label>[^[\]]{0,500})\]\(\s{0,5}<?(?<target>[^\s()<>]{1,1000}(?:\([^\s()<>]{0,200}\))?)>?(?:\s+"[^"]{0,200}")?\s{0,5}\)/,
  /<?(?<url>https?:\/\/[^\s<>"'`\\]{1,1000})>?/,
  /\*\*(?=\S)(?<strong>[^]{0,1000}?\S)\*\*(?!\*)|(?<!\w)__(?=\S)(?<strong2>[^]{0,1000}?\S)__(?!\w)/,
  /\*(?=[^\s*])(?<em>[^*]{1,1000}?)(?<=\S)\*(?!\*)|(?<!\w)_(?=[^\s_])(?<em2>[^_]{1,1000}?)(?<=\S)_(?!\w)/,
  /~~(?=\S)(?<gone>[^]{0,1000}?\S)~~/,
  /(?<broken>(?: {2,}|\\)\n)/,
].map((one) => one.source).join("|"), "g");

function inline(text, into, depth) {
  let from = 0;
  if (depth < DEEPEST && text.length <= LONGEST) {
    for (const found of text.matchAll(INLINE)) {
      into.append(text.slice(from, found.index), made(found, depth));
      from = found.index + found[0].length;
    }
  }
  into.append(text.slice(from));
}

function made(found, depth) {
  const part = found.groups;
  if (part.escaped) return part.escaped;
  if (part.code) return element("code", "", part.code.replace(/^ (.*) $/s, "$1"));
  if (part.target) return link(part.target, (part.image ? "image: " : "") + part.label, part.image ? DEEPEST : depth) ?? found[0];
  if (part.url) {
    const url = part.url.replace(/[.,;:!?)\]]+$/, "");
    const whole = document.createDocumentFragment();
    whole.append(link(url, url, DEEPEST) ?? url, found[0].startsWith("<") && found[0].endsWith(">") ? "" : part.url.slice(url.length));
    return whole;
  }
  if (part.broken) return element("br");
  const tag = part.strong || part.strong2 ? "strong" : part.gone ? "s" : "em";
  const marked = element(tag);
  inline(part.strong ?? part.strong2 ?? part.em ?? part.em2 ?? part.gone, marked, depth + 1);
  return marked;
}

// A link to a page of the web; null for every other address.
function link(target, label, depth) {
  let address;
  try { address = new URL(target); } catch { return null; }
  if (!/^https?:\/\//i.test(target) || !["http:", "https:"].includes(address.protocol)) return null;
  const made = element("a");
  made.href = address.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  inline(label || target, made, Math.max(depth + 1, 1));
  return made;
}
