// Starts the form, and asks for a preview whenever something changes.
import { ask, Refused } from "./api.js";
import { byId, counted } from "./dom.js";
import { refreshFields } from "./field.js";
import { begin, changed, forget, keptDraft, model, onChange, take } from "./model.js";
import { prepareResult, showPreview, showTab } from "./result.js";
import { countSet, prepareViews, show, tellViews } from "./views.js";

const PAUSE_MS = 250;
let waiting;
let running;
let standing = []; // what the notice says until something else is to be said

const draft = () => ({
  chart: model.chart,
  release: model.release,
  namespace: model.namespace,
  values: model.values,
  texts: model.texts,
  patch_path: model.patchPath,
});

function status(state, text) {
  byId("status").dataset.state = state;
  byId("status-text").textContent = text;
}

function soon() {
  clearTimeout(waiting);
  running?.abort(); // what it would show is not what is typed any more
  status("busy", "Rendering");
  waiting = setTimeout(preview, PAUSE_MS);
}

async function preview() {
  const mine = new AbortController();
  running = mine;
  try {
    const found = await ask("/api/preview", draft(), mine.signal);
    if (mine !== running) return;
    if (found.superseded) return soon(); // by another tab
    const changedMeanwhile = `${model.form.file} was changed by somebody else: load this page again to begin with it.`;
    notice(...(found.file_changed ? [changedMeanwhile] : standing));
    told(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refused)) throw error;
    notice(error.message);
    status("error", "Not rendered");
  }
}

function told(found) {
  const errors = found.problems.filter((each) => each.level === "error").length;
  const objects = found.refused ? "" : counted(found.objects.length, "object");
  const parts = [objects, errors ? counted(errors, "problem") : found.helm_missing ? "helm is missing" : found.refused ? "refused" : ""];
  const text = parts.filter(Boolean).join(", ");
  status(errors || found.refused ? "error" : found.problems.length ? "warning" : "ok", text);
  byId("said").textContent = text + (errors ? "" : ", no problems");
  const count = byId("switch-count");
  count.textContent = String(errors);
  count.hidden = !errors;
  showPreview(found);
  tellViews(found.problems);
  countSet();
}

function notice(...parts) {
  const element = byId("notice");
  element.hidden = !parts.length;
  element.replaceChildren(...parts);
}

async function pickChart(chart) {
  status("busy", "Rendering");
  take(await ask(`/api/form?chart=${encodeURIComponent(chart)}`));
  show();
  document.querySelector(`input[name="chart"][value="${chart}"]`)?.focus();
  changed();
}

function pickStarter(starter) {
  model.values = structuredClone(starter.values);
  model.texts = structuredClone(starter.texts);
  show();
  byId("title-name").focus();
  changed();
}

function side(name) {
  byId("columns").dataset.shown = name;
  for (const each of ["form", "result"]) byId(`show-${each}`).setAttribute("aria-pressed", String(each === name));
  scrollTo(0, 0);
}

async function begun() {
  const form = await ask("/api/form");
  const kept = keptDraft(form);
  take(kept && kept.chart !== form.chart ? await ask(`/api/form?chart=${kept.chart}`) : form);
  begin(kept ?? form);
  if (kept && JSON.stringify([kept.values, kept.texts]) !== JSON.stringify([form.values, form.texts])) {
    const anew = document.createElement("button");
    anew.type = "button";
    anew.className = "small";
    anew.textContent = "Begin anew";
    anew.addEventListener("click", () => {
      forget();
      location.reload();
    });
    standing = ["What you typed before is here again.", anew];
  }
  byId("opened").textContent = form.file || "a new file";
}

byId("show-form").addEventListener("click", () => side("form"));
byId("show-result").addEventListener("click", () => side("result"));
byId("status").addEventListener("click", () => {
  side("result");
  byId("problems").querySelector("summary")?.focus();
});
byId("get-files").addEventListener("click", () => {
  side("result");
  showTab("files");
  byId("tab-files").focus();
});

try {
  await begun();
  prepareViews(pickChart, pickStarter);
  prepareResult(draft, () => {
    refreshFields();
    changed();
  });
  show();
  onChange(soon);
  await preview();
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  notice(error.message);
  status("error", "Closed");
}
