// YAML and patches with colours: what is selected and copied is the text as it is.
import { h } from "./dom.js";

const KEY = /^(\s*(?:- )*)("(?:[^"\\]|\\.)*"|[^\s#"'][^:#]*?)(:)(?=\s|$)(.*)$/;

function value(text) {
  const comment = /^(.*?)(\s#.*)$/.exec(text);
  if (comment && !/["']/.test(comment[1])) return [...value(comment[1]), h("span", { class: "y-comment", text: comment[2] })];
  const bare = text.trim();
  if (/^(-?\d+(\.\d+)?|true|false|null)$/.test(bare)) return [h("span", { class: "y-plain", text })];
  return [h("span", { class: "y-text", text })];
}

function yamlLine(line) {
  if (/^\s*#/.test(line)) return [h("span", { class: "y-comment", text: line })];
  if (line.startsWith("---")) return [h("span", { class: "y-mark", text: line })];
  const found = KEY.exec(line);
  if (!found) return value(line);
  const [, indent, key, colon, rest] = found;
  return [indent, h("span", { class: "y-key", text: key }), colon, ...(rest ? value(rest) : [])];
}

function patchLine(line) {
  const kind = /^(diff|new file|---|\+\+\+)/.test(line) ? "head" : { "+": "added", "-": "removed", "@": "place" }[line[0]];
  return [h("span", { class: kind ? `d-${kind}` : null, text: line })];
}

export function code(text, kind = "yaml") {
  const parts = text.replace(/\n$/, "").split("\n");
  const one = kind === "patch" ? patchLine : yamlLine;
  return h("pre", { class: "code", tabindex: "0" }, h("code", {}, parts.map((line) => [one(line), "\n"])));
}
