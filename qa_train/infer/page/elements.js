// Elements of the page, and text of a model as elements: none of it is ever run or fetched.

export const $ = (id) => document.getElementById(id);

// Attributes that are null or false, and children that are nothing, are left out; on...: what an event calls.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(Boolean));
  return made;
}

export const button = (text, onclick, name, kind) =>
  el("button", { type: "button", class: kind, "aria-label": name, onclick }, text);

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// HTML and pictures of an answer are shown as what was written.
marked.use({
  gfm: true, breaks: true,
  renderer: { html: (token) => escaped(token.text), image: (token) => escaped(token.raw) },
});
const ALLOWED = {
  ALLOWED_TAGS: ["p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "a",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"],
  ALLOWED_ATTR: ["href", "align", "start"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  // Without this it holds the values of these, too, for addresses, and drops them.
  ADD_URI_SAFE_ATTR: ["align", "start"], ALLOWED_URI_REGEXP: /^(https?|mailto):/i, RETURN_DOM_FRAGMENT: true,
};

// Markdown as a document fragment.
export function markdown(text) {
  const made = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  made.querySelectorAll("a").forEach((link) => { link.rel = "noopener noreferrer"; link.target = "_blank"; });
  // What is wider than its column scrolls, by keyboard too.
  made.querySelectorAll("pre").forEach((wide) => { wide.tabIndex = 0; });
  return made;
}

export async function copy(text) {
  if (navigator.clipboard) { await navigator.clipboard.writeText(text); return; }
  // Pages of other machines without https have no clipboard of their own.
  const place = el("textarea", {}, text);
  const before = document.activeElement;
  document.body.append(place);
  place.select();
  document.execCommand("copy");
  place.remove();
  before?.focus();
}
