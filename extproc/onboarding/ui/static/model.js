// What is in the form: values as they would be in the file, free-form ones as text, and who wants to know of changes.

const DRAFT = "tokenweir-draft";

export const model = {
  form: null, // as the server gives it
  fields: new Map(), // every field by its path
  chart: "",
  release: "",
  namespace: "",
  patchPath: "",
  values: {},
  texts: {},
};

const listeners = new Set();
export const onChange = (listener) => listeners.add(listener);

export function changed() {
  const { chart, release, namespace, patchPath, values, texts } = model;
  const kept = { file: model.form.file, chart, release, namespace, patchPath, values, texts };
  sessionStorage.setItem(DRAFT, JSON.stringify(kept));
  for (const listener of listeners) listener();
}

// What was typed before the page was loaded again, if it belongs to the same file.
export function keptDraft(form) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(DRAFT));
    return kept && kept.file === form.file && form.charts.includes(kept.chart) ? kept : null;
  } catch {
    return null;
  }
}

export const forget = () => sessionStorage.removeItem(DRAFT);

export function take(form) {
  model.form = form;
  model.chart = form.chart;
  model.fields = new Map();
  for (const section of form.sections)
    for (const group of section.groups) for (const field of group.fields) model.fields.set(field.path, field);
}

export function begin(from) {
  for (const name of ["chart", "release", "namespace", "values", "texts"]) model[name] = structuredClone(from[name]);
  model.patchPath = from.patchPath ?? from.patch_path ?? "";
}

// `a.b[0]["c.d"]` as the server spells it
export function keysOf(path) {
  return [...path.matchAll(/\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]|([^.[\]]+)/g)].map(([, index, quoted, key]) =>
    index !== undefined ? Number(index) : (key ?? quoted.replace(/\\(.)/g, "$1")),
  );
}

const isMap = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

export function get(path) {
  let value = model.values;
  for (const key of keysOf(path)) {
    if (value === null || typeof value !== "object") return undefined;
    value = Object.hasOwn(value, key) ? value[key] : undefined;
  }
  return value;
}

export function put(path, value) {
  const keys = keysOf(path);
  const last = keys.pop();
  let inside = model.values;
  for (const key of keys) {
    if (!Object.hasOwn(inside, key) || !isMap(inside[key])) inside[key] = {};
    inside = inside[key];
  }
  inside[last] = value;
}

// Takes a value away, and the maps that are empty without it.
export function drop(path) {
  const keys = keysOf(path);
  const above = [model.values];
  for (const key of keys.slice(0, -1)) {
    const inner = above.at(-1)?.[key];
    if (inner === null || typeof inner !== "object") return;
    above.push(inner);
  }
  for (let depth = keys.length - 1; depth >= 0; depth -= 1) {
    if (Array.isArray(above[depth])) above[depth].splice(keys[depth], 1);
    else delete above[depth][keys[depth]];
    if (Object.keys(above[depth]).length) return;
  }
}

export function same(one, other) {
  if (Array.isArray(one) && Array.isArray(other))
    return one.length === other.length && one.every((value, index) => same(value, other[index]));
  if (isMap(one) && isMap(other)) {
    const keys = Object.keys(one);
    return keys.length === Object.keys(other).length && keys.every((key) => key in other && same(one[key], other[key]));
  }
  return one === other;
}

// The value in effect: the one that is set, else the chart's default.
export function effective(field) {
  const value = get(field.path);
  return value === undefined ? field.default : value;
}

export function isSet(field) {
  if (field.control === "yaml") return Boolean(model.texts[field.path]?.trim());
  const value = get(field.path);
  return value !== undefined && !(field.has_default !== false && same(value, field.default ?? null));
}

export const isEmpty = () => !Object.keys(model.values).length && !Object.values(model.texts).some((text) => text.trim());

// The field that a problem's path belongs to: the value's own, one above it, else the first below it.
export function fieldOf(path) {
  let found = null;
  for (const each of model.fields.keys()) {
    const above = path === each || (path.startsWith(each) && ".[".includes(path[each.length]));
    if (above && (!found || each.length > found.length)) found = each;
  }
  return found ?? (path && [...model.fields.keys()].find((each) => each.startsWith(path + "."))) ?? null;
}
