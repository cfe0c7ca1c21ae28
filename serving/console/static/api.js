// Requests to the server, with the key that was typed in, and what went wrong in words.

const STORED = "trpo-tf-key";

export class Problem extends Error {
  /** `status` is 0 if there was no answer at all. */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(STORED, key);
}

/** The response to a request; raises `Problem` for any status but 200. */
export async function ask(path, body) {
  const headers = new Headers();
  const key = sessionStorage.getItem(STORED);
  if (key) {
    if (!/^[\x21-\x7e]+$/.test(key)) throw new Problem("That is no key: keys have no spaces and only ASCII.", 401);
    headers.set("authorization", `Bearer ${key}`);
  }
  const options = { headers, cache: "no-store" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem("The server does not answer.", 0);
  }
  if (!response.ok) throw new Problem(await words(response, Boolean(key)), response.status);
  return response;
}

async function words(response, hadKey) {
  if (response.status === 401) return hadKey ? "The server does not know this key." : "The server asks for a key.";
  const reason = await response.json().then((answer) => answer.error, () => response.statusText);
  if (response.status === 503) return `The server is busy (503): ${reason}.`;
  if (response.status === 404) return `The server has nothing there (404): ${reason}.`;
  return `The server refused (${response.status}): ${reason}.`;
}
