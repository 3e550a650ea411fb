// The right side: problems, and the result in tabs.
import { ask } from "./api.js";
import { byId, counted, h } from "./dom.js";
import { files, prepareFiles } from "./files.js";
import { drop, fieldOf, get } from "./model.js";
import { goTo } from "./views.js";
import { code } from "./yaml.js";

const TABS = [
  ["values", "values.yaml"],
  ["objects", "Objects"],
  ["rendered", "Rendered"],
  ["files", "Files"],
];

let shown = "values";
let preview = null;
let reasons = new Map();
let wanted = () => {};
let removed = () => {};
let stale = true;
const open = new Set();

export function prepareResult(draft, onRemoved) {
  wanted = draft;
  removed = onRemoved;
  prepareFiles(draft);
  const tabs = TABS.map(([name, label]) =>
    h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "shown", text: label, onclick: () => showTab(name) }),
  );
  byId("tabs").append(...tabs);
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = TABS.findIndex(([name]) => name === shown);
    const [next] = TABS.at((place + step) % TABS.length);
    showTab(next);
    byId(`tab-${next}`).focus();
  });
  showTab(shown);
}

export function showTab(name) {
  shown = name;
  for (const [each] of TABS) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
  }
  byId("shown").setAttribute("aria-labelledby", `tab-${name}`);
  draw();
}

export function showPreview(found) {
  const before = new Map((preview?.objects ?? []).map((each) => [`${each.kind}/${each.name}`, each.text]));
  // What can't be rendered leaves the last rendering in sight, marked as old.
  const kept = found.refused && preview?.rendered ? { objects: preview.objects, rendered: preview.rendered, old: true } : {};
  preview = { ...found, ...kept };
  for (const each of preview.objects) each.fresh = before.size > 0 && before.get(`${each.kind}/${each.name}`) !== each.text;
  stale = true;
  byId("tab-objects").textContent = preview.objects.length ? `Objects ${preview.objects.length}` : "Objects";
  drawProblems();
  draw();
}

function draw() {
  if (!preview) return;
  const panel = byId("shown");
  const top = panel.scrollTop;
  const parts = { values, objects, rendered, files: () => files(preview) }[shown]();
  panel.replaceChildren(...parts.filter(Boolean));
  panel.scrollTop = top;
  if (shown === "objects") explain();
}

function values() {
  return [code(preview.values_text)];
}

function rendered() {
  return [refusal(), preview.rendered ? code(preview.rendered) : null];
}

function refusal() {
  if (!preview.refused) return null;
  const title = preview.helm_missing ? "Nothing is rendered: helm is missing" : preview.old ? "The chart refuses these values; below is what it made before" : "The chart refuses these values";
  return h("div", { class: "refusal" }, h("strong", { text: title }), h("pre", { text: preview.refused }));
}

function objects() {
  const cards = preview.objects.map((each) => {
    const name = `${each.kind}/${each.name}`;
    const why = reasons.get(name);
    const details = h("details", { class: each.fresh ? "object fresh" : "object", open: open.has(name) }, [
      h("summary", {}, h("span", { class: "kind", text: each.kind }), h("span", { class: "name", text: each.name })),
      why ? reason(why) : null,
      code(each.text),
    ]);
    details.addEventListener("toggle", () => (details.open ? open.add(name) : open.delete(name)));
    if (why?.because.length) details.querySelector("summary").append(short(why));
    each.fresh = false; // it is shown as new once
    return details;
  });
  return [refusal(), h("div", { class: preview.old ? "objects old" : "objects" }, cards)];
}

const short = (why) => h("span", { class: "why", text: `by ${why.because.map(last).join(", ")}` });
const last = (path) => path.split(".").slice(-2).join(".");

function reason(why) {
  const chips = (paths) => paths.map((path) => h("button", { type: "button", class: "chip", text: path, title: "Show this value", onclick: () => leaveResult(() => goTo(path)) }));
  const joined = why.each_needed ? "Here because of" : "Here because of any of";
  const byDefault = why.by_default?.length && why.by_default.length === why.because.length ? " (defaults)" : "";
  return h("div", { class: "reasons" }, [
    why.because.length ? h("p", {}, `${joined}${byDefault} `, chips(why.because)) : h("p", { text: "Always here." }),
    why.shaped_by.length ? h("p", {}, "Shaped by ", chips(why.shaped_by)) : null,
  ]);
}

// Takes a rendering per value, so it is asked for only where it is looked at.
async function explain() {
  if (!stale || preview.refused || !preview.readable) return;
  stale = false;
  const asked = preview;
  try {
    const found = await ask("/api/explanation", wanted());
    if (found.superseded || asked !== preview) return;
    reasons = new Map(found.objects.map((each) => [`${each.kind}/${each.name}`, each]));
    if (shown === "objects") draw();
  } catch {
    stale = true; // the preview says what is wrong
  }
}

function drawProblems() {
  const { problems } = preview;
  const errors = problems.filter((each) => each.level === "error").length;
  const warnings = problems.length - errors;
  const root = byId("problems");
  if (!problems.length) return root.replaceChildren();
  const title = [errors ? counted(errors, "problem") : "", warnings ? counted(warnings, "hint") : ""].filter(Boolean).join(", ");
  const was = root.querySelector("details")?.open ?? true;
  const list = problems.map((each) => h("li", { class: each.level }, [where(each), h("span", { class: "text", text: each.message }), each.fix ? h("span", { class: "fix", text: each.fix }) : null]));
  return root.replaceChildren(
    h("details", { class: errors ? "wrong" : "hints", open: was }, h("summary", { text: title }), h("ul", {}, list)),
  );
}

function where({ path }) {
  if (!path) return null;
  const name = path.replace(/^\$/, "");
  const known = path.startsWith("$") || fieldOf(path) !== null;
  if (path === "$patch") return h("button", { type: "button", class: "chip", text: "patch", onclick: () => showTab("files") });
  if (known) return h("button", { type: "button", class: "chip", text: name, onclick: () => leaveResult(() => goTo(path)) });
  if (get(path) === undefined) return h("code", { text: name });
  const remove = () => {
    drop(path);
    removed();
  };
  return h("span", {}, h("code", { text: name }), " ", h("button", { type: "button", class: "small", text: "Remove", "aria-label": `Remove ${name}`, onclick: remove }));
}

// On a phone the form is behind the result.
function leaveResult(then) {
  byId("show-form").click();
  then();
}
