// The server's answers. Its key comes in the address' fragment, and stays in this tab.

const STORED = "tokenweir-key";

function takeKey() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem(STORED, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(STORED) ?? "";
}

const key = takeKey();

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, body, signal) {
  const headers = { authorization: `Bearer ${key}` };
  const options = { headers, signal };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The form's server has ended. What you typed is still here: copy it from the result.", 0);
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok || found.superseded) return found;
  throw new Refused(found.error ?? `The server answered ${answer.status}.`, answer.status);
}
