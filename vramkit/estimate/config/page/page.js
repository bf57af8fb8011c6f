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

function powers() {
  return [...form.querySelectorAll("input[data-powers]")];
}

function showPowers() {
  for (const slider of powers()) {
    slider.parentElement.querySelector("output").textContent = (2 ** Number(slider.value)).toLocaleString("en");
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

function restore() {
  const given = new URLSearchParams(location.search);
  for (const field of form.elements) {
    if (!field.name || !given.has(field.name)) continue;
    const value = given.get(field.name);
    if (field.type === "checkbox") field.checked = value === "1";
    else if (field.type === "radio") field.checked = field.value === value;
    else if (field.tagName !== "SELECT" || [...field.options].some((each) => each.value === value)) field.value = value;
  }
  document.getElementById("own-box").open = form.elements.own.value !== "";
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
  element("i", undefined, bar).style.left = `calc(${(100 * budget) / whole}% - 2px)`;
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
    const span = exact ? "exact" : `${sized(amount.low_bytes)} to ${sized(amount.high_bytes)}`;
    const cells = row(table, [undefined, amount.name, sized(amount.size_bytes), span]);
    element("b", undefined, cells[0]).style.background = COLOURS[at % COLOURS.length];
    if (amount.detail) element("small", amount.detail, cells[1]);
  });
}

function show(answer, budgetText) {
  const estimate = answer.estimate;
  const verdict = document.getElementById("verdict");
  const span = `${sized(estimate.low_bytes)} to ${sized(estimate.high_bytes)}`;
  const into = budgetText || `${estimate.target} (${sized(estimate.budget_bytes)})`;
  verdict.textContent = `${sized(estimate.total_bytes)} ${estimate.fits ? "fits" : "does not fit"} into ${into}`;
  verdict.className = estimate.fits ? "good" : "bad";
  document.getElementById("rank").textContent =
    `${estimate.model}, ${answer.parameters.total.toLocaleString("en")} parameters; ${estimate.rank}; plausible: ${span}`;
  showBar(estimate.amounts, estimate.total_bytes, answer.budget_bytes);
  showAmounts(estimate.amounts);
  const answers = document.getElementById("answers");
  answers.replaceChildren();
  for (const [title, text] of answer.answers) { element("dt", title, answers); element("dd", text, answers); }
  const advice = document.querySelector("#advice tbody");
  advice.replaceChildren();
  for (const each of answer.advice) row(advice, [each.change, sized(each.saved_bytes), each.fits ? "yes" : "no", each.cost]);
  const notes = document.getElementById("assumptions");
  notes.replaceChildren();
  for (const each of estimate.assumptions) element("li", each, notes);
}

function fail(message) {
  const error = document.getElementById("error");
  error.textContent = message;
  error.hidden = false;
  document.getElementById("found").hidden = true;
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
    document.getElementById("error").hidden = true;
    document.getElementById("found").hidden = false;
    show(answer, values.budget);
  } catch (error) {
    if (number === latest) fail(error instanceof SyntaxError ? `Your configuration is not valid JSON: ${error.message}` : `The calculator does not answer: ${error.message}`);
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
  form.addEventListener("input", () => { showPowers(); clearTimeout(timer); timer = setTimeout(update, 120); });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("copy").addEventListener("click", () => navigator.clipboard.writeText(location.href));
  await update();
}

start().catch((error) => fail(`The calculator does not answer: ${error.message}`));
