// xterm.js writes style sheets and style attributes as text, which the page's policy takes for the text of a stranger. Once
// this module is loaded, what scripts write that way goes in by the object model instead, which the policy allows.

const makeElement = document.createElement.bind(document);
const { setAttribute } = Element.prototype;

document.createElement = (tag, options) => (tag === "style" ? sheet() : makeElement(tag, options));

HTMLElement.prototype.setAttribute = function set(name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

/** An element in the place of a `style` element: its text becomes a sheet of the document, until it is removed. */
function sheet() {
  const rules = new CSSStyleSheet();
  document.adoptedStyleSheets.push(rules);
  const element = makeElement("template");
  Object.defineProperty(element, "textContent", { set: (text) => rules.replaceSync(text) });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== rules);
    Element.prototype.remove.call(element);
  };
  return element;
}
