// The conversation: every question goes to all ticked checkpoints at once, each with its own history.
import { clipView, readClip, record } from "./clips.js";
import { $, button, copy, el, markdown } from "./elements.js";
import { answerOf } from "./stream.js";

let turns = []; // {words, clips, view, answers: model -> {view, text, note, state: waiting, done, failed, or none}}
let clips = []; // of the question that is being written
let reading = Promise.resolve(); // clips on their way
let limits = {};
let replaced = null; // the turn that is being edited
let stopper = null; // of the answers that are on their way
let endRecording = null;

const chosen = () => [...document.querySelectorAll("#models input:checked")].map((box) => box.value);
const say = (text) => { $("status").textContent = text; };

const copyOut = (text) => copy(text).then(() => say("copied"));
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

function showKind() {
  const words = $("text").value.trim();
  $("kind").textContent = clips.length ? (words ? "audio analysis" : "voice chat") : words ? "text alone" : "";
}

function showClips() {
  $("clips").replaceChildren(...clips.map((clip) => clipView(clip, () => {
    clips = clips.filter((each) => each !== clip);
    if (!turns.some((turn) => turn.clips.includes(clip))) URL.revokeObjectURL(clip.url);
    showClips();
    $("text").focus();
  })));
  showKind();
}

function addClip(blob, name) {
  reading = reading.then(async () => {
    try {
      clips = [...clips, await readClip(await blob, name)];
      say("");
    } catch (error) {
      say(`${name} cannot be read as audio (${error.message || error.name}); use WAV, FLAC, MP3, Ogg or Opus`);
    }
    showClips();
  });
  return reading;
}

const addFiles = (files) => { [...files].forEach((file) => addClip(file, file.name)); };

async function toggleRecording() {
  if (endRecording) { endRecording(); return; }
  endRecording = () => {}; // while the browser asks for permission
  try {
    endRecording = await record(limits.max_duration_s, (seconds) => {
      $("record").textContent = `Stop recording (${Math.floor(seconds)} s)`;
      $("record").classList.add("on");
    }, async (blob) => {
      endRecording = null;
      $("record").textContent = "Record";
      $("record").classList.remove("on");
      const before = clips.length;
      await addClip(blob, "recording.webm");
      $("text").focus();
      if ($("at_once").checked && clips.length > before) await send();
    });
  } catch (error) {
    endRecording = null;
    say(`no microphone (${error.message || error.name}): allow it in the browser, or upload a file`);
  }
}

function messages(model, turn) {
  const question = ({ words, clips: sounds }) => ({ role: "user", content: [
    ...sounds.map(({ data, format }) => ({ type: "input_audio", input_audio: { data, format } })),
    ...(words ? [{ type: "text", text: words }] : []),
  ] });
  // A pretrained model takes one question, without system prompt or history.
  if (limits.templates[model] === "base") return [question(turn)];
  const system = $("system").value.trim();
  // A failed or missing answer leaves its question out.
  const before = turns.slice(0, turns.indexOf(turn)).filter((each) => each.answers.get(model)?.state === "done");
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...before.flatMap((each) => [question(each), { role: "assistant", content: each.answers.get(model).text }]),
    question(turn),
  ];
}

function showAnswer(answer) {
  const { view, text, state, note } = answer;
  // The page follows its end while the reader is there.
  const atEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 40;
  view.querySelector(".text").replaceChildren(markdown(text));
  view.querySelector(".note").textContent = note;
  view.classList.toggle("failed", state === "failed");
  view.setAttribute("aria-busy", String(state === "waiting"));
  if (atEnd) toEnd();
}

function answerView(turn, model) {
  const view = el("div", { class: "answer", "data-model": model, role: "group", "aria-label": `Answer of ${model}` },
    el("h2", {}, model), el("div", { class: "text" }), el("p", { class: "note" }),
    el("p", { class: "actions" },
      button("Copy", () => copyOut(turn.answers.get(model).text), `Copy the answer of ${model}`),
      button("Retry", () => answerAll(turn, [model]), `Retry the answer of ${model}`, "idle retry")));
  turn.view.querySelector(".answers").append(view);
  return view;
}

function turnView(turn) {
  const { words } = turn;
  const view = el("article", { class: "turn" },
    el("div", { class: "user" }, ...turn.clips.map((clip) => clipView(clip)), words && el("p", { class: "words" }, words),
      el("p", { class: "actions" }, words && button("Copy", () => copyOut(words), "Copy the question"),
        button("Edit", () => edit(turn), "Edit the question", "idle"))),
    el("div", { class: "answers" }));
  $("turns").append(view);
  return view;
}

async function answer(turn, model, settings, signal) {
  const view = turn.answers.get(model)?.view || answerView(turn, model);
  const made = { view, text: "", state: "waiting", note: "" };
  turn.answers.set(model, made);
  showAnswer(made);
  let due = false;
  const more = (text) => {
    made.text = text;
    first ??= performance.now();
    // Markdown is parsed from the start each time: no more often than the eye can see.
    if (!due) setTimeout(() => { due = false; showAnswer(made); }, 60);
    due = true;
  };
  const begun = performance.now();
  const seconds = (until = performance.now()) => `${((until - begun) / 1000).toFixed(1)} s`;
  let first = null;
  try {
    const { text, finish, tokens } = await answerOf({ model, messages: messages(model, turn), ...settings }, signal, more);
    const cut = finish === "length";
    view.classList.toggle("cut", cut);
    const wait = first ? ` (first word after ${seconds(first)})` : "";
    made.note = `${text ? "" : "empty answer, "}${cut ? "cut off at " : ""}${tokens} token${tokens === 1 ? "" : "s"}, ${seconds()}${wait}`;
    made.state = "done";
  } catch (error) {
    const stopped = error.name === "AbortError";
    // A stopped answer is part of the conversation, as far as it came; a failed one is not.
    made.state = stopped ? (made.text ? "done" : "none") : "failed";
    made.note = stopped ? `stopped after ${seconds()}` : error.message;
  }
  showAnswer(made);
}

function showBusy() {
  const busy = stopper !== null;
  // A button that goes must not take the keyboard's place on the page with it.
  const held = busy ? document.activeElement.matches("#send, .idle") : document.activeElement === $("stop");
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  document.querySelectorAll(".idle").forEach((each) => { each.disabled = busy; });
  if (held) (busy ? $("stop") : $("text")).focus();
}

async function answerAll(turn, models) {
  if (stopper) return;
  stopper = new AbortController();
  const settings = {
    max_tokens: Number($("max_tokens").value), temperature: Number($("temperature").value), top_p: Number($("top_p").value),
    ...($("seed").value ? { seed: Number($("seed").value) } : {}),
  };
  say("answering");
  const all = models.map((model) => answer(turn, model, settings, stopper.signal));
  showBusy();
  toEnd();
  await Promise.all(all);
  const failed = models.some((model) => turn.answers.get(model).state === "failed");
  say(stopper.signal.aborted ? "stopped" : failed ? "an answer failed" : "answered");
  stopper = null;
  showBusy();
}

function compose(words, sounds, turn) {
  replaced = turn;
  clips = sounds;
  $("text").value = words;
  $("cancel").hidden = !turn;
  document.querySelectorAll(".turn").forEach((each) => each.classList.toggle("replaced", each === turn?.view));
  showClips();
  $("text").focus();
}

function edit(turn) {
  compose(turn.words, turn.clips, turn);
  say("the edited question replaces the old one and all that follows it");
}

async function send() {
  await reading;
  const models = chosen();
  const words = $("text").value.trim();
  if (stopper) { say(stopper.signal.aborted ? "still stopping" : "still answering"); return; }
  if (!$("ask").reportValidity()) return;
  if (!models.length) { say("tick a checkpoint first"); return; }
  if (!clips.length && !words) { say("record or choose a clip, or write a question"); return; }
  if (replaced) turns.splice(turns.indexOf(replaced)).forEach((each) => each.view.remove());
  const turn = { words, clips, answers: new Map() };
  turn.view = turnView(turn);
  turns.push(turn);
  $("welcome").hidden = true;
  const held = document.activeElement;
  compose("", [], null);
  held.focus();
  await answerAll(turn, models);
}

function clear() {
  stopper?.abort();
  [...clips, ...turns.flatMap((turn) => turn.clips)].forEach((clip) => URL.revokeObjectURL(clip.url));
  turns.forEach((turn) => turn.view.remove());
  turns = [];
  $("welcome").hidden = false;
  compose("", [], null);
  say("");
}

function showModels() {
  const models = chosen();
  document.querySelectorAll(".answer").forEach((each) => { each.hidden = !models.includes(each.dataset.model); });
}

function unfold(control, panel, open = panel.hidden) {
  panel.hidden = !open;
  control.setAttribute("aria-expanded", String(open));
}

function showExamples(names) {
  $("offer").hidden = !names.length;
  $("examples").append(...names.map((name) => {
    const blob = () => fetch(`/examples/${encodeURIComponent(name)}`).then((response) => response.blob());
    return el("li", {}, button(name, () => addClip(blob(), name)));
  }));
  // Arrows only move; Enter, Space or a click attaches.
  $("examples").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...$("examples").querySelectorAll("button")];
    all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
  };
}

async function start() {
  const models = (await (await fetch("/v1/models")).json()).data.map((model) => model.id);
  $("models").append(...models.map((model, i) => el("label", {},
    el("input", { type: "checkbox", value: model, checked: i < 2, onchange: showModels }), ` ${model}`)));
  limits = await (await fetch("/examples")).json();
  $("max_tokens").value = $("max_tokens").max = limits.max_new_tokens;
  $("system").disabled = Object.values(limits.templates).every((template) => template === "base");
  showExamples(limits.examples);
  $("text").focus();
}

$("record").onclick = toggleRecording;
$("upload").onclick = () => $("files").click();
$("files").onchange = () => { addFiles($("files").files); $("files").value = ""; };
$("offer").onclick = () => unfold($("offer"), $("examples"));
$("adjust").onclick = () => unfold($("adjust"), $("settings"));
// A wrong number in a closed panel could not be shown.
$("ask").addEventListener("invalid", () => unfold($("adjust"), $("settings"), true), true);
$("ask").onsubmit = (event) => { event.preventDefault(); send(); };
$("stop").onclick = () => stopper?.abort();
$("cancel").onclick = () => { compose("", [], null); say(""); };
$("clear").onclick = clear;
$("text").oninput = showKind;
$("text").onkeydown = (event) => {
  // Enter also ends a word in the input methods of Chinese and Japanese.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  if (stopper) stopper.abort(); else if (replaced) $("cancel").click();
};
document.ondragover = (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); };
document.ondrop = (event) => {
  document.body.classList.remove("over");
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
};
document.onpaste = (event) => addFiles(event.clipboardData.files);
start().catch((error) => say(`the server does not answer: ${error.message}`));
