// The prompt as a bar of its segments, and the time as a bar of its stages.

const OUTCOMES = {
  path: "the prompt began like one before: taken as it was",
  canonical: "read before, alone behind the template: taken as it was",
  shifted: "read before, at another place: taken as it was, and looked at from where it now stands",
  repaired: "first tokens of a shifted passage: computed again beside their new neighbours",
  computed: "computed for this answer",
};

const STAGES = {
  embed: "the question's vector",
  search: "finding passages",
  queue: "waiting for the engine",
  load: "reading KV from disk",
  prefill: "computing the prompt",
  other: "between the stages",
  decode: "writing the answer",
};

/** Divide a segment into what was repaired, what was cached, and what was computed. */
function partsOf(segment) {
  const { tokens, cached_tokens: cached, repaired_tokens: repaired, outcome, tier } = segment;
  const parts = [
    { outcome: "repaired", tokens: repaired },
    { outcome: outcome === "computed" ? "path" : outcome, tokens: cached, tier },
    { outcome: "computed", tokens: tokens - cached - repaired },
  ];
  return parts.filter((one) => one.tokens > 0);
}

/** Sum the parts of a prompt by outcome, in the order of OUTCOMES, and by tier. */
function sums(answer) {
  const all = answer.cache.segments.flatMap(partsOf);
  const total = (matches) => all.filter(matches).reduce((sum, one) => sum + one.tokens, 0);
  const outcomes = Object.keys(OUTCOMES).map((outcome) => [outcome, total((one) => one.outcome === outcome)]);
  return { outcomes: outcomes.filter(([, tokens]) => tokens), disk: total((one) => one.tier === "disk") };
}

function drawParts(segments) {
  return segments.flatMap(partsOf).map((one) => el("span", { class: `part ${one.outcome} ${one.tier ?? ""}`, grow: one.tokens }));
}

/** The whole prompt in a thin line, for where it is one of several. */
function miniPrompt(answer) {
  return el("div", { class: "mini", "aria-hidden": "true" }, drawParts(answer.cache.segments));
}

function nameOf(segment, sources) {
  if (segment.kind === "template") return "Template";
  if (segment.kind === "tail") return "Your question";
  const source = sources.find((one) => one.n === segment.source);
  return source ? `Source ${source.n}, ${source.title}` : "Text";
}

/** Say in words how a segment got its KV. */
function storyOf(segment) {
  const { tokens, cached_tokens: cached, repaired_tokens: repaired, outcome, tier, kind } = segment;
  const from = tier === "disk" ? "from disk" : "from memory";
  if (kind === "tail") return cached
    ? `${count(tokens, "token")}, ${number(cached)} of them ${from}: the conversation so far. The rest was computed.`
    : `${count(tokens, "token")}, computed: nobody else's prompt ends like this, so it is never shared.`;
  if (outcome === "computed" && !cached) return `${count(tokens, "token")}, computed: ${kind === "template" ? "the first question of all needs it" : "it had to be read for this answer"}. The next question can take it from the cache.`;
  if (outcome === "computed") return `${count(tokens, "token")}: ${number(cached)} ${from}, since the prompt began like one before; ${number(tokens - cached)} computed.`;
  if (outcome === "shifted") return `${count(tokens, "token")}: ${number(cached)} ${from}, read before at another place. ${repaired ? `Its first ${number(repaired)} were computed again beside their new neighbours.` : ""}`;
  if (outcome === "canonical") return `${count(tokens, "token")} ${from}: it stands where it stood when it was read, so nothing was computed.`;
  return `${count(tokens, "token")} ${from}: the prompt began like one before, so nothing was computed.`;
}

function drawPrompt(place, answer, openSource) {
  const { segments } = answer.cache;
  const { prompt_tokens: prompt, cached_tokens: cached } = answer.usage;
  const story = el("p", { class: "story", "aria-live": "polite" },
    el("b", {}, `${number(cached)} of ${count(prompt, "prompt token")} came from the cache. `), "Choose a part of the bar to see how it got there.");
  const tell = (segment, button) => {
    for (const other of place.querySelectorAll(".segment")) other.setAttribute("aria-pressed", String(other === button));
    const source = segment.source && el("button", { type: "button", class: "link", onclick: () => openSource(segment.source) }, "Show the passage");
    fill(story, el("b", {}, `${nameOf(segment, answer.sources)}. `), storyOf(segment), " ", source);
  };
  const bar = segments.map((segment) => {
    const title = `${nameOf(segment, answer.sources)}: ${segment.outcome}, ${number(segment.cached_tokens)} of ${count(segment.tokens, "token")} from the cache`;
    const [long, short] = { template: ["template", "T"], tail: ["question", "Q"] }[segment.kind] ?? [`source ${segment.source}`, `${segment.source}`];
    const button = el("button", { type: "button", class: "segment", title, "aria-label": title, "aria-pressed": "false" },
      drawParts([segment]), el("b", { "aria-hidden": "true" }, el("span", { class: "long" }, long), el("span", { class: "short" }, short)));
    button.addEventListener("click", () => tell(segment, button));
    return el("li", { grow: segment.tokens }, button);
  });
  fill(place,
    el("ol", { class: "prompt-bar", "aria-label": "Parts of the prompt, in its order; the width is the number of tokens" }, bar),
    drawLegend(answer), story, el("details", { class: "as-table" }, el("summary", {}, "As a table"), promptTable(answer)));
}

function drawLegend(answer) {
  const { outcomes, disk } = sums(answer);
  return el("ul", { class: "legend" },
    outcomes.map(([outcome, tokens]) => el("li", { title: OUTCOMES[outcome] }, el("span", { class: `swatch ${outcome}` }), outcome, " ", el("b", {}, number(tokens)))),
    disk > 0 && el("li", { title: "its KV was read from disk" }, el("span", { class: "swatch disk" }), "hatched: from disk ", el("b", {}, number(disk))));
}

function promptTable(answer) {
  const row = (segment) => el("tr", {}, el("th", { scope: "row" }, nameOf(segment, answer.sources)), el("td", {}, segment.outcome),
    el("td", {}, { device: "memory", disk: "disk" }[segment.tier] ?? "–"),
    ...[segment.tokens, segment.cached_tokens, segment.repaired_tokens, segment.tokens - segment.cached_tokens - segment.repaired_tokens].map((n) => el("td", { class: "n" }, number(n))));
  const head = ["Part", "Outcome", "From"].map((name) => el("th", { scope: "col" }, name));
  const numbers = ["Tokens", "Cached", "Repaired", "Computed"].map((name) => el("th", { scope: "col", class: "n" }, name));
  return el("div", { class: "table-wrap", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, head, numbers)), el("tbody", {}, answer.cache.segments.map(row))),
    el("dl", { class: "hint" }, Object.entries(OUTCOMES).map(([outcome, meaning]) => el("div", {}, el("b", {}, outcome), `: ${meaning}`))));
}

/** Return the milliseconds of each stage; those before the first token sum up to it. */
function stagesOf(timings) {
  const { embed, search, queue, load, prefill, ttft, total } = timings;
  const known = { embed, search, queue, load: load ?? 0, prefill };
  const other = Math.max(ttft - Object.values(known).reduce((sum, value) => sum + value, 0), 0);
  return { ...known, other, decode: Math.max(total - ttft, 0) };
}

function stageBar(stages, names = Object.keys(STAGES)) {
  return el("div", { class: "stage-bar", "aria-hidden": "true" },
    names.filter((name) => stages[name] > 0).map((name) => el("span", { class: `stage ${name}`, grow: stages[name], title: `${name} ${ms(stages[name])}` })));
}

function drawStages(place, run) {
  const { answer } = run;
  const stages = stagesOf(answer.timings_ms);
  const items = Object.entries(STAGES).filter(([name]) => name !== "other" || stages.other >= 1).map(([name, meaning]) => {
    const item = el("div", {}, el("dt", {}, name), el("dd", {}, ms(stages[name]), el("small", {}, meaning)));
    item.style.borderColor = `var(--stage-${name})`;
    return item;
  });
  fill(place, stageBar(stages), el("dl", { class: "stage-list" }, items), el("p", { class: "figures-line" },
    "First token after ", el("b", {}, ms(answer.timings_ms.ttft)), ", whole answer after ", el("b", {}, ms(answer.timings_ms.total)), " in the server",
    run.seenMs ? `; the first text was here after ${ms(run.seenMs)}, the network and the browser included.` : "."));
}
