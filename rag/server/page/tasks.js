// Uploads and other work that the server does by and by: shown with its progress until it ends, also by a page that was
// loaded anew meanwhile.

const followed = new Set();

/** A line in the list of what is going on. */
class Task {
  constructor(name) {
    this.name = name;
    this.what = el("span", { class: "what" }, "waiting");
    this.bar = el("progress", { max: "1", value: "0", "aria-label": name });
    this.item = el("li", {}, el("span", { class: "name" }, name), this.what, this.bar);
    $("tasks").prepend(this.item);
  }

  /** Tell how far it is; without a share, only that it goes on. */
  move(text, share) {
    this.what.firstChild.data = text;
    if (share === undefined) this.bar.removeAttribute("value");
    else this.bar.value = share;
  }

  offerCancel(cancel) {
    const button = el("button", { type: "button", class: "link", "aria-label": `Cancel: ${this.name}` }, "Cancel");
    button.addEventListener("click", () => { button.disabled = true; cancel(); });
    this.what.append(" ", button);
  }

  end(text) {
    fill(this.what, text);
    this.bar.remove();
    announce(`${this.name}: ${text}.`);
  }

  succeed(text) {
    this.item.classList.add("done");
    this.end(text);
  }

  fail(failure) {
    this.end("not done");
    this.item.append(el("p", { class: "why", role: "alert" }, sentence(failure.message)));
  }
}

function jobName({ kind, collection }) {
  return { ingest: `Adding documents to ${collection}`, precompute: `Reading ${collection} ahead`, warm: `Warming ${collection}` }[kind];
}

/** Follow a job to its end, whatever that is. */
async function follow(job, task) {
  followed.add(job.id);
  task.offerCancel(() => send(`/v1/jobs/${part(job.id)}`, { method: "DELETE" }).catch(() => {}));
  let now = job;
  for await (const { name, data } of events(await send(`/v1/jobs/${part(job.id)}/events`))) {
    if (name === "error") throw Failure.from(data.status, data);
    now = data.job;
    task.move(...progressOf(now));
  }
  if (now.state === "succeeded") task.succeed(outcomeOf(now));
  else if (now.state === "cancelled") task.end("cancelled; what was done stays");
  else throw new Failure("The job has failed", now.error ?? "The connection ended before the job did; look again later.");
}

function progressOf({ kind, state, progress }) {
  const { done, total, passages } = progress;
  if (state === "queued") return ["waiting for its turn"];
  if (kind === "ingest") return [passages ? `reading, ${count(passages, "passage")}` : "reading", total > 1 ? done / total : undefined];
  return [total ? `${number(done)} of ${count(total, "passage")}` : "beginning", total ? done / total : undefined];
}

function outcomeOf({ kind, result, progress }) {
  if (kind !== "ingest") return `${count(progress.passages, "passage")} read`;
  const documents = [["added", result.added], ["replaced", result.updated], ["unchanged", result.unchanged], ["skipped", result.skipped.length]].filter(([, n]) => n);
  const words = documents.map(([word, n]) => (documents.length > 1 || n > 1 ? `${number(n)} ${word}` : word));
  return `${list(words)}${result.passages ? `, ${count(result.passages, "passage")}` : ""}`;
}

/** Do something as a line of the list; whatever it ends with is told there. */
async function inTask(name, work) {
  const task = new Task(name);
  try {
    await work(task);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    task.fail(failure);
  }
}

/** Show the jobs that were begun elsewhere, or before the page was loaded. */
async function followOthers() {
  const { jobs } = await getJson("/v1/jobs");
  for (const job of jobs) {
    if (followed.has(job.id) || !["queued", "running"].includes(job.state)) continue;
    inTask(jobName(job), (task) => follow(job, task)).then(showLibrary);
  }
}
