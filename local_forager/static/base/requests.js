// Requests to the page's API.

const POLL = 400; // milliseconds until something is asked for again while the server computes it
const COMPUTING = 202; // status
const working = document.getElementById("working"); // says what the server is computing

// A request without success: the server's sentence and status, 0 where it does not answer.
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  get unreachable() {
    return this.status === 0;
  }
}

// What was caught, if it is a Problem; throws anything else on.
export function problemOf(error) {
  if (error instanceof Problem) return error;
  throw error;
}

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export const noAnswer = new EventTarget(); // gets an event whenever the server does not answer

async function ask(path, parameters, options) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null || value === undefined || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  let response;
  try {
    response = await fetch(query.size ? `${path}?${query}` : path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    noAnswer.dispatchEvent(new Event("problem"));
    throw new Problem("The local Forager does not answer: is it still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Problem(answer.error ?? `The server answered with status ${response.status}.`,
    response.status);
}

// Posts a file, or rows as 32-bit numbers; the answer is a Response.
export const post = (path, parameters = {}, body = null) =>
  ask(path, parameters, { method: "POST", body });

// A response. While the server is computing it, the request is repeated; tell gets how far it is.
async function askUntilReady(path, parameters, options, tell) {
  for (;;) {
    const response = await ask(path, parameters, options);
    if (response.status !== COMPUTING) {
      tell("");
      return response;
    }
    tell((await response.json()).working);
    await pause(POLL);
  }
}

export const askJson = async (path, parameters = {}, options = {}) =>
  (await askUntilReady(path, parameters, options, () => {})).json();

export const askArray = async (
  Type, path, parameters, options, tell = (text) => { working.textContent = text; },
) => new Type(await (await askUntilReady(path, parameters, options, tell)).arrayBuffer());
