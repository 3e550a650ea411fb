// The files to take along.
import { ask } from "./api.js";
import { byId, h } from "./dom.js";
import { changed, model } from "./model.js";
import { code } from "./yaml.js";

let wanted = () => {};
export const prepareFiles = (draft) => (wanted = draft);

async function download(what) {
  try {
    const file = await ask(`/api/file/${what}`, wanted());
    const address = URL.createObjectURL(new Blob([file.text], { type: "text/plain" }));
    const link = h("a", { href: address, download: file.name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    byId("said").textContent = `${file.name} was given to the browser`;
  } catch (error) {
    byId("said").textContent = error.message;
    byId("files-wrong").textContent = error.message;
  }
}

async function copy(what, button) {
  const file = await ask(`/api/file/${what}`, wanted());
  await navigator.clipboard.writeText(file.text);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function card(what, title, about, disabled, extra = []) {
  const copies = h("button", { type: "button", class: "small", text: "Copy", "aria-label": `Copy: ${title}`, disabled, onclick: () => copy(what, copies).catch((error) => (byId("files-wrong").textContent = error.message)) });
  const gets = h("button", { type: "button", class: "small strong", id: `download-${what}`, text: "Download", "aria-label": `Download: ${title}`, disabled, onclick: () => download(what) });
  return h("section", { class: "file" }, h("div", { class: "file-head" }, h("h3", { text: title }), h("span", { class: "buttons" }, copies, gets)), h("p", { text: about }), extra);
}

export function files(preview) {
  const errors = preview.problems.filter((each) => each.level === "error").length;
  const unreadable = !preview.readable || preview.problems.some((each) => ["$release", "$namespace"].includes(each.path));
  const file = model.form.file;
  const opened = model.form.is_release ? "The HelmRelease that was opened, with these values." : "A Flux HelmRelease with these values.";
  const path = h("input", {
    id: "patch-path",
    type: "text",
    value: model.patchPath,
    placeholder: `models/${model.release}/values.yaml`,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    onchange: () => {
      model.patchPath = path.value.trim();
      changed();
    },
  });
  const wrong = preview.problems.find((each) => each.path === "$patch");
  const patch = [
    h("label", { class: "patch-path", for: "patch-path" }, h("span", { text: "Path in the repository" }), path),
    wrong ? h("p", { class: wrong.level, text: `${wrong.message} · ${wrong.fix}` }) : null,
    preview.patch ? code(preview.patch, "patch") : preview.patch === "" ? h("p", { class: "nothing", text: `Nothing differs from ${file}.` }) : null,
  ];
  return [
    unreadable ? h("p", { class: "refusal", text: "The files can be had when what can't be read is put right." }) : null,
    errors && !unreadable ? h("p", { class: "refusal", text: "There are problems: look at them before you use the files." }) : null,
    h("p", { class: "error", id: "files-wrong", role: "alert" }),
    card("values", "values.yaml", file && !model.form.is_release ? `${file} with your changes, its comments kept.` : "Only what differs from the chart's defaults.", unreadable),
    card("rendered", "rendered.yaml", "All objects, as helm template makes them.", unreadable || !preview.rendered || preview.old),
    card("helmrelease", "HelmRelease", opened, unreadable),
    card("patch", "Git patch", file ? `Against ${file}; for git apply.` : "A new file; for git apply.", unreadable || !preview.patch, patch),
    h("p", { class: "about", text: "Nothing is applied, and no file is written here." }),
  ];
}
