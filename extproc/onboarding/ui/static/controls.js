// One control per kind of value. Each gives its element (and the one that a label names), reads the value in effect
// with `show`, and calls `typed(value)`; undefined means that it is not set.
import { h } from "./dom.js";
import { lines, pairs, rows, yaml } from "./lists.js";

const NUMERIC = /^-?\d+(\.\d+)?$/;
const isWhole = (text) => /^-?\d+$/.test(text);

// What can't be a number stays text: the schema's check says what is wrong with it.
export function numberOr(text) {
  const number = Number(text);
  return NUMERIC.test(text) && (!isWhole(text) || Number.isSafeInteger(number)) ? number : text;
}

function input(field, id, typed, parse, more = {}) {
  const suggested = field.suggestions?.length ? `${id}-suggestions` : null;
  const element = h("input", {
    id,
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    list: suggested,
    oninput: () => typed(parse(element.value)),
    ...more,
  });
  const list = suggested && h("datalist", { id: suggested }, field.suggestions.map((value) => h("option", { value })));
  return { element: list ? h("div", {}, element, list) : element, named: element };
}

function text(field, id, typed) {
  const numbers = field.types.includes("integer") || field.types.includes("number");
  const parse = (value) => {
    if (value === "" && (field.has_default === false || numbers)) return undefined;
    return numbers ? numberOr(value.trim()) : value;
  };
  const made = input(field, id, typed, parse, { class: field.long ? "long" : null });
  return { ...made, show: (value) => (made.named.value = value ?? "") };
}

function number(field, id, typed) {
  const parse = (value) => (value.trim() === "" ? undefined : numberOr(value.trim()));
  const placeholder = field.default === null || field.default === undefined ? "none" : null;
  const made = input(field, id, typed, parse, { inputmode: "decimal", class: "short", placeholder });
  return { ...made, show: (value) => (made.named.value = value ?? "") };
}

function slider(field, id, typed) {
  const range = h("input", {
    id: `${id}-range`,
    type: "range",
    min: String(field.minimum),
    max: String(field.maximum),
    tabindex: "-1",
    "aria-hidden": "true",
    oninput: () => {
      exact.named.value = range.value;
      typed(Number(range.value));
    },
  });
  const exact = number(field, id, (value) => {
    if (typeof value === "number") range.value = value;
    typed(value);
  });
  const show = (value) => {
    exact.show(value);
    range.value = typeof value === "number" ? value : field.default;
  };
  return { element: h("div", { class: "slider" }, range, exact.element, h("span", { text: "%" })), named: exact.named, show };
}

function toggle(field, id, typed) {
  const named = h("input", { id, type: "checkbox", role: "switch", onchange: () => typed(named.checked) });
  return { element: h("span", { class: "toggle" }, named, h("span", { class: "track" })), named, show: (value) => (named.checked = value === true) };
}

function choice(field, id, typed) {
  const known = [...field.choices];
  const named = h("select", { id, onchange: () => typed(known[named.selectedIndex]) });
  const show = (value) => {
    // A file may have what is no choice: it is shown, and its problem with it.
    if (!known.includes(value ?? null) && !known.includes(value)) known.push(value);
    named.replaceChildren(...known.map((each) => h("option", { text: worded(each) })));
    named.selectedIndex = known.includes(value) ? known.indexOf(value) : known.indexOf(value ?? null);
  };
  return { element: named, named, show };
}

export function worded(choice) {
  if (choice === null || choice === undefined) return "automatic";
  if (choice === "") return "none, or automatic";
  if (typeof choice === "boolean") return choice ? "yes" : "no";
  return typeof choice === "string" ? choice.replaceAll("_", " ") : JSON.stringify(choice);
}

const KINDS = { text, number, slider, switch: toggle, choice, lines, pairs, rows, yaml };

export const control = (field, id, typed) => KINDS[field.control](field, id, typed);
