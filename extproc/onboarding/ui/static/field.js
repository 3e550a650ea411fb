// A field: label, control, help, a way back to the default, and what is wrong with it.
import { control } from "./controls.js";
import { changed, drop, effective, fieldOf, isSet, model, put } from "./model.js";
import { bring, h, rich } from "./dom.js";

const shown = new Map(); // by path, those that are on the page

export const forgetFields = () => shown.clear();
export const fieldShown = (path) => shown.get(path);

function defaultOf(field) {
  const value = field.default;
  if (value === undefined || value === null || value === "" || (typeof value === "object" && !Object.keys(value).length)) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function fieldElement(field, label = field.label) {
  const id = `f-${field.path}`;
  const made = control(field, id, (value) => {
    if (field.control === "yaml") model.texts[field.path] = value;
    else if (value === undefined) drop(field.path);
    else put(field.path, value);
    mark();
    changed();
  });
  const problems = h("div", { class: "problems", id: `${id}-problems` });
  const reset = h("button", {
    type: "button",
    class: "reset",
    hidden: true,
    "aria-label": `Reset ${label} to its default, ${defaultOf(field)}`,
    title: `Back to the default: ${defaultOf(field)}`,
    text: "Reset",
    onclick: () => {
      delete model.texts[field.path];
      drop(field.path);
      refresh();
      changed();
      made.named.focus();
    },
  });
  const help = h("p", { class: "help", id: `${id}-help` }, rich(field.help ?? ""), " ", h("code", { class: "path", title: field.path, text: field.path }));
  const name = made.grouped
    ? h("span", { class: "label", id: `${id}-label`, text: label })
    : h("label", { class: "label", for: id, text: label });
  if (made.grouped) made.named.setAttribute("aria-labelledby", `${id}-label`);
  made.named.setAttribute("aria-describedby", `${id}-problems ${id}-help`);
  const element = h("div", { class: "field", "data-path": field.path, "data-control": field.control }, [
    h("div", { class: "head" }, name, reset),
    made.element,
    problems,
    help,
  ]);
  if (field.long || ["lines", "pairs", "rows", "yaml", "slider"].includes(field.control)) element.classList.add("wide");

  function mark() {
    const set = isSet(field);
    element.classList.toggle("set", set);
    reset.hidden = !set;
  }
  function refresh() {
    made.show(field.control === "yaml" ? (model.texts[field.path] ?? "") : effective(field));
    mark();
  }
  function tell(found) {
    problems.replaceChildren(...found.map((each) => message(field, each)));
    element.dataset.level = found.some((each) => each.level === "error") ? "error" : found.length ? "warning" : "";
    made.named.setAttribute("aria-invalid", String(element.dataset.level === "error"));
  }
  const focus = () => {
    for (let above = element.parentElement; above; above = above.parentElement) if (above.tagName === "DETAILS") above.open = true;
    bring(element, "center");
    (made.grouped ? (made.named.querySelector("input, select, button") ?? made.named) : made.named).focus({ preventScroll: true });
  };
  shown.set(field.path, { element, tell, refresh, focus });
  refresh();
  return element;
}

function message(field, problem) {
  const rest = problem.path.slice(field.path.length).replace(/^\./, "").replace(/^\[(\d+)\]\.?/, (_, index) => `row ${Number(index) + 1} `);
  return h("p", { class: problem.level }, [
    rest.trim() ? h("strong", { text: `${rest.trim()}: ` }) : null,
    problem.message,
    problem.fix ? h("span", { class: "fix", text: ` · ${problem.fix}` }) : null,
  ]);
}

export const refreshFields = () => shown.forEach((each) => each.refresh());

// Gives each field its problems.
export function tellFields(problems) {
  const found = new Map();
  for (const problem of problems) {
    const path = shown.has(problem.path) ? problem.path : fieldOf(problem.path);
    if (path !== null) found.set(path, [...(found.get(path) ?? []), problem]);
  }
  for (const [path, each] of shown) each.tell(found.get(path) ?? []);
}

// A field beside the values, such as the release's name.
export function plainField(name, label, help, get, set) {
  const path = `$${name}`;
  const id = `f-${path}`;
  const input = h("input", {
    id,
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    "aria-describedby": `${id}-problems ${id}-help`,
    oninput: () => {
      set(input.value.trim());
      changed();
    },
  });
  const problems = h("div", { class: "problems", id: `${id}-problems` });
  const element = h("div", { class: "field", "data-path": path }, [
    h("div", { class: "head" }, h("label", { class: "label", for: id, text: label })),
    input,
    problems,
    h("p", { class: "help", id: `${id}-help`, text: help }),
  ]);
  const refresh = () => (input.value = get());
  const tell = (found) => {
    problems.replaceChildren(...found.map((each) => message({ path }, each)));
    element.dataset.level = found.length ? "error" : "";
    input.setAttribute("aria-invalid", String(Boolean(found.length)));
  };
  const focus = () => {
    bring(element, "center");
    input.focus({ preventScroll: true });
  };
  shown.set(path, { element, tell, refresh, focus });
  refresh();
  return element;
}
