// Collections and documents: what there is, adding to it, deleting from it.

let uploads = Promise.resolve();
let openCollection = "";

function startLibrary() {
  const [drop, input] = [$("drop"), $("upload-files")];
  $("upload-form").addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("change", () => { addFiles([...input.files]); input.value = ""; });
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); addFiles([...event.dataTransfer.files]); });
}

async function refreshCollections() {
  const { collections } = await getJson("/v1/collections");
  offerCollections(collections);
  fill($("collection-names"), ...collections.map((one) => el("option", { value: one.name })));
  if (!$("upload-collection").value) $("upload-collection").value = collections[0]?.name ?? "default";
  drawCollections(collections);
  return collections;
}

async function showLibrary() {
  clear($("library-error"));
  try {
    const collections = await refreshCollections();
    if (!collections.some((one) => one.name === openCollection)) openCollection = collections[0]?.name ?? "";
    await showDocuments(openCollection);
    await followOthers();
  } catch (failure) {
    showFailure($("library-error"), failure, failure.status === 401 ? null : showLibrary);
  }
}

function drawCollections(collections) {
  if (!collections.length) return fill($("collections"), el("p", { class: "empty" }, "None yet: the first document that you add makes one."));
  const row = (one) => el("tr", {},
    el("th", { scope: "row" }, el("button", { type: "button", class: "link", onclick: () => openDocuments(one.name) }, one.name)),
    el("td", { class: "n" }, number(one.documents)), el("td", { class: "n wide-only" }, number(one.passages)), el("td", { class: "wide-only" }, moment(one.created_at)),
    el("td", { class: "act" },
      el("button", { type: "button", class: "link", title: "Compute the KV of every passage now, so that no question waits for it", "aria-label": `Read ${one.name} ahead`, onclick: () => readAhead(one.name) }, "Read ahead"), " ",
      el("button", { type: "button", class: "link", "aria-label": `Delete collection ${one.name}`, onclick: () => deleteCollection(one) }, "Delete")));
  fill($("collections"), table(["Name", "Documents", "Passages", "Made", ""], ["", "n", "n wide-only", "wide-only", "act"], collections.map(row)));
}

function table(names, classes, rows) {
  const head = names.map((name, index) => el("th", { scope: "col", class: classes[index] || null }, name || el("span", { class: "unseen" }, "Actions")));
  return el("div", { class: "table-wrap" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

async function openDocuments(name) {
  $("upload-collection").value = name;
  try {
    await showDocuments(name);
    $("documents-title").focus();
  } catch (failure) {
    showFailure($("library-error"), failure);
  }
}

async function showDocuments(name) {
  openCollection = name;
  show($("documents-card"), Boolean(name));
  if (!name) return;
  const { documents } = await getJson(documentsPath(name));
  if (openCollection !== name) return; // another one was opened meanwhile
  $("documents-title").textContent = `Documents in ${name}`;
  const row = (one) => el("tr", {},
    el("th", { scope: "row" }, el("button", { type: "button", class: "link", title: one.uri, onclick: (event) => showText(event, name, one) }, one.title || one.uri)),
    el("td", { class: "n wide-only" }, number(one.passages)), el("td", { class: "n" }, number(one.tokens)), el("td", { class: "wide-only" }, moment(one.ingested_at)),
    el("td", { class: "act" }, el("button", { type: "button", class: "link", "aria-label": `Delete ${one.title || one.uri}`, onclick: () => deleteDocument(name, one) }, "Delete")));
  fill($("documents"), documents.length
    ? table(["Title", "Passages", "Tokens", "Added", ""], ["", "n wide-only", "n", "wide-only", "act"], documents.map(row))
    : el("p", { class: "empty" }, "It is empty."));
}

/** Show a document's text below its row, or take it away again. */
async function showText(event, name, file) {
  const row = event.target.closest("tr");
  if (row.nextElementSibling?.classList.contains("text-row")) return row.nextElementSibling.remove();
  try {
    const { passage_list: passages } = await getJson(documentPath(name, file.id));
    const text = el("div", { class: "text-box", tabindex: "0", role: "region", "aria-label": `Text of ${file.title || file.uri}` }, withoutOverlap(passages).map((one) => one.text.trim()).join("\n\n"));
    row.after(el("tr", { class: "text-row" }, el("td", { colspan: "5" }, el("p", { class: "passage-facts" }, `${file.uri} · ${count(file.characters, "character")}`), text)));
  } catch (failure) {
    showFailure($("library-error"), failure);
  }
}

async function deleteDocument(collection, file) {
  const title = file.title || file.uri;
  if (!(await confirmed("Delete this document?", `“${title}” will not be found any more, and its KV is removed.`, "Delete"))) return;
  await removed(documentPath(collection, file.id), `${title} was deleted.`);
}

async function deleteCollection(one) {
  if (!(await confirmed("Delete this collection?", `“${one.name}” and its ${count(one.documents, "document")} will be gone.`, "Delete"))) return;
  await removed(collectionPath(one.name), `${one.name} was deleted.`);
}

async function removed(path, message) {
  try {
    await send(path, { method: "DELETE" });
    announce(message);
    await showLibrary();
  } catch (failure) {
    showFailure($("library-error"), failure);
  }
}

/** Upload files one after the other, so that each tells of itself. */
async function addFiles(files) {
  const collection = $("upload-collection").value.trim();
  if (!collection) return $("upload-collection").reportValidity();
  for (const file of files) {
    uploads = uploads.then(() => inTask(file.name, (task) => addFile(file, collection, task)));
  }
  await uploads;
  openCollection = collection;
  await showLibrary();
}

async function addFile(file, collection, task) {
  const sent = (share) => task.move(share < 1 ? `uploading, ${Math.round(100 * share)} %` : "arriving", share < 1 ? share : undefined);
  await follow(await upload(`${documentsPath(collection)}?wait=false`, file, sent), task);
}

/** Have every passage of a collection read now, so that no question waits for it. */
async function readAhead(name) {
  await inTask(jobName({ kind: "precompute", collection: name }), async (task) => {
    task.item.scrollIntoView({ block: "nearest" });
    const response = await send(`${collectionPath(name)}/precompute?wait=false`, { method: "POST" });
    await follow(await response.json(), task);
  });
}
