// The form's two views: the essentials by topic, and all values by section with a search.
import { bring, byId, counted, h, rich } from "./dom.js";
import { fieldElement, fieldShown, forgetFields, plainField, tellFields } from "./field.js";
import { fieldOf, isEmpty, isSet, model } from "./model.js";

let view = "essentials";
let lastProblems = [];
let pickChart = () => {};
let pickStarter = () => {};

export function prepareViews(onChart, onStarter) {
  pickChart = onChart;
  pickStarter = onStarter;
  byId("view-essentials").addEventListener("click", () => show("essentials"));
  byId("view-all").addEventListener("click", () => show("all"));
  const search = byId("search");
  search.addEventListener("input", () => {
    if (view !== "all") show("all");
    find(search.value);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, textarea, select")) return;
    event.preventDefault();
    search.focus();
  });
}

export function show(wanted = view) {
  view = wanted;
  forgetFields();
  const root = byId("fields");
  root.replaceChildren(...(view === "all" ? everything() : essentials()).filter(Boolean));
  byId("view-essentials").setAttribute("aria-pressed", String(view === "essentials"));
  byId("view-all").setAttribute("aria-pressed", String(view === "all"));
  byId("rail").replaceChildren(...rail());
  if (view === "all") find(byId("search").value);
  tellFields(lastProblems);
  countSet();
}

export function tellViews(problems) {
  lastProblems = problems;
  tellFields(problems);
  for (const entry of byId("rail").querySelectorAll("[data-card]")) {
    const card = byId(entry.dataset.card);
    entry.classList.toggle("wrong", Boolean(card?.querySelector('.field[data-level="error"]')));
  }
}

// Shows the field of a problem, wherever it is.
export function goTo(path) {
  const target = fieldShown(path) ? path : path.startsWith("$") ? path : fieldOf(path);
  if (target === null) return;
  if (!fieldShown(target)) {
    byId("search").value = "";
    show(target.startsWith("$") ? "essentials" : "all");
  }
  fieldShown(target)?.focus();
}

function essentials() {
  const cards = [start(), nameCard()];
  for (const topic of model.form.topics) {
    const own = topic.fields.map((each) => fieldElement(model.fields.get(each.path), each.label));
    const more = (topic.more ?? []).map((each) => fieldElement(model.fields.get(each.path), each.label));
    const without = topic.canary && model.chart !== model.form.with_canary;
    if (!own.length && !more.length) continue;
    cards.push(
      card(topic.name, topic.label, topic.help, [
        without ? chartHint() : h("div", { class: "grid" }, own),
        more.length && !without ? h("details", { class: "more" }, h("summary", { text: topic.more_label }), h("div", { class: "grid" }, more)) : null,
      ]),
    );
  }
  return cards;
}

function card(name, label, help, content) {
  return h("section", { class: "card", id: `card-${name}`, "aria-labelledby": `title-${name}` }, [
    h("h2", { id: `title-${name}`, tabindex: "-1", text: label }),
    help ? h("p", { class: "about" }, rich(help)) : null,
    ...content,
  ]);
}

function start() {
  if (model.form.file || !isEmpty()) return null;
  const choices = model.form.starters.map((starter) =>
    h("button", { type: "button", class: "starter", onclick: () => pickStarter(starter) }, [
      h("strong", { text: starter.label }),
      h("span", { text: starter.help }),
    ]),
  );
  return card("start", "Start from", "Values to begin with; change what you like.", [h("div", { class: "starters" }, choices)]);
}

function nameCard() {
  const name = plainField("release", "Release", "The model's name: hosts and objects have it.", () => model.release, (value) => (model.release = value));
  const namespace = plainField("namespace", "Namespace", "Where it will run.", () => model.namespace, (value) => (model.namespace = value));
  const charts = [
    [model.form.with_canary, "With canary", "A second version can get a share of the traffic"],
    ...model.form.charts.filter((each) => each !== model.form.with_canary).map((each) => [each, "One version", "One InferenceService, no canary"]),
  ].map(([chart, label, help]) =>
    h("label", { class: "option" }, [
      h("input", { type: "radio", name: "chart", value: chart, checked: chart === model.chart, onchange: () => pickChart(chart) }),
      h("span", {}, h("strong", { text: label }), h("small", {}, help, " ", h("code", { text: chart }))),
    ]),
  );
  return card("name", "Name", "", [
    h("div", { class: "grid" }, name, namespace, h("fieldset", { class: "options wide" }, h("legend", { text: "Chart" }), charts)),
  ]);
}

function chartHint() {
  const button = h("button", { type: "button", class: "small", text: `Use ${model.form.with_canary}`, onclick: () => pickChart(model.form.with_canary) });
  return h("p", { class: "hint" }, `The chart ${model.chart} has one version only. `, button);
}

function everything() {
  const found = model.form.sections.map((section) => {
    const groups = section.groups.map((group) =>
      h("div", { class: "group" }, [
        group.path && group.path !== section.name ? h("h3", {}, h("code", { text: group.path })) : null,
        group.help && group.path !== section.name ? h("p", { class: "about" }, rich(group.help)) : null,
        h("div", { class: "grid" }, group.fields.map((each) => fieldElement(each))),
      ]),
    );
    const summary = h("summary", {}, h("h2", { text: section.label }), h("span", { class: "count", hidden: true }));
    return h("details", { class: "card section", id: `card-${section.name}`, "data-label": section.label.toLowerCase() }, [
      summary,
      section.help ? h("p", { class: "about" }, rich(section.help)) : null,
      groups,
    ]);
  });
  return [...found, h("p", { class: "nothing", id: "nothing", hidden: true, text: "No value has this in its name or description." })];
}

function find(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let total = 0;
  for (const section of byId("fields").querySelectorAll(".section")) {
    let inside = 0;
    for (const group of section.querySelectorAll(".group")) {
      let matches = 0;
      for (const element of group.querySelectorAll(".field")) {
        const field = model.fields.get(element.dataset.path);
        const content = `${field.path} ${field.label} ${field.help ?? ""}`.toLowerCase();
        element.hidden = !words.every((word) => content.includes(word));
        matches += element.hidden ? 0 : 1;
      }
      group.hidden = !matches;
      inside += matches;
    }
    section.hidden = !inside;
    if (words.length) section.open = inside > 0;
    total += inside;
  }
  byId("nothing").hidden = total > 0;
  if (words.length) byId("said").textContent = counted(total, "value") + " found";
}

export function countSet() {
  for (const section of byId("fields").querySelectorAll(".section")) {
    const name = section.id.slice("card-".length);
    const fields = model.form.sections.find((each) => each.name === name).groups.flatMap((group) => group.fields);
    const set = fields.filter(isSet).length;
    const count = section.querySelector("summary .count");
    count.textContent = `${set} set`;
    count.hidden = !set;
  }
}

function rail() {
  const cards = [...byId("fields").children].filter((each) => each.classList.contains("card") && !each.hidden);
  return cards.map((each) =>
    h("button", {
      type: "button",
      "data-card": each.id,
      text: each.querySelector("h2").textContent,
      onclick: () => {
        if (each.tagName === "DETAILS") each.open = true;
        bring(each, "start");
        (each.querySelector("summary") ?? each.querySelector("h2")).focus({ preventScroll: true });
      },
    }),
  );
}

