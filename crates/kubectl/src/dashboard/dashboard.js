// The dashboard: every kind that the API server has, as the tables that kubectl prints, kept up to date by watches.
//
// All of it is asked of the API server with the rights of whoever started `skiff dashboard`; nothing is known of kinds
// here but how to scale, restart and read logs. Text of objects is only ever put in as text.
"use strict";

const $ = (id) => document.getElementById(id);
const TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io";
const GROUPS = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
// What learners look at first; the other kinds follow by group.
const FIRST = ["pods", "deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "services", "ingresses",
  "configmaps", "secrets", "persistentvolumeclaims", "nodes", "events"];
const RESTARTABLE = ["deployments", "statefulsets", "daemonsets"];

let kinds = [];
let kind = null;
let listing = null;
let shown = null;
let tab = null;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function say(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

// The API is below the page's own folder, whose name only its user knows.
async function ask(path, options = {}) {
  const answer = await fetch(path.replace(/^\//, ""), options);
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text;
  try { message = JSON.parse(text).message || text; } catch { /* no Status: the text says it */ }
  throw Object.assign(new Error(message || answer.statusText), { code: answer.status });
}

async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

async function discover() {
  const found = [];
  for (const root of ["/api", "/apis"]) {
    const list = await (await ask(root, { headers: { Accept: GROUPS } })).json();
    for (const group of list.items) {
      const name = group.metadata.name || "";
      const version = group.versions[0];
      for (const resource of (version && version.resources) || []) {
        if (!resource.verbs.includes("list") || !resource.verbs.includes("watch")) continue;
        found.push({
          plural: resource.resource, kind: resource.responseKind.kind, group: name, version: version.version,
          namespaced: resource.scope === "Namespaced",
          subresources: (resource.subresources || []).map((s) => s.subresource),
          base: name ? `/apis/${name}/${version.version}` : `/api/${version.version}`,
        });
      }
    }
  }
  return found;
}

function idOf(k) { return k.group ? `${k.plural}.${k.group}` : k.plural; }

function showKinds() {
  const nav = $("kinds");
  nav.replaceChildren();
  const first = FIRST.map((plural) => kinds.find((k) => k.plural === plural)).filter(Boolean);
  const add = (k) => nav.append(element("a", k.kind, { href: `#${idOf(k)}`, title: `${k.plural} ${k.group}/${k.version}` }));
  first.forEach(add);
  const groups = new Map();
  for (const k of kinds) if (!first.includes(k)) groups.set(k.group, [...(groups.get(k.group) || []), k]);
  for (const [group, members] of [...groups].sort()) {
    nav.append(element("h3", group || "core"));
    members.sort((a, b) => a.kind.localeCompare(b.kind)).forEach(add);
  }
}

async function showNamespaces() {
  const select = $("namespace");
  const before = select.value || "default";
  select.replaceChildren(element("option", "All namespaces", { value: "" }));
  try {
    const list = await (await ask("/api/v1/namespaces")).json();
    for (const item of list.items) select.append(element("option", item.metadata.name));
  } catch (error) {
    // Whoever may not list them may still work in one.
    select.append(element("option", "default"));
    say(error.message, true);
  }
  select.value = before;
}

function collection(k, namespace) {
  return k.namespaced && namespace ? `${k.base}/namespaces/${namespace}/${k.plural}` : `${k.base}/${k.plural}`;
}

function pathOf(k, meta) { return `${collection(k, meta.namespace)}/${meta.name}`; }

function row(k, columns, entry, all) {
  const meta = entry.object.metadata;
  const made = element("tr", undefined, { tabindex: 0, id: meta.uid });
  const cells = columns.map((c) => entry.cells[c.index]);
  if (all && k.namespaced) cells.unshift(meta.namespace);
  for (const cell of cells) {
    const text = cell === null || cell === undefined ? "" : String(cell);
    made.append(element("td", text, { title: text }));
  }
  made.onclick = () => open(k, meta);
  made.onkeydown = (event) => { if (event.key === "Enter") open(k, meta); };
  return made;
}

// A list as a table, and then what changes of it until another list is looked at.
async function list() {
  if (listing) listing.abort();
  const mine = listing = new AbortController();
  const k = kind, namespace = k.namespaced ? $("namespace").value : "";
  const all = k.namespaced && !namespace;
  const [head, body] = [$("table").tHead, $("table").tBodies[0]];
  $("title").textContent = k.kind;
  for (const link of $("kinds").querySelectorAll("a")) {
    link.toggleAttribute("aria-current", link.hash === `#${idOf(k)}`);
  }
  head.replaceChildren();
  body.replaceChildren();
  const options = { headers: { Accept: TABLE }, signal: mine.signal };
  while (!mine.signal.aborted) {
    try {
      const table = await (await ask(collection(k, namespace), options)).json();
      const columns = table.columnDefinitions.map((c, index) => ({ ...c, index })).filter((c) => c.priority === 0);
      const names = columns.map((c) => c.name);
      head.replaceChildren(element("tr"));
      for (const name of all ? ["Namespace", ...names] : names) head.rows[0].append(element("th", name));
      body.replaceChildren(...(table.rows || []).map((entry) => row(k, columns, entry, all)));
      count(body, k);
      const from = table.metadata.resourceVersion;
      const watch = await ask(`${collection(k, namespace)}?watch=true&resourceVersion=${from}`, options);
      say("live");
      for await (const line of lines(watch)) {
        const event = JSON.parse(line);
        if (event.type === "ERROR") break;
        for (const entry of event.object.rows || []) {
          const old = document.getElementById(entry.object.metadata.uid);
          if (event.type === "DELETED") { if (old) old.remove(); continue; }
          const made = row(k, columns, entry, all);
          if (old) old.replaceWith(made); else body.append(made);
        }
        count(body, k);
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      say(error.message, true);
      if (error.code === 403 || error.code === 404) return;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function count(body, k) {
  $("empty").hidden = body.rows.length > 0;
  $("empty").textContent = `No ${k.plural} here.`;
}

// An object as YAML reads, without a library: only what JSON can be.
function yaml(value, indent = "") {
  if (value === null || typeof value !== "object") {
    const plain = typeof value === "string" && /^[A-Za-z/][\w./:@-]*$/.test(value) && !/:$/.test(value);
    if (typeof value === "string" && value.includes("\n")) {
      return `|\n${value.replace(/\n$/, "").split("\n").map((line) => `${indent}${line}`).join("\n")}`;
    }
    return plain ? value : JSON.stringify(value);
  }
  const entries = Object.entries(value);
  if (!entries.length) return Array.isArray(value) ? "[]" : "{}";
  return entries.map(([key, inner]) => {
    const nested = inner !== null && typeof inner === "object" && Object.keys(inner).length > 0;
    if (Array.isArray(value)) return `${indent}- ${yaml(inner, `${indent}  `).trimStart()}`;
    const deeper = Array.isArray(inner) ? indent : `${indent}  `;
    return `${indent}${key}:${nested ? "\n" : " "}${yaml(inner, nested ? deeper : `${indent}  `)}`;
  }).join("\n");
}

async function open(k, meta) {
  if (shown) shown.abort();
  const mine = shown = new AbortController();
  $("detail").hidden = false;
  $("name").textContent = meta.namespace ? `${k.kind} ${meta.namespace}/${meta.name}` : `${k.kind} ${meta.name}`;
  $("actions").replaceChildren();
  $("tabs").replaceChildren();
  const options = { signal: mine.signal };
  const tabs = { YAML: (options) => showYaml(k, meta, options), Events: (options) => showEvents(meta, options) };
  const act = (name, run) => {
    const button = element("button", name);
    button.onclick = async () => {
      try { await run(); } catch (error) { say(error.message, true); }
    };
    $("actions").append(button, " ");
  };
  if (k.plural === "pods" && !k.group) {
    try {
      const pod = await (await ask(pathOf(k, meta), options)).json();
      for (const container of [...(pod.spec.initContainers || []), ...pod.spec.containers]) {
        tabs[`Log of ${container.name}`] = (options) => showLog(k, meta, container.name, options);
      }
    } catch (error) { say(error.message, true); }
  }
  if (k.subresources.includes("scale")) {
    act("Scale…", async () => {
      const path = `${pathOf(k, meta)}/scale`;
      const scale = await (await ask(path)).json();
      const wanted = prompt(`Replicas of ${meta.name}`, scale.spec.replicas);
      if (wanted === null || !/^\d+$/.test(wanted.trim())) return;
      await patch(path, { spec: { replicas: Number(wanted) } });
      say(`${meta.name} scaled to ${wanted.trim()}`);
    });
  }
  if (RESTARTABLE.includes(k.plural)) {
    act("Restart", async () => {
      const annotations = { "kubectl.kubernetes.io/restartedAt": new Date().toISOString().replace(/\.\d+/, "") };
      await patch(pathOf(k, meta), { spec: { template: { metadata: { annotations } } } });
      say(`${meta.name} restarted`);
    });
  }
  act("Delete…", async () => {
    if (!confirm(`Delete ${k.kind} ${meta.name}?`)) return;
    await ask(pathOf(k, meta), { method: "DELETE" });
    say(`${meta.name} deleted`);
  });
  for (const [name, show] of Object.entries(tabs)) {
    const button = element("button", name);
    button.onclick = async () => {
      for (const other of $("tabs").children) other.setAttribute("aria-pressed", String(other === button));
      $("text").textContent = "";
      if (tab) tab.abort();
      const signal = AbortSignal.any([mine.signal, (tab = new AbortController()).signal]);
      try { await show({ signal }); } catch (error) { if (!signal.aborted) $("text").textContent = error.message; }
    };
    $("tabs").append(button);
  }
  $("tabs").firstChild.click();
}

function patch(path, body) {
  const headers = { "Content-Type": "application/merge-patch+json" };
  return ask(path, { method: "PATCH", headers, body: JSON.stringify(body) });
}

async function showYaml(k, meta, options) {
  const object = await (await ask(pathOf(k, meta), options)).json();
  delete object.metadata.managedFields;
  $("text").textContent = yaml(object);
}

async function showEvents(meta, options) {
  const where = meta.namespace ? `/api/v1/namespaces/${meta.namespace}/events` : "/api/v1/events";
  const list = await (await ask(`${where}?fieldSelector=${encodeURIComponent(`involvedObject.name=${meta.name}`)}`, options)).json();
  const time = (event) => event.lastTimestamp || event.eventTime || event.metadata.creationTimestamp;
  const texts = list.items.sort((a, b) => time(a).localeCompare(time(b)))
    .map((e) => `${time(e)}  ${e.type}  ${e.reason}${e.count > 1 ? ` (${e.count} times)` : ""}: ${e.message}`);
  $("text").textContent = texts.join("\n") || "No events.";
}

async function showLog(k, meta, container, options) {
  const path = `${pathOf(k, meta)}/log?container=${encodeURIComponent(container)}&follow=true&tailLines=500`;
  const answer = await ask(path, options);
  for await (const line of lines(answer)) {
    if (options.signal.aborted) return;
    const text = $("text");
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
    text.append(`${line}\n`);
    if (atEnd) text.scrollTop = text.scrollHeight;
  }
}

async function choose() {
  const wanted = decodeURIComponent(location.hash.slice(1)) || "pods";
  kind = kinds.find((k) => idOf(k) === wanted) || kinds.find((k) => k.plural === "pods") || kinds[0];
  if (kind) await list();
}

async function start() {
  try {
    kinds = await discover();
    showKinds();
    await showNamespaces();
  } catch (error) {
    return say(error.message, true);
  }
  $("namespace").onchange = list;
  $("close").onclick = () => { if (shown) shown.abort(); $("detail").hidden = true; };
  window.onhashchange = choose;
  choose();
}

start();
