// What was used and what it cost, and how passages are read over and over.

const USAGE_MS = 10000;
const MAX_BARS = 10;

/** Return what a request gives, or null where the key that is used may not see it. */
async function permitted(request) {
  try {
    return await request();
  } catch (failure) {
    if (failure.status === 403) return null;
    throw failure;
  }
}

const usage = {
  at: -USAGE_MS,

  /** Draw anew, but not with every reading of the metrics: it changes with answers only. */
  async refresh() {
    if (performance.now() - this.at < USAGE_MS) return;
    this.at = performance.now();
    const [byDay, byCollection, patterns] = await Promise.all([
      getJson("/v1/usage?by=day"), getJson("/v1/usage?by=collection&by=model"), permitted(() => getJson("/v1/usage/patterns"))]);
    fill($("usage-body"), usageCard(byDay, byCollection), patterns?.reads > 0 && patternsCard(patterns));
  },
};

/** Rows of a name, a bar as long as the value's share of `whole`, and the value in words. */
function bars(rows, whole) {
  return el("div", { class: "bars" }, rows.map(({ name, value, words, tone = "tone-2", title }) => el("div", { class: "bar-row", title },
    el("span", { class: "bar-name" }, name), el("span", { class: "bar", "aria-hidden": "true" }, el("span", { class: tone, grow: value }), el("span", { grow: Math.max(whole - value, 0) })), el("b", {}, words))));
}

/** Write money with as many digits as tell something of the whole. */
function money(value, whole) {
  if (value === null) return "–";
  return value.toFixed(whole > 0 && whole < 1 ? Math.min(Math.ceil(-Math.log10(whole)) + 2, 6) : 2);
}

function usageCard(byDay, byCollection) {
  const { total, currency, since, until } = byCollection;
  const names = ["Collection", "Answers", "Prompt", "Cached", "Written", ...(currency ? [`Cost, ${currency}`, "Saved"] : [])];
  const classes = ["", "n wide-only", "n wide-only", "n", "n wide-only", "n", "n"];
  const row = (one) => el("tr", {}, el("th", { scope: "row" }, one.collection || "no collection", " ", el("span", { class: "hint wide-only" }, one.model.split("/").at(-1))),
    ...[one.answers, one.prompt_tokens, one.cached_tokens, one.output_tokens].map((value, index) => el("td", { class: classes[index + 1] }, number(value))),
    ...(currency ? [one.cost, one.saved].map((value) => el("td", { class: "n" }, money(value, total.cost))) : []));
  const summary = el("p", { class: "usage-sum" }, el("b", {}, count(total.answers, "answer")), `, ${count(total.prompt_tokens, "prompt token")}, `,
    el("b", {}, percent(total.cached_tokens, total.prompt_tokens)), ` of them from the cache, ${number(total.output_tokens)} written.`,
    currency && [" It cost ", el("b", {}, `${money(total.cost, total.cost)} ${currency}`), "; the cache saved ", el("b", {}, `${money(total.saved, total.cost)} ${currency}`), "."]);
  const days = byDay.rows.slice(-MAX_BARS);
  const most = Math.max(...days.map((day) => day.prompt_tokens));
  return el("section", { class: "card" },
    el("div", { class: "title-row" }, el("h2", {}, "Use and cost"), el("span", { class: "hint" }, `${since} to ${until} · `, el("button", { type: "button", class: "link", onclick: saveCsv }, "Save as CSV"))),
    summary, !currency && el("p", { class: "hint" }, "No price book: set PREREAD_SERVER__PRICE_BOOK to see costs."),
    byCollection.rows.length > 0 && table(names, classes, byCollection.rows.map(row)),
    days.length > 1 && el("div", {}, el("h3", {}, "Prompt tokens by day"), bars(days.map((day) => ({ name: day.day, value: day.prompt_tokens, words: number(day.prompt_tokens) })), most)));
}

async function saveCsv() {
  try {
    const address = URL.createObjectURL(await (await send("/v1/usage?format=csv")).blob());
    el("a", { href: address, download: "preread-usage.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch (failure) {
    showFailure($("dashboard-error"), failure);
  }
}

function patternsCard(patterns) {
  const { forecast, top, reuse_distance: reuse, reads } = patterns;
  const half = reuse.find((point) => point.share >= 0.5);
  const changes = (one, index) => one.is_current || one.hit_rate !== forecast[index - 1]?.hit_rate || one.hit_rate !== forecast[index + 1]?.hit_rate;
  const sizes = forecast.filter(changes).map((one) => ({ name: el("span", {}, `${number(one.cache_tokens)} tokens`, one.is_current && el("b", {}, " (this server)")), value: one.hit_rate, words: percent(one.hit_rate, 1), tone: one.is_current ? "tone-1" : "tone-2" }));
  const shownTop = top.slice(0, MAX_BARS).map((one) => ({ name: one.uri ?? "a deleted document", value: one.reads, words: number(one.reads), title: one.collection }));
  return el("section", { class: "card" }, el("h2", {}, "How passages are read"),
    el("p", { class: "usage-sum" }, `${count(patterns.answers, "answer")} read ${count(reads, "passage")}, `, el("b", {}, `${number(patterns.passages)} different ones`), ` with ${count(patterns.tokens, "token")}.`,
      half && ` Half of those that were read again came back after at most ${count(half.tokens, "token")} of others.`),
    el("div", { class: "side-by-side" },
      el("div", {}, el("h3", {}, "Tokens of passages found, by the size of the cache"), bars(sizes, 1)),
      el("div", {}, el("h3", {}, "Documents read most"), bars(shownTop, Math.max(...shownTop.map((one) => one.value))))));
}
