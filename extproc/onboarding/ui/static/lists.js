// Controls for values that have parts.
import { h } from "./dom.js";
import { control } from "./controls.js";

function grown(element) {
  element.rows = Math.min(18, Math.max(2, element.value.split("\n").length));
}

export function lines(field, id, typed) {
  const named = h("textarea", {
    id,
    rows: 2,
    spellcheck: "false",
    autocapitalize: "off",
    placeholder: "one per line",
    oninput: () => {
      grown(named);
      const found = named.value.split("\n").map((line) => line.trim()).filter(Boolean);
      typed(found.length || field.default?.length ? found : undefined);
    },
  });
  const show = (value) => {
    named.value = Array.isArray(value) ? value.map((each) => (typeof each === "string" ? each : JSON.stringify(each))).join("\n") : (value ?? "");
    grown(named);
  };
  return { element: named, named, show };
}

export function yaml(field, id, typed) {
  const kind = field.listed ? "a list" : "a map";
  const keys = field.keys?.length ? `: ${field.keys.slice(0, 6).join(", ")}${field.keys.length > 6 ? ", ..." : ""}` : "";
  const named = h("textarea", {
    id,
    class: "code",
    rows: 2,
    spellcheck: "false",
    autocapitalize: "off",
    placeholder: `# YAML, ${kind}${keys}`,
    oninput: () => {
      grown(named);
      typed(named.value);
    },
  });
  const show = (value) => {
    named.value = value ?? "";
    grown(named);
  };
  return { element: named, named, show };
}

// A box of rows with buttons to add and remove; focus stays where it is of use.
function box(id, addLabel, makeRow, after) {
  const list = h("div", { class: "rows" });
  const add = h("button", { type: "button", class: "small", id: `${id}-add`, text: addLabel });
  const made = [];
  const append = (value) => {
    const row = makeRow(value, made.length + 1);
    const remove = h("button", {
      type: "button",
      class: "remove",
      "aria-label": `Remove row ${made.length + 1}`,
      text: "×",
      onclick: () => {
        const place = made.indexOf(row);
        made.splice(place, 1);
        shell.remove();
        (list.children[Math.min(place, made.length - 1)]?.querySelector("input, select") ?? add).focus();
        after();
      },
    });
    const shell = h("div", { class: "row" }, row.element, remove);
    made.push(row);
    list.append(shell);
    return row;
  };
  const clear = () => {
    made.length = 0;
    list.replaceChildren();
  };
  add.addEventListener("click", () => {
    append(undefined).first.focus();
    after();
  });
  return { element: h("div", { class: "boxed", id, role: "group", tabindex: "-1" }, list, add), made, append, clear };
}

export function rows(field, id, typed) {
  let serial = 0;
  const makeRow = (value, place) => {
    const row = { value: { ...value } };
    const cells = field.columns.map((column) => {
      serial += 1;
      const cellId = `${id}-${serial}`;
      const cell = control(column, cellId, (found) => {
        if (found === undefined) delete row.value[column.path];
        else row.value[column.path] = found;
        after();
      });
      if (value === undefined && column.control === "choice") row.value[column.path] = column.choices[0];
      cell.show(row.value[column.path]);
      cell.named.setAttribute("aria-label", `${column.label}, row ${place}`);
      row.first ??= cell.named;
      return h("label", { class: "cell", for: cellId }, h("span", { text: column.label, "aria-hidden": "true" }), cell.element);
    });
    row.element = h("div", { class: "cells" }, cells);
    return row;
  };
  const after = () => typed(made.made.length ? made.made.map((row) => row.value) : undefined);
  const made = box(id, "Add one", makeRow, after);
  const show = (value) => {
    made.clear();
    for (const each of Array.isArray(value) ? value : []) made.append(each);
  };
  return { element: made.element, named: made.element, grouped: true, show };
}

export function pairs(field, id, typed) {
  const defaults = field.default ?? {};
  const makeRow = ([key, value] = ["", ""], place) => {
    const part = (name, content) =>
      h("input", { type: "text", value: content, "aria-label": `${field.label}: ${name}, row ${place}`, placeholder: name, autocomplete: "off", autocapitalize: "off", spellcheck: "false", oninput: after });
    const row = { value, key: part("name", key), content: part("value", String(value)) };
    row.first = row.key;
    row.element = h("div", { class: "cells pair" }, row.key, row.content);
    return row;
  };
  const after = () => {
    const found = {};
    for (const { key, content, value } of made.made)
      if (key.value) found[key.value] = String(value) === content.value ? value : content.value; // a number stays one
    // A default's name that is gone must be taken away by name: Helm joins maps.
    for (const key of Object.keys(defaults)) if (!(key in found)) found[key] = null;
    typed(Object.keys(found).length ? found : undefined);
  };
  const made = box(id, "Add one", makeRow, after);
  const show = (value) => {
    made.clear();
    const joined = { ...defaults, ...(value ?? {}) };
    for (const pair of Object.entries(joined)) if (pair[1] !== null) made.append(pair);
  };
  return { element: made.element, named: made.element, grouped: true, show };
}
