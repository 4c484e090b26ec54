// Talking to the server: keys, problem documents, server-sent events, uploads.

const KEY = "preread-api-key";

function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

function headers(more = {}) {
  const key = apiKey();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** What went wrong, and what to do about it. */
class Failure extends Error {
  constructor(title, detail, { status = 0, errors = [], skipped = [], requestId = "" } = {}) {
    super(detail);
    Object.assign(this, { title, status, errors, skipped, requestId });
  }

  static unreachable() {
    return new Failure("The server does not answer", "See whether `rag serve` still runs and whether this address is still right, then try again.");
  }

  /** From a problem document (RFC 9457), or from an error in OpenAI's form. */
  static from(status, body, requestId = "") {
    const problem = body?.error ? { title: body.error.type, detail: body.error.message } : (body ?? {});
    return new Failure(problem.title ?? `The server answered ${status}`, problem.detail ?? "Look into the server's log for the reason.", {
      status, errors: problem.errors ?? [], skipped: problem.skipped ?? [], requestId: problem.request_id ?? requestId,
    });
  }
}

async function failureOf(response) {
  const body = await response.json().catch(() => null);
  if (response.status === 401) askForKey(body?.detail);
  return Failure.from(response.status, body, response.headers.get("x-request-id") ?? "");
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    throw error.name === "AbortError" ? error : Failure.unreachable();
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function getJson(path) {
  return (await send(path)).json();
}

function postJson(path, body, signal) {
  return send(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });
}

const part = encodeURIComponent;
const collectionPath = (name) => `/v1/collections/${part(name)}`;
const documentsPath = (name) => `${collectionPath(name)}/documents`;
const documentPath = (name, id) => `${documentsPath(name)}/${part(id)}`;

/** Yield name and data of each event of a stream; comments are passed over. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : Failure.unreachable();
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.split(/: ?(.*)/s));
      const data = fields.filter(([name]) => name === "data").map(([, text]) => text).join("\n");
      const name = fields.find(([field]) => field === "event")?.[1] ?? "message";
      if (data) yield { name, data: JSON.parse(data) };
    }
  }
}

/** Upload one file; `progress` is told the share that has been sent. XMLHttpRequest, since fetch does not tell it. */
function upload(path, file, progress) {
  const form = new FormData();
  form.append("files", file, file.name);
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => progress(event.lengthComputable ? event.loaded / event.total : 0);
    request.onerror = () => reject(Failure.unreachable());
    request.onload = () => {
      if (request.status < 300) return resolve(request.response);
      if (request.status === 401) askForKey(request.response?.detail);
      reject(Failure.from(request.status, request.response, request.getResponseHeader("x-request-id") ?? ""));
    };
    request.send(form);
  });
}

/** Show a failure with its remedy; `retry` adds a button. */
function showFailure(place, failure, retry) {
  if (!(failure instanceof Failure)) throw failure;
  const details = [...failure.errors.map((item) => `${item.pointer}: ${item.detail}`), ...failure.skipped.map((item) => `${item.uri}: ${item.reason}`)];
  const buttons = [];
  if (failure.status === 401 || failure.status === 403) buttons.push(el("button", { type: "button", onclick: () => askForKey() }, "Enter an API key"));
  if (retry) buttons.push(el("button", { type: "button", onclick: () => { clear(place); retry(); } }, "Try again"));
  fill(place, el("div", { class: "notice bad", role: "alert" },
    el("strong", {}, failure.title), el("span", {}, sentence(failure.message)),
    details.length > 1 && el("ul", {}, details.map((text) => el("li", {}, text))),
    failure.requestId && el("p", { class: "hint" }, "Request ", el("code", {}, failure.requestId)),
    buttons.length > 0 && el("div", { class: "notice-row" }, buttons)));
}

function clear(place) {
  fill(place);
}

/** Make a sentence of an error's words; what is no plain word, such as a file's name, stays as it is. */
function sentence(text) {
  const begun = /^[a-z]+[ ,]/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function askForKey(why) {
  if (why) $("key-why").textContent = `${sentence(why)} It is kept in this tab until you close it, and is sent to this server alone.`;
  $("key-input").value = apiKey();
  if (!$("key-dialog").open) $("key-dialog").showModal();
  $("key-input").focus();
}

/** Let the key dialog work; `changed` is called when another key is used. */
function startKeys(changed) {
  const dialog = $("key-dialog");
  const use = (key) => {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    $("key-open").textContent = key ? "API key ✓" : "API key";
    dialog.close();
    changed();
  };
  $("key-open").textContent = apiKey() ? "API key ✓" : "API key";
  $("key-open").addEventListener("click", () => askForKey());
  $("key-cancel").addEventListener("click", () => dialog.close());
  $("key-forget").addEventListener("click", () => use(""));
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); use($("key-input").value.trim()); });
}
