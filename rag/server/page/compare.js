// Why one answer came sooner than another of this session.

const BEFORE_FIRST = ["embed", "search", "queue", "load", "prefill", "other"];
const NOTICEABLE = 1.1;

const computedTokens = ({ usage }) => usage.prompt_tokens - usage.cached_tokens;
const passageIds = ({ cache }) => cache.passages.map((passage) => passage.passage_id);

/** Say how two runs compare, and what made the difference; plain sentences, none that does not apply. */
function reasonsFor(run, other) {
  const [now, then] = [run.answer, other.answer];
  const reasons = [];
  const had = passageIds(then);
  const common = passageIds(now).filter((id) => had.includes(id));
  const all = now.cache.passages.length;
  const known = now.cache.passages.filter((passage) => passage.outcome !== "computed").length;
  reasons.push(`The model computed ${number(computedTokens(now))} of ${count(now.usage.prompt_tokens, "prompt token")}; for run ${other.number} it computed ${number(computedTokens(then))} of ${number(then.usage.prompt_tokens)}.`);
  if (all && common.length === all) reasons.push(all === 1 ? `Its passage was in run ${other.number} too.` : `All ${all} passages were in run ${other.number} too.`);
  else if (common.length) reasons.push(`${common.length} of its ${all} passages ${common.length === 1 ? "was" : "were"} in run ${other.number} too${known === all ? ", and the others had been read before" : ""}.`);
  else if (known) reasons.push(`None of its passages was in run ${other.number}, but ${known} of ${all} had been read before.`);
  else if (all) reasons.push(`None of its ${count(all, "passage")} had been read before.`);
  const shifted = now.cache.segments.filter((segment) => segment.outcome === "shifted");
  if (shifted.length) {
    const repaired = shifted.reduce((sum, segment) => sum + segment.repaired_tokens, 0);
    reasons.push(`${count(shifted.length, "passage stands", "passages stand")} elsewhere than where ${shifted.length === 1 ? "it was" : "they were"} read: reused there, with ${count(repaired, "token")} computed again.`);
  }
  if (now.cache.hit_tokens.disk) reasons.push(`${count(now.cache.hit_tokens.disk, "token")} came from disk, which took ${ms(now.timings_ms.load ?? 0)}.`);
  if (isNoticeable(now, then)) {
    const name = biggestChange(now, then);
    reasons.push(`Most of the difference is ${name} (${STAGES[name]}): ${ms(stagesOf(then.timings_ms)[name])} then, ${ms(stagesOf(now.timings_ms)[name])} now.`);
  }
  return reasons;
}

function isNoticeable(now, then) {
  const [a, b] = [now.timings_ms.ttft, then.timings_ms.ttft];
  return Math.max(a, b) >= NOTICEABLE * Math.min(a, b);
}

/** Name the stage that changed most in the direction in which the whole did. */
function biggestChange(now, then) {
  const [a, b] = [stagesOf(now.timings_ms), stagesOf(then.timings_ms)];
  const sign = Math.sign(then.timings_ms.ttft - now.timings_ms.ttft);
  return BEFORE_FIRST.reduce((best, name) => (sign * (b[name] - a[name]) > sign * (b[best] - a[best]) ? name : best));
}

function headline(run, other) {
  const [now, then] = [run.answer.timings_ms.ttft, other.answer.timings_ms.ttft];
  const figures = `${ms(now)} instead of ${ms(then)}.`;
  if (!isNoticeable(run.answer, other.answer)) return el("p", { class: "why-line" }, `The first token came about as soon: ${ms(now)}, and ${ms(then)} then.`);
  if (then > now) return el("p", { class: "why-line sooner" }, "The first token came ", el("b", {}, `${times(then / now)} times sooner`), `: ${figures}`);
  return el("p", { class: "why-line" }, `The first token took ${times(now / then)} times as long: ${figures}`);
}

/** One bar beside the longest: as wide as its share of it. */
function scaled(bar, value, longest) {
  bar.style.flexGrow = value;
  return el("div", { class: "track" }, bar, el("span", { grow: longest - value }));
}

function drawPair(pair) {
  const longest = Math.max(...pair.map((one) => one.answer.timings_ms.ttft));
  const most = Math.max(...pair.map((one) => one.answer.usage.prompt_tokens));
  const label = (one) => el("span", { class: "nowrap" }, `Run ${one.number}`);
  const time = pair.map((one) => [label(one), scaled(stageBar(stagesOf(one.answer.timings_ms), BEFORE_FIRST), one.answer.timings_ms.ttft, longest), el("b", {}, ms(one.answer.timings_ms.ttft))]);
  const prompt = pair.map((one) => [label(one), scaled(miniPrompt(one.answer), one.answer.usage.prompt_tokens, most), el("b", {}, percent(one.answer.usage.cached_tokens, one.answer.usage.prompt_tokens))]);
  return el("div", { class: "pair" },
    el("span", { class: "caption" }, "Time to the first token"), ...time.flat(), stageLegend(pair),
    el("span", { class: "caption" }, "Prompt, and how much of it came from the cache"), ...prompt.flat());
}

/** Name the stages that can be seen in these runs' bars. */
function stageLegend(pair) {
  const visible = BEFORE_FIRST.filter((name) => pair.some((one) => stagesOf(one.answer.timings_ms)[name] >= one.answer.timings_ms.ttft / 100));
  return el("ul", { class: "legend pair-legend" }, visible.map((name) => el("li", {}, el("span", { class: `swatch ${name}` }), name)));
}

/** Compare a run with another one, the one before it at first. */
function drawComparison(section, place, run, runs) {
  const others = runs.filter((one) => one !== run && one.answer);
  show(section, others.length > 0);
  if (!others.length) return;
  const previous = others.filter((one) => one.number < run.number).at(-1) ?? others[0];
  const choice = el("select", { "aria-label": "Run to compare with" },
    others.map((one) => el("option", { value: one.number, selected: one === previous }, `run ${one.number}: ${one.question.slice(0, 60)}`)));
  const body = el("div", {});
  const draw = () => {
    const other = others.find((one) => one.number === Number(choice.value));
    fill(body, headline(run, other), el("ul", { class: "reasons" }, reasonsFor(run, other).map((text) => el("li", {}, text))), drawPair([run, other]));
  };
  choice.addEventListener("change", draw);
  fill(place, el("div", { class: "why-head" }, others.length > 1 ? choice : el("span", { class: "hint" }, `Run ${previous.number}: ${previous.question}`)), body);
  draw();
}
