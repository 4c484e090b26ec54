// Live figures of the server, from /metrics; what it does not tell is left out.

const EVERY_MS = 2000;
const KEPT_POINTS = 90;
const FEWEST_POINTS = 15; // a curve of fewer does not fill its tile
const OLD_SECONDS = 5;
const ANSWER_KINDS = { hit: "all passages read before", partial: "some of them", miss: "none of them" };

/** Parse Prometheus' text format into name -> [{labels, value}]. */
function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]));
    const value = Number(match[3].replace("Inf", "Infinity"));
    if (!metrics.has(match[1])) metrics.set(match[1], []);
    metrics.get(match[1]).push({ labels, value });
  }
  return metrics;
}

/** A reading of every metric at one moment. */
class Reading {
  constructor(text) {
    this.metrics = parseMetrics(text);
    this.at = performance.now();
  }

  rows(name, wanted = {}) {
    const rows = this.metrics.get(`preread_${name}`) ?? [];
    return rows.filter(({ labels }) => Object.entries(wanted).every(([label, value]) => labels[label] === value));
  }

  has(name) {
    return this.metrics.has(`preread_${name}`);
  }

  sum(name, wanted) {
    return this.rows(name, wanted).reduce((total, row) => total + row.value, 0);
  }

  /** Sum a metric by one of its labels, in the order given. */
  by(name, label, order) {
    return order.map((value) => [value, this.sum(name, { [label]: value })]);
  }

  /** Estimate a quantile of a histogram from its buckets, as Prometheus does. */
  quantile(name, q, wanted) {
    const buckets = new Map();
    for (const { labels, value } of this.rows(`${name}_bucket`, wanted)) {
      const end = Number(labels.le.replace("Inf", "Infinity"));
      buckets.set(end, (buckets.get(end) ?? 0) + value);
    }
    const steps = [...buckets].sort(([a], [b]) => a - b);
    const rank = q * (steps.at(-1)?.[1] ?? 0);
    let [start, below] = [0, 0];
    for (const [end, reached] of steps) {
      if (reached >= rank && reached > below) return end === Infinity ? start : start + ((end - start) * (rank - below)) / (reached - below);
      [start, below] = [end, reached];
    }
    return null;
  }
}

const dashboard = {
  timer: null,
  points: [],
  last: null,

  run(isShown) {
    clearInterval(this.timer);
    if (!isShown) return;
    this.refresh();
    this.timer = setInterval(() => { if (!document.hidden) this.refresh(); }, EVERY_MS);
  },

  async refresh() {
    try {
      const [reading] = await Promise.all([permitted(async () => new Reading(await (await send("/metrics")).text())), usage.refresh()]);
      if (reading) this.note(reading);
      draw(reading, this.points);
      clear($("dashboard-error"));
      $("dashboard-when").textContent = `as of ${new Date().toLocaleTimeString()}, every ${EVERY_MS / 1000} seconds`;
    } catch (failure) {
      clearInterval(this.timer);
      showFailure($("dashboard-error"), failure, () => this.run(true));
    }
  },

  /** Remember rates since the last reading, for the curves. */
  note(reading) {
    const before = this.last;
    this.last = reading;
    if (!before) return;
    const seconds = (reading.at - before.at) / 1000;
    const gain = (name) => Math.max(reading.sum(name) - before.sum(name), 0);
    const answers = gain("time_to_first_token_seconds_count");
    this.points.push({
      tokens: gain("generation_tokens_total") / seconds,
      ttft: answers ? (1000 * gain("time_to_first_token_seconds_sum")) / answers : null,
      load: reading.sum("num_requests_running") + reading.sum("num_requests_waiting"),
    });
    this.points.splice(0, this.points.length - KEPT_POINTS);
  },
};

function draw(reading, points) {
  if (!reading) return fill($("dashboard-body"), el("p", { class: "notice" }, "Live metrics are for an administrator's key; below is what yours has used."));
  fill($("dashboard-body"), tiles(reading, points), latencies(reading), el("div", { class: "side-by-side" }, cacheCard(reading), memoryCard(reading)));
  drawRaw(reading);
}

function tile(title, big, unit, hint, ...more) {
  return el("div", { class: "tile" }, el("h3", {}, title), el("p", { class: "big" }, big, unit && el("small", {}, unit)), hint && el("p", { class: "hint" }, hint), ...more);
}

function tiles(reading, points) {
  const [prompt, cached] = [reading.sum("prompt_tokens_total"), reading.sum("prompt_tokens_cached_total")];
  const median = reading.quantile("time_to_first_token_seconds", 0.5);
  const errors = reading.sum("request_errors_total");
  return el("div", { class: "tiles" },
    tile("Answers", number(reading.sum("request_success_total") - errors), "", errors ? `${count(errors, "error")}` : "no errors", spark(points.map((one) => one.tokens), "tokens a second")),
    tile("Prompt tokens from cache", prompt ? Math.round((100 * cached) / prompt) : "–", prompt ? "%" : "", `${number(cached)} of ${number(prompt)}`, shareBar([["cached", cached, "tone-1"], ["computed", prompt - cached, "tone-5"]])),
    tile("First token, median", median === null ? "–" : ms(1000 * median), "", "of all answers since the start", spark(points.map((one) => one.ttft), "milliseconds")),
    tile("In the engine now", number(reading.sum("num_requests_running")), "running", `${number(reading.sum("num_requests_waiting"))} waiting`, spark(points.map((one) => one.load), "requests")));
}

/** Draw a curve of the last minutes; a moment without a value keeps the one before. */
function spark(values, unit) {
  let last = 0;
  const filled = values.map((value) => (last = value ?? last));
  const top = Math.max(...filled, 0);
  if (filled.length < 2) return null;
  const step = 100 / (Math.max(filled.length, FEWEST_POINTS) - 1);
  const end = step * (filled.length - 1);
  const points = filled.map((value, index) => `${(index * step).toFixed(2)} ${(29 - 27 * (top ? value / top : 0)).toFixed(2)}`);
  const label = `Last ${count(Math.round((filled.length * EVERY_MS) / 1000), "second")}: now ${number(filled.at(-1))}, at most ${number(top)} ${unit}`;
  const curve = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("title", {}, label), svg("path", { class: "area", d: `M0 30 L${points.join(" L")} L${end} 30 Z` }), svg("path", { d: `M${points.join(" L")}` }));
  return el("div", { class: "curve" }, curve, el("p", { class: "hint" }, top ? `${unit}, up to ${number(top)}` : `${unit}: none lately`));
}

function shareBar(shares) {
  const whole = shares.reduce((sum, [, value]) => sum + value, 0);
  return el("div", { class: "share-bar", "aria-hidden": "true" }, whole > 0 && shares.filter(([, value]) => value > 0).map(([name, value, tone]) => el("span", { class: tone, grow: value, title: `${name}: ${percent(value, whole)}` })));
}

/** A bar with its legend: [name, value, class]. */
function shared(title, shares, write = number) {
  return el("div", {}, el("h3", {}, title), shareBar(shares),
    el("ul", { class: "legend" }, shares.map(([name, value, tone]) => el("li", {}, el("span", { class: `swatch ${tone}` }), name, " ", el("b", {}, write(value))))));
}

function latencies(reading) {
  const rows = Object.entries(ANSWER_KINDS).map(([kind, meaning]) => {
    const wanted = { cache: kind };
    const answers = reading.sum("time_to_first_token_seconds_count", wanted);
    const at = (name, q, more = "") => {
      const seconds = reading.quantile(`${name}_seconds`, q, wanted);
      return el("td", { class: `n ${more}` }, answers && seconds !== null ? ms(1000 * seconds) : "–");
    };
    return el("tr", {}, el("th", { scope: "row" }, kind, " ", el("span", { class: "hint wide-only" }, meaning)), el("td", { class: "n" }, number(answers)),
      at("time_to_first_token", 0.5), at("time_to_first_token", 0.95), at("request_time_per_output_token", 0.5, "wide-only"));
  });
  return el("section", { class: "card" }, el("h2", {}, "Answers by what the cache had"),
    table(["Cache", "Answers", "First token, median", "95 % within", "A token, median"], ["", "n", "n", "n", "n wide-only"], rows));
}

function cacheCard(reading) {
  const sources = reading.by("prompt_tokens_by_source_total", "source", ["device", "disk", "computed"]);
  const outcomes = reading.by("passages_total", "outcome", ["path", "canonical", "shifted", "computed"]);
  if (!sources.some(([, value]) => value)) return null;
  const [device, disk, computed] = sources.map(([, value]) => value);
  return el("section", { class: "card" }, el("h2", {}, "Where KV came from"),
    shared("Prompt tokens", [["memory", device, "tone-1"], ["disk", disk, "tone-6"], ["computed", computed, "tone-5"]]),
    shared("Passages, by outcome", outcomes.map(([name, value]) => [name, value, name])));
}

function memoryCard(reading) {
  if (!reading.has("kv_bytes")) return null;
  const room = (tier) => Object.fromEntries(["cached", "private", "free"].map((state) => [state, reading.sum("kv_bytes", { tier, state })]));
  const [device, disk] = [room("device"), room("disk")];
  const drift = reading.has("certificate_drift_nats") && `Reuse in any order drifts by ${reading.sum("certificate_drift_nats").toFixed(3)} nats a token from computing everything; its certificate allows ${reading.sum("certificate_allowance_nats").toFixed(3)}.`;
  const age = reading.sum("engine_stats_age_seconds");
  const fallen = reading.sum("certificate_fallen_back") > 0 && el("p", { class: "notice" }, "Reuse in any order is off: answers drifted further than the certificate allows. Run `rag certify`.");
  return el("section", { class: "card" }, el("h2", {}, "Room for KV"), fallen,
    shared("Memory", [["shared", device.cached, "tone-1"], ["of running requests", device.private, "tone-3"], ["free", device.free, "tone-4"]], bytes),
    disk.cached + disk.free > 0 && shared(`Disk, ${count(reading.sum("kv_store_records"), "record")}`, [["stored", disk.cached, "tone-6"], ["free", disk.free, "tone-4"]], bytes),
    drift && el("p", { class: "figures-line" }, drift),
    age > OLD_SECONDS && el("p", { class: "hint" }, `The engine is busy: these are its figures of ${count(Math.round(age), "second")} ago.`));
}

/** Show every metric as it comes, with a filter; nothing is drawn while nobody looks. */
function drawRaw(reading) {
  show($("raw"));
  if (!$("raw").open) return;
  const wanted = $("raw-filter").value.trim();
  const names = [...reading.metrics.keys()].filter((name) => !name.endsWith("_bucket") && name.includes(wanted));
  fill($("raw-rows"), ...names.flatMap((name) => reading.metrics.get(name).map(({ labels, value }) => el("tr", {},
    el("th", { scope: "row" }, el("code", {}, name)), el("td", {}, Object.entries(labels).map((pair) => pair.join(" ")).join(", ")), el("td", { class: "n" }, String(Number(value.toPrecision(6))))))));
}

function startDashboard() {
  for (const [id, event] of [["raw", "toggle"], ["raw-filter", "input"]]) $(id).addEventListener(event, () => dashboard.last && drawRaw(dashboard.last));
}
