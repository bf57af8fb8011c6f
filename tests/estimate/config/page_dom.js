// A document with just what page.js uses, made of the page's own HTML.
//
// Reads {html tree, script, base, search, actions} from standard input, runs the script with a
// fetch that asks the server at base, applies the actions, and prints what the page shows.
"use strict";

const vm = require("vm");

class Element {
  constructor(name, attributes = {}) {
    this.tagName = name.toUpperCase();
    this.attributes = attributes;
    this.children = [];
    this.text = "";
    this.style = {};
    this.hidden = false;
    this.listeners = {};
    this.dataset = {};
    for (const [key, value] of Object.entries(attributes)) if (key.startsWith("data-")) this.dataset[key.slice(5)] = value;
    this.name = attributes.name || "";
    this.type = attributes.type || (name === "select" ? "select-one" : name === "textarea" ? "textarea" : "text");
    this.checked = "checked" in attributes;
    this.given = attributes.value;
  }
  // A list without a choice shows its first entry.
  get value() {
    if (this.given === undefined && this.tagName === "SELECT" && this.options.length) return this.options[0].value;
    return this.given === undefined ? "" : String(this.given);
  }
  set value(value) { this.given = value; }
  get textContent() { return this.text + this.children.map((each) => each.textContent).join(""); }
  set textContent(text) { this.children = []; this.text = String(text); }
  get options() { return this.children.filter((each) => each.tagName === "OPTION"); }
  get parentElement() { return this.parent; }
  append(child) {
    child.parent = this;
    this.children.push(child);
  }
  replaceChildren() { this.children = []; this.text = ""; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  *all() { for (const child of this.children) { yield child; yield* child.all(); } }
  matches(selector) {
    const [, name, attribute] = /^(\w+)(?:\[([\w-]+)\])?$/.exec(selector);
    return this.tagName === name.toUpperCase() && (!attribute || attribute in this.attributes);
  }
  querySelectorAll(selector) {
    const parts = selector.split(" ");
    let found = [this];
    for (const part of parts) {
      found = found.flatMap((each) => [...each.all()].filter((one) => part.startsWith("#") ? one.attributes.id === part.slice(1) : one.matches(part)));
    }
    return found;
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] || null; }
  closest(selector) { return this.matches(selector) ? this : this.parent ? this.parent.closest(selector) : null; }
}

function built(tree) {
  const [name, attributes, children] = tree;
  const made = new Element(name, attributes);
  for (const child of children) {
    if (typeof child === "string") made.text += child;
    else made.append(built(child));
  }
  if (name === "option" && !("value" in attributes)) made.value = made.textContent;
  return made;
}

function formElements(form) {
  const fields = [...form.all()].filter((each) => ["INPUT", "SELECT", "TEXTAREA"].includes(each.tagName));
  for (const field of fields) {
    if (field.type !== "radio") { fields[field.name] = field; continue; }
    const group = fields.filter((each) => each.name === field.name);
    fields[field.name] = {
      get value() { return group.find((each) => each.checked).value; },
      set value(value) { for (const each of group) each.checked = each.value === value; },
    };
  }
  return fields;
}

async function main(input) {
  const root = built(input.tree);
  const form = root.querySelector("#form");
  Object.defineProperty(form, "elements", { get: () => formElements(form) });
  const seen = { address: "", copied: "", requests: [] };
  const document = {
    getElementById: (id) => root.querySelector(`#${id}`),
    querySelector: (selector) => root.querySelector(selector),
    createElement: (name) => new Element(name),
  };
  const fetched = (path, options) => {
    if (options) seen.requests.push(JSON.parse(options.body));
    return fetch(input.base + path, options);
  };
  const context = vm.createContext({
    document, URLSearchParams, setTimeout, clearTimeout, console,
    location: { search: input.search, href: "http://localhost/" },
    history: { replaceState: (_, __, address) => { seen.address = address; } },
    navigator: { clipboard: { writeText: (text) => { seen.copied = text; } } },
    fetch: fetched,
  });
  vm.runInContext(input.script, context);
  const settle = async () => { for (let turn = 0; turn < 100 && !shown(); turn += 1) await new Promise((go) => setTimeout(go, 50)); };
  const verdict = root.querySelector("#verdict"), error = root.querySelector("#error");
  const shown = () => verdict.textContent !== "" || error.textContent !== "";
  await settle();
  for (const [name, value] of input.actions) {
    verdict.textContent = "";
    error.textContent = "";
    const field = form.elements[name];
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
    form.listeners.input();
    await settle();
  }
  root.querySelector("#copy").listeners.click();
  const text = (selector) => root.querySelectorAll(selector).map((each) => each.textContent);
  console.log(JSON.stringify({
    ...seen, verdict: verdict.textContent, kind: verdict.className, error: error.textContent,
    hidden: error.hidden, rank: root.querySelector("#rank").textContent, amounts: text("#amounts tbody tr").length,
    answers: text("#answers dt"), advice: text("#advice tbody tr").length, notes: text("#assumptions li"),
    unknown: root.querySelector("#unknown").hidden ? "" : root.querySelector("#unknown").textContent,
    bar: root.querySelectorAll("#bar span").map((each) => each.style.width),
    modes: root.querySelectorAll("fieldset[data-mode]").filter((each) => !each.hidden).map((each) => each.dataset.mode),
  }));
  process.exit(0);
}

let text = "";
process.stdin.on("data", (piece) => { text += piece; });
process.stdin.on("end", () => main(JSON.parse(text)).catch((error) => { console.error(error); process.exit(1); }));
