"use strict";

// The state of the form is in the URL, so that a link leads back to an estimate.

const form = document.getElementById("form");
const COLOURS = ["#2a6fdb", "#e07b00", "#2e9d57", "#a142c9", "#c62828", "#00838f", "#7a6a00", "#5d6d7e", "#d81b7a", "#455bb5", "#6d8b00", "#8d5a3b"];
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function sized(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit += 1; }
  return unit ? `${bytes.toFixed(1)} ${UNITS[unit]}` : `${bytes} B`;
}

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function ranged(low, high) {
  const [from, to] = [sized(low), sized(high)];
  return from === to ? `about ${from}` : `${from} to ${to}`;
}

function powers() {
  return [...form.querySelectorAll("input[data-powers]")];
}

function showPowers() {
  for (const slider of powers()) {
    const text = (2 ** Number(slider.value)).toLocaleString("en");
    slider.parentElement.querySelector("span").textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
}

function showMode() {
  const mode = form.elements.mode.value;
  for (const part of form.querySelectorAll("fieldset[data-mode]")) part.hidden = part.dataset.mode !== mode;
}

function state() {
  const mode = form.elements.mode.value;
  const found = {};
  for (const field of form.elements) {
    const part = field.closest("fieldset[data-mode]");
    if (!field.name || (part && part.dataset.mode !== mode)) continue;
    if (field.type === "checkbox") { if (field.checked) found[field.name] = "1"; continue; }
    if (field.type === "radio") { if (field.checked) found[field.name] = field.value; continue; }
    if (field.value !== "") found[field.name] = field.value;
  }
  return found;
}

function allows(field, value) {
  if (field.type === "checkbox") return value === "1";
  if (field.type === "radio") return field.value === value;
  if (field.type === "range") return /^\d+$/.test(value) && Number(value) <= Number(field.max);
  return field.tagName !== "SELECT" || [...field.options].some((each) => each.value === value);
}

// A link may be mistyped, or name what another version has: the user is told what was left out.
function restore() {
  const unknown = [];
  for (const [name, value] of new URLSearchParams(location.search)) {
    const fields = [...form.elements].filter((each) => each.name && each.name === name && allows(each, value));
    if (!fields.length) unknown.push(`${name}=${value}`);
    else if (fields[0].type === "checkbox") fields[0].checked = true;
    else form.elements[name].value = value;
  }
  document.getElementById("own-box").open = form.elements.own.value !== "";
  const note = document.getElementById("unknown");
  note.hidden = !unknown.length;
  note.textContent = `The link has parts that this page does not know, and leaves out: ${unknown.join(", ")}`;
}

function request(values) {
  const { model, own, mode, target, budget, ...rest } = values;
  const options = {};
  const sliders = new Set(powers().map((each) => each.name));
  for (const [name, value] of Object.entries(rest)) {
    const field = form.elements[name];
    if (sliders.has(name)) options[name] = 2 ** Number(value);
    else if (field.type === "checkbox") options[name] = true;
    else options[name] = name === "zero" || name === "lora_rank" ? Number(value) : value;
  }
  if (mode === "serve") delete options.context_ranks;
  const wanted = { mode, target, budget: budget || null, options };
  if (own) wanted.own = JSON.parse(own); else wanted.model = model;
  return wanted;
}

function showBar(amounts, total, budget) {
  const bar = document.getElementById("bar");
  bar.replaceChildren();
  const whole = Math.max(total, budget);
  amounts.forEach((amount, at) => {
    const piece = element("span", undefined, bar);
    piece.style.width = `${(100 * amount.size_bytes) / whole}%`;
    piece.style.background = COLOURS[at % COLOURS.length];
    piece.title = `${amount.name}: ${sized(amount.size_bytes)}`;
  });
  const limit = element("i", undefined, bar);
  limit.style.left = `calc(${(100 * budget) / whole}% - 3px)`;
  limit.title = `budget: ${sized(budget)}`;
  bar.setAttribute("aria-label", `${sized(total)} of ${sized(budget)}`);
}

function row(table, cells) {
  const made = element("tr", undefined, table);
  return cells.map((cell) => element("td", cell, made));
}

function showAmounts(amounts) {
  const table = document.querySelector("#amounts tbody");
  table.replaceChildren();
  amounts.forEach((amount, at) => {
    const exact = amount.low_bytes === amount.high_bytes;
    const span = exact ? "exact" : ranged(amount.low_bytes, amount.high_bytes);
    const cells = row(table, [undefined, amount.name, sized(amount.size_bytes), span]);
    element("b", undefined, cells[0]).style.background = COLOURS[at % COLOURS.length];
    if (amount.detail) element("small", amount.detail, cells[1]);
  });
}

function showAdvice(changes) {
  const table = document.querySelector("#advice tbody");
  table.replaceChildren();
  for (const each of changes) {
    const cells = row(table, [each.change, sized(each.saved_bytes), each.fits ? "yes" : "no"]);
    element("small", each.cost, cells[0]);
  }
}

function show(answer, budgetText) {
  const estimate = answer.estimate;
  const verdict = document.getElementById("verdict");
  const span = ranged(estimate.low_bytes, estimate.high_bytes);
  const isSize = /^\s*\d/.test(budgetText);
  const gpu = isSize ? "" : ` (${budgetText || estimate.target})`;
  verdict.textContent = `${sized(estimate.total_bytes)} ${answer.verdict}${gpu}`;
  verdict.className = estimate.fits ? "good" : "bad";
  document.getElementById("rank").textContent =
    `${estimate.model}, ${answer.parameters.total.toLocaleString("en")} parameters; ${estimate.rank}; plausible: ${span}`;
  showBar(estimate.amounts, estimate.total_bytes, estimate.usable_bytes);
  showAmounts(estimate.amounts);
  const answers = document.getElementById("answers");
  answers.replaceChildren();
  for (const [title, text] of answer.answers) { element("dt", title, answers); element("dd", text, answers); }
  showAdvice(answer.advice);
  const notes = document.getElementById("assumptions");
  notes.replaceChildren();
  for (const each of estimate.assumptions) element("li", each, notes);
}

function reveal(found) {
  document.getElementById("error").hidden = found;
  for (const id of ["figure", "found"]) document.getElementById(id).hidden = !found;
  document.getElementById("result").setAttribute("aria-busy", "false");
}

function fail(message) {
  document.getElementById("error").textContent = message;
  reveal(false);
}

let latest = 0;

async function update() {
  showPowers();
  showMode();
  const values = state();
  history.replaceState(null, "", `?${new URLSearchParams(values)}`);
  const number = ++latest;
  try {
    const body = JSON.stringify(request(values));
    const response = await fetch("api/estimate", { method: "POST", body });
    const answer = await response.json();
    if (number !== latest) return;
    if (answer.error) { fail(answer.error); return; }
    show(answer, values.budget);
    reveal(true);
  } catch (error) {
    if (number === latest) fail(error instanceof SyntaxError ? `Your configuration is not valid JSON: ${error.message}` : `The calculator does not answer: ${error.message}`);
  }
}

function changed() {
  showPowers();
  document.getElementById("unknown").hidden = true;
  document.getElementById("copied").textContent = "";
  document.getElementById("result").setAttribute("aria-busy", "true");
}

// Browsers lend the clipboard to pages of this machine, but not to those of another over plain HTTP.
async function copyLink() {
  const copied = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(location.href);
    copied.textContent = "Copied";
  } catch {
    copied.textContent = "The browser does not allow this here; copy the link from the address bar";
  }
}

function fill(id, entries) {
  const list = document.getElementById(id);
  for (const [value, title] of entries) element("option", title, list).value = value;
}

async function start() {
  const choices = await (await fetch("api/choices")).json();
  fill("model", choices.models.map((each) => [each.name, each.title]));
  fill("target", choices.targets.map((each) => [each.name, `${each.title}, ${sized(each.bytes)}`]));
  fill("weights", choices.weights.map((each) => [each, each]));
  fill("policy", Object.entries(choices.policies).map(([name, meaning]) => [name, `${name}: ${meaning}`]));
  fill("optimizer", Object.entries(choices.optimizers).map(([name, meaning]) => [name, meaning]));
  for (const slider of powers()) {
    slider.min = 0;
    slider.max = slider.dataset.powers;
    slider.value = slider.dataset.start || 0;
  }
  form.elements.model.value = "llama-3.1-8b";
  form.elements.policy.value = "mixed";
  restore();
  let timer = 0;
  form.addEventListener("input", () => { changed(); clearTimeout(timer); timer = setTimeout(update, 120); });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("copy").addEventListener("click", copyLink);
  await update();
}

start().catch((error) => fail(`The calculator does not answer: ${error.message}`));
