// What the page asks the server.

/** An answer that says no: `status` is the HTTP status, `words` what is being done instead. */
export class ServerError extends Error {
  constructor(message, status, words) {
    super(message);
    this.status = status;
    this.words = words;
  }
}

let name = localStorage.getItem("annotator") || "annotator";

export const who = () => name;

export function setWho(value) {
  name = value.trim() || "annotator";
  localStorage.setItem("annotator", name);
}

async function ask(path, options = {}) {
  let answer;
  try {
    // A header holds Latin-1 alone; names are of any script.
    const headers = { "X-Annotator": encodeURIComponent(name), ...options.headers };
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new ServerError("the server does not answer", 0, "the server does not answer");
  }
  const text = await answer.text();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // an answer that is no JSON has no sentence either
  }
  if (!answer.ok) {
    throw new ServerError(body.error || `the server says ${answer.status}`, answer.status, body.status);
  }
  return body;
}

export const get = (path) => ask(path);

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

export const of = (path, photo) => `${path}?photo=${encodeURIComponent(photo)}`;
