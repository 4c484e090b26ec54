// The answer's text with its citations, and passages shown where they stand in their documents.

const NEIGHBOUR_CHARACTERS = 350;
const QUOTED = /“([^\n]+)”\s*$/; // the quoted words may have quotation marks of their own

/** Fill a place with text whose citations are buttons. Offsets count code points. */
function drawAnswer(place, text, citations, sources, open) {
  const characters = Array.from(text);
  const parts = [];
  let done = 0;
  for (const citation of citations) {
    if (citation.end > characters.length) break;
    parts.push(characters.slice(done, citation.start).join(""));
    const source = sources.find((one) => one.n === citation.source);
    const quote = QUOTED.exec(characters.slice(0, citation.start).join(""))?.[1];
    parts.push(el("button", { type: "button", class: "cite", "aria-expanded": "false", "aria-controls": `source-${citation.source}`, "data-source": citation.source,
      "aria-label": `Source ${citation.source}: ${source?.title ?? ""}`, title: source?.title, onclick: () => open(citation.source, quote) }, String(citation.source)));
    done = citation.end;
  }
  fill(place, ...parts, characters.slice(done).join(""));
}

/** The list of sources; each opens in place. */
class SourceList {
  constructor(place, answerPlace) {
    this.place = place;
    this.answerPlace = answerPlace;
    this.documents = new Map();
  }

  draw(run, sources, citations = []) {
    this.run = run;
    const cited = new Set(citations.map((one) => one.source));
    fill(this.place, ...sources.map((source) => {
      const where = [source.page && `page ${source.page}`, `characters ${number(source.start)}–${number(source.end)}`].filter(Boolean).join(" · ");
      const head = el("button", { type: "button", class: "source-head", "aria-expanded": "false", "aria-controls": `source-${source.n}`, onclick: () => this.toggle(source.n) },
        el("span", { class: "source-n" }, String(source.n)), el("span", { class: "source-title" }, source.title),
        cited.has(source.n) && el("span", { class: "source-cited" }, "cited"), el("span", { class: "source-where" }, where));
      return el("li", { "data-n": source.n }, head, el("div", { id: `source-${source.n}`, class: "passage", hidden: true }));
    }));
    this.sources = sources;
  }

  toggle(n, quote) {
    const open = !this.body(n).hidden;
    if (open) this.close(n);
    else this.open(n, quote);
  }

  body(n) {
    return $(`source-${n}`);
  }

  close(n) {
    show(this.body(n), false);
    this.mark(n, false);
  }

  mark(n, isOpen) {
    this.place.querySelector(`[data-n="${n}"] .source-head`).setAttribute("aria-expanded", String(isOpen));
    for (const cite of this.answerPlace.querySelectorAll(`.cite[data-source="${n}"]`)) cite.setAttribute("aria-expanded", String(isOpen));
  }

  /** Show a passage in its document, and go there. */
  async open(n, quote) {
    const source = this.sources.find((one) => one.n === n);
    const body = this.body(n);
    for (const other of this.sources) if (other.n !== n && !this.body(other.n).hidden) this.close(other.n);
    this.mark(n, true);
    show(body);
    fill(body, passageBox([{ text: source.text, cited: true }], quote));
    announce(`Source ${n}, ${source.title}, is open.`);
    this.place.querySelector(`[data-n="${n}"] .source-head`).focus({ preventScroll: true });
    try {
      const file = await this.document(this.run.collection, source.document_id);
      drawPassage(body, source, file, quote);
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      body.prepend(el("p", { class: "hint" }, `The document cannot be shown as a whole: ${failure.message}`));
    }
    body.parentElement.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  async document(collection, id) {
    const key = `${collection}\n${id}`;
    if (!this.documents.has(key)) this.documents.set(key, await getJson(documentPath(collection, id)));
    return this.documents.get(key);
  }
}

function drawPassage(body, source, file, quote) {
  const passages = withoutOverlap(file.passage_list);
  const at = passages.findIndex((one) => one.passage_id === source.passage_id);
  if (at < 0) {
    body.prepend(el("p", { class: "hint" }, "The document has changed since: this is the passage as it was."));
    return;
  }
  const [before, cited, after] = [passages[at - 1], passages[at], passages[at + 1]];
  const near = [
    before && { text: (before.text.length > NEIGHBOUR_CHARACTERS ? "… " : "") + before.text.slice(-NEIGHBOUR_CHARACTERS) },
    { ...cited, cited: true },
    after && { text: after.text.slice(0, NEIGHBOUR_CHARACTERS) + (after.text.length > NEIGHBOUR_CHARACTERS ? " …" : "") },
  ].filter(Boolean);
  const whole = passages.map((one, index) => ({ ...one, cited: index === at }));
  const box = el("div", {}, passageBox(near, quote));
  const more = el("button", { type: "button", class: "link" }, `Show the whole document (${count(file.characters, "character")})`);
  more.addEventListener("click", () => {
    fill(box, passageBox(whole, quote));
    more.remove();
    centre(box);
  });
  fill(body,
    el("p", { class: "trail" }, el("b", {}, file.title), file.passage_list[at].heading_path.map((heading) => el("span", {}, heading))),
    el("p", { class: "passage-facts" }, [file.uri, source.page && `page ${source.page}`, `characters ${number(source.start)}–${number(source.end)} of ${number(file.characters)}`,
      `passage ${at + 1} of ${passages.length}`, `score ${source.score.toFixed(2)}`].filter(Boolean).join(" · ")),
    box, passages.length > near.length && el("p", { class: "passage-actions" }, more));
  centre(box);
}

/** Passages may share characters with the one before: leave those out. */
function withoutOverlap(passages) {
  let end = 0;
  return passages.map((one) => {
    const text = Array.from(one.text).slice(Math.max(end - one.start, 0)).join("");
    end = Math.max(end, one.end);
    return { ...one, text };
  });
}

function passageBox(passages, quote) {
  return el("div", { class: "text-box", tabindex: "0", role: "region", "aria-label": "Text of the document; the passage is marked" },
    passages.flatMap((one, index) => [index ? "\n\n" : "", one.cited ? el("mark", {}, withQuote(one.text.trim(), quote)) : one.text.trim()]));
}

/** Mark the quoted sentence inside a passage, whatever white space is between its words. */
function withQuote(text, quote) {
  const words = quote?.split(/\s+/).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+");
  const found = words && new RegExp(words).exec(text);
  if (!found) return text;
  const end = found.index + found[0].length;
  return [text.slice(0, found.index), el("span", { class: "quote" }, found[0]), text.slice(end)];
}

function centre(box) {
  const frame = box.querySelector(".text-box");
  const mark = frame.querySelector("mark");
  frame.scrollTop = mark.offsetTop - Math.max((frame.clientHeight - mark.offsetHeight) / 2, 24);
}
