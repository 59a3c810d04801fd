"use strict";

// The page has two pieces of data: `facts`, a JSON object, and `arrays`, the bytes of all arrays,
// deflated, in base64. Whatever comes from the prompt is put into the page as text, never as markup.
(async () => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const buffer = await inflated(byId("arrays").textContent);
  const { tokens, texts, layers, heads, windows } = facts;
  const count = tokens.length;
  const MEAN = -1; // the head that stands for the mean of all
  const state = { token: facts.start, layer: facts.startLayer, head: MEAN };

  // The address holds what is selected, so that a link leads to it: #token=5&layer=2&head=0.
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [name, low, size] of [["token", 0, count], ["layer", 0, layers], ["head", MEAN, heads]]) {
      const text = given.get(name) ?? "";
      const value = Number(text);
      if (/^-?\d+$/.test(text) && value >= low && value < size) state[name] = value;
    }
  }

  function writeAddress() {
    const { token, layer, head } = state;
    const hash = `#token=${token}&layer=${layer}` + (head === MEAN ? "" : `&head=${head}`);
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }

  // --- data ----------------------------------------------------------------------------------

  async function inflated(base64) {
    const bytes = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  function array(name) {
    const { type, shape, begin } = facts.arrays[name];
    const kinds = {
      int8: Int8Array, int16: Int16Array, int32: Int32Array, uint8: Uint8Array,
      uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array,
    };
    return new kinds[type](buffer, begin, shape.reduce((a, b) => a * b, 1));
  }

  // Row `at` (of the leading axes, joined) of an array whose last axis is `width`.
  const row = (values, at, width) => values.subarray(at * width, (at + 1) * width);

  const all = {};
  for (const name of ["sinks", "experts", "expert_weights", "margins", "lens", "lens_chances",
    "next_chances", "next_ranks", "final", "final_chances"]) all[name] = array(name);
  const width = (name) => facts.arrays[name].shape.at(-1);

  const maps = new Map(); // of a layer's attention: made when first looked at
  function attentionMap(layer) {
    if (!maps.has(layer)) {
      const [counts, distances, weights] = ["counts", "distances", "weights"].map(
        (part) => array(`attention.${layer}.${part}`));
      const begins = new Uint32Array(counts.length + 1);
      counts.forEach((n, i) => { begins[i + 1] = begins[i] + n; });
      maps.set(layer, { begins, distances, weights });
    }
    return maps.get(layer);
  }

  // What one head reads from one token: its keys, largest first, the sink, and what was not kept.
  function reading(layer, head, token) {
    const map = attentionMap(layer);
    const at = head * count + token;
    const keys = [];
    let rest = 1 - all.sinks[(layer * heads + head) * count + token] / 65535;
    const sink = 1 - rest;
    for (let i = map.begins[at]; i < map.begins[at + 1]; i++) {
      keys.push({ key: token - map.distances[i], weight: map.weights[i] / 255 });
      rest -= map.weights[i] / 255;
    }
    return { keys: sorted(keys), sink, rest: Math.max(0, rest) };
  }

  function meanReading(readings) {
    const total = new Map();
    const mean = (of) => readings.reduce((sum, one) => sum + of(one), 0) / readings.length;
    for (const one of readings) {
      for (const { key, weight } of one.keys) {
        total.set(key, (total.get(key) ?? 0) + weight / readings.length);
      }
    }
    const keys = [...total].map(([key, weight]) => ({ key, weight }));
    return { keys: sorted(keys), sink: mean((one) => one.sink), rest: mean((one) => one.rest) };
  }

  const sorted = (keys) => keys.sort((a, b) => b.weight - a.weight || b.key - a.key);

  // --- words ---------------------------------------------------------------------------------

  const text = (id) => texts[id];
  const visible = (id) => text(id).replaceAll(" ", "␣"); // where no other token stands beside it
  const quoted = (id) => `“${visible(id)}”`;
  const headName = (head) => (head === MEAN ? "mean" : `head ${head}`);

  function percent(x) {
    if (x > 0 && x < 0.0005) return "<0.1 %";
    return `${x < 0.0995 && x > 0 ? (100 * x).toFixed(1) : Math.round(100 * x)} %`;
  }

  // A probability of a softmax is never 0, though its multiple of 1/65535 may be.
  const chance = (units) => (units ? percent(units / 65535) : "<0.1 %");

  function windowText(layer) {
    return windows[layer] === null ? "full: sees every token before it"
      : `window: sees ${windows[layer]} tokens, itself included`;
  }

  // --- elements ------------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function fill(id, ...children) { byId(id).replaceChildren(...children); }

  // Shade of a weight: its square root. Where text on it turns over, in light (deep) and in dark
  // (half), black and white have the same contrast to it, 4.6; from mid on it is all black or white.
  function shade(element, weight) {
    const w = Math.sqrt(weight);
    element.style.setProperty("--w", w.toFixed(3));
    for (const [name, least] of [["mid", 0.45], ["half", 0.563], ["deep", 0.67]]) {
      element.classList.toggle(name, w >= least);
    }
  }

  function meter(part) {
    const element = make("span", { class: "meter" });
    element.style.setProperty("--part", Math.min(1, part));
    return element;
  }

  const word = (id) => make("span", { class: "text", title: visible(id) }, visible(id));

  function table(caption, columns, rows) {
    const head = make("tr", {}, ...columns.map(([name, kind]) =>
      make("th", { scope: "col", class: kind }, name)));
    return make("table", {}, ...(caption ? [make("caption", {}, caption)] : []),
      make("thead", {}, head), make("tbody", {}, ...rows));
  }

  // --- tokens, layers and heads to choose from -------------------------------------------------

  const special = new Set(facts.special);
  const elements = [];

  function buildTokens() {
    const groups = facts.messages.map((message) => {
      const said = make("div", { class: "said" });
      for (let i = message.begin; i < message.end; i++) {
        const element = make("span", { role: "option", class: "token", tabindex: "-1" },
          text(tokens[i]));
        element.classList.toggle("special", special.has(tokens[i]));
        element.classList.toggle("header", "body" in message && i < message.body);
        element.setAttribute("aria-label", `${i}: ${visible(tokens[i])}`);
        elements.push(element);
        said.append(element);
        if (text(tokens[i]).endsWith("↵")) said.append(make("br"));
      }
      const { role, channel, to, name } = message;
      const words = [name ? `${role} ${name}` : role ?? "text", channel, to && `to ${to}`];
      const who = make("div", { class: "who", "aria-hidden": "true" }, make("b", {}, words[0]),
        make("span", {}, words.slice(1).filter(Boolean).join(" ")));
      return make("div", {
        role: "group", class: "message", "data-channel": channel ?? "",
        "aria-label": words.filter(Boolean).join(", "),
      }, who, said);
    });
    fill("tokens", ...groups);
  }

  // Arrow keys within a group of elements of which one is chosen; only that one has a tab stop.
  function roving(container, list, choose, moves = {}) {
    container.addEventListener("click", (event) => {
      const at = list.findIndex((element) => element.contains(event.target));
      if (at >= 0) choose(at);
    });
    container.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const now = list.findIndex((element) => element.tabIndex === 0);
      const usual = {
        ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1,
        Home: 0, End: list.length - 1,
      };
      const to = event.key in moves ? moves[event.key](now) : usual[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(list.length - 1, to)));
    });
  }

  function mark(list, chosen, attribute, focus) {
    list.forEach((element, i) => {
      element.setAttribute(attribute, i === chosen);
      element.tabIndex = i === chosen ? 0 : -1;
    });
    if (focus) list[chosen].focus({ preventScroll: true });
  }

  // The token above or below: on the next line in that direction, nearest to the middle of this one.
  function onLine(now, direction) {
    const middle = (element) => element.offsetLeft + element.offsetWidth / 2;
    let best = now;
    let top = null;
    for (let i = now + direction; elements[i]; i += direction) {
      if (elements[i].offsetTop === elements[now].offsetTop) continue;
      top ??= elements[i].offsetTop;
      if (elements[i].offsetTop !== top) break;
      const distance = (j) => Math.abs(middle(elements[j]) - middle(elements[now]));
      if (best === now || distance(i) < distance(best)) best = i;
    }
    return best;
  }

  function messageFrom(now, direction) {
    const begins = facts.messages.map((message) => message.begin);
    return direction > 0 ? begins.find((begin) => begin > now) ?? count - 1
      : begins.findLast((begin) => begin < now) ?? 0;
  }

  const layerButtons = windows.map((window, n) => make("div", {
    role: "radio", class: window === null ? "layer" : "layer windowed",
    "aria-label": `layer ${n}, ${windowText(n)}`,
  }, `${n}`));

  const headRows = [];
  for (let head = MEAN; head < heads; head++) {
    headRows.push(make("div", { role: "radio", class: "head" }));
  }

  function choose(change, focus) {
    Object.assign(state, change);
    draw();
    const [list, at] = {
      token: [elements, state.token], layer: [layerButtons, state.layer],
      head: [headRows, state.head + 1],
    }[focus];
    mark(list, at, focus === "token" ? "aria-selected" : "aria-checked", true);
    list[at].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  // --- drawing ---------------------------------------------------------------------------------

  function draw() {
    const { token, layer, head } = state;
    const readings = Array.from({ length: heads }, (_, h) => reading(layer, h, token));
    const shown = [meanReading(readings), ...readings];
    drawTokens(shown[head + 1]);
    drawHeads(shown);
    drawExperts();
    drawLens();
    drawNext();
    mark(elements, token, "aria-selected");
    mark(layerButtons, layer, "aria-checked");
    mark(headRows, head + 1, "aria-checked");
    writeAddress();
    byId("back").disabled = token === 0;
    byId("on").disabled = token === count - 1;
    fill("status", `Token ${token} of ${count - 1}: `, make("b", { class: "text" }, visible(tokens[token])));
  }

  function drawTokens(read) {
    const { token, layer } = state;
    const weights = new Map(read.keys.map(({ key, weight }) => [key, weight]));
    const first = windows[layer] === null ? 0 : token - windows[layer] + 1;
    elements.forEach((element, i) => {
      shade(element, weights.get(i) ?? 0);
      element.classList.toggle("unseen", !weights.has(i) && (i < first || i > token));
      element.title = `${i}: ${percent(weights.get(i) ?? 0)}`;
    });
  }

  function drawHeads(shown) {
    const { token, layer, head } = state;
    const kept = facts.kept === null ? "" : ` Only the ${facts.kept} largest weights of each head are kept.`;
    byId("attention-note").textContent = `Layer ${layer}, ${windowText(layer)}.${kept}`;
    shown.forEach((read, at) => {
      const name = headName(at - 1);
      const parts = [];
      const part = (kind, size, weight, content = "") => {
        const element = make("span", { class: `part ${kind}` }, content);
        element.style.setProperty("--part", size.toFixed(4));
        if (kind === "one") shade(element, weight);
        parts.push(element);
      };
      const large = read.keys.filter(({ weight }) => weight >= 0.02).slice(0, 12);
      for (const { key, weight } of large) {
        part("one", weight, weight, weight >= 0.06 ? visible(tokens[key]) : "");
      }
      part("rest", Math.max(0, 1 - read.sink - large.reduce((sum, one) => sum + one.weight, 0)), 0);
      part("sink", read.sink, 0);
      headRows[at].replaceChildren(
        make("span", { class: "name" }, at ? `${at - 1}` : "mean"),
        make("span", { class: "parts" }, ...parts),
        make("span", { class: "value" }, make("span", { class: "long" }, "sink "), percent(read.sink)));
      const best = read.keys.slice(0, 3).map(({ key, weight }) =>
        `${quoted(tokens[key])} ${percent(weight)}`);
      headRows[at].setAttribute("aria-label",
        `${name}: sink ${percent(read.sink)}; ${best.join(", ") || "no key above 0.2 %"}`);
    });
    const read = shown[head + 1];
    const rows = read.keys.slice(0, 8).map(({ key, weight }) => make("tr", {},
      make("td", { class: "number" }, `${key}`), make("td", {}, word(tokens[key])),
      make("td", { class: "wide" }, meter(weight)), make("td", { class: "number" }, percent(weight))));
    const others = 1 - read.sink - read.keys.slice(0, 8).reduce((sum, one) => sum + one.weight, 0);
    const extra = (name, value) => make("tr", { class: `other ${name}` }, make("td"), make("td", {}, name),
      make("td", { class: "wide" }, meter(value)), make("td", { class: "number" }, percent(value)));
    fill("reads", table(
      `What token ${token} reads, ${head === MEAN ? "mean of all heads" : `head ${head}`}`,
      [["key", "number"], ["token", ""], ["weight", ""], ["", ""]],
      [...rows, extra("others", Math.max(0, others)), extra("sink", read.sink)]));
  }

  function drawExperts() {
    const { token, layer } = state;
    const at = layer * count + token;
    const ids = row(all.experts, at, width("experts"));
    const weights = row(all.expert_weights, at, facts.chosen);
    const rows = Array.from(weights, (weight, i) => make("tr", {},
      make("td", { class: "number" }, `${ids[i]}`),
      make("td", { class: "wide" }, meter(weight / 65535)),
      make("td", { class: "number" }, percent(weight / 65535))));
    if (ids.length > facts.chosen) {
      rows.push(make("tr", { class: "other" },
        make("td", { class: "number" }, `${ids[facts.chosen]}`),
        make("td", { class: "wide" }, "not chosen"),
        make("td", { class: "number" }, `−${all.margins[at].toPrecision(3)}`.replace("−-", "+"))));
    }
    byId("experts-note").textContent = ids.length > facts.chosen
      ? `${facts.chosen} of ${facts.experts}; the next best missed by a margin of ${all.margins[at].toPrecision(3)} in the router's logits.`
      : `All ${facts.experts} are chosen.`;
    fill("experts", table("", [["expert", "number"], ["weight", ""], ["", ""]], rows));
    drawMap();
  }

  // A dot for each layer and expert; the chosen ones are larger the more they weigh.
  function drawMap() {
    const { token, layer } = state;
    const cell = Math.max(9, Math.min(20, Math.floor(320 / facts.experts)));
    const left = 24;
    const svg = (tag, attributes, content = "") => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      element.append(content);
      return element;
    };
    const wide = left + cell * facts.experts + 2;
    const tall = cell * layers + 18;
    const picture = svg("svg", { width: wide, height: tall, viewBox: `0 0 ${wide} ${tall}`, role: "img" });
    const said = [];
    for (let n = 0; n < layers; n++) {
      const y = cell * (n + 0.5);
      if (cell > 11 || n % 4 === 0) {
        picture.append(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, `${n}`));
      }
      const at = n * count + token;
      const ids = Array.from(row(all.experts, at, width("experts"))).slice(0, facts.chosen);
      const weights = row(all.expert_weights, at, facts.chosen);
      said.push(`layer ${n}: ${ids.join(", ")}`);
      for (let expert = 0; expert < facts.experts; expert++) {
        const place = ids.indexOf(expert);
        const on = place >= 0;
        const radius = on ? (0.2 + 0.28 * Math.sqrt(weights[place] / 65535)) * cell : 1;
        const dot = svg("circle", {
          class: on ? "on" : "off", cx: left + cell * (expert + 0.5), cy: y, r: radius.toFixed(2),
        });
        if (on) dot.append(svg("title", {}, `layer ${n}, expert ${expert}: ${percent(weights[place] / 65535)}`));
        picture.append(dot);
      }
    }
    for (let expert = 0; expert < facts.experts; expert += facts.experts > 40 ? 16 : 4) {
      picture.append(svg("text", {
        x: left + cell * (expert + 0.5), y: tall - 4, "text-anchor": "middle",
      }, `${expert}`));
    }
    picture.append(svg("rect", {
      class: "row", x: left, y: cell * layer + 0.5, width: cell * facts.experts, height: cell - 1, rx: 4,
    }));
    if (facts.experts > 40) picture.classList.add("long");
    picture.setAttribute("aria-label", `Experts chosen in each layer. ${said.join("; ")}`);
    fill("map", picture);
  }

  function drawLens() {
    const { token, layer } = state;
    const size = width("lens");
    const last = token === count - 1;
    const came = tokens[token + 1];
    byId("lens-note").textContent = last
      ? "What the model would say next if it ended after this layer."
      : `What the model would say next if it ended after this layer. What came is ${quoted(came)}.`;
    const rows = [];
    for (let n = 0; n <= layers; n++) {
      const ids = row(all.lens, n * count + token, size);
      const chances = row(all.lens_chances, n * count + token, size);
      const guesses = Array.from(ids.subarray(0, 3), (id, i) => {
        const element = make("span", { class: id === came && !last ? "guess came" : "guess" },
          word(id), make("span", { class: "share" }, chance(chances[i])));
        element.style.setProperty("--part", (chances[i] / 65535).toFixed(4));
        return element;
      });
      const cells = [
        make("th", { scope: "row" }, n ? `${n - 1}` : "none"),
        make("td", {}, make("div", { class: "guesses" }, ...guesses)),
      ];
      if (!last) {
        const at = n * (count - 1) + token;
        cells.push(make("td", { class: "number" }, chance(all.next_chances[at])),
          make("td", { class: "number" }, `${all.next_ranks[at] + 1}`));
      }
      rows.push(make("tr", { class: n === layer + 1 ? "chosen" : "" }, ...cells));
    }
    const columns = [["after layer", "first"], ["likeliest", ""]];
    if (!last) columns.push(["came", "number"], ["rank", "number"]);
    fill("lens", table("", columns, rows));
  }

  function drawNext() {
    const { token } = state;
    const last = token === count - 1;
    const came = tokens[token + 1];
    const size = width("final");
    const ids = row(all.final, token, size);
    const chances = row(all.final_chances, token, size);
    byId("next-note").textContent = last ? "Nothing came: this is the last token."
      : `What came: ${quoted(came)}, rank ${all.next_ranks[layers * (count - 1) + token] + 1}.`;
    fill("next", table("", [["token", ""], ["probability", ""], ["", ""]],
      Array.from(ids.filter((_, i) => i < 5 || chances[i] >= 66), (id, i) => make("tr", { class: id === came && !last ? "came" : "" },
        make("td", {}, word(id), id === came && !last
          ? make("span", { class: "came-word" }, " came") : ""),
        make("td", { class: "wide" }, meter(chances[i] / 65535)),
        make("td", { class: "number" }, chance(chances[i]))))));
  }

  // --- once ------------------------------------------------------------------------------------

  const sizes = { token: count, layer: layers, head: heads, expert: facts.experts };
  byId("about").textContent = [
    ...Object.entries(sizes).map(([name, n]) => `${n.toLocaleString("en")} ${name}${n === 1 ? "" : "s"}`),
    facts.policy,
  ].join(" · ");
  byId("exact").textContent = `Computed by ${facts.producer}. Attention weights are rounded to 1/255,`
    + ` other fractions to 1/65535; sinks are exact to that.`;
  buildTokens();
  fill("layers", ...layerButtons);
  fill("heads", ...headRows);
  roving(byId("tokens"), elements, (token) => choose({ token }, "token"), {
    ArrowUp: (now) => onLine(now, -1), ArrowDown: (now) => onLine(now, 1),
    PageUp: (now) => messageFrom(now, -1), PageDown: (now) => messageFrom(now, 1),
  });
  roving(byId("layers"), layerButtons, (layer) => choose({ layer }, "layer"));
  roving(byId("heads"), headRows, (at) => choose({ head: at - 1 }, "head"));
  for (const [id, step] of [["back", -1], ["on", 1]]) {
    byId(id).addEventListener("click", () => {
      state.token = Math.max(0, Math.min(count - 1, state.token + step));
      draw();
      elements[state.token].scrollIntoView({ block: "nearest" });
    });
  }
  for (const element of document.querySelectorAll("#prompt, main, footer")) element.hidden = false;
  readAddress();
  draw();
  elements[state.token].scrollIntoView({ block: "center" });
  window.scrollTo(0, 0);
  window.addEventListener("hashchange", () => {
    state.head = MEAN;
    readAddress();
    draw();
    elements[state.token].scrollIntoView({ block: "nearest" });
  });
  document.documentElement.dataset.ready = "yes";
})().catch((error) => {
  const failed = document.getElementById("failed");
  failed.textContent = `This page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`;
  failed.hidden = false;
});
