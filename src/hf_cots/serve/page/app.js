"use strict";

// The page's state is its address: q, minus, where, like (an id), rerank, hybrid (columns), and f.COLUMN=VALUE as JSON. An image that was
// dropped or pasted has no address; it is kept by a number in the history, until the page is left.

const PAGE_SIZE = 48;
const MOST = 480;
const MOST_COLUMNS = 50; // that a request may name
const FEW_VALUES = 8; // of a facet that are shown at first
const FRAME_WIDTH = 92; // of a clip's sheet
const LONG = 10; // seconds; a longer clip is played from the moment that was found
const TITLES = ["title", "name", "caption", "text", "captions", "texts", "label"];
const $ = (id) => document.getElementById(id);
const images = new Map(); // number: File
let info = { columns: [], keywords: [], facets: [], images: 0, clips: 0, rerank: false, max_upload_mb: 10 };
let state = emptyState();
let results = [];
let opened = -1;
let latest = 0; // number of the last request; answers of earlier ones are dropped
let pending = null;
let sheetOf = null; // the card whose frames are shown
let keywords = []; // the columns of the last search by keyword

function emptyState() {
  return { q: "", minus: "", where: "", like: null, rerank: false, hybrid: [], filters: {}, image: null, k: PAGE_SIZE };
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------ state and address

function readAddress() {
  const fields = new URLSearchParams(location.search);
  const read = { ...emptyState(), q: fields.get("q") || "", minus: fields.get("minus") || "", where: fields.get("where") || "" };
  read.rerank = fields.get("rerank") === "1";
  read.hybrid = [...new Set(fields.getAll("hybrid"))];
  if (/^\d+$/.test(fields.get("like") || "")) read.like = Number(fields.get("like"));
  for (const [name, text] of fields) {
    if (!name.startsWith("f.")) continue;
    let value = text;
    try { value = JSON.parse(text); } catch { /* a text without quotes */ }
    if (value !== null && typeof value === "object") continue;
    (read.filters[name.slice(2)] ||= []).push(value);
  }
  const number = history.state && history.state.image;
  read.image = images.has(number) ? number : null;
  read.lost = number != null && read.image === null;
  return read;
}

function writeAddress() {
  const fields = new URLSearchParams();
  for (const name of ["q", "minus", "where"]) if (state[name].trim()) fields.set(name, state[name].trim());
  if (state.like !== null) fields.set("like", state.like);
  if (state.rerank) fields.set("rerank", "1");
  for (const name of state.hybrid) fields.append("hybrid", name);
  for (const [name, values] of Object.entries(state.filters)) for (const value of values) fields.append(`f.${name}`, JSON.stringify(value));
  const address = fields.size ? `/?${fields}` : "/";
  const kept = { image: state.image };
  if (address === location.pathname + location.search && (history.state?.image ?? null) === state.image) return;
  history.pushState(kept, "", address);
}

function showState() {
  $("text").value = state.q;
  $("minus").value = state.minus;
  $("where").value = state.where;
  $("rerank").checked = state.rerank;
  drawKeywords();
  const file = state.image === null ? null : images.get(state.image);
  const isVideo = file !== null && file.type.startsWith("video/");
  for (const each of [$("chip-image"), $("chip-video")]) if (each.src.startsWith("blob:")) URL.revokeObjectURL(each.src);
  $("chip-video").removeAttribute("src");
  $("chip-image").hidden = isVideo;
  $("chip-video").hidden = !isVideo;
  const shown = $(isVideo ? "chip-video" : "chip-image");
  $("chip").hidden = file === null && state.like === null;
  if (file !== null) shown.src = URL.createObjectURL(file);
  else if (state.like !== null) shown.src = `/thumbnail/${state.like}`;
  $("text").placeholder = $("chip").hidden ? "Describe an image, or drop or paste one" : file !== null ? `Add words to the ${isVideo ? "clip" : "image"}` : "More like this";
  drawFacets();
  const count = Object.values(state.filters).reduce((sum, values) => sum + values.length, 0) + Boolean(state.minus) + Boolean(state.where);
  $("refine-count").textContent = count;
  $("refine-count").hidden = $("clear").hidden = count === 0;
  const what = state.q || (state.image !== null ? "an image" : state.like !== null ? "more like this" : "");
  document.title = what ? `${what} - ${info.name || "Image search"}` : info.name || "Image search";
}

function change(changes) {
  state = { ...state, k: PAGE_SIZE, lost: false, ...changes };
  writeAddress();
  showState();
  search();
}

// ------------------------------------------------------------------ requests

async function fetchJSON(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  let body;
  try { body = await answer.json(); } catch { body = {}; }
  if (!answer.ok) throw new Error(body.error || `The server answered with status ${answer.status}.`);
  return body;
}

function request(signal) {
  const shared = { k: state.k, filters: state.filters, where: state.where.trim() || null };
  const json = (address, body) => fetchJSON(address, { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  if (state.like !== null) return json("/api/similar", { id: state.like, ...shared });
  const fields = { text: state.q.trim() || null, minus: state.minus.trim() || null, rerank: state.rerank && Boolean(state.q.trim()), hybrid: state.q.trim() ? state.hybrid : [] };
  if (state.image === null) return json("/api/search", { ...fields, ...shared });
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, ...shared })) {
    if (name === "hybrid") value.forEach((column) => form.append(name, column));
    else if (value !== null) form.append(name, name === "filters" ? JSON.stringify(value) : value);
  }
  form.append("image", images.get(state.image));
  return fetchJSON("/api/search", { method: "POST", signal, body: form });
}

async function search() {
  const number = ++latest;
  pending?.abort();
  if (!state.q.trim() && state.image === null && state.like === null) {
    results = [];
    draw();
    return welcome();
  }
  pending = new AbortController();
  $("grid").classList.add("stale");
  $("grid").setAttribute("aria-busy", "true");
  try {
    const answer = await request(pending.signal);
    if (number !== latest) return;
    results = answer.results;
    draw();
    report(answer);
  } catch (error) {
    if (error.name === "AbortError" || number !== latest) return;
    results = [];
    draw();
    $("message").replaceChildren(element("p", { className: "error", role: "alert" }, error.message));
  } finally {
    if (number === latest) {
      $("grid").classList.remove("stale");
      $("grid").removeAttribute("aria-busy");
    }
  }
}

function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function report({ timings, approximate }) {
  const times = [`search ${milliseconds(timings.search)}`, `total ${milliseconds(timings.total)}`];
  if (timings.rerank) times.splice(1, 0, `re-rank ${milliseconds(timings.rerank)}`);
  if (timings.encode) times.unshift(`encode ${milliseconds(timings.encode)}`);
  const filtered = Object.keys(state.filters).length || state.where.trim();
  const found = results.length ? element("span", {}, "The best ", element("b", {}, String(results.length)), ` of ${countAll()}${filtered ? ", filtered" : ""}`) : element("span");
  // Rounded down: no more is told than was measured.
  if (approximate && results.length) found.append(element("span", { className: "approximate", title: "Not all images are compared; this part of the best ones was found when the index was measured." }, `approximate, recall@${approximate.results} ${(Math.floor(approximate.recall * 1000) / 1000).toFixed(3)} measured`));
  $("status").replaceChildren(found, element("span", { className: "times" }, times.join(" · ")));
  if (!results.length) {
    const box = element("div", { className: "welcome" }, element("h1", {}, "No images"), element("p", {}, filtered ? "No image passes the filters." : "The index is empty."));
    if (filtered) box.append(element("button", { type: "button", className: "plain", onclick: clearFilters }, "Clear the filters"));
    $("message").replaceChildren(box);
  }
}

// ------------------------------------------------------------------ drawing

function welcome() {
  const hint = (key, text) => element("li", {}, element("kbd", {}, key), ` ${text}`);
  const lost = state.lost ? [element("p", { className: "error" }, "That image is no longer there: drop or paste it again.")] : [];
  $("status").replaceChildren();
  $("message").replaceChildren(
    element("div", { className: "welcome" }, ...lost,
      element("h1", {}, `Search ${countAll()}`),
      element("p", {}, "Type what they should show, drop or paste an image, or do both: words change what the image asks for."),
      element("ul", {}, hint("/", "go to the search box"), hint("← ↑ ↓ →", "move among images"), hint("Enter", "open an image"), hint("m", "more like it"), hint("Esc", "close, or go back to the box"))));
}

function countAll() {
  return `${info.images.toLocaleString("en")} ${!info.clips ? "images" : info.clips === info.images ? "clips" : "images and clips"}`;
}

function seconds(time) {
  if (time < 60) return `${time.toFixed(time < 10 ? 2 : 1)} s`;
  return `${Math.floor(time / 60)}:${String(Math.floor(time % 60)).padStart(2, "0")}`;
}

function titleOf(result) {
  for (const name of TITLES) {
    const value = result.columns[name];
    if (typeof value !== "string" || !value.trim()) continue;
    if (value.startsWith("[")) {
      try { return String(JSON.parse(value)[0] ?? result.path); } catch { /* a text */ }
    }
    return value;
  }
  return result.path.split("/").pop();
}

function scoreOf(result) {
  return result.score.toFixed(result.similarity === null ? 3 : 4); // reciprocal ranks are small and close together
}

function draw() {
  $("message").replaceChildren();
  $("status").replaceChildren();
  hideSheet();
  $("grid").replaceChildren(...results.map(drawCard));
  $("more").hidden = results.length < state.k || results.length >= Math.min(MOST, info.images);
}

function drawCard(result, number) {
  const title = titleOf(result);
  const image = element("img", { src: result.thumbnail, alt: title, loading: number < 24 ? "eager" : "lazy", decoding: "async" });
  image.onerror = () => image.replaceWith(element("span", { className: "missing" }, "The file has changed or is gone"));
  const caption = element("span", { className: "caption" }, element("span", { className: "title", title }, title), element("span", { className: "score" }, scoreOf(result)));
  const open = element("button", { type: "button", className: "open", tabIndex: number ? -1 : 0, onclick: () => openDetail(number) }, image, caption);
  open.setAttribute("aria-label", `${title}, score ${scoreOf(result)}`);
  if (result.clip) {
    open.setAttribute("aria-label", `${title}, a clip, best at ${seconds(result.clip.moment)}, score ${scoreOf(result)}`);
    open.append(element("span", { className: "moment" }, seconds(result.clip.moment)));
    for (const event of ["mouseenter", "focus"]) open.addEventListener(event, () => showSheet(open, result.clip));
    for (const event of ["mouseleave", "blur"]) open.addEventListener(event, hideSheet);
  }
  const like = element("button", { type: "button", className: "like", tabIndex: -1, onclick: () => moreLike(result.id) }, "More like this");
  return element("li", { className: "card" }, open, like);
}

// The frames of a clip that were compared, below its card, or above it where there is no room.
function showSheet(card, clip) {
  const box = $("sheet");
  const best = clip.times.findIndex((time) => Math.abs(time - clip.moment) < 1e-6);
  box.querySelector("img").src = clip.sheet;
  box.querySelector("ol").replaceChildren(...clip.times.map((time, i) => element("li", { className: i === best ? "best" : "" }, seconds(time))));
  box.hidden = false;
  sheetOf = card;
  placeSheet();
}

function placeSheet() {
  const box = $("sheet");
  if (box.hidden) return;
  const count = box.querySelectorAll("li").length;
  const width = Math.min(innerWidth - 16, count * FRAME_WIDTH + 14);
  const height = (width - 14) / count + 38;
  const at = sheetOf.getBoundingClientRect();
  const below = at.bottom + 6 + height < innerHeight;
  box.style.width = `${width}px`;
  box.style.left = `${Math.max(8, Math.min(innerWidth - 8 - width, at.left + at.width / 2 - width / 2))}px`;
  box.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - 6 - height)}px`;
}

function hideSheet() {
  $("sheet").hidden = true;
}

function drawKeywords() {
  if (state.hybrid.length) keywords = state.hybrid.filter((name) => info.keywords.includes(name));
  $("hybrid").checked = state.hybrid.length > 0;
  $("hybrid-columns").hidden = !state.hybrid.length;
  const focused = $("hybrid-columns").contains(document.activeElement) ? document.activeElement.value : null;
  const rows = info.keywords.map((name) => element("li", {}, element("label", {}, element("input", { type: "checkbox", value: name, checked: state.hybrid.includes(name), onchange: submit }), element("span", { title: name }, name.replaceAll("_", " ")))));
  $("hybrid-columns").replaceChildren(element("ul", {}, ...rows));
  if (focused !== null) [...$("hybrid-columns").querySelectorAll("input")].find((box) => box.value === focused)?.focus();
}

// The columns that the switch chooses at first: those that name or describe an image. Those of few values are filters.
function usualKeywords() {
  const filters = info.facets.map((facet) => facet.column);
  const describing = info.keywords.filter((name) => name !== "path" && !filters.includes(name));
  return (describing.length ? describing : info.keywords).slice(0, MOST_COLUMNS);
}

function chosenKeywords() {
  if (!$("hybrid").checked) return [];
  if (!state.hybrid.length) return keywords.length ? keywords : usualKeywords();
  return [...$("hybrid-columns").querySelectorAll("input:checked")].map((box) => box.value);
}

function drawFacets() {
  const box = $("facets");
  const unfolded = new Set([...box.querySelectorAll(".facet.all")].map((each) => each.dataset.column));
  box.replaceChildren(...info.facets.map((facet) => drawFacet(facet, unfolded.has(facet.column))));
}

function drawFacet(facet, unfolded) {
  const chosen = state.filters[facet.column] || [];
  const list = element("ul");
  facet.values.forEach(({ value, count }, number) => {
    const box = element("input", { type: "checkbox", checked: chosen.includes(value), onchange: () => toggleFilter(facet.column, value) });
    const name = value === null ? element("span", { className: "none" }, "none") : element("span", { title: String(value) }, String(value));
    const row = element("li", {}, element("label", {}, box, name, element("span", { className: "n" }, count.toLocaleString("en"))));
    row.hidden = !unfolded && number >= FEW_VALUES && !chosen.includes(value);
    list.append(row);
  });
  const id = `facet-${info.facets.indexOf(facet)}`;
  list.setAttribute("aria-labelledby", id);
  const made = element("section", { className: unfolded ? "facet all" : "facet" }, element("h3", { id }, facet.column.replaceAll("_", " ")), list);
  made.dataset.column = facet.column;
  if (facet.values.length > FEW_VALUES && !unfolded) {
    made.append(element("button", { type: "button", onclick: (event) => {
      made.classList.add("all");
      list.querySelectorAll("li").forEach((row) => { row.hidden = false; });
      event.target.remove();
    } }, `${facet.values.length - FEW_VALUES} more`));
  }
  return made;
}

function toggleFilter(column, value) {
  const before = state.filters[column] || [];
  const values = before.includes(value) ? before.filter((each) => each !== value) : [...before, value];
  const filters = { ...state.filters, [column]: values };
  if (!values.length) delete filters[column];
  const focused = document.activeElement?.closest("label")?.textContent;
  change({ ...typed(), filters });
  [...document.querySelectorAll(".facet label")].find((label) => label.textContent === focused)?.querySelector("input").focus();
}

function clearFilters() {
  change({ filters: {}, where: "", minus: "" });
}

// ------------------------------------------------------------------ images

function takeImage(file) {
  const fail = (text) => { $("message").replaceChildren(element("p", { className: "error", role: "alert" }, text)); };
  if (!/^(image|video)\//.test(file.type)) return fail(`${file.name || "This"} is not an image or a clip.`);
  if (file.size > info.max_upload_mb * 2 ** 20) return fail(`The file is larger than ${info.max_upload_mb} MB.`);
  images.set(images.size + 1, file);
  change({ ...typed(), image: images.size, like: null });
}

function moreLike(id) {
  $("detail").close();
  window.scrollTo(0, 0);
  change({ q: "", minus: "", image: null, like: id });
}

function openDetail(number) {
  if (!results[number]) return;
  opened = number;
  hideSheet();
  const result = results[number];
  const title = titleOf(result);
  showMedia(result, title);
  $("detail-title").textContent = title;
  const moment = result.clip && `${seconds(result.clip.moment)} of ${seconds(result.clip.duration)}`;
  const facts = { score: result.score.toFixed(4), similarity: result.similarity?.toFixed(4) ?? null, moment, path: result.path, ...result.columns };
  const rows = Object.entries(facts).filter(([, value]) => value !== null && value !== "" && value !== "[]");
  $("detail-columns").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, readable(value))]));
  $("detail-open").href = result.image;
  $("previous").disabled = number === 0;
  $("next").disabled = number === results.length - 1;
  if (!$("detail").open) $("detail").showModal();
}

// An image, an animated one, or a video, which plays; of one that the browser cannot play, the frames.
function showMedia({ image, clip }, title) {
  const picture = $("detail-image");
  const video = $("detail-video");
  const isVideo = Boolean(clip) && clip.media_type.startsWith("video/");
  const show = (address) => {
    stopVideo();
    picture.hidden = false;
    picture.src = address;
    picture.alt = title;
  };
  picture.onerror = clip ? () => { picture.onerror = null; show(clip.sheet); } : null;
  if (!isVideo) return show(image);
  stopVideo();
  picture.hidden = true;
  picture.removeAttribute("src");
  video.hidden = false;
  video.onerror = () => show(image);
  video.setAttribute("aria-label", title);
  video.src = clip.duration > LONG ? `${image}#t=${clip.moment.toFixed(2)}` : image;
  video.play().catch(() => { /* it waits for its button */ });
}

function stopVideo() {
  const video = $("detail-video");
  video.onerror = null;
  video.pause();
  video.removeAttribute("src");
  video.load();
  video.hidden = true;
}

function readable(value) {
  if (typeof value === "string" && value.startsWith("[")) {
    try { return JSON.parse(value).join(", "); } catch { /* a text */ }
  }
  return String(value);
}

// ------------------------------------------------------------------ keyboard

function cards() {
  return [...document.querySelectorAll(".open")];
}

function focusCard(number) {
  const all = cards();
  if (!all[number]) return;
  all.forEach((card, i) => { card.tabIndex = i === number ? 0 : -1; });
  all[number].focus();
  all[number].scrollIntoView({ block: "nearest" });
}

function perRow() {
  const all = cards();
  const next = all.findIndex((card) => card.offsetParent && card.getBoundingClientRect().top > all[0].getBoundingClientRect().top + 5);
  return next < 0 ? all.length : next;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if ($("detail").open) {
    if (event.key === "ArrowLeft") openDetail(opened - 1);
    else if (event.key === "ArrowRight") openDetail(opened + 1);
    else if (event.key === "m") moreLike(results[opened].id);
    return;
  }
  const target = event.target;
  const typing = target.matches("input:not([type=checkbox]):not([type=file]), textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
    return;
  }
  if (event.key === "Escape") {
    if (typing) target.blur();
    else $("text").focus();
    return;
  }
  if (target === $("text") && event.key === "ArrowDown" && results.length) {
    event.preventDefault();
    focusCard(0);
    return;
  }
  if (typing || !results.length) return;
  const here = cards().indexOf(target);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow(), ArrowDown: perRow() };
  if (event.key in steps && (here >= 0 || target === document.body)) {
    event.preventDefault();
    const next = here < 0 ? 0 : here + steps[event.key];
    if (next < 0 && event.key === "ArrowUp") $("text").focus();
    else focusCard(Math.max(0, Math.min(results.length - 1, next)));
  } else if (event.key === "m" && here >= 0) {
    moreLike(results[here].id);
  }
}

// ------------------------------------------------------------------ beginning

function typed() {
  return { q: $("text").value, minus: $("minus").value, where: $("where").value, rerank: $("rerank").checked, hybrid: chosenKeywords() };
}

function submit() {
  const now = typed();
  change({ ...now, like: now.q.trim() ? null : state.like });
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* not allowed */ }
}

function listen() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("where").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); submit(); } });
  for (const id of ["minus", "where", "rerank", "hybrid"]) $(id).addEventListener("change", submit);
  $("home").addEventListener("click", (event) => { event.preventDefault(); change(emptyState()); $("text").focus(); });
  $("clear").addEventListener("click", clearFilters);
  $("more").addEventListener("click", () => { state.k = Math.min(MOST, state.k + PAGE_SIZE); search(); });
  $("chip-remove").addEventListener("click", () => { change({ ...typed(), image: null, like: null }); $("text").focus(); });
  $("file").addEventListener("change", () => { if ($("file").files.length) takeImage($("file").files[0]); $("file").value = ""; });
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    setTheme(dark ? "light" : "dark");
  });
  $("close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
  $("detail").addEventListener("close", () => { stopVideo(); focusCard(opened); });
  document.addEventListener("scroll", placeSheet, { passive: true });
  window.addEventListener("resize", placeSheet);
  $("previous").addEventListener("click", () => openDetail(opened - 1));
  $("next").addEventListener("click", () => openDetail(opened + 1));
  $("detail-similar").addEventListener("click", () => moreLike(results[opened].id));
  document.addEventListener("keydown", onKey);
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => /^(image|video)\//.test(each.type));
    if (file) { event.preventDefault(); takeImage(file); }
  });
  let depth = 0;
  const carriesFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth += 1; $("drop").hidden = false; } });
  document.addEventListener("dragleave", (event) => { if (carriesFiles(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
  document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    $("drop").hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) takeImage(event.dataTransfer.files[0]);
  });
  window.addEventListener("popstate", () => { $("detail").close(); state = readAddress(); showState(); search(); });
}

async function begin() {
  try { const kept = localStorage.getItem("theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* not allowed */ }
  const wide = matchMedia("(min-width: 821px)");
  const unfold = () => { $("refine").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  listen();
  state = readAddress();
  try {
    info = await fetchJSON("/api/info");
  } catch (error) {
    $("message").replaceChildren(element("p", { className: "error", role: "alert" }, error.message));
    return;
  }
  $("name").textContent = info.name;
  $("name").title = `${countAll()}, ${info.model}`;
  $("rerank-row").hidden = !info.rerank;
  $("hybrid-row").hidden = !info.keywords.length;
  $("columns").textContent = info.columns.length ? `Columns: path, ${info.columns.join(", ")}` : "Column: path";
  showState();
  search();
  if (wide.matches && !state.q) $("text").focus();
}

begin();
