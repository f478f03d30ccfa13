"use strict";
// Texts of turns are untrusted: they are inserted as text nodes only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 50;
const PARTS = [["Prompt", "userPrompt"], ["Returned answer", "finalOutput"], ["Draft", "intellectDraft"],
  ["Reflection of the Intellect", "intellectReflection"], ["Ruling of the Will", "willReflection"],
  ["Reflection of the Spirit", "spiritReflection"]];

function element(tag, kind, text) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
}

const LABELS_NAME = "labels.jsonl";

const figure = (number, digits) => (typeof number === "number" ? number.toFixed(digits) : "–");
const count = (number) => number.toLocaleString("en-GB");
const words = (text) => (typeof text === "string" ? text : "");

function toggle(text, on, changed) {
  const node = element("button", "", text);
  node.type = "button";
  node.setAttribute("aria-pressed", String(on));
  node.addEventListener("click", () => {
    const now = node.getAttribute("aria-pressed") !== "true";
    node.setAttribute("aria-pressed", String(now));
    changed(now);
  });
  return node;
}

// Counts and plots. The frame redraws the plots for every theme, so later changes are applied again.

const [scorePlot, driftPlot, ledgerPlot] = document.querySelectorAll(".figure");
const small = matchMedia("(max-width: 700px)");
const hidden = new Set();

function adapt() {
  const size = data.ledger[small.matches ? "narrow" : "wide"];
  ledgerPlot.style.height = `${size.height}px`;
  Plotly.relayout(ledgerPlot, size);
  for (const key of hidden) show(key, false);
}

function show(key, on) {
  for (const plot of [scorePlot, driftPlot]) Plotly.restyle(plot, { visible: on }, [2 * key, 2 * key + 1]);
}

function showCounts() {
  for (const { name, number } of data.counts) {
    const tile = element("div", "tile");
    tile.append(element("b", "", count(number)), element("span", "", name));
    byId("tiles").append(tile);
  }
  data.keys.forEach(({ name, turns, colour }, key) => {
    const chip = toggle(`${name} (${count(turns)})`, true, (on) => {
      on ? hidden.delete(key) : hidden.add(key);
      show(key, on);
    });
    const dot = element("i");
    dot.style.background = colour;
    chip.prepend(dot);
    byId("keys").append(chip);
  });
  if (data.others) byId("keys").append(element("span", "where", `and ${count(data.others)} memory keys with fewer turns, not plotted`));
}

// The list.

const wanted = new Set();
let everything = !data.records.some((turn) => turn.reasons.length);
let shown = PAGE;

function haystack(turn) {
  const rows = Array.isArray(turn.record.conscienceLedger) ? turn.record.conscienceLedger : [];
  const findings = rows.flatMap((row) => (row ? [words(row.value), words(row.reason)] : []));
  const texts = PARTS.map(([, name]) => words(turn.record[name]));
  return [...texts, ...findings, words(turn.record.turnId), turn.key].join("\n").toLowerCase();
}

function isSelected(turn) {
  if (wanted.size) return turn.reasons.some((reason) => wanted.has(reason));
  return everything || turn.reasons.length > 0;
}

const ORDERS = {
  new: () => 0,
  score: (a, b) => (a.score ?? 11) - (b.score ?? 11),
  drift: (a, b) => (b.drift ?? -1) - (a.drift ?? -1),
};

function filtered() {
  const terms = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const key = byId("key").value;
  const turns = data.records.filter((turn) => {
    if (!isSelected(turn) || (key !== "" && turn.key !== data.records[Number(key)].key)) return false;
    if (terms.length) turn.text ??= haystack(turn);
    return terms.every((term) => turn.text.includes(term));
  });
  return turns.sort(ORDERS[byId("order").value]);
}

function list() {
  const turns = filtered();
  byId("list").replaceChildren(...turns.slice(0, shown).map(row));
  byId("more").hidden = turns.length <= shown;
  byId("count").textContent = `${count(turns.length)} found among ${count(data.records.length)} turns`;
}

function reset() {
  shown = PAGE;
  list();
}

function row(turn) {
  const node = element("details", "turn");
  const summary = element("summary");
  const scored = turn.score !== null || turn.drift !== null;
  summary.append(element("span", "where", `${turn.key} · turn ${turn.turn} · ${turn.time}`),
    element("span", "figures", scored ? `S ${figure(turn.score, 0)} · d ${figure(turn.drift, 2)}` : ""),
    element("span", "asked", "erased" in turn.record ? "Contents erased" : words(turn.record.userPrompt).slice(0, 300)));
  const badges = element("span", "badges");
  for (const { id, name } of data.reasons) if (turn.reasons.includes(id)) badges.append(element("span", `badge ${id}`, name));
  if (!turn.reasons.length) badges.append(element("span", "badge fine", "nothing to review"));
  summary.append(badges);
  node.append(summary);
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(whole(turn)); });
  return node;
}

function whole(turn) {
  const node = element("div", "whole");
  if ("erased" in turn.record) node.append(element("p", "", "The contents of this turn were erased."));
  for (const [title, name] of PARTS) {
    const text = words(turn.record[name]);
    if (!text || (name === "intellectDraft" && text === turn.record.finalOutput)) continue;
    node.append(element("h3", "", title), element("div", "text", text));
  }
  const rows = turn.record.conscienceLedger;
  if (Array.isArray(rows) && rows.length) node.append(element("h3", "", "Ledger of the Conscience"), ledger(rows, turn));
  const raw = element("details");
  raw.append(element("summary", "", `The record in line ${count(turn.line)} of the log`));
  raw.addEventListener("toggle", () => {
    if (raw.open && raw.children.length === 1) raw.append(element("pre", "", JSON.stringify(turn.record, null, 1)));
  });
  node.append(raw);
  return node;
}

function ledger(rows, turn) {
  const table = element("table", "ledger");
  const head = element("tr");
  for (const name of ["value", "score", "confidence", "reason"]) head.append(element("th", "", name));
  table.append(head);
  for (const row of rows) {
    const finding = row && typeof row === "object" ? row : {};
    const line = element("tr");
    const reason = element("td", "", words(finding.reason));
    if (isLabelable(turn, finding)) reason.append(labelButtons(turn, finding));
    line.append(element("td", "", words(finding.value)),
      element("td", finding.score < 0 ? "broken" : "", figure(finding.score, 1)),
      element("td", "", figure(finding.confidence, 1)), reason);
    table.append(line);
  }
  return table;
}

// Labels: whether a person agrees with a finding, as lines that "safi calibrate" reads.

const labels = new Map();
let exported = true;

// Judges would get a text that is cut here in full, so it cannot be labelled.
const isLabelable = (turn, finding) => !turn.cut && words(turn.record.finalOutput) !== "" &&
  words(finding.value) !== "" && typeof finding.score === "number";

function labelButtons(turn, finding) {
  const { userPrompt, finalOutput, turnId } = turn.record;
  const label = { prompt: words(userPrompt), answer: finalOutput, value: finding.value };
  const key = JSON.stringify(label);
  const group = element("div", "labels");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", `Do you agree with the score on ${finding.value}?`);
  const buttons = [["agree", true], ["disagree", false]].map(([text, agrees]) => {
    const verdict = finding.score < 0 === agrees ? "violation" : "approve";
    const button = toggle(text, labels.get(key)?.verdict === verdict, (on) => {
      for (const other of buttons) if (other !== button) other.setAttribute("aria-pressed", "false");
      on ? labels.set(key, { ...label, verdict, id: words(turnId) }) : labels.delete(key);
      exported = false;
      showLabels();
    });
    return button;
  });
  group.append(...buttons);
  return group;
}

function showLabels() {
  byId("labels").hidden = labels.size === 0;
  byId("export").textContent = `Export ${count(labels.size)} ${labels.size === 1 ? "label" : "labels"}`;
}

function exportLabels() {
  const text = [...labels.values()].map((label) => `${JSON.stringify(label)}\n`).join("");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
  link.download = LABELS_NAME;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  exported = true;
}

function showTools() {
  const first = new Map();
  data.records.forEach((turn, i) => { if (!first.has(turn.key)) first.set(turn.key, i); });
  byId("key").append(new Option("all", ""));
  for (const [name, i] of first) byId("key").append(new Option(name.length > 60 ? `${name.slice(0, 59)}…` : name, i));
  for (const { id, name } of data.reasons) {
    const number = data.records.filter((turn) => turn.reasons.includes(id)).length;
    if (!number) continue;
    byId("reasons").append(toggle(`${name} (${count(number)})`, false, (on) => {
      on ? wanted.add(id) : wanted.delete(id);
      reset();
    }));
  }
  byId("reasons").append(toggle("include turns with nothing to review", everything, (on) => { everything = on; reset(); }));
  for (const id of ["search", "key", "order"]) byId(id).addEventListener("input", reset);
  byId("more").addEventListener("click", () => { shown += PAGE; list(); });
  byId("export").addEventListener("click", exportLabels);
  addEventListener("beforeunload", (event) => { if (!exported && labels.size) event.preventDefault(); });
}

showCounts();
showTools();
list();
adapt();
byId("theme").addEventListener("click", adapt);
for (const media of [small, matchMedia("(prefers-color-scheme: dark)")]) media.addEventListener("change", adapt);
