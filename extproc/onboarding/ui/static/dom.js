// Elements without markup in text: what comes from a file or a chart is never read as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Text in which `this` is code.
export function rich(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", { text: part }) : part));
}

// "1 problem", "2 problems"
export const counted = (count, one, many = one + "s") => `${count} ${count === 1 ? one : many}`;

// To where somebody is led; at once for who wants no motion.
export function bring(element, block) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block, behavior: still ? "auto" : "smooth" });
}

export const byId = (id) => document.getElementById(id);
