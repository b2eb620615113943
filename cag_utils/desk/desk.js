// The desk's page: draws one case, listens to keys, sends marks. viewer.py tells it all that it shows;
// a mark counts when viewer.py has answered that it is on the disk.

const WORDS = {
  en: {
    initials: "Your initials", start: "Start", task: "Task", keys: "Keys", language: "日本語",
    done: "marked", whole: "whole cases", missing: "missing in cases begun", saved: "saved",
    saving: "saving …", unsaved: "NOT SAVED: the server does not answer. Do not go on; load this page again.",
    first: "frame", key: "key frame", loading: "loading cine", still: "still only", hidden: "show",
    save: "Save and next", undo: "Undo", back: "Previous", next: "Next", open: "Next open case",
    all: "Everything is marked. Thank you.", marked: "marked before", again: "Reload the page",
    zoom: "zoom", window: "window", reset: "reset view",
    play: "play or stop", step: "one frame back, on", home: "key frame", pan: "pan", width: "contrast",
    centre: "brightness", leave: "leave the text", choose: "Choose first: ",
  },
  ja: {
    initials: "イニシャル", start: "開始", task: "作業", keys: "キー操作", language: "English",
    done: "件記入", whole: "症例完了", missing: "件、途中の症例で未記入", saved: "保存済み",
    saving: "保存中…", unsaved: "保存できません。サーバーが応答しません。続けずに、このページを再読み込みしてください。",
    first: "フレーム", key: "キーフレーム", loading: "シネ読込中", still: "静止画のみ", hidden: "表示",
    save: "保存して次へ", undo: "取り消し", back: "前へ", next: "次へ", open: "次の未記入へ",
    all: "すべて記入済みです。ありがとうございました。", marked: "記入済み", again: "再読み込み",
    zoom: "拡大", window: "階調", reset: "表示を戻す",
    play: "再生・停止", step: "1フレーム戻る・進む", home: "キーフレーム", pan: "移動", width: "コントラスト",
    centre: "明るさ", leave: "入力を終える", choose: "未選択：",
  },
};
const PATIENCE_MS = 5000; // then a mark without an answer is called unsaved
const CHUNK = 12; // as in viewer.py
const KEPT = 3; // cines held in memory

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

class Viewer {
  constructor(ask, words) {
    this.ask = ask;
    this.words = words;
    this.cines = new Map();
    this.canvas = node("canvas", { class: "desk-picture", "data-drawn": 0 });
    this.note = node("span", { class: "desk-frame" });
    this.slider = node("input", { type: "range", min: 0, "aria-label": "frame", tabindex: -1 });
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    const id = `window-${Math.random().toString(36).slice(2)}`;
    const svg = '<filter id="ID" color-interpolation-filters="sRGB"><feComponentTransfer>'
      + ["R", "G", "B"].map((c) => `<feFunc${c} type="linear"/>`).join("") + "</feComponentTransfer></filter>";
    this.filter = node("div", { class: "desk-filter" });
    this.filter.innerHTML = `<svg width="0" height="0">${svg.replace("ID", id)}</svg>`;
    this.canvas.style.filter = `url(#${id})`;
    this.stage = node("div", { class: "desk-stage" }, this.canvas, this.filter);
    this.fingers = new Map();
    const events = { pointerdown: "press", pointermove: "drag", pointerup: "lift", pointercancel: "lift" };
    for (const [name, method] of Object.entries(events)) {
      this.stage.addEventListener(name, (event) => this[method](event));
    }
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
    this.stage.addEventListener("contextmenu", (event) => event.preventDefault());
    this.centre = 127.5;
    this.width = 255;
    this.reset();
    this.applyWindow();
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.place();
  }

  resetAll() {
    Object.assign(this, { centre: 127.5, width: 255 });
    this.applyWindow();
    this.reset();
  }

  place() {
    this.canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
  }

  zoomBy(factor) {
    this.zoom = Math.min(12, Math.max(1, this.zoom * factor));
    if (this.zoom === 1) Object.assign(this, { x: 0, y: 0 });
    this.place();
  }

  panBy(x, y) {
    this.x += x;
    this.y += y;
    this.place();
  }

  windowBy(width, centre) {
    this.width = Math.min(510, Math.max(16, this.width + width));
    this.centre = Math.min(255, Math.max(0, this.centre + centre));
    this.applyWindow();
  }

  applyWindow() { // grey levels centre - width / 2 to centre + width / 2 become black to white
    for (const part of this.filter.querySelectorAll("feComponentTransfer > *")) {
      part.setAttribute("slope", 255 / this.width);
      part.setAttribute("intercept", 0.5 - this.centre / this.width);
    }
  }

  press(event) {
    this.stage.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, event);
  }

  lift(event) {
    this.fingers.delete(event.pointerId);
  }

  drag(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const moved = [event.clientX - before.clientX, event.clientY - before.clientY];
    const other = [...this.fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    if (other) {
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      this.zoomBy(apart(event) / Math.max(1, apart(before)));
    } else if (event.buttons === 2 || event.shiftKey) this.windowBy(moved[0], -moved[1]);
    else this.panBy(...moved);
    this.fingers.set(event.pointerId, event);
  }

  async show(cine, png) {
    this.stop();
    this.now = cine;
    const held = this.hold(cine);
    this.index = cine.frame;
    this.slider.max = cine.frames - 1;
    this.reset();
    const bitmap = await createImageBitmap(new Blob([png], { type: "image/png" }));
    held.bitmaps[cine.frame] = bitmap; // without loss, in the place of the JPEG
    if (this.now === cine) this.draw();
    this.load();
  }

  hold(cine) {
    const held = this.cines.get(cine.video) ?? { ...cine, bitmaps: new Array(cine.frames) };
    this.cines.delete(cine.video);
    this.cines.set(cine.video, held); // the last used stand last
    for (const name of [...this.cines.keys()].slice(0, -KEPT)) this.cines.delete(name);
    return held;
  }

  missing(held, from) { // in the order in which they would be played
    const numbers = Array.from({ length: held.frames }, (_, i) => (from + i) % held.frames);
    return numbers.filter((i) => !held.bitmaps[i]);
  }

  load() { // one request at a time; first this cine, then the next case's
    if (this.asked || !this.now) return;
    for (const cine of [this.now, this.ahead].filter(Boolean)) {
      const held = cine === this.now ? this.cines.get(cine.video) : this.hold(cine);
      const wanted = held.problem ? [] : this.missing(held, cine.frame).slice(0, CHUNK);
      if (wanted.length) {
        this.asked = cine.video;
        this.ask({ type: "frames", video: cine.video, wanted });
        break;
      }
    }
    this.hold(this.now);
    this.tell();
  }

  async receive(message, buffers) {
    const held = this.cines.get(message.video);
    if (held && message.problem) held.problem = message.problem;
    const coded = buffers.map((data) => createImageBitmap(new Blob([data], { type: "image/jpeg" })));
    (await Promise.all(coded)).forEach((bitmap, i) => {
      if (held) held.bitmaps[message.numbers[i]] ??= bitmap;
    });
    this.asked = null;
    this.load();
  }

  get frames() {
    return this.cines.get(this.now?.video)?.bitmaps ?? [];
  }

  draw() {
    const bitmap = this.frames[this.index];
    if (!bitmap) return;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      Object.assign(this.canvas, { width: bitmap.width, height: bitmap.height });
    }
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.canvas.dataset.drawn = Number(this.canvas.dataset.drawn) + 1;
    this.slider.value = this.index;
    this.tell();
  }

  tell() {
    const word = this.words(), total = this.now.frames;
    const loaded = total - this.missing(this.cines.get(this.now.video), 0).length;
    const states = [`${word.first} ${this.index + 1} / ${total}`];
    if (this.index === this.now.frame) states.push(`◆ ${word.key}`);
    if (total === 1) states.push(word.still);
    else if (this.cines.get(this.now.video).problem) states.push(`⚠ ${this.cines.get(this.now.video).problem}`);
    else if (loaded < total) states.push(`${word.loading} ${loaded}`);
    this.note.textContent = states.join("  ·  ");
    Object.assign(this.canvas.dataset, { frame: this.index, loaded, frames: total });
  }

  go(index) {
    this.stop();
    const total = this.now.frames;
    this.index = ((index % total) + total) % total;
    this.draw();
  }

  stop() {
    this.playing = null;
    this.canvas.dataset.playing = 0;
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.now.frames < 2) return;
    let due = performance.now() + this.now.frame_ms;
    const run = (this.playing = () => {
      if (this.playing !== run) return; // stopped, or started anew
      if (performance.now() >= due - 1) {
        const next = (this.index + 1) % this.now.frames;
        due = Math.max(due + this.now.frame_ms, performance.now() - this.now.frame_ms);
        if (this.frames[next]) {
          this.index = next;
          this.draw();
        }
      }
      requestAnimationFrame(run);
    });
    this.canvas.dataset.playing = 1;
    requestAnimationFrame(run);
  }
}

class DeskPage {
  constructor(model, el) {
    Object.assign(this, { model, el });
    this.language = navigator.language.startsWith("ja") ? "ja" : "en";
    this.root = node("div", { class: "desk", tabindex: 0, "data-lm-suppress-shortcuts": true });
    if (document.body.dataset.voila || location.pathname.includes("/voila")) {
      this.root.classList.add("desk-whole"); // a page of its own: nothing of the notebook shows
    }
    el.append(this.root);
    this.viewer = new Viewer((message) => this.send(message), () => this.words);
    this.heard = (message, buffers) => this.hear(message, buffers);
    model.on("msg:custom", this.heard);
    this.listen = (event) => this.press(event);
    document.addEventListener("keydown", this.listen, true);
    this.clock = setInterval(() => this.tick(), 1000);
    this.beat = setInterval(() => this.state && this.send({ type: "stay" }), 20000);
    this.welcome();
  }

  stop() {
    this.send({ type: "leave" });
    this.model.off("msg:custom", this.heard);
    document.removeEventListener("keydown", this.listen, true);
    clearInterval(this.clock);
    clearInterval(this.beat);
  }

  get words() {
    return WORDS[this.language];
  }

  say(words) {
    return words[this.language] ?? words.en;
  }

  send(message) {
    this.model.send(message);
  }

  welcome(problem = "") {
    const tasks = this.model.get("tasks");
    const task = node("select", { "aria-label": this.words.task });
    task.append(...tasks.map((title, i) => node("option", { value: i }, this.say(title))));
    const reader = node("input", { name: "reader", autocomplete: "off", maxlength: 12, size: 12 });
    const begin = (event) => {
      event.preventDefault();
      this.send({ type: "start", reader: reader.value, task: Number(task.value) });
    };
    const form = node("form", { class: "desk-welcome", onsubmit: begin },
      node("h1", {}, this.say(tasks[0])), node("label", {}, this.words.initials, reader),
      tasks.length > 1 ? node("label", {}, this.words.task, task) : "",
      node("button", { class: "desk-main", type: "submit" }, this.words.start),
      node("button", { type: "button", onclick: () => this.switchLanguage() }, this.words.language),
      node("p", { class: "desk-problem", role: "alert" }, problem));
    this.root.replaceChildren(form);
    reader.focus();
  }

  switchLanguage() {
    this.language = this.language === "en" ? "ja" : "en";
    if (!this.state) return this.welcome();
    this.build();
    if (this.case) this.fill();
  }

  hear(message, buffers) {
    const after = { saved: () => this.forward(), undone: () => this.ask(message.position) };
    if (message.type === "started") {
      this.fields = message.fields;
      this.state = message;
      this.build();
      this.ask(this.nextOpen(0));
    } else if (message.type in after) {
      clearTimeout(this.waiting);
      this.waiting = null;
      Object.assign(this.state, message);
      this.status(`✓ ${this.words.saved} ${new Date().toLocaleTimeString()}`);
      after[message.type]();
    } else if (message.type === "case") {
      this.case = message;
      this.values = { ...message.values };
      this.seconds = 0;
      this.viewer.ahead = message.ahead;
      this.viewer.show(message, buffers[0]);
      this.fill();
    } else if (message.type === "frames") this.viewer.receive(message, buffers);
    else if (message.type === "hints") this.showHints(message);
    else if (message.type === "problem") this.fail(message.text);
  }

  fail(text) {
    clearTimeout(this.waiting);
    this.waiting = null;
    if (this.state) this.status(`⚠ ${text}`, true);
    else this.welcome(text);
  }

  status(text, bad = false) {
    this.saved.textContent = text;
    this.saved.classList.toggle("desk-problem", bad);
  }

  tick() {
    if (!this.case || document.hidden) return;
    this.seconds += 1;
    const rest = String(this.seconds % 60).padStart(2, "0");
    this.timer.textContent = `${Math.floor(this.seconds / 60)}:${rest}`;
  }

  nextOpen(from) {
    const { done } = this.state, n = done.length;
    for (let i = 0; i < n; i += 1) if (!done[(from + i) % n]) return (from + i) % n;
    return Math.min(from, n - 1);
  }

  forward() {
    this.ask(this.nextOpen(this.case.position + 1));
    if (this.state.done.every(Boolean)) this.status(`✓ ${this.words.all}`);
  }

  ask(position) {
    if (position >= 0 && position < this.state.done.length) this.send({ type: "ask", position });
  }

  build() {
    const word = this.words, view = this.viewer;
    const button = (text, title, act) => node("button", { title, "aria-label": title, tabindex: -1, onclick: act }, text);
    this.progress = node("progress", { max: this.state.done.length });
    [this.counts, this.timer, this.saved] = ["counts", "timer", "saved"].map((name) =>
      node("span", { class: `desk-${name}`, role: name === "saved" ? "status" : false }));
    const bar = node("header", {}, node("b", {}, this.state.reader), this.progress, this.counts, this.timer,
      this.saved, button("?", word.keys, () => this.help.classList.toggle("desk-open")),
      button(word.language, word.language, () => this.switchLanguage()));
    const cine = node("div", { class: "desk-cine" }, button("‹", word.step, () => view.go(view.index - 1)),
      button("▶", word.play, () => view.toggle()), button("›", word.step, () => view.go(view.index + 1)), view.slider,
      button("◆", word.home, () => view.go(view.now.frame)), button("＋", word.zoom, () => view.zoomBy(1.3)),
      button("－", word.zoom, () => view.zoomBy(1 / 1.3)), button("◐", word.width, () => view.windowBy(-24, 0)),
      button("◑", word.width, () => view.windowBy(24, 0)), button("☀", word.centre, () => view.windowBy(0, -10)),
      button("☾", word.centre, () => view.windowBy(0, 10)), button("⟲", word.reset, () => view.resetAll()));
    this.form = node("div", { class: "desk-form" });
    this.texts = node("div", { class: "desk-texts" });
    const feet = node("footer", {}, button(`← ${word.back}`, "P", () => this.ask(this.case.position - 1)),
      button(`${word.next} →`, "N", () => this.ask(this.case.position + 1)),
      button(word.open, "O", () => this.ask(this.nextOpen(this.case.position + 1))),
      button(`↶ ${word.undo}`, "U", () => this.undo()));
    this.help = node("aside", { class: "desk-keys" });
    const left = node("section", { class: "desk-left" }, view.stage, cine, view.note);
    const right = node("section", { class: "desk-right" }, this.texts, this.form, feet, this.help);
    this.root.replaceChildren(bar, node("main", {}, left, right));
    this.listKeys();
    if (!matchMedia("(max-width: 900px)").matches) this.help.classList.add("desk-open");
    this.root.focus();
  }

  listKeys() {
    const word = this.words;
    const rows = this.fields.flatMap((field) => [
      ...(field.key ? [[field.key, this.say(field.label)]] : []),
      ...(field.options.length > 7 // a score
        ? [[`${field.options[0][1]} … ${field.options.at(-1)[1]}`.toUpperCase(), this.say(field.label)]]
        : field.options.map(([, key, label]) => [key, this.say(label)])),
    ]);
    if (!this.fields.some((field) => field.saves)) rows.push(["Enter", word.save]);
    rows.push(["Space", word.play], ["← →", word.step], ["Home", word.home], ["+ −", word.zoom],
      ["Shift ←↑↓→", word.pan], ["[ ]", word.width], [", .", word.centre], ["/", word.reset],
      ["P N", `${word.back}, ${word.next}`], ["O", word.open], ["U", word.undo], ["Esc", word.leave], ["?", word.keys]);
    const list = node("dl", {});
    for (const [key, label] of rows) {
      list.append(node("dt", {}, node("kbd", {}, key.length === 1 ? key.toUpperCase() : key)), node("dd", {}, label));
    }
    this.help.replaceChildren(node("h2", {}, word.keys), list);
  }

  fill() {
    const word = this.words, { done } = this.state;
    this.progress.value = done.filter(Boolean).length;
    const counts = [`${this.case.position + 1} / ${done.length}`, `${this.progress.value} ${word.done}`];
    if (this.case.of > 1) counts.push(`${this.state.whole} / ${this.state.cases} ${word.whole}`);
    if (this.state.missing) counts.push(`${this.state.missing} ${word.missing}`);
    this.counts.textContent = counts.join("  ·  ");
    this.texts.replaceChildren(...this.case.texts.map(([title, body, hidden]) => {
      const name = this.say(title), text = node("p", {}, body || "–");
      if (hidden) return node("details", {}, node("summary", {}, `${name} (${word.hidden}: V)`), text);
      return node("article", {}, node("h2", {}, name), text);
    }));
    this.form.replaceChildren(...this.fields.map((field) => this.control(field)));
    if (!this.fields.some((field) => field.saves)) {
      this.form.append(node("button", { class: "desk-main", tabindex: -1, onclick: () => this.mark() }, `${word.save} ⏎`));
    }
    this.form.classList.toggle("desk-marked", this.case.marked);
    if (this.case.marked) this.form.prepend(node("p", { class: "desk-note" }, `✓ ${word.marked}`));
    this.fields.filter((field) => field.checked).forEach((field) => this.askHints(field.name));
    this.tick();
  }

  control(field) {
    const value = this.values[field.name];
    const title = this.say(field.label) + (field.key ? ` [${field.key.toUpperCase()}]` : "");
    const box = node("div", { class: `desk-field desk-${field.kind}`, "data-field": field.name });
    if (field.kind === "text") {
      const area = node("textarea", { rows: 3, "aria-label": title });
      area.value = value;
      area.addEventListener("input", () => {
        this.values[field.name] = area.value;
        clearTimeout(this.typing);
        this.typing = setTimeout(() => field.checked && this.askHints(field.name), 250);
      });
      box.append(node("label", {}, title), area, node("ul", { class: "desk-hints", "aria-live": "polite" }));
    } else if (field.kind === "flag") {
      const on = value === "1";
      box.append(node("button", { role: "switch", "aria-checked": String(on), tabindex: -1, onclick: () => this.set(field, on ? "0" : "1") },
        `${on ? "☑" : "☐"} ${title}`));
    } else {
      box.append(node("label", {}, title), node("div", { class: field.options.length > 7 ? "desk-row" : "desk-grid", role: "radiogroup" },
        ...field.options.map(([name, key, label]) => node("button", {
          role: "radio", "aria-checked": String(value === name), "data-value": name, tabindex: -1, onclick: () => this.set(field, name),
        }, this.say(label), key === this.say(label) ? "" : node("kbd", {}, key.toUpperCase())))));
    }
    return box;
  }

  set(field, value) {
    this.values[field.name] = value;
    this.form.querySelector(`[data-field=${field.name}]`).replaceWith(this.control(field));
    if (field.saves) this.mark();
  }

  askHints(name) {
    this.send({ type: "hint", position: this.case.position, field: name, text: this.values[name] });
  }

  showHints({ field, hints }) {
    const list = this.form.querySelector(`[data-field=${field}] .desk-hints`);
    list?.replaceChildren(...hints.map((hint) => node("li", {}, `⚠ ${this.say(hint)}`)));
  }

  mark() {
    const lacking = this.fields.find((field) => field.kind === "choice" && !this.values[field.name]);
    if (lacking) return this.status(`⚠ ${this.words.choose}${this.say(lacking.label)}`, true);
    if (this.waiting) return undefined;
    const values = { ...this.values };
    for (const field of this.fields) if (field.kind === "flag") values[field.name] ||= "0";
    this.wait({ type: "mark", position: this.case.position, values, seconds: this.seconds });
    return undefined;
  }

  undo() { // this case's mark, or else the last one
    const position = this.case.marked ? this.case.position : this.state.last;
    if (position >= 0 && !this.waiting) this.wait({ type: "undo", position });
  }

  wait(message) {
    this.status(this.words.saving);
    this.waiting = setTimeout(() => this.status(`✗ ${this.words.unsaved}`, true), PATIENCE_MS);
    try {
      this.send(message);
    } catch {
      this.status(`✗ ${this.words.unsaved}`, true);
    }
  }

  press(event) {
    const inside = this.root.classList.contains("desk-whole") || this.root.contains(document.activeElement);
    if (!this.case || !inside || event.altKey || event.metaKey) return;
    const typing = /^(TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (typing && event.key === "Escape") this.root.focus();
    else if (typing && event.ctrlKey && event.key === "Enter") this.root.focus();
    else if (typing || event.ctrlKey) return;
    else {
      const act = this.action(event.key.length === 1 ? event.key.toLowerCase() : event.key, event.shiftKey);
      if (!act) return;
      act();
    }
    event.preventDefault();
    event.stopPropagation();
  }

  action(key, shifted) {
    const view = this.viewer, step = 40;
    const pans = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (shifted && key in pans) return () => view.panBy(...pans[key]);
    for (const field of this.fields) {
      const option = field.options.find(([, name]) => name === key);
      if (option) return () => this.set(field, option[0]);
      if (field.key === key && field.kind === "flag") return () => this.set(field, this.values[field.name] === "1" ? "0" : "1");
      if (field.key === key) return () => this.form.querySelector(`[data-field=${field.name}] textarea`).focus();
    }
    return {
      " ": () => view.toggle(), ArrowLeft: () => view.go(view.index - 1), ArrowRight: () => view.go(view.index + 1),
      Home: () => view.go(view.now.frame), "+": () => view.zoomBy(1.3), ";": () => view.zoomBy(1.3),
      "=": () => view.zoomBy(1.3), "-": () => view.zoomBy(1 / 1.3), "[": () => view.windowBy(-24, 0),
      "]": () => view.windowBy(24, 0), ",": () => view.windowBy(0, 10), ".": () => view.windowBy(0, -10),
      "/": () => view.resetAll(), p: () => this.ask(this.case.position - 1), n: () => this.ask(this.case.position + 1),
      o: () => this.ask(this.nextOpen(this.case.position + 1)), u: () => this.undo(),
      v: () => this.texts.querySelectorAll("details").forEach((one) => { one.open = !one.open; }),
      "?": () => this.help.classList.toggle("desk-open"),
      Enter: () => !this.fields.some((field) => field.saves) && this.mark(),
    }[key];
  }
}

export default {
  render({ model, el }) {
    const page = new DeskPage(model, el);
    return () => page.stop();
  },
};
