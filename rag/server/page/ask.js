// Asking: the form, the streamed answer, and the runs of this session.

const SAMPLE = {
  collection: "sample",
  documents: [
    ["Reading once", "A language model turns every token of its prompt into keys and values, the KV, before it writes a word. Reading a prompt of a thousand tokens is the most of the wait for an answer. Preread keeps the KV of each passage, so that a passage is read once and serves every question that finds it."],
    ["The outcomes", "A part of a prompt is called path when the prompt began like one before. It is called canonical when a passage stands directly behind the template, where it was read. It is called shifted when it stands elsewhere: its KV is used as it is, and the question looks at it from another angle. Computed is what had to be read for this answer."],
    ["Repair", "A passage that was read alone pays too much attention to its own first words. So the first tokens of every shifted passage are computed again beside their new neighbours. This is the repair. How long it has to be is measured for each model, and written down in a certificate."],
    ["Two tiers", "KV that was used lately is in memory, in blocks of a few tokens each. What has no room there stays on disk, and comes back in a few milliseconds when a question finds its passage. A restart therefore forgets nothing."],
    ["The tail", "The end of a prompt, with the question in it, is called the tail. It belongs to one person alone. It is never shared with anyone, whatever the passages before it are."],
  ],
  questions: ["Why is a passage read only once?", "What does repair mean?", "What happens to KV that has no room in memory?"],
};

const session = { runs: [], current: null, abort: null, collections: [] };
let sources;

function startAsk() {
  sources = new SourceList($("run-sources"), $("run-answer"));
  $("ask-form").addEventListener("submit", (event) => { event.preventDefault(); ask($("question").value.trim()); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask-form").requestSubmit();
  });
  $("ask-stop").addEventListener("click", () => session.abort?.abort());
  $("run-again").addEventListener("click", () => ask(session.current.question, session.current.collection));
  $("run-copy").addEventListener("click", async () => {
    await navigator.clipboard?.writeText(session.current.text);
    announce("The answer was copied.");
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") session.abort?.abort();
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea, select")) {
      event.preventDefault();
      history.pushState(null, "", "#ask");
      route();
      $("question").focus();
    }
  });
}

/** Offer the collections to ask in; without any, a sample. */
function offerCollections(collections) {
  const chosen = $("ask-collection").value || collections.find((one) => one.documents)?.name;
  session.collections = collections;
  fill($("ask-collection"), ...collections.map((one) => el("option", { value: one.name, selected: one.name === chosen }, `${one.name} · ${number(one.documents)}`)));
  const welcome = $("ask-welcome");
  show(welcome, !session.runs.length);
  if (collections.some((one) => one.documents)) {
    const questions = $("ask-collection").value === SAMPLE.collection ? SAMPLE.questions : [];
    fill(welcome, el("p", {}, el("b", {}, "Ask, then ask again. "), "Each passage is read once: while nobody asks, or for the first question that finds it. Later questions take it from the cache, and this page shows which part of the prompt came from where, and how much sooner the answer began."),
      questions.length > 0 && choices(questions));
    return;
  }
  fill(welcome, el("p", {}, el("b", {}, "Nothing to ask about yet. "), "Add documents in the ", el("a", { href: "#library" }, "library"), ", or begin with five short texts about how this server works."),
    el("div", { class: "choices" }, el("button", { type: "button", class: "primary", onclick: addSample }, "Add the sample")));
}

function choices(questions) {
  return el("div", { class: "choices" }, questions.map((question) => el("button", { type: "button", onclick: () => { $("question").value = question; ask(question); } }, question)));
}

async function addSample(event) {
  event.target.disabled = true;
  event.target.textContent = "Adding it …";
  const documents = SAMPLE.documents.map(([title, text]) => ({ uri: `sample:${title.toLowerCase().replaceAll(" ", "-")}`, title, text }));
  try {
    await postJson(documentsPath(SAMPLE.collection), { documents });
    clear($("ask-error"));
    await refreshCollections();
    $("question").focus();
  } catch (failure) {
    offerCollections(session.collections);
    showFailure($("ask-error"), failure);
  }
}

function requestOf(question, collection) {
  const body = { question, collection, stream: true };
  if ($("opt-k").value) body.k = Number($("opt-k").value);
  if ($("opt-tokens").value) body.max_tokens = Number($("opt-tokens").value);
  if ($("opt-reuse").value) body.reuse = $("opt-reuse").value;
  if ($("opt-order").value) body.order = $("opt-order").value;
  return body;
}

async function ask(question, collection = $("ask-collection").value) {
  clear($("ask-error"));
  if (!question) return $("question").focus();
  if (!collection) return showFailure($("ask-error"), new Failure("There is no collection to ask in", "Add documents in the library, or take the sample."));
  session.abort?.abort();
  const abort = (session.abort = new AbortController());
  const run = { number: session.runs.length + 1, question, collection, text: "", citations: [], sources: [], answer: null, seenMs: null, begun: performance.now() };
  begin(run);
  try {
    const response = await postJson("/v1/answer", requestOf(question, collection), abort.signal);
    for await (const { name, data } of events(response)) take(run, name, data);
    if (!run.answer) throw new Failure("The answer broke off", "The connection ended before the answer did. Ask again.");
    session.runs.push(run);
    finish(run);
  } catch (failure) {
    stop(run);
    if (failure.name === "AbortError") return announce("Stopped.");
    showFailure($("ask-error"), failure, failure.status === 401 ? null : () => ask(question, collection));
  } finally {
    if (session.abort === abort) busy(false);
  }
}

function busy(isBusy) {
  show($("ask-stop"), isBusy);
  $("run-answer").setAttribute("aria-busy", String(isBusy));
  $("run-again").disabled = isBusy;
  if (!isBusy) session.abort = null;
}

function begin(run) {
  session.current = run;
  show($("ask-welcome"), false);
  show($("run"));
  for (const id of ["run-why", "run-prompt", "run-stages"]) show($(id), false);
  $("run-label").textContent = `Run ${run.number} in ${run.collection}`;
  $("run-question").textContent = run.question;
  $("run-figures").textContent = "Finding passages …";
  clear($("run-warnings"));
  drawText(run);
  sources.draw(run, []);
  busy(true);
  announce("Asking.");
}

/** Take an event of the stream. Events of names that are new to this page are passed over. */
function take(run, name, data) {
  if (name === "error") throw Failure.from(data.status, data);
  if (name === "retrieval") {
    run.sources = data.sources;
    sources.draw(run, run.sources);
    $("run-figures").textContent = `Found ${count(run.sources.length, "passage")}; the model reads what it does not know yet …`;
    fill($("run-warnings"), ...data.warnings.map((text) => el("p", { class: "notice" }, sentence(text))));
  } else if (name === "delta") {
    if (run.seenMs === null) {
      run.seenMs = performance.now() - run.begun;
      $("run-figures").textContent = `Writing; the first text came after ${ms(run.seenMs)} …`;
    }
    run.text += data.text;
    drawText(run);
  } else if (name === "citation") {
    run.citations.push(data.citation);
    drawText(run);
  } else if (name === "done") {
    run.answer = data.answer;
    run.text = data.answer.answer;
    run.citations = data.answer.citations;
  }
}

function drawText(run) {
  drawAnswer($("run-answer"), run.text, run.citations, run.sources, (n, quote) => sources.toggle(n, quote));
}

function stop(run) {
  if (session.current !== run) return;
  if (run.text) $("run-figures").textContent = "Stopped before the end.";
  else show($("run"), false);
  const last = session.runs.at(-1);
  if (!run.text && last) showRun(last);
}

function finish(run) {
  showRun(run);
  const { usage, timings_ms: timings } = run.answer;
  announce(`Answer complete. ${run.text} First token after ${ms(timings.ttft)}, ${percent(usage.cached_tokens, usage.prompt_tokens)} of the prompt from the cache.`);
}

/** Show a run that has ended, with everything that is known of it. */
function showRun(run) {
  session.current = run;
  const { answer } = run;
  show($("run"));
  $("run-label").textContent = `Run ${run.number} in ${run.collection}`;
  $("run-question").textContent = run.question;
  drawText(run);
  fill($("run-figures"), "First token ", el("b", {}, ms(answer.timings_ms.ttft)), " · ",
    el("b", {}, percent(answer.usage.cached_tokens, answer.usage.prompt_tokens)), ` of ${count(answer.usage.prompt_tokens, "prompt token")} from the cache · `,
    `${count(answer.usage.completion_tokens, "token")} written`, answer.finish_reason === "length" ? ", at the limit" : "", ` · ${answer.model.split("/").at(-1)}`);
  sources.draw(run, answer.sources, answer.citations);
  for (const id of ["run-prompt", "run-stages"]) show($(id), answer.cache.segments.length > 0);
  drawPrompt($("prompt-body"), answer, (n) => sources.open(n));
  drawStages($("stages-body"), run);
  drawComparison($("run-why"), $("why-body"), run, session.runs);
  drawRuns();
}

function drawRuns() {
  show($("runs"), session.runs.length > 1);
  fill($("runs-list"), ...session.runs.toReversed().map((run) => el("li", {}, el("button", { type: "button", class: "run-card", "aria-current": run === session.current ? "true" : null, onclick: () => showRun(run) },
    el("span", { class: "q" }, run.question), el("span", { class: "f" }, `Run ${run.number} · ${ms(run.answer.timings_ms.ttft)} · ${percent(run.answer.usage.cached_tokens, run.answer.usage.prompt_tokens)} cached`), miniPrompt(run.answer)))));
}
