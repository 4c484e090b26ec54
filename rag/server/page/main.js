// Which section is shown, and how the server is.

const VIEWS = { ask: "Ask", library: "Library", dashboard: "Dashboard" };
const HEALTH_MS = 5000;

function currentView() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "ask";
}

function route() {
  const current = currentView();
  for (const name of Object.keys(VIEWS)) show($(`view-${name}`), name === current);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = current === "ask" ? "Preread" : `${VIEWS[current]} · Preread`;
  dashboard.run(current === "dashboard");
  if (current === "library") showLibrary();
}

/** Look how the server is; once it is ready, fetch what there is to ask. */
async function watch() {
  const state = $("server-state");
  const before = state.dataset.state;
  try {
    const health = await getJson("/healthz");
    state.dataset.state = health.ready ? "ready" : "loading";
    $("server-text").textContent = health.ready ? (health.model ?? "ready").split("/").at(-1) : "loading the models";
    state.title = [health.model, health.embedder, health.version && `version ${health.version}`].filter(Boolean).join(" · ");
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    state.dataset.state = "away";
    $("server-text").textContent = "no answer";
    state.title = failure.message;
  }
  if (state.dataset.state === "ready" && before !== "ready") await refreshAll();
}

async function refreshAll() {
  clear($("ask-error"));
  try {
    await refreshCollections();
  } catch (failure) {
    showFailure($("ask-error"), failure, failure.status === 401 ? null : refreshAll);
  }
}

startAsk();
startLibrary();
startDashboard();
startKeys(() => { refreshAll(); route(); });
window.addEventListener("hashchange", () => { route(); $("main").focus({ preventScroll: true }); window.scrollTo(0, 0); });
$("ask-collection").addEventListener("change", () => offerCollections(session.collections));
route();
await watch();
setInterval(() => { if (!document.hidden) watch(); }, HEALTH_MS);
if (currentView() === "ask" && matchMedia("(pointer: fine)").matches) $("question").focus();
